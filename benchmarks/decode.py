# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Time per code of the original's strategy, of transformers' `generate` and of this project, on the same random weights.

    python benchmarks/decode.py --shape 340m --size 256 --dtype bfloat16
    python benchmarks/decode.py --shape 7b --size 768 --device cuda --modes original generate-static ours compiled int8
    python benchmarks/decode.py --shape 2.0 --size 768 --device cuda --modes original compiled compiled-drafts-31
    python benchmarks/decode.py --shape 2.0 --num_layers 4 --size 256 --max_steps 100 --modes original ours

Random weights serve for the time of a step; they say nothing of how many drafts are right, so that the modes with
drafts are to be read by their ms per step only. Where a whole image does not fit into a mode's part of `--minutes`, or
with `--max_steps`, only some steps are made, in the middle of the image, where the KV cache has its mean length. With
`--check` it also tests, in float32 on the tiny shape, that all modes give the same codes.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import psutil
import torch
import transformers
from models import (
    PROMPT_LENGTH,
    SHAPES,
    build_transformer,
    cache_bytes,
    compile_transformer,
    describe_hardware,
    language_of,
    measure_bandwidth,
    synchronize,
    weight_bytes,
)
from strategies import Task, TimedTransformer, original, ours, transformers_generate


NUM_DRAFTS = (1, 3, 7, 15, 31, 63, "auto")


@dataclass(frozen=True)
class Mode:
    """
    Args:
        sample (`Callable`): One of the strategies.
        is_compiled (`bool`): Whether the transformer is compiled by hand before.
        attention (`str`): Attention implementation.
        has_int8 (`bool`): Whether the weights are quantised, in place: such a mode has to be the last.
    """

    sample: Callable[[Task], torch.Tensor]
    is_compiled: bool = False
    attention: str = "sdpa"
    has_int8: bool = False

    @property
    def is_ours(self) -> bool:
        return self.sample not in (original, transformers_generate, generate_static)


def generate_static(task: Task) -> torch.Tensor:
    return transformers_generate(task, static=True)


def with_drafts(number: int | str) -> Callable[[Task], torch.Tensor]:
    return functools.partial(ours, num_draft_tokens=number)


batch_invariant = functools.partial(ours, batch_invariant=True)
# As many as fit into the one window that forwards then have on GPUs.
invariant_drafts = functools.partial(batch_invariant, num_draft_tokens=15)
samples_eagerly = functools.partial(ours, num_draft_tokens=15, samples_eagerly=True)


MODES = {
    "original": Mode(original),
    "generate": Mode(transformers_generate),
    "generate-static": Mode(generate_static),
    "ours": Mode(ours),
    **{f"drafts-{number}": Mode(with_drafts(number)) for number in NUM_DRAFTS},
    "compiled": Mode(ours, is_compiled=True),
    **{f"compiled-drafts-{number}": Mode(with_drafts(number), is_compiled=True) for number in NUM_DRAFTS},
    "invariant": Mode(batch_invariant),
    "compiled-invariant": Mode(batch_invariant, is_compiled=True),
    "invariant-drafts-15": Mode(invariant_drafts),
    "compiled-invariant-drafts-15": Mode(invariant_drafts, is_compiled=True),
    "compiled-drafts-15-eager-sampling": Mode(samples_eagerly, is_compiled=True),
    "flex": Mode(ours, is_compiled=True, attention="flex_attention"),
    "int8": Mode(ours, is_compiled=True, has_int8=True),
}


class Clock:
    """Times the steps of a run, and how much of them the transformer's forward takes."""

    def __init__(self, transformer: torch.nn.Module, device: torch.device, with_hooks: bool) -> None:
        self.device = device
        self.ticks: list[float] = []
        self.forward_seconds = 0.0
        self._end: float | None = None
        self._hooks = []
        if with_hooks:
            self._hooks.append(transformer.register_forward_pre_hook(self._before))
            self._hooks.append(transformer.register_forward_hook(self._after))

    def _before(self, *args) -> None:
        self._start = time.perf_counter()

    def _after(self, *args) -> None:
        self.forward_seconds += time.perf_counter() - self._start

    def tick(self) -> None:
        if not self.ticks:
            # The prompt is not counted.
            synchronize(self.device)
            self.forward_seconds = 0.0
        self.ticks.append(time.perf_counter())

    def stop(self, timed: TimedTransformer, number: int = 20) -> None:
        """End the run, and take the time of the forwards: on a GPU, where the host runs ahead, from repeated ones."""
        self.end()
        self.forward_seconds = timed.seconds
        if self.device.type == "cuda":
            for _ in range(number):
                timed.repeat()
            synchronize(self.device)
            self.forward_seconds = (time.perf_counter() - self._end) / number * (len(self.ticks) - 1)

    def end(self) -> None:
        if self._end is None:
            synchronize(self.device)
            self._end = time.perf_counter()

    def close(self) -> None:
        self.end()
        for hook in self._hooks:
            hook.remove()

    @property
    def seconds(self) -> float:
        return self._end - self.ticks[0]

    @property
    def mean_step_seconds(self) -> float:
        return self.seconds / (len(self.ticks) - 1)

    @property
    def step_seconds(self) -> float:
        """Of one step. The host may run ahead of a GPU, so that only the whole is a measure there."""
        if self.device.type == "cuda":
            return self.mean_step_seconds
        return statistics.median(after - before for before, after in zip(self.ticks, self.ticks[1:]))


