# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Jobs of many prompts: each row once, the same bytes however often it is tried."""

import hashlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
from conftest import copy_of
from serving_helpers import same, seeded

from lumina_mgpt_diffusers import LuminaMGPTPipeline
from lumina_mgpt_diffusers.cli import batch, main
from lumina_mgpt_diffusers.png import describe
from lumina_mgpt_diffusers.serving import EngineHost, Job, RowError, StepError
from lumina_mgpt_diffusers.serving.batch_job import BatchJob, load_prompts


SCRIPT = Path(__file__).parents[1] / "examples" / "batch_shards.py"

ROWS = [
    {"id": "fox", "prompt": "a fox"},
    {"id": "cat/../é", "prompt": "a cat", "height": 32, "width": 64, "top_k": 50},
    {"id": "dog", "prompt": "a dog", "negative_prompt": "a cat", "guidance_scale": 2.0},
    {"prompt": "a cow", "temperature": 0.5},
    {"id": "bad", "prompt": "a cow", "height": 33},
]


def metadata_of(job: BatchJob) -> dict[str, dict]:
    rows = [row for file in job.metadata.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert len(rows) == len({row["id"] for row in rows})
    return {row["id"]: row for row in rows}


def test_rows_are_those_of_plain_calls(trained_pipe, tmp_path):
    job = BatchJob.create(tmp_path, ROWS, seed=7, settings={"height": 64, "width": 64, "top_p": None})
    with EngineHost(trained_pipe) as host:
        job.write_part("a", job.sample(host, list(job.rows())))
    assert job.check_complete() == 5
    metadata = metadata_of(job)
    assert set(metadata) == {"fox", "cat/../é", "dog", "3", "bad"}
    for row in ROWS[:4]:
        own = metadata[str(row.get("id", 3))]
        settings = {name: value for name, value in row.items() if name not in ("id", "prompt")}
        expected = trained_pipe(
            row["prompt"], generator=seeded(own["seed"]), **{"height": 64, "width": 64, **settings}
        ).images[0]
        path = tmp_path / own["path"]
        assert same(PIL.Image.open(path), expected) and own["error"] is None
        assert hashlib.sha256(path.read_bytes()).hexdigest() == own["sha256"]
        assert json.loads(PIL.Image.open(path).text["parameters"])["seed"] == own["seed"] == job.seed_of(own["id"])
    assert "33" in metadata["bad"]["error"] and metadata["bad"]["path"] is None


def test_seeds_follow_from_the_job_and_the_row(tmp_path):
    one, other = (BatchJob.create(tmp_path / str(seed), ROWS[:1], seed=seed) for seed in (1, 2))
    assert one.seed_of("fox") == 239840437033791 != other.seed_of("fox") and one.seed_of("fox") != one.seed_of("cat")
    assert one.path_of("a") != one.path_of("b")


def test_a_job_goes_on_as_it_was_written_down(tmp_path):
    job = BatchJob.create(tmp_path, ROWS, seed=1, model="tiny", settings={"height": 64})
    assert BatchJob.create(tmp_path, [], seed=1, model="tiny", settings={"height": 64}) == job
    assert BatchJob.open(tmp_path) == job
    for changed in ({"seed": 2}, {"model": "other"}, {"settings": {"height": 32}}):
        with pytest.raises(ValueError, match="already"):
            BatchJob.create(tmp_path, ROWS, **{"seed": 1, "model": "tiny", "settings": {"height": 64}, **changed})
    assert [[row["id"] for row in job.rows(shard, 2)] for shard in (0, 1)] == [
        ["fox", "dog", "bad"],
        ["cat/../é", "3"],
    ]


@pytest.mark.parametrize(
    "rows, reason",
    [
        ([], "no prompts"),
        ([{"prompt": 5}], "row 0"),
        ([{"id": "a", "prompt": "a"}, {"id": "a", "prompt": "b"}], "twice"),
        ([{"prompt": "a", "height": "tall"}], "numbers"),
    ],
)
def test_what_is_no_job_is_refused(tmp_path, rows, reason):
    with pytest.raises(ValueError, match=reason):
        BatchJob.create(tmp_path, rows)
    assert not (tmp_path / "job.json").exists()


def test_prompts_of_files(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"key": str(n), "text": f"cat {n}"}) for n in range(3)))
    rows = list(load_prompts(str(tmp_path / "a.jsonl"), prompt_column="text", id_column="key"))
    assert [(row["id"], row["prompt"]) for row in rows] == [(str(n), f"cat {n}") for n in range(3)]
    (tmp_path / "a.txt").write_text("a cat\na dog\n")
    assert [row["prompt"] for row in load_prompts(str(tmp_path / "a.txt"))] == ["a cat", "a dog"]
    with pytest.raises(ValueError, match="no column 'prompt'"):
        list(load_prompts(str(tmp_path / "a.jsonl")))
    with pytest.raises(ValueError, match="no file"):
        list(load_prompts(str(tmp_path / "b.parquet")))


