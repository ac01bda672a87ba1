# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""`lumina-mgpt memory`: what a call needs, before it is made."""

import argparse

import torch
from transformers import ChameleonConfig
from transformers.utils import cached_file

from ..lumina_mgpt.families import find_family
from ..memory import estimate_memory, largest_batch
from ..shipped import model_source
from .arguments import DTYPES, add_model_argument, draft_tokens


GIB = 2**30


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "memory",
        help="how much memory a call needs",
        description="Estimate the memory of a text-to-image call. Only the model's configuration is read.",
    )
    add_model_argument(parser)
    parser.add_argument("--height", type=int, help="in pixels; default: the model's base size")
    parser.add_argument("--width", type=int, help="in pixels; default: the model's base size")
    parser.add_argument("--num_images", type=int, default=1, help="images at once; default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: %(default)s")
    parser.add_argument("--vqvae_dtype", choices=DTYPES, help="of the VQ model; default: as --dtype")
    parser.add_argument("--weight_bits", type=int, help="of the layers' weights, if they are quantised, such as 8")
    parser.add_argument("--no_guidance", action="store_true", help="guidance is off, which halves the rows")
    parser.add_argument("--num_draft_tokens", type=draft_tokens, default="auto", help="default: %(default)s")
    parser.add_argument("--available", type=float, metavar="GIB", help="memory there is: also print the largest batch")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    config = read_config(args.model)
    base_size = getattr(config, "base_size", None) or find_family(config, config.vocabulary_map or {}).base_size
    height, width = (base_size if side is None else side for side in (args.height, args.width))
    for name, value in {"height": height, "width": width, "num_images": args.num_images}.items():
        if value < 1:
            raise ValueError(f"`{name}` has to be 1 or more but is {value}.")
    settings = {
        "dtype": getattr(torch, args.dtype),
        "vqvae_dtype": args.vqvae_dtype and getattr(torch, args.vqvae_dtype),
        "weight_bits": args.weight_bits,
        "guidance": not args.no_guidance,
        "num_draft_tokens": args.num_draft_tokens,
    }
    estimate = estimate_memory(config, height, width, args.num_images, **settings)
    for name in ("weights", "kv_cache", "drafts", "activations", "total"):
        print(f"{name.replace('_', ' '):12}{getattr(estimate, name) / GIB:8.2f} GiB")
    if args.available is not None:
        number = largest_batch(int(args.available * GIB), config, height, width, **settings)
        print(f"{args.available:g} GiB hold {number} images at once")


def read_config(model: str) -> ChameleonConfig:
    """The transformer's configuration, in a pipeline's folder or an original one."""
    model = model_source(model)
    path = cached_file(model, "config.json", subfolder="transformer", _raise_exceptions_for_missing_entries=False)
    return ChameleonConfig.from_json_file(path or cached_file(model, "config.json"))
