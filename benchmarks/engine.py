# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What the engine promises of its speed, each as a ratio of times that were taken in turns in one run.

    python benchmarks/engine.py --model small_model --before ../checkout-of-another-version --output engine.json
    python benchmarks/engine.py --parts sizes chat --compiled
    python benchmarks/engine.py --shape tiny --size 128 --threads 1 --rounds 1 --num_requests 6 --capacity 2

The parts:

- `drafts`: images of a trained model (`small_model.py`) with drafts at their default, `"auto"`, against fixed numbers,
  by the batch; one image against the original's strategy, and against the default of the version in `--before`.
- `no-drafts`: one image without drafts on random weights, eager and compiled, against the version in `--before`.
- `sizes`: 16 requests of five sizes at once against 16 of one size, by codes per second.
- `chat`: an answer that is an image, sampled as a turn of a conversation, against text to image of that size.
- `arrivals`: requests that arrive at random (Poisson) at 80% of what full batches would serve, taken at any step,
  against batches formed by waiting.
- `overhead`: how much of a step is outside the forward, by window, eager and compiled.

`sizes`, `chat` and `arrivals` run on random weights without drafts, and with `--model` also on the trained model with
drafts at their default. Images are also compared: the number of drafts may not change them, nor may a chat.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import diffusers
import torch
import transformers
from calls import ModelOptions, PipelineProcess
from decode import run
from models import SHAPES, describe_hardware, measure_bandwidth
from serving import (
    Trial,
    Workload,
    at_any_step,
    batches_of_waiting,
    full_batches,
    sample,
    serve,
)
from small_model import SIDE
from strategies import Task, original

from lumina_mgpt_diffusers.lumina_mgpt.unirep import trained_sizes


AUTO = "auto"
Result = TypeVar("Result")


def take_turns(modes: dict[str, Callable[[int], Result]], rounds: int) -> dict[str, list[Result]]:
    """What each mode, called with the number of the round, gives in turns, after a round that is not counted."""
    results = {name: [] for name in modes}
    for number in range(-1, rounds):
        for name in modes if number % 2 else reversed(modes):
            result = modes[name](max(number, 0))
            if number >= 0:
                results[name].append(result)
    return results


class Report:
    """
    Tables, printed as they come and kept in a file.

    Args:
        header (`dict`): What they were measured on.
        path (`Path`, *optional*): The JSON file.
    """

    def __init__(self, header: dict, path: Path | None) -> None:
        self.record = {**header, "tables": []}
        self.path = path

    def add(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str | float]]) -> None:
        rows = [list(row) for row in rows]
        print(f"\n{title}\n\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
        for row in rows:
            cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row]
            print("| " + " | ".join(cells) + " |", flush=True)
        self.record["tables"].append({"title": title, "columns": list(columns), "rows": rows})
        if self.path is not None:
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.record, indent=2) + "\n")
            os.replace(partial, self.path)


def measure_drafts(args: argparse.Namespace, report: Report) -> None:
    if args.model is None:
        print("\n`drafts` is left out: it needs a trained `--model`.")
        return
    workload = trained_workload(args)
    for batch_size in args.batch_sizes:

        def draw(number: int, num_draft_tokens: int | str, batch_size: int = batch_size) -> Trial:
            requests = [workload.request(number * batch_size + index) for index in range(batch_size)]
            return sample(workload.engine(num_draft_tokens), requests)

        modes = {
            str(drafts): lambda number, drafts=drafts: draw(number, drafts) for drafts in [AUTO, *args.num_drafts]
        }
        trials = take_turns(modes, args.rounds)
        whole = {name: sum(trial.seconds for trial in of_mode) for name, of_mode in trials.items()}
        late = {name: sum(trial.late_seconds for trial in of_mode) for name, of_mode in trials.items()}
        number = batch_size * args.rounds
        report.add(
            f"Drafts at their default against fixed numbers: {batch_size} image(s) at once, {workload.name}",
            ("drafts", "s per image", "times auto", "after two rows", "times auto", "steps per code", "other images"),
            (
                (
                    name,
                    whole[name] / number,
                    whole[name] / whole[AUTO],
                    late[name] / number,
                    late[name] / late[AUTO],
                    sum(trial.steps for trial in of_mode) / args.rounds / SIDE**2,
                    count_different(of_mode, trials[AUTO]),
                )
                for name, of_mode in trials.items()
            ),
        )
    measure_default(args, report)


def count_different(trials: Sequence[Trial], others: Sequence[Trial]) -> int:
    """How many images are not the same to the code."""
    pairs = [(one, other) for trial, same in zip(trials, others) for one, other in zip(trial.rows, same.rows)]
    return sum(not torch.equal(one.codes, other.codes) for one, other in pairs)