@pytest.mark.parametrize("kind", ["csv", "parquet", "json", "folder"])
def test_prompts_of_tables(tmp_path, kind):
    table = datasets.Dataset.from_list([{"id": f"{n}é", "prompt": f"cat, {n}", "height": 32 * n} for n in (1, 2)])
    source = tmp_path / f"prompts.{kind}"
    if kind == "folder":
        source.mkdir()
        table.to_parquet(source / "test-00000.parquet")
    else:
        getattr(table, f"to_{kind}")(source)
    job = BatchJob.create(tmp_path / "job", load_prompts(str(source), split="test"))
    rows = [(row["id"], row["prompt"], row["height"], row["width"]) for row in job.rows()]
    assert rows == [("1é", "cat, 1", 32, None), ("2é", "cat, 2", 64, None)]


def test_a_job_is_written_down_as_a_whole(tmp_path, monkeypatch):
    """Others wait for the file, and open it as soon as it is there."""
    replace = os.replace

    def fail(source, destination):
        if Path(destination).name == "job.json":
            assert json.loads(Path(source).read_text())["num_rows"] == 5
            raise KeyboardInterrupt
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        BatchJob.create(tmp_path, ROWS)
    assert not (tmp_path / "job.json").exists()


def test_which_gpu_made_an_image_is_not_told(trained_pipe, monkeypatch):
    monkeypatch.setattr(type(trained_pipe), "device", torch.device("cuda", 3))
    assert describe(trained_pipe)["device"] == "cuda"


@pytest.mark.parametrize("error", [RowError("not finite"), StepError("MemoryError")])
def test_what_a_row_failed_with_is_written_down(tmp_path, error):
    """An error of the whole batch is none of the row's: it is tried again."""
    job, sampling = BatchJob.create(tmp_path, ROWS), Job(lambda job: None, None)
    sampling.fail(error)
    row = next(job.rows())
    if isinstance(error, RowError):
        job.write_part("a", [job.finish(None, row, sampling)])
        assert job.done() == ["fox"] and list(job.errors()) == [("fox", "not finite")]
    else:
        with pytest.raises(StepError):
            job.finish(None, row, sampling)


@pytest.fixture
def command(monkeypatch, tmp_path, trained_pipe):
    """Runs `lumina-mgpt batch`, without Ray, and gives what Ray was asked for."""
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")

    def run(*options: str) -> dict:
        asked: dict = {}

        def run_batch(job: BatchJob, load: object, **arguments: object) -> int:
            asked.update(arguments)
            with EngineHost(copy_of(trained_pipe)) as host:
                job.write_part("a", job.sample(host, list(job.rows())))
            return job.check_complete()

        own = SimpleNamespace(run_batch=run_batch, ray=SimpleNamespace(init=lambda **arguments: None))
        imported = {"serving.ray_batch": own, "serving.batch_job": sys.modules[BatchJob.__module__]}
        monkeypatch.setattr(batch, "import_extra", lambda name, extra: imported[name])
        main(["batch", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "job"), "--model", "tiny", *options])
        return asked

    return run


@pytest.mark.parametrize("has_gpu", [False, True])
def test_gpus_are_asked_for_where_there_are_any(command, monkeypatch, has_gpu, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    size = ["--height", "32", "--width", "32"]
    assert command(*size)["num_gpus"] == has_gpu
    assert "2 rows are done, 0 of them with an error" in capsys.readouterr().out
    if not has_gpu:
        assert command(*size, "--ray", "auto", "--device", "cuda")["num_gpus"] == 1


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--ray", "auto"], "--device"),
        (["--rows_per_task", "0"], "`rows_per_task`"),
        (["--num_actors", "0"], "`num_actors`"),
        (["--max_slots", "1"], "`max_slots`"),
    ],
)
def test_a_command_that_is_none_writes_nothing(command, tmp_path, capsys, options, reason):
    with pytest.raises(SystemExit) as exit_:
        command(*options)
    assert exit_.value.code == 2 and reason in capsys.readouterr().err
    assert not (tmp_path / "job").exists()


