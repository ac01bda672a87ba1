# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Ray: jobs whose actors, workers, nodes and driver are killed, and the server on replicas.

    LUMINA_MGPT_TEST_KILLS=20 pytest -m slow tests/test_ray.py
    pytest -m slow tests/test_ray.py -k replica

`LUMINA_MGPT_TEST_KILLS` says how often a job is killed (default: 20).
"""

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet as pq
import pytest

from lumina_mgpt_diffusers.serving.batch_job import BatchJob


# Seconds in which a node has to be known to the others, and a replica has to say how much it does, for which a busy
# machine needs more than the defaults.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
os.environ.setdefault("RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "10")
os.environ.setdefault("RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "10")

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

SCRIPT = Path(__file__).parents[1] / "examples" / "batch_shards.py"

NUM_ROWS, SIZE = 24, 192
"""Of a job: enough that a kill seldom comes after its end."""

PATIENCE = 600
"""Seconds that anything may take."""

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")

KINDS = ["actor", "node", "worker", "driver"]
"""What is killed, in turns."""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"id": f"row {n}", "prompt": f"a cat {n}"}) for n in range(NUM_ROWS)))
    return path


@pytest.fixture
def cluster():
    """Two nodes on this machine; a third can be added."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    yield cluster
    cluster.shutdown()


def batch(prompts: Path, folder: Path, model: Path, *options: str) -> list[str]:
    sizes = ["--height", str(SIZE), "--width", str(SIZE), "--rows_per_task", "2", "--max_slots", "4"]
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
    """What a job gives that runs without Ray."""
    folder = tmp_path_factory.mktemp("undisturbed") / "job"
    options = ["--output", str(folder), "--model", str(saved_folder)]
    options += ["--height", str(SIZE), "--width", str(SIZE)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", str(prompts), *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return images_of(folder)


def test_a_job(undisturbed, prompts, saved_folder, random_pipe):
    import io

    import PIL.Image
    from serving_helpers import same, seeded

    image = PIL.Image.open(io.BytesIO(undisturbed["row 3"]))
    seed = json.loads(image.text["parameters"])["seed"]
    assert same(image, random_pipe("a cat 3", height=SIZE, width=SIZE, generator=seeded(seed)).images[0])


def test_actors_that_would_take_all_cpus(undisturbed, prompts, saved_folder, tmp_path):
    command = batch(prompts, tmp_path / "job", saved_folder, "--num_actors", str(os.cpu_count()))
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=PATIENCE)
    assert images_of(tmp_path / "job") == undisturbed