def measure_default(args: argparse.Namespace, report: Report) -> None:
    options = trained_options(args)
    size = SIDE * options.vocabulary.patch_size
    eager = replace(options, is_compiled=False).build()

    def draw_original(number: int) -> float:
        settings = {"top_k": options.top_k, "vocabulary": options.vocabulary, "seed": number}
        task = Task(eager, eager.device, options.context(number), SIDE, SIDE, **settings)
        return timed(lambda: original(task))

    with ExitStack() as stack:
        processes = open_processes(stack, args, options)
        modes = {name: lambda number, one=one: one.seconds(size, number) for name, one in processes.items()}
        seconds = take_turns({**modes, "the original's strategy": draw_original}, args.rounds)
    report_ratios(report, f"One image by the pipeline's default, {options.dtype}, trained model", seconds)


def measure_no_drafts(args: argparse.Namespace, report: Report) -> None:
    for is_compiled in (False, True):
        options = replace(random_options(args), is_compiled=is_compiled)
        with ExitStack() as stack:
            processes = open_processes(stack, args, options)
            modes = {
                name: lambda number, one=one: one.seconds(args.size, number, num_draft_tokens=0)
                for name, one in processes.items()
            }
            seconds = take_turns(modes, args.rounds)
        title = f"One image without drafts by the pipeline, {args.shape}, {args.size} px, {options.dtype}"
        report_ratios(report, f"{title}, {'compiled' if is_compiled else 'eager'}", seconds)


def open_processes(stack: ExitStack, args: argparse.Namespace, options: ModelOptions) -> dict[str, PipelineProcess]:
    checkouts = {"now": None} | ({} if args.before is None else {"before": args.before})
    processes = {name: stack.enter_context(PipelineProcess(options, path)) for name, path in checkouts.items()}
    if len({process.version for process in processes.values()}) < len(processes):
        raise SystemExit(f"`--before` {args.before} is the version that is measured against it.")
    return processes


def report_ratios(report: Report, title: str, seconds: dict[str, list[float]]) -> None:
    now = sum(seconds["now"])
    report.add(
        title,
        ("", "s per image", "times now"),
        ((name, sum(some) / len(some), sum(some) / now) for name, some in seconds.items()),
    )


def five_sizes(workload: Workload) -> list[tuple[int, int]]:
    """From the widest to the tallest, all with about as many codes as the square."""
    base, most = workload.size, workload.options.vocabulary.max_side
    sizes = [size for size in trained_sizes(base) if max(size) <= most and size[0] * size[1] >= 0.9 * base**2]
    if len(sizes) < 5:
        raise SystemExit(
            f"There are not five sizes with about as many codes as {base}x{base}; take a `--size` of 128."
        )
    return [sizes[round(index * (len(sizes) - 1) / 4)] for index in range(5)]


def measure_sizes(args: argparse.Namespace, report: Report) -> None:
    for workload in workloads(args):
        sizes = five_sizes(workload)

        def draw(number: int, sizes: Sequence[tuple[int, int]], workload: Workload = workload) -> Trial:
            requests = [
                workload.request(number * args.num_at_once + index, sizes[index % len(sizes)])
                for index in range(args.num_at_once)
            ]
            return sample(workload.engine(), requests)

        modes = {
            "one size": lambda number, draw=draw, side=workload.size: draw(number, [(side, side)]),
            "five sizes": lambda number, draw=draw, sizes=sizes: draw(number, sizes),
        }
        trials = take_turns(modes, args.rounds)
        speeds = {
            name: sum(trial.num_codes for trial in some) / sum(trial.seconds for trial in some)
            for name, some in trials.items()
        }
        report.add(
            f"{args.num_at_once} requests at once of {workload.size}x{workload.size} px, and of "
            + ", ".join("x".join(map(str, size)) for size in sizes)
            + f": {workload.name}",
            ("", "codes per s", "times one size", "codes", "steps"),
            (
                (name, speed, speed / speeds["one size"], trials[name][0].num_codes, trials[name][0].steps)
                for name, speed in speeds.items()
            ),
        )


def measure_chat(args: argparse.Namespace, report: Report) -> None:
    for workload in workloads(args):
        # Nothing but the start of an image may follow the prompt.
        text_ids = [workload.options.vocabulary.start_id]

        def draw(number: int, is_image: bool, workload: Workload = workload, text_ids: list[int] = text_ids) -> Trial:
            return sample(workload.engine(text_ids=text_ids), [workload.request(number, is_image=is_image)])

        modes = {
            "text to image": lambda number, draw=draw: draw(number, True),
            "chat": lambda number, draw=draw: draw(number, False),
        }
        trials = take_turns(modes, args.rounds)
        seconds = {name: sum(trial.seconds for trial in some) / args.rounds for name, some in trials.items()}
        report.add(
            f"An image of {workload.size} px as the answer of a chat: {workload.name}",
            ("", "s per image", "speed, times text to image", "steps", "other images"),
            (
                (
                    name,
                    seconds[name],
                    seconds["text to image"] / seconds[name],
                    some[0].steps,
                    count_different(some, trials["text to image"]),
                )
                for name, some in trials.items()
            ),
        )


