# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Make the checkpoint that is shipped from what training wrote: small types, the sampler's settings, and its model card.

    python examples/pocket/finish_model.py --pipeline pocket_work/omni_sft/pipeline --output pocket_work/pocket

Run again after `evaluate.py`, it writes the card with its figures:

    python examples/pocket/finish_model.py --pipeline pocket_work/omni_sft/pipeline --output pocket_work/pocket \
        --figures pocket_work/figures --vq_figures pocket_work/vq/figures.jsonl --training \
        pocket_work/fp_sft/{96,128}/pipeline/training.json pocket_work/omni_sft/pipeline/training.json
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from card import pocket_card

from lumina_mgpt_diffusers import LUMINA_MGPT_POCKET, LuminaMGPTPipeline, LuminaMGPTScheduler


MOST_BYTES = 12_000_000


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder of the trained pipeline")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    sampler = LUMINA_MGPT_POCKET.sampler
    parser.add_argument("--guidance_scale", type=float, default=sampler["guidance_scale"])
    parser.add_argument("--temperature", type=float, default=sampler["temperature"])
    parser.add_argument("--top_k", type=int, default=sampler["top_k"])
    parser.add_argument("--figures", type=Path, help="folder of the JSON files that evaluate.py wrote, for the card")
    parser.add_argument("--vq_figures", type=Path, help="figures.jsonl of train_vq.py, for the card")
    parser.add_argument("--training", type=Path, nargs="*", default=[], help="training.json of each stage, in order")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    pipe = LuminaMGPTPipeline.from_pretrained(args.pipeline, dtype=getattr(torch, args.dtype))
    pipe.transformer.config.model_family = LUMINA_MGPT_POCKET.name
    pipe.scheduler = LuminaMGPTScheduler.from_config(
        pipe.scheduler.config, guidance_scale=args.guidance_scale, temperature=args.temperature, top_k=args.top_k
    )
    pipe.save_pretrained(args.output)
    card = args.output / "README.md"
    partial = card.with_suffix(".partial")
    partial.write_text(pocket_card(pipe, args.figures, args.vq_figures, args.training), encoding="utf-8")
    os.replace(partial, card)
    num_bytes = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
    if num_bytes > MOST_BYTES:
        raise SystemExit(f"{args.output} has {num_bytes} bytes, more than {MOST_BYTES}.")
    print(f"{args.output}: {num_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
