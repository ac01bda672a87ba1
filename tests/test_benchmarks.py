# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks share with services that run for long: they end."""

import importlib
import threading
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_a_client_that_fails_ends_the_server(monkeypatch, random_pipe):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    service = importlib.import_module("service")
    before = set(threading.enumerate())
    with (
        pytest.raises(RuntimeError, match="client"),
        service.server(random_pipe, 2, SimpleNamespace(num_draft_tokens=0)) as url,
    ):
        assert httpx.get(f"{url}/health").status_code == 200
        raise RuntimeError("client")
    assert set(threading.enumerate()) <= before
