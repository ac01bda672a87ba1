# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The whole table of speeds on one device, within a time limit: modes, windows, batches and sizes.

    python benchmarks/table.py --output h200.json
    python benchmarks/table.py --shape 340m --size 256 --sizes 256 512 768 1024 --minutes 40 --output cpu.json
    python benchmarks/table.py --shape tiny --size 96 --sizes 64 96 --batches 1 2 --device cpu --output rehearsal.json

Jobs run in the order of their importance, but for one whole image on `--max_steps` steps in the middle of an image.
What fails or does not fit into `--minutes` is left out and said. The file is written anew after every job.
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
from decode import MODES, check_modes_agree, describe, make_task, run
from models import SHAPES, build_transformer, describe_hardware, measure_bandwidth


def make_jobs(args: argparse.Namespace) -> list[tuple[str, dict]]:
    """Pairs of a mode and what is different about its task. Those that share compiled code follow one another."""
    short = {"max_steps": args.max_steps}
    is_cuda = torch.device(args.device).type == "cuda"
    return [
        ("original", short),
        ("generate", short),
        ("generate-static", short),
        ("ours", short),
        ("compiled", short),
        ("compiled", {}),
        *((f"compiled-drafts-{number}", short) for number in (31, 7, 15, 63)),
        # What of their step is outside the forward, and what it was before that was compiled too.
        ("compiled-drafts-15-eager-sampling", short),
        ("compiled-drafts-auto", {}),
        *((f"{mode}{drafts}", short) for mode in ("invariant", "compiled-invariant") for drafts in ("", "-drafts-15")),
        *(("compiled", {"size": size, **short}) for size in args.sizes if size != args.size),
        *(("compiled", {"batch_size": number, **short}) for number in sorted({*args.batches, 12}) if number > 1),
        # On a CPU, images do not depend on the batch anyway.
        *(
            ("compiled-invariant", {"batch_size": number, **short})
            for number in (sorted({*args.batches} - {1}) if is_cuda else [])
        ),
        ("int8", short),
        # On a CPU, torch cannot compile it for our windows.
        *([("flex", short)] if is_cuda else []),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 768, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--max_steps", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    deadline = time.monotonic() + 60 * args.minutes
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    check_modes_agree(device)
    bandwidth = measure_bandwidth(device, dtype)
    record = {
        "hardware": describe_hardware(device),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, diffusers)},
        "settings": {key: str(value) for key, value in vars(args).items()},
        "bandwidth": bandwidth,
        "results": [],
    }
    print(f"{record['hardware']}, {record['versions']}, bandwidth {bandwidth / 1e9:.0f} GB/s", flush=True)
    transformer = None
    for mode, changes in make_jobs(args):
        label = f"{mode} {changes}"
        if time.monotonic() > deadline:
            print(f"left out for lack of time: {label}", flush=True)
            continue
        if transformer is None:
            torch._dynamo.reset()
            transformer = build_transformer(args.shape, device, dtype)
            task = make_task(args.shape, transformer, device, args.size, args.size)
        changes = dict(changes)
        size = changes.pop("size", args.size)
        side = size // task.vocabulary.patch_size
        changes |= {"rows": side, "columns": side}
        try:
            result = run(mode, replace(task, **changes), repeats=1, bandwidth=bandwidth)
        except Exception as error:  # so that no job costs the others their results
            print(f"not run: {label}: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            continue
        finally:
            if MODES[mode].has_int8:
                transformer = task = None
        result |= {"size": size, "batch_size": changes.get("batch_size", 1)}
        record["results"].append(result)
        print(f"{size:5} px x{result['batch_size']:<3}", describe(result, record["results"][0]), flush=True)
        partial = args.output.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(partial, args.output)


if __name__ == "__main__":
    main()
