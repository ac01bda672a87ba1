# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Time per code of the original's strategy, of transformers' `generate` and of this project, on the same random weights.

    python benchmarks/decode.py --shape 340m --size 256 --dtype bfloat16
    python benchmarks/decode.py --shape 7b --size 768 --device cuda --modes original generate-static ours compiled int8

Random weights serve for the time of a forward; they say nothing of how many drafts are right. With `--check` it also
tests, in float32 on the tiny shape, that all modes give the same codes.
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
    transformer = task.transformer
    if mode == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(transformer, Int8WeightOnlyConfig())
    compiled = mode in ("compiled", "int8") or (mode.startswith("drafts") and task.device.type == "cuda")
    if compiled:
        torch._dynamo.reset()
        options = {"mode": "reduce-overhead"} if task.device.type == "cuda" else {}
        transformer.compile(fullgraph=True, **options)
    if task.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    warms_up = compiled or mode == "generate-static"
    has_hooks = task.device.type == "cpu" and not warms_up
    best = None
    for _ in range(repeats + int(warms_up)):
        clock = Clock(transformer, task.device, with_hooks=has_hooks)
        start = time.perf_counter()
        MODES[mode](replace(task, on_step=clock.tick))
        synchronize(task.device)
        total = time.perf_counter() - start
        clock.close()
        steps = [after - before for before, after in zip(clock.ticks, clock.ticks[1:])]
        decode_seconds = clock.ticks[-1] - clock.ticks[0]
        result = {
            "mode": mode,
            "seconds": total,
            "decode_seconds": decode_seconds,
            "codes_per_second": task.num_codes * task.batch_size / total,
            "ms_per_step": 1e3 * statistics.median(steps),
            "steps": len(steps),
            "forwards_per_code": (clock.forwards if has_hooks else len(steps)) / task.num_codes,
            "outside_forward": 1 - clock.forward_seconds / decode_seconds if has_hooks else None,
        }
        if best is None or result["seconds"] < best["seconds"]:
            best = result
    rows = task.batch_size * (2 if task.guidance_scale != 1.0 else 1)
    length = PROMPT_LENGTH + task.num_tokens // 2
    moved = weight_bytes(transformer) + cache_bytes(transformer, length, rows)
    best["bandwidth_fraction"] = moved / (best["ms_per_step"] / 1e3) / bandwidth
    if task.device.type == "cuda":
        best["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if compiled:
        transformer._compiled_call_impl = None
    return best


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
        result = results[-1]
        outside = "" if result["outside_forward"] is None else f", {result['outside_forward']:.1%} outside the forward"
        print(
            f"{mode:16} {result['ms_per_step']:8.2f} ms/step  {result['forwards_per_code']:.2f} forwards/code "
            f" {result['codes_per_second']:8.2f} codes/s  {result['seconds']:7.2f} s "
            f" {results[0]['seconds'] / result['seconds']:5.2f}x {args.modes[0]} "
            f" {result['bandwidth_fraction']:.0%} of bandwidth{outside}",
            flush=True,
        )
    if args.output:
        record = {"hardware": hardware, "versions": versions, "bandwidth": bandwidth, "results": results}
        record |= {key: str(value) for key, value in vars(args).items()}
        args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