def test_rows_that_fail_are_told_of(command, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        command("--height", "33")
    assert exit_.value.code == 1
    said = capsys.readouterr()
    assert "2 rows are done, 2 of them with an error" in said.out and "33" in said.err
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["0", "1"]


@pytest.fixture
def shard(monkeypatch, tmp_path, trained_pipe):
    """Runs the script, as its processes are run by SLURM."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\na cow\n")
    monkeypatch.setattr(LuminaMGPTPipeline, "from_pretrained", lambda *args, **kwargs: copy_of(trained_pipe))
    main = runpy.run_path(str(SCRIPT))["main"]

    def run(rank: int, *options: str) -> None:
        environment = {"SLURM_PROCID": rank, "SLURM_NTASKS": 2, "SLURM_LOCALID": rank}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        size = ["--height", "32", "--width", "32"]
        arguments = [str(prompts), "--output", str(tmp_path / "job"), *size, *options]
        monkeypatch.setattr(sys, "argv", ["script", *arguments])
        main()

    return run


def test_shards_of_slurm(shard, tmp_path, capsys):
    for rank in range(2):
        shard(rank)
    job = BatchJob.open(tmp_path / "job")
    assert job.check_complete() == 3 and len(list(job.metadata.glob("*.parquet"))) == 2
    assert "Process 1 of 2 is done; 0 of its rows have an error." in capsys.readouterr().out
    for changed in (["--seed", "1"], ["--model", "other"], ["--height", "64"]):
        with pytest.raises(ValueError, match="already"):
            shard(1, *changed)


def test_shards_do_not_wait_for_ever(shard, capsys):
    with pytest.raises(TimeoutError, match=r"rank 0 .*job.json.* 0.1 s"):
        shard(1, "--patience", "0.1")
    with pytest.raises(SystemExit):
        shard(0, "--rows_per_part", "0")
    assert "--rows_per_part" in capsys.readouterr().err


def test_a_process_takes_a_gpu_that_it_sees(monkeypatch):
    device_of_process = runpy.run_path(str(SCRIPT))["device_of_process"]
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for count, index in ((8, 3), (2, 1), (1, 0)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        assert device_of_process() == torch.device("cuda", index)


@pytest.mark.slow
def test_shards_of_accelerate(saved_folder, tmp_path):
    """As accelerate begins a process for each GPU; without any the script takes the CPU. `--cpu` begins one alone."""
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na cow\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    arguments = ["--output", tmp_path / "job", "--model", saved_folder, "--height", "32", "--width", "32"]
    command = [*launch, SCRIPT, tmp_path / "prompts.txt", *arguments]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=280).stdout
    assert "Process 0 of 2 is done" in said and "Process 1 of 2 is done" in said
    assert BatchJob.open(tmp_path / "job").check_complete() == 3


def test_shards_are_killed_and_go_on(trained_pipe, tmp_path, monkeypatch):
    """Processes end anywhere, others in another number take over, and the bytes are those of an undisturbed run."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"a cat {number}"}) for number in range(10)))
    monkeypatch.setattr(LuminaMGPTPipeline, "from_pretrained", lambda *args, **kwargs: copy_of(trained_pipe))
    main = runpy.run_path(str(SCRIPT))["main"]

    def run(output: str, rank: int, world_size: int, parts_until_it_dies: int | None = None) -> None:
        arguments = ["--model", "tiny", "--height", "32", "--width", "32", "--rows_per_part", "2"]
        monkeypatch.setattr(sys, "argv", ["script", str(prompts), "--output", str(tmp_path / output), *arguments])
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        left = [parts_until_it_dies]

        def write_part(self, name, done, write=BatchJob.write_part):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] = left[0] and left[0] - 1
            write(self, name, done)

        with monkeypatch.context() as patch:
            patch.setattr(BatchJob, "write_part", write_part)
            if parts_until_it_dies is None:
                main()
            else:
                with pytest.raises(KeyboardInterrupt):
                    main()

    run("whole", 0, 1)
    run("killed", 0, 1, parts_until_it_dies=1)
    run("killed", 1, 3, parts_until_it_dies=0)
    for rank in range(3):
        run("killed", rank, 3)
    whole, killed = BatchJob.open(tmp_path / "whole"), BatchJob.open(tmp_path / "killed")
    assert whole.check_complete() == killed.check_complete() == 10
    assert metadata_of(whole) == metadata_of(killed)
    for row in metadata_of(whole).values():
        assert (tmp_path / "whole" / row["path"]).read_bytes() == (tmp_path / "killed" / row["path"]).read_bytes()
    assert not list(tmp_path.glob("killed/images/*/.*"))
