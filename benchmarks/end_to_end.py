# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Whole images end to end on the trained model of `small_model.py`, where drafts are right as often as they are.

    python benchmarks/end_to_end.py --model small_model --dtype bfloat16

The original's strategy, transformers' `generate` and this project without and with drafts, on the same model and
prompt, timed from the call to the codes. `--batch_size` also times this project with several images at once, where
those that are finished leave the batch of the forward.
"""

from __future__ import annotations

import argparse
import functools
import time
from dataclasses import replace
from pathlib import Path

import torch
from small_model import SIDE, VOCABULARY, context_ids, load_small_model
from strategies import Task, original, ours, transformers_generate


def num_drafts(value: str) -> int | str:
    return value if value == "auto" else int(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of small_model.py")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--num_images", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--num_drafts", type=num_drafts, nargs="+", default=[0, 7, 15, 31, "auto"])
    args = parser.parse_args()

    transformer, _ = load_small_model(args.model)
    transformer = transformer.to(getattr(torch, args.dtype)).eval().requires_grad_(False)
    task = Task(transformer, torch.device("cpu"), context_ids(0, 0), SIDE, SIDE, top_k=0, vocabulary=VOCABULARY)
    modes = {"original": original, "generate": transformers_generate}
    modes |= {f"ours, {n} drafts": functools.partial(ours, num_draft_tokens=n) for n in args.num_drafts}
    jobs = [(name, mode, 1) for name, mode in modes.items()]
    if args.batch_size > 1:
        jobs += [(f"{name}, {args.batch_size} at once", mode, args.batch_size)
                 for name, mode in modes.items() if name.startswith("ours")]  # fmt: skip
    baseline = None
    for name, mode, batch_size in jobs:
        some = replace(task, batch_size=batch_size)
        mode(replace(some, seed=10**6))
        steps = []
        start = time.perf_counter()
        for seed in range(0, args.num_images, batch_size):
            mode(replace(some, seed=seed, on_step=lambda: steps.append(None)))
        seconds = (time.perf_counter() - start) / args.num_images
        baseline = baseline or seconds
        per_code = len(steps) * batch_size / args.num_images / task.num_codes
        print(
            f"{name:28} {seconds:7.3f} s per image  {baseline / seconds:5.2f}x  {per_code:.3f} steps per code",
            flush=True,
        )


if __name__ == "__main__":
    main()
