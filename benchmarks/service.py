# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What serving promises of its speed, each as a ratio of times that were taken in turns in one run.

    python benchmarks/service.py --model lumina-mgpt-7b-768 --size 512 --output service.json
    python benchmarks/service.py --model tiny --size 64 --rounds 1 --num_clients 4 --num_images 4 --threads 1

The parts:

- `clients`: clients of the HTTP server, each with one request after the other, against a server that makes one image
  at a time, and against the pipeline called with a batch of as many images.
- `first-row`: a request that arrives while eight images are sampled: steps of the engine until its first row is there,
  beyond those that it takes alone.
- `offline`: a batch job, images and metadata written, against a loop of the pipeline called with full batches. Two
  threads of this process work at tasks of rows, as those of one actor do. Ray takes no part and is not measured.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
import uvicorn
from models import describe_hardware, synchronize

from lumina_mgpt_diffusers import LuminaMGPTPipeline
from lumina_mgpt_diffusers.serving import EngineHost, RowsDone
from lumina_mgpt_diffusers.serving.batch_job import BatchJob
from lumina_mgpt_diffusers.serving.server import build_app, server_config


# An image takes two rows of the KV cache.
SLOTS = 2

RUNNING = 8
"""Images beside which a request arrives."""


def seeded(number: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(number)]


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@contextmanager
def server(pipe: LuminaMGPTPipeline, max_slots: int, args: argparse.Namespace) -> Iterator[str]:
    """The URL of a server."""
    host = EngineHost(pipe, max_slots, max_waiting=10_000, num_draft_tokens=args.num_draft_tokens)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        own = uvicorn.Server(server_config(build_app(host), log_level="critical"))
        thread = threading.Thread(target=own.run, kwargs={"sockets": [listener]})
        thread.start()
        while not own.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            own.should_exit = True
            thread.join()


def ask(url: str, args: argparse.Namespace) -> None:
    """All clients, each with its requests."""
    body = {"prompt": args.prompt, "size": f"{args.size}x{args.size}"}

    def client(index: int) -> None:
        with httpx.Client(timeout=3600) as own:
            for number in range(args.num_images):
                seed = index * args.num_images + number
                own.post(f"{url}/v1/images/generations", json={**body, "seed": seed}).raise_for_status()

    with ThreadPoolExecutor(args.num_clients) as pool:
        list(pool.map(client, range(args.num_clients)))


def batches(pipe: LuminaMGPTPipeline, number: int, size: int, args: argparse.Namespace) -> None:
    """Calls of the pipeline with full batches."""
    for start in range(0, number, size):
        pipe(
            [args.prompt] * min(size, number - start),
            height=args.size,
            width=args.size,
            generator=seeded(min(size, number - start)),
            num_draft_tokens=args.num_draft_tokens,
        )
    synchronize(pipe.device)


def measure_clients(pipe: LuminaMGPTPipeline, args: argparse.Namespace) -> list[tuple]:
    number = args.num_clients * args.num_images
    times: dict[str, list[float]] = {"server": [], "one at a time": [], "batches": []}
    with server(pipe, SLOTS * args.num_clients, args) as all_at_once, server(pipe, SLOTS, args) as one_by_one:
        ways = {
            "server": lambda: ask(all_at_once, args),
            "one at a time": lambda: ask(one_by_one, args),
            "batches": lambda: batches(pipe, number, args.num_clients, args),
        }
        ways["batches"]()  # warm
        for _ in range(args.rounds):
            for name, way in ways.items():
                times[name].append(timed(way))
    median = {name: statistics.median(values) for name, values in times.items()}
    return [
        (
            f"{args.num_clients} clients, against one image at a time",
            median["one at a time"] / median["server"],
            ">= 4",
        ),
        (f"the same, against batches of {args.num_clients}", median["batches"] / median["server"], ">= 0.9"),
    ]


def steps_to_first_row(host: EngineHost, args: argparse.Namespace) -> int:
    before = host.counts.num_steps
    job = host.start("text_to_image", every=1, prompt=args.prompt, height=args.size, width=args.size)
    for event in job:
        if isinstance(event, RowsDone):
            return host.counts.num_steps - before
    raise RuntimeError("The image has no rows.")


def measure_first_row(pipe: LuminaMGPTPipeline, args: argparse.Namespace) -> list[tuple]:
    later = []
    # Fixed drafts, which would else be others beside eight images.
    with EngineHost(pipe, SLOTS * (RUNNING + 1), num_draft_tokens=0) as host:
        for _ in range(args.rounds):
            alone = steps_to_first_row(host, args)
            others = [
                host.start("text_to_image", prompt=args.prompt, height=args.size, width=args.size)
                for _ in range(RUNNING)
            ]
            while host.counts.num_running < RUNNING:
                time.sleep(0.001)
            later.append(steps_to_first_row(host, args) - alone)
            for other in others:
                other.cancel()
    return [(f"steps to the first row beside {RUNNING} images, beyond those alone", statistics.median(later), "<= 2")]


def measure_offline(pipe: LuminaMGPTPipeline, args: argparse.Namespace) -> list[tuple]:
    number = args.num_clients * args.num_images
    offline, ideal = [], []
    settings = {"height": args.size, "width": args.size}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            job = BatchJob.create(folder, ({"prompt": args.prompt} for _ in range(number)), settings=settings)
            rows = list(job.rows())
            tasks = [rows[start : start + args.num_clients] for start in range(0, number, args.num_clients)]
            host = EngineHost(
                pipe, SLOTS * args.num_clients, max_waiting=10_000, num_draft_tokens=args.num_draft_tokens
            )

            def run(index: int) -> None:
                job.write_part(str(index), job.sample(host, tasks[index]))

            with host, ThreadPoolExecutor(2) as pool:
                offline.append(timed(lambda: list(pool.map(run, range(len(tasks))))))
            job.check_complete()
        ideal.append(timed(lambda: batches(pipe, number, args.num_clients, args)))
    ratio = statistics.median(ideal) / statistics.median(offline)
    return [(f"a job of {number} images, against batches of {args.num_clients}", ratio, ">= 0.9")]


PARTS = {"clients": measure_clients, "first-row": measure_first_row, "offline": measure_offline}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a pipeline")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--size", type=int, default=256, help="side of the images in px")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on a CPU")
    parser.add_argument("--compiled", action="store_true", help="compile the transformer")
    parser.add_argument(
        "--num_draft_tokens", type=int, default=0, help="a fixed number, so that all ways have the same"
    )
    parser.add_argument("--num_clients", type=int, default=16, help="at once, and images of a batch")
    parser.add_argument("--num_images", type=int, default=4, help="that each client asks for")
    parser.add_argument("--prompt", default="a red fox in the snow")
    parser.add_argument("--rounds", type=int, default=3, help="how often each time is taken")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipe = LuminaMGPTPipeline.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    if args.compiled:
        pipe.transformer.compile()
    hardware, rows = describe_hardware(torch.device(args.device)), []
    print(hardware)
    for part in args.parts:
        for name, value, goal in PARTS[part](pipe, args):
            rows.append({"part": part, "what": name, "value": value, "goal": goal})
            print(f"{name}: {value:.2f} (goal {goal})", flush=True)
    if args.output is not None:
        settings = {key: str(value) for key, value in vars(args).items()}
        args.output.write_text(json.dumps({"hardware": hardware, "settings": settings, "results": rows}, indent=2))


if __name__ == "__main__":
    main()