def processes(name: str) -> list[psutil.Process]:
    """Those of Ray below this one whose names begin so, but the agents of nodes, with which a whole node ends."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if command.startswith(name) and not command.startswith(AGENTS):
                found.append(process)
    return found


def num_images(folder: Path) -> int:
    return len(list(folder.glob("images/*/*.png")))


def wait_for_image(driver: subprocess.Popen, folder: Path) -> None:
    """Wait until there is an image more, or the job is done."""
    before, end = num_images(folder), time.monotonic() + PATIENCE
    while num_images(folder) == before and driver.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_job_that_is_killed_again_and_again(cluster, undisturbed, prompts, saved_folder, tmp_path):
    """Kills of an actor, of any worker, of a node and of the driver, at any time and while rows are made."""
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
        if choice.random() < 0.5:
            wait_for_image(driver, folder)
        else:
            time.sleep(choice.uniform(1, 12))
        kind = KINDS[len(done) % len(KINDS)]
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
        done.append((kind, num_images(folder)))
        kills -= 1
    driver.wait(PATIENCE) if driver.poll() is None else None
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=PATIENCE)
    print(f"\nkilled: {done}")
    assert images_of(folder) == undisturbed


@pytest.fixture(scope="module")
def replicas(saved_folder):
    """Two replicas of the server."""
    from ray import serve
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    from lumina_mgpt_diffusers.serving.ray import app

    # Ray starts as many processes as there are CPUs before there is any work for them.
    small = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20, "log_to_driver": False}
    ray.init("local", **small)
    serve.start(http_options={"host": "127.0.0.1", "port": 18765})
    # As `serve run` passes them on.
    arguments = {"model": str(saved_folder), "name": "tiny", "request_seconds": str(PATIENCE)}
    arguments |= {"gpus_per_replica": "0", "cpus_per_replica": "0.5", "min_replicas": "2", "max_replicas": "2"}
    arguments |= {"max_pixels": str(512 * 512), "fetch_from": "images.example,example.org"}
    serve.run(build(app, arguments), name="lumina", route_prefix="/")
    yield "http://127.0.0.1:18765"
    serve.shutdown()
    ray.shutdown()


def test_replicas_serve_what_a_plain_call_gives(replicas, random_pipe):
    import openai
    from serving_helpers import from_base64, same, seeded

    client = openai.OpenAI(base_url=f"{replicas}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    expected = random_pipe("a cat", height=64, width=64, generator=seeded(5)).images[0]
    for _ in range(4):
        answer = client.images.generate(prompt="a cat", size="64x64", extra_body={"seed": 5})
        assert same(from_base64(answer.data[0].b64_json), expected)
    stream = client.images.generate(
        prompt="a cat", size="64x64", stream=True, partial_images=2, extra_body={"seed": 5}
    )
    events = list(stream)
    assert events[0].type == "image_generation.partial_image" and events[-1].type == "image_generation.completed"
    assert same(from_base64(events[-1].b64_json), expected)
    for size, reason in (("65x64", "divisible by 32"), ("512x544", "at most 262144 pixels")):
        with pytest.raises(openai.BadRequestError, match=reason):
            client.images.generate(prompt="a cat", size=size)
    image = {"type": "image_url", "image_url": {"url": "https://elsewhere.example/cat.png"}}
    with pytest.raises(openai.BadRequestError, match="its host is not among those"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [image]}])


REPLICA = "ray::ServeReplica:lumina:LuminaMGPT"
"""How the process of a replica is called that is ready."""


def fields(seed: int) -> dict:
    """Of an image that takes some seconds."""
    return {"prompt": "a cat", "size": "256x256", "seed": seed}


def ask(url: str, seed: int) -> str | None:
    """An image; None if the answer says that it was lost."""
    answer = httpx.post(f"{url}/v1/images/generations", json=fields(seed), timeout=PATIENCE)
    if answer.status_code == 500:
        return None
    return answer.raise_for_status().json()["data"][0]["b64_json"]


def watch(url: str, seed: int, begun: threading.Event) -> str | None:
    """An image of a stream; None if the stream is cut off. Tells of the first rows."""
    body, last = {**fields(seed), "stream": True, "partial_images": 8}, {}
    try:
        with httpx.stream("POST", f"{url}/v1/images/generations", json=body, timeout=PATIENCE) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    last = json.loads(line.removeprefix("data: "))
                    begun.set()
    except httpx.RemoteProtocolError:
        return None
    assert last["type"] == "image_generation.completed"
    return last["b64_json"]


def test_a_replica_that_dies_loses_what_it_was_making_and_says_so(replicas):
    alone = [ask(replicas, seed) for seed in range(2)]
    streams = []
    with ThreadPoolExecutor(10) as pool:
        for seed in range(2):  # one after the other, so that each replica gets one
            begun = threading.Event()
            streams.append(pool.submit(watch, replicas, seed % 2, begun))
            assert begun.wait(PATIENCE)
        plain = [pool.submit(ask, replicas, seed % 2) for seed in range(8)]
        time.sleep(0.5)
        assert not any(stream.done() for stream in streams)
        processes(REPLICA)[0].kill()
        streamed, answered = ([one.result() for one in asked] for asked in (streams, plain))
    print(f"\nlost: {streamed.count(None)} of 2 streams, {answered.count(None)} of 8 plain requests")
    assert streamed.count(None) == 1
    assert all(image in (None, alone[seed % 2]) for own in (streamed, answered) for seed, image in enumerate(own))
    end = time.monotonic() + PATIENCE
    while len(processes(REPLICA)) < 2:
        assert time.monotonic() < end
        time.sleep(0.5)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda seed: ask(replicas, seed % 2), range(8))) == alone * 4
