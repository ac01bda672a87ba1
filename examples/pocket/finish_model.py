# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Make the checkpoint that is shipped from what training wrote: small types, and the sampler's settings.

    python examples/pocket/finish_model.py --pipeline pocket_work/omni_sft/pipeline --output pocket
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from lumina_mgpt_diffusers import LuminaMGPTPipeline, LuminaMGPTScheduler


MOST_BYTES = 12_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder of the trained pipeline")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top_k", type=int, default=0)
    args = parser.parse_args()
    pipe = LuminaMGPTPipeline.from_pretrained(args.pipeline, dtype=getattr(torch, args.dtype))
    pipe.scheduler = LuminaMGPTScheduler.from_config(
        pipe.scheduler.config, guidance_scale=args.guidance_scale, temperature=args.temperature, top_k=args.top_k
    )
    pipe.save_pretrained(args.output)
    num_bytes = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
    if num_bytes > MOST_BYTES:
        raise SystemExit(f"{args.output} has {num_bytes} bytes, more than {MOST_BYTES}.")
    print(f"{args.output}: {num_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