def prepare(transformer: torch.nn.Module, mode: Mode) -> None:
    """Bring the transformer into the state that a mode runs in."""
    if mode.has_int8:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        # As transformers does, without the head.
        quantize_(transformer.model.layers, Int8WeightOnlyConfig())
    if mode.has_int8 or mode.attention != "sdpa":
        # Else it would be compiled for any batch size, if others ran before, and not be compared with its like.
        torch._dynamo.reset()
    transformer.set_attn_implementation(mode.attention)
    # Compiled code stays with torch, so that compiling again costs nothing.
    transformer._compiled_call_impl = None
    if mode.is_compiled:
        compile_transformer(transformer)


def make_task(
    shape: str, transformer: torch.nn.Module, device: torch.device, height: int, width: int, **settings: object
) -> Task:
    """What to sample with a transformer of one of the `SHAPES`: images in pixels, in the shape's language."""
    language = language_of(shape)
    stride = language.vocabulary.patch_size
    return Task(
        transformer,
        device,
        list(range(9000, 9000 + PROMPT_LENGTH)),
        rows=height // stride,
        columns=width // stride,
        top_k=language.top_k,
        vocabulary=language.vocabulary,
        **settings,
    )


def run(name: str, task: Task, repeats: int, bandwidth: float) -> dict:
    """
    Time one mode.

    Returns:
        `dict`: Of the fastest of `repeats` runs the median time of a step, and what follows from it.
        `seconds_per_image` is that of a whole image at that time per step and as many codes per step, also if
        `task.max_steps` cut the run short.
    """
    transformer, device, mode = task.transformer, task.device, MODES[name]
    if task.max_steps:
        task = replace(task, num_given_rows=task.rows // 2)
    prepare(transformer, mode)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    is_compiled = mode.is_compiled or name == "generate-static"
    warm_up_seconds = None
    if is_compiled:
        start = time.perf_counter()
        # Past the end of a row, which is a window of its own. A CUDA graph is recorded the second time a window comes
        # along and used from the third on.
        num_rows = 4 if device.type == "cuda" else 1
        warm_up = replace(task, max_steps=num_rows * task.columns + 2)
        mode.sample(warm_up)
        if name.endswith("auto"):
            # It may choose any of the windows at any time.
            for window in NUM_DRAFTS[:-1]:
                with_drafts(window)(replace(warm_up, max_steps=num_rows))
        if not task.max_steps and device.type == "cuda":
            # Every length of the cache has its CUDA graph.
            mode.sample(task)
        warm_up_seconds = time.perf_counter() - start
    # A compiled forward has no hooks, and on a GPU they would have to wait for it.
    has_hooks = device.type == "cpu" and not is_compiled and not mode.is_ours
    best = None
    for _ in range(repeats):
        clock = Clock(transformer, device, with_hooks=has_hooks)
        codes = mode.sample(replace(task, on_step=clock.tick, on_end=clock.stop))
        clock.close()
        # Where the window changes from step to step, only their mean says how long an image takes.
        seconds = clock.mean_step_seconds if name.endswith("auto") else clock.step_seconds
        result = {"mode": name, "ms_per_step": 1e3 * seconds, "steps": len(clock.ticks) - 1}
        if mode.is_ours:
            result["codes_per_step"] = (int((codes[0] >= 0).sum()) - task.num_given) / len(clock.ticks)
        # Of a whole image the last forward is longer than most, and on a GPU only that one is timed.
        if has_hooks or (mode.is_ours and (task.max_steps or device.type == "cpu")):
            result["outside_forward"] = 1 - clock.forward_seconds / clock.seconds
        if best is None or result["ms_per_step"] < best["ms_per_step"]:
            best = result
    num_codes, num_tokens = task.rows * task.columns, task.rows * (task.columns + 1) - 1
    # `generate` makes a step of its own for every row end.
    num_steps = num_codes / best["codes_per_step"] if mode.is_ours else num_tokens
    best["seconds_per_image"] = best["ms_per_step"] / 1e3 * num_steps / task.batch_size
    best["is_whole"] = not task.max_steps
    best["codes_per_second"] = num_codes / best["seconds_per_image"]
    rows = task.batch_size * (2 if task.guidance_scale != 1.0 else 1)
    weights = weight_bytes(transformer, task.vocabulary.num_codes)
    moved = weights + cache_bytes(transformer, PROMPT_LENGTH + num_tokens // 2, rows)
    best["bandwidth_fraction"] = moved / (best["ms_per_step"] / 1e3) / bandwidth
    best["weights_gib"] = weights / 2**30
    if warm_up_seconds is not None:
        best["warm_up_seconds"] = warm_up_seconds
    if device.type == "cuda":
        best["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    else:
        best["resident_gib"] = psutil.Process().memory_info().rss / 2**30
    return best


def steps_that_fit(name: str, task: Task, bandwidth: float, seconds: float) -> int | None:
    """How many steps of a mode take about so many seconds, None if a whole image takes no longer."""
    few = 4
    step_seconds = run(name, replace(task, max_steps=few), 1, bandwidth)["ms_per_step"] / 1e3
    number = int(seconds / step_seconds)
    return None if number >= task.rows * (task.columns + 1) else max(number, few)


def describe(result: dict, baseline: dict) -> str:
    line = (
        f"{result['mode']:16} {result['ms_per_step']:8.2f} ms/step  {result['codes_per_second']:9.2f} codes/s"
        f" {result['seconds_per_image']:8.2f} s/image "
        f" {baseline['seconds_per_image'] / result['seconds_per_image']:5.2f}x {baseline['mode']} "
        f" {result['bandwidth_fraction']:4.0%} of bandwidth"
    )
    if result["is_whole"]:
        line += ", whole images"
    if "outside_forward" in result:
        line += f", {result['outside_forward']:.1%} outside the forward"
    for key, words in (("peak_gib", "peak"), ("resident_gib", "resident")):
        if key in result:
            line += f", {words} {result[key]:.1f} GiB"
    if "warm_up_seconds" in result:
        line += f", {result['warm_up_seconds']:.0f} s to compile"
    return line


def check_modes_agree(device: torch.device) -> None:
    """In float32 every mode has to give the same codes, else one of them is fast because it does less."""
    task = Task(build_transformer("tiny", device, torch.float32), device, list(range(9000, 9030)), rows=6, columns=6)
    for task in (task, replace(task, num_given_rows=3)):
        sampled = ours(task)
        for name in ("generate", "compiled", "drafts-7", "drafts-31", "drafts-auto"):
            prepare(task.transformer, MODES[name])
            if not torch.equal(MODES[name].sample(task), sampled):
                raise SystemExit(f"{name} and ours sample different codes.")
        prepare(task.transformer, MODES["ours"])
        greedy = replace(task, top_k=1)
        if not torch.equal(original(greedy), ours(greedy)):
            raise SystemExit("original and ours choose different codes.")
    torch._dynamo.reset()
    print("All modes agree in float32.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="340m")
    parser.add_argument("--num_layers", type=int, help="fewer layers than the shape has, to save memory and time")
    parser.add_argument("--size", type=int, nargs="+", default=[256], help="height and width, or one for both, in px")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["original", "generate", "ours"])
    parser.add_argument("--batch_size", type=int, default=1, help="images at once, for this project's modes")
    parser.add_argument("--guidance_scale", type=float, default=4.0)
    parser.add_argument("--max_steps", type=int, help="stop after so many steps; default: as many as fit --minutes")
    parser.add_argument("--minutes", type=float, default=4.0, help="for all modes, without compiling; default: 4")
    parser.add_argument("--repeats", type=int, default=2, help="the fastest run counts")
    parser.add_argument("--check", action="store_true", help="first test that all modes give the same codes")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()

    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    if args.check:
        check_modes_agree(device)
    bandwidth = measure_bandwidth(device, dtype)
    transformer = build_transformer(args.shape, device, dtype, num_layers=args.num_layers)
    height, width = args.size * 2 if len(args.size) == 1 else args.size
    task = make_task(
        args.shape,
        transformer,
        device,
        height,
        width,
        guidance_scale=args.guidance_scale,
        batch_size=args.batch_size,
        max_steps=args.max_steps,
    )
    hardware = describe_hardware(device)
    versions = {module.__name__: module.__version__ for module in (torch, transformers, diffusers)}
    gibibytes = weight_bytes(transformer, task.vocabulary.num_codes) / 2**30
    print(f"{hardware} ({platform.machine()}), {versions}")
    print(f"{args.shape} {args.dtype}, {width}x{height} px, {args.batch_size} image(s), CFG {args.guidance_scale}")
    print(f"weights read per forward {gibibytes:.2f} GiB, bandwidth {bandwidth / 1e9:.1f} GB/s")
    results = []
    for mode in args.modes:
        # Weights can be quantised but once: such a mode takes as many steps as the one before it.
        if args.max_steps is None and not MODES[mode].has_int8:
            share = 60 * args.minutes / len(args.modes) / (args.repeats + 1)
            task = replace(task, max_steps=steps_that_fit(mode, task, bandwidth, share))
        results.append(run(mode, task, args.repeats, bandwidth))
        print(describe(results[-1], results[0]), flush=True)
    if args.output:
        record = {"hardware": hardware, "versions": versions, "bandwidth": bandwidth, "results": results}
        record |= {key: str(value) for key, value in vars(args).items()}
        args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
