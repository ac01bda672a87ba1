# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Ray: jobs whose actors, workers, nodes and driver are killed, and the server on replicas.

`LUMINA_MGPT_TEST_KILLS` says how often a job is killed (default: 20).
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from lumina_mgpt_diffusers.serving.batch_job import BatchJob


ray = pytest.importorskip("ray")

pytestmark = pytest.mark.slow

ENVIRONMENT = {
    **os.environ,
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

COMMAND = [sys.executable, "-m", "lumina_mgpt_diffusers.cli"]

NUM_ROWS = 24


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"id": f"row {n}", "prompt": f"a cat {n}"}) for n in range(NUM_ROWS)))
    return path


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine; a third can be added."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    yield cluster
    cluster.shutdown()


def batch(prompts: Path, folder: Path, model: Path, *options: str) -> list[str]:
    sizes = ["--height", "64", "--width", "64", "--rows_per_task", "2", "--max_slots", "4"]
    own = ["batch", str(prompts), "--output", str(folder), "--model", str(model), "--device", "cpu", *sizes, *options]
    return [*COMMAND, *own]


def images_of(folder: Path) -> dict[str, bytes]:
    job = BatchJob.open(folder)
    assert job.check_complete() == NUM_ROWS
    rows = [row for file in job.metadata.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert all(row["error"] is None for row in rows)
    return {row["id"]: (folder / row["path"]).read_bytes() for row in rows}


@pytest.fixture(scope="module")
def undisturbed(prompts, saved_folder, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "job"
    subprocess.run(batch(prompts, folder, saved_folder), env=ENVIRONMENT, check=True, timeout=250)
    return images_of(folder)


def test_a_job(undisturbed, prompts, saved_folder, random_pipe):
    import io

    import PIL.Image
    from serving_helpers import same, seeded

    image = PIL.Image.open(io.BytesIO(undisturbed["row 3"]))
    seed = json.loads(image.text["parameters"])["seed"]
    assert same(image, random_pipe("a cat 3", height=64, width=64, generator=seeded(seed)).images[0])


def processes(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if name in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


def test_a_job_that_is_killed_again_and_again(cluster, undisturbed, prompts, saved_folder, tmp_path):
    """Kills of an actor, of a worker that reads or writes, of a node and of the driver, by chance."""
    kills, choice, folder = int(os.environ.get("LUMINA_MGPT_TEST_KILLS", 20)), random.Random(0), tmp_path / "job"
    command = batch(prompts, folder, saved_folder, "--ray", cluster.address, "--cpus_per_actor", "1")
    done: list[str] = []
    driver = None
    while kills > 0:
        if driver is None or driver.poll() is not None:
            if driver is not None and driver.returncode == 0:
                # It was faster than the kills: begin again, with another folder.
                assert images_of(folder) == undisturbed
                folder = tmp_path / f"job-{len(done)}"
                command[command.index("--output") + 1] = str(folder)
            driver = subprocess.Popen(command, env=ENVIRONMENT)
        time.sleep(choice.uniform(1, 12))
        kind = choice.choice(["actor", "worker", "node", "driver"])
        if kind == "driver":
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        elif kind == "node":
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
            cluster.add_node(num_cpus=2)
        else:
            victims = processes("ray::" + ("MapWorker" if kind == "actor" else "")) or processes("ray::")
            if not victims:
                continue
            try:
                choice.choice(victims).kill()
            except psutil.NoSuchProcess:
                continue
        done.append(kind)
        kills -= 1
    driver.wait(200) if driver.poll() is None else None
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=250)
    print(f"\nkilled: {done}")
    assert images_of(folder) == undisturbed
