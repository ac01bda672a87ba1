# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The whole table of speeds on one device, within a time limit: modes, windows, batches and sizes.

    python benchmarks/table.py --output h200.json
    python benchmarks/table.py --shape tiny --size 96 --sizes 64 96 --batches 1 2 --device cpu --output rehearsal.json

Jobs run in the order of their importance, each on the first `--max_steps` steps only but for the main one. What does
not fit into `--minutes` is left out and said. The file is written anew after every job.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import diffusers
import torch
import transformers
from decode import PROMPT_LENGTH, check_modes_agree, describe, run
from models import SHAPES, build_transformer, measure_bandwidth
from strategies import Task


def make_jobs(args: argparse.Namespace) -> list[tuple[str, dict]]:
    """Pairs of a mode and what is different about its task."""
    size, short = args.size, {"max_steps": args.max_steps}
    jobs = [
        ("original", short),
        ("generate-static", short),
        ("ours", short),
        ("compiled", {}),
        ("drafts-31", short),
        ("compiled", {"batch_size": 12, **short}),
        *(("compiled", {"size": other, **short}) for other in args.sizes if other != size),
        *(("ours", {"batch_size": number, **short}) for number in args.batches if number > 1),
        ("drafts-7", short),
        ("drafts-15", short),
        ("drafts-63", short),
        ("int8", short),
    ]
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 768, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--max_steps", type=int, default=96)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    deadline = time.monotonic() + 60 * args.minutes
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    check_modes_agree(device)
    bandwidth = measure_bandwidth(device, dtype)
    transformer = build_transformer(args.shape, device, dtype)
    record = {
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, diffusers)},
        "settings": {key: str(value) for key, value in vars(args).items()},
        "bandwidth": bandwidth,
        "results": [],
    }
    print(f"{record['hardware']}, {record['versions']}, bandwidth {bandwidth / 1e9:.0f} GB/s", flush=True)
    task = Task(transformer, device, list(range(9000, 9000 + PROMPT_LENGTH)), args.size // 16, args.size // 16)
    for mode, changes in make_jobs(args):
        label = f"{mode} {changes}"
        if time.monotonic() > deadline:
            print(f"left out for lack of time: {label}", flush=True)
            continue
        changes = dict(changes)
        side = changes.pop("size", args.size) // 16
        try:
            result = run(mode, replace(task, rows=side, columns=side, **changes), repeats=1, bandwidth=bandwidth)
        except (torch.OutOfMemoryError, ImportError) as error:
            print(f"not run: {label}: {str(error).splitlines()[0]}", flush=True)
            continue
        result |= {"size": 16 * side, "batch_size": changes.get("batch_size", 1)}
        record["results"].append(result)
        print(f"{16 * side:5} px x{result['batch_size']:<3}", describe(result, record["results"][0]), flush=True)
        partial = args.output.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(partial, args.output)


if __name__ == "__main__":
    main()
