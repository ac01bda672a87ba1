# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Jobs of many prompts: each row once, the same bytes however often it is tried."""

import hashlib
import json
import runpy
import sys
from pathlib import Path

import PIL.Image
import pyarrow.parquet as pq
import pytest
from conftest import copy_of
from serving_helpers import same, seeded

from lumina_mgpt_diffusers import LuminaMGPTPipeline
from lumina_mgpt_diffusers.serving import EngineHost
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