def measure_arrivals(args: argparse.Namespace, report: Report) -> None:
    for workload in workloads(args):

        def requests(number: int, workload: Workload = workload) -> list:
            return [workload.request(number * args.num_requests + index) for index in range(args.num_requests)]

        full = take_turns(
            {"full": lambda number: sample(workload.engine(), requests(number)[: args.capacity])}, args.rounds
        )
        rate = args.load * args.capacity * args.rounds / sum(trial.seconds for trial in full["full"])

        def draw(number: int, policy: Callable, workload: Workload = workload, rate: float = rate) -> float:
            clock, arrivals = 0.0, []
            generator = random.Random(args.seed + number)
            for request in requests(number, workload):
                clock += generator.expovariate(rate)
                arrivals.append((clock, request))
            return statistics.mean(serve(workload.engine(max_slots=2 * args.capacity), arrivals, policy))

        policies = {
            "at any step": at_any_step,
            "batches of what waits": batches_of_waiting(args.capacity),
            "full batches": full_batches(args.capacity),
        }
        modes = {name: lambda number, draw=draw, one=one: draw(number, one) for name, one in policies.items()}
        latencies = {name: statistics.mean(some) for name, some in take_turns(modes, args.rounds).items()}
        report.add(
            f"{args.num_requests} requests that arrive at random, {rate:.3f} a second, {args.load:.0%} of full batches"
            f" of {args.capacity}: {workload.name}",
            ("taken", "mean latency, s", "at any step, times this"),
            ((name, seconds, latencies["at any step"] / seconds) for name, seconds in latencies.items()),
        )


def measure_overhead(args: argparse.Namespace, report: Report) -> None:
    options = random_options(args)
    transformer = options.build()
    side = args.size // options.vocabulary.patch_size
    # In the middle of an image.
    task = Task(transformer, transformer.device, options.context(0), side, side, max_steps=args.max_steps)
    bandwidth = measure_bandwidth(transformer.device, transformer.dtype)
    rows = []
    for kind, plain, prefix in (("eager", "ours", "drafts-"), ("compiled", "compiled", "compiled-drafts-")):
        for window in args.windows:
            result = run(plain if window == 1 else f"{prefix}{window - 1}", task, args.rounds, bandwidth)
            rows.append((kind, window, result["ms_per_step"], result["outside_forward"]))
    report.add(
        f"Share of a step outside the forward: {args.shape}, {options.dtype}, {args.size} px",
        ("", "window", "ms per step", "outside"),
        rows,
    )


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def random_options(args: argparse.Namespace) -> ModelOptions:
    return ModelOptions(args.shape, None, args.dtype, args.device, args.threads, args.compiled)


def trained_options(args: argparse.Namespace) -> ModelOptions:
    return replace(random_options(args), folder=str(args.model.resolve()))


def trained_workload(args: argparse.Namespace) -> Workload:
    options = trained_options(args)
    return Workload(options, SIDE * options.vocabulary.patch_size, AUTO)


def workloads(args: argparse.Namespace) -> Iterable[Workload]:
    yield Workload(random_options(args), args.size, 0)
    if args.model is not None:
        yield trained_workload(args)


PARTS = {
    "drafts": measure_drafts,
    "no-drafts": measure_no_drafts,
    "sizes": measure_sizes,
    "chat": measure_chat,
    "arrivals": measure_arrivals,
    "overhead": measure_overhead,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", type=Path, help="folder that small_model.py wrote")
    parser.add_argument("--before", type=Path, help="root of a checkout of another version to compare with")
    parser.add_argument("--shape", choices=SHAPES, default="340m", help="of the random weights")
    parser.add_argument("--size", type=int, default=256, help="side of the images of random weights, in px")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on a CPU")
    parser.add_argument(
        "--compiled", action="store_true", help="compile the transformer in the parts that do not try both"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each time is taken")
    parser.add_argument("--num_drafts", type=int, nargs="+", default=[0, 1, 3, 7, 15, 31], help="fixed numbers")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32], help="of the part `drafts`")
    parser.add_argument("--num_at_once", type=int, default=16, help="requests of the part `sizes`")
    parser.add_argument("--num_requests", type=int, default=32, help="that arrive")
    parser.add_argument("--capacity", type=int, default=8, help="images at once while requests arrive")
    parser.add_argument("--load", type=float, default=0.8, help="how much of the capacity arrives")
    parser.add_argument("--windows", type=int, nargs="+", choices=[1, 2, 4, 8, 16, 32, 64], default=[1, 4, 8, 16, 32])
    parser.add_argument("--max_steps", type=int, default=40, help="steps of the part `overhead`")
    parser.add_argument("--seed", type=int, default=0, help="of the times of arrival")
    parser.add_argument("--output", type=Path, help="JSON file for the tables")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    header = {
        "hardware": describe_hardware(torch.device(args.device)),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, diffusers)},
        "settings": {key: str(value) for key, value in vars(args).items()},
    }
    print(f"{header['hardware']}, {header['versions']}")
    report = Report(header, args.output)
    for part in args.parts:
        PARTS[part](args, report)


if __name__ == "__main__":
    main()
