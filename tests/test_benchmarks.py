# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks, on shapes that take no time."""

import importlib
import json
import threading
from types import SimpleNamespace

import httpx
import pytest
from training_helpers import ROOT


@pytest.mark.parametrize(
    ("shape", "stride", "num_codes", "top_k"), [("tiny", 16, 8192, 2000), ("2.0-tiny", 8, 16384, 4096)]
)
def test_the_table_times_the_codes_of_its_shape(monkeypatch, tmp_path, shape, stride, num_codes, top_k):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    table = importlib.import_module("table")
    tasks = []

    def run(mode, task, **kwargs):
        tasks.append(task)
        return importlib.import_module("decode").run(mode, task, **kwargs)

    jobs = [("ours", {"max_steps": 4}), ("drafts-7", {"size": 64, "max_steps": 4})]
    replaced = {"run": run, "make_jobs": lambda args: jobs}
    replaced |= {"check_modes_agree": lambda device: None, "measure_bandwidth": lambda device, dtype: 1e10}
    for name, value in replaced.items():
        monkeypatch.setattr(table, name, value)
    output = tmp_path / "table.json"
    arguments = ["--shape", shape, "--size", "32", "--dtype", "float32", "--device", "cpu", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["table.py", *arguments])
    table.main()
    assert [one["size"] for one in json.loads(output.read_text())["results"]] == [32, 64]
    assert [(one.rows, one.columns) for one in tasks] == [(32 // stride,) * 2, (64 // stride,) * 2]
    assert {(one.vocabulary.num_codes, one.top_k) for one in tasks} == {(num_codes, top_k)}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_table_times_what_there_is(monkeypatch, device):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    table, decode = map(importlib.import_module, ("table", "decode"))
    args = SimpleNamespace(device=device, max_steps=4, size=64, sizes=[64, 96], batches=[1, 2])
    modes = [mode for mode, _ in table.make_jobs(args)]
    assert set(modes) <= set(decode.MODES)
    assert modes.count("compiled-invariant") == (2 if device == "cuda" else 1)


def test_a_client_that_fails_ends_the_server(monkeypatch, random_pipe):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    service = importlib.import_module("service")
    before = set(threading.enumerate())
    with (
        pytest.raises(RuntimeError, match="client"),
        service.server(random_pipe, 2, SimpleNamespace(num_draft_tokens=0)) as url,
    ):
        assert httpx.get(f"{url}/health").status_code == 200
        raise RuntimeError("client")
    assert set(threading.enumerate()) <= before
