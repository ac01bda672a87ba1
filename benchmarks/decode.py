# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Time per code of the original's strategy, of transformers' `generate` and of this project, on the same random weights.

    python benchmarks/decode.py --shape 340m --size 256 --dtype bfloat16
    python benchmarks/decode.py --shape 7b --size 768 --device cuda --modes original generate-static ours compiled int8

Random weights serve for the time of a step; they say nothing of how many drafts are right, so that the modes with
drafts are to be read by their ms per step only. With `--check` it also tests, in float32 on the tiny shape, that all
modes give the same codes.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import diffusers
import torch
import torch._inductor.config
import transformers
from models import SHAPES, build_transformer, cache_bytes, measure_bandwidth, synchronize, weight_bytes
from strategies import Task, original, ours, transformers_generate


PROMPT_LENGTH = 48

MODES = {
    "original": original,
    "generate": transformers_generate,
    "generate-static": lambda task: transformers_generate(task, static=True),
    "ours": ours,
    "compiled": ours,
    "int8": ours,
    **{f"drafts-{n}": (lambda n: lambda task: ours(task, num_draft_tokens=n))(n) for n in (1, 3, 7, 15, 31, 63)},
}


class Clock:
    """
    Times the steps of a run and, where it can, how much of them the transformer's forward takes.

    That needs hooks, which a compiled forward cannot have, and on a GPU would have to wait for it.
    """

    def __init__(self, transformer: torch.nn.Module, device: torch.device, with_hooks: bool) -> None:
        self.device = device
        self.ticks: list[float] = []
        self.forward_seconds = 0.0
        self.forwards = 0
        self._hooks = []
        if with_hooks:
            self._hooks.append(transformer.register_forward_pre_hook(self._before))
            self._hooks.append(transformer.register_forward_hook(self._after))

    def _before(self, *args) -> None:
        self._start = time.perf_counter()

    def _after(self, *args) -> None:
        self.forward_seconds += time.perf_counter() - self._start
        self.forwards += 1

    def tick(self) -> None:
        if not self.ticks:
            # The prompt is not counted.
            synchronize(self.device)
            self.forward_seconds, self.forwards = 0.0, 0
        self.ticks.append(time.perf_counter())

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def run(mode: str, task: Task, repeats: int, bandwidth: float) -> dict:
    """
    Time one mode.

    Returns:
        `dict`: Of the fastest of `repeats` runs the median time of a step, and what follows from it.
        `seconds_per_image` is that of a whole image at one step per code, also if `task.max_steps` cut the run short.
    """
    transformer, device = task.transformer, task.device
    if mode == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        # In place: it has to be the last of the modes.
        quantize_(transformer, Int8WeightOnlyConfig())
    is_compiled = mode in ("compiled", "int8") or (mode.startswith("drafts") and device.type == "cuda")
    if is_compiled:
        torch._dynamo.reset()
        # CUDA graphs spare the host; on a CPU, freezing lays the weights out as its matrix products read them.
        torch._inductor.config.freezing = device.type == "cpu"
        options = {"mode": "reduce-overhead"} if device.type == "cuda" else {}
        transformer.compile(fullgraph=True, **options)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    warms_up = is_compiled or mode == "generate-static"
    has_hooks = device.type == "cpu" and not warms_up
    best = None
    for _ in range(repeats + int(warms_up)):
        clock = Clock(transformer, device, with_hooks=has_hooks)
        start = time.perf_counter()
        MODES[mode](replace(task, on_step=clock.tick))
        synchronize(device)
        end = time.perf_counter()
        clock.close()
        steps = [after - before for before, after in zip(clock.ticks, clock.ticks[1:])]
        # The host may run ahead of a GPU, so that only the whole is a measure of a step.
        step = statistics.median(steps) if device.type == "cpu" else (end - clock.ticks[0]) / len(steps)
        result = {
            "mode": mode,
            "seconds": end - start,
            "ms_per_step": 1e3 * step,
            "steps": len(steps),
            "forwards_per_step": clock.forwards / len(steps) if has_hooks else None,
            "outside_forward": 1 - clock.forward_seconds / (end - clock.ticks[0]) if has_hooks else None,
        }
        if best is None or result["seconds"] < best["seconds"]:
            best = result
    # `generate` makes a step of its own for every row end.
    num_steps = task.num_tokens if mode.startswith(("original", "generate")) else task.num_codes
    best["seconds_per_image"] = best["ms_per_step"] / 1e3 * num_steps / task.batch_size
    best["codes_per_second"] = task.num_codes / best["seconds_per_image"]
    rows = task.batch_size * (2 if task.guidance_scale != 1.0 else 1)
    length = PROMPT_LENGTH + min(task.num_tokens, task.max_steps or task.num_tokens) // 2
    weights = weight_bytes(transformer) * (1 / 2 if mode == "int8" else 1)
    moved = weights + cache_bytes(transformer, length, rows)
    best["bandwidth_fraction"] = moved / (best["ms_per_step"] / 1e3) / bandwidth
    if device.type == "cuda":
        best["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if is_compiled:
        transformer._compiled_call_impl = None
    return best


def describe(result: dict, baseline: dict) -> str:
    line = (
        f"{result['mode']:16} {result['ms_per_step']:8.2f} ms/step  {result['codes_per_second']:9.2f} codes/s"
        f" {result['seconds_per_image']:8.2f} s/image "
        f" {baseline['seconds_per_image'] / result['seconds_per_image']:5.2f}x {baseline['mode']} "
        f" {result['bandwidth_fraction']:4.0%} of bandwidth"
    )
    if result["outside_forward"] is not None:
        line += f", {result['outside_forward']:.1%} outside the forward"
    if "peak_gib" in result:
        line += f", peak {result['peak_gib']:.1f} GiB"
    return line


def check_modes_agree(device: torch.device) -> None:
    """In float32 every mode has to give the same codes, else one of them is fast because it does less."""
    task = Task(build_transformer("tiny", device, torch.float32), device, list(range(9000, 9030)), rows=6, columns=6)
    sampled = ours(task)
    for mode in ("generate", "drafts-7", "drafts-31"):
        if not torch.equal(MODES[mode](task), sampled):
            raise SystemExit(f"{mode} and ours sample different codes.")
    greedy = replace(task, top_k=1)
    if not torch.equal(original(greedy), ours(greedy)):
        raise SystemExit("original and ours choose different codes.")
    print("All modes agree in float32.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="340m")
    parser.add_argument("--size", type=int, nargs="+", default=[256], help="height and width, or one for both, in px")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["original", "generate", "ours"])
    parser.add_argument("--batch_size", type=int, default=1, help="images at once, for this project's modes")
    parser.add_argument("--guidance_scale", type=float, default=4.0)
    parser.add_argument("--max_steps", type=int, help="stop after so many steps, enough to time one")
    parser.add_argument("--repeats", type=int, default=2, help="the fastest run counts")
    parser.add_argument("--check", action="store_true", help="first test that all modes give the same codes")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()

    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    if args.check:
        check_modes_agree(device)
    bandwidth = measure_bandwidth(device, dtype)
    transformer = build_transformer(args.shape, device, dtype)
    height, width = args.size * 2 if len(args.size) == 1 else args.size
    task = Task(
        transformer,
        device,
        list(range(9000, 9000 + PROMPT_LENGTH)),
        rows=height // 16,
        columns=width // 16,
        guidance_scale=args.guidance_scale,
        batch_size=args.batch_size,
        max_steps=args.max_steps,
    )
    is_cuda = device.type == "cuda"
    hardware = torch.cuda.get_device_name(device) if is_cuda else f"CPU, {torch.get_num_threads()} threads"
    versions = {module.__name__: module.__version__ for module in (torch, transformers, diffusers)}
    gibibytes = weight_bytes(transformer) / 2**30
    print(f"{hardware} ({platform.machine()}), {versions}")
    print(f"{args.shape} {args.dtype}, {width}x{height} px, {args.batch_size} image(s), CFG {args.guidance_scale}")
    print(f"weights read per forward {gibibytes:.2f} GiB, bandwidth {bandwidth / 1e9:.1f} GB/s")
    results = []
    for mode in args.modes:
        results.append(run(mode, task, args.repeats, bandwidth))
        print(describe(results[-1], results[0]), flush=True)
    if args.output:
        record = {"hardware": hardware, "versions": versions, "bandwidth": bandwidth, "results": results}
        record |= {key: str(value) for key, value in vars(args).items()}
        args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
