# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""`lumina-mgpt convert`: between the original checkpoints and pipelines of diffusers."""

import argparse
import logging
from pathlib import Path

import torch

from ..lumina_mgpt.families import families
from ..original import convert_diffusers_to_original, convert_original_to_diffusers
from .arguments import DTYPES


TO_DIFFUSERS = ("original_vqgan", "original_tokenizer", "base_size", "family", "dtype")

EXAMPLE = """\
examples:
  lumina-mgpt convert Alpha-VLLM/Lumina-mGPT-7B-768 lumina-mgpt-7b-768 --original_vqgan chameleon/tokenizer
  lumina-mgpt convert Alpha-VLLM/Lumina-mGPT-2.0 lumina-mgpt-2.0 --original_vqgan movqgan_270M.ckpt
  lumina-mgpt convert lumina-mgpt-7b-768 original --to original

It needs the memory of one tensor and can be interrupted: run again, it keeps what is finished.
"""

logger = logging.getLogger("lumina_mgpt_diffusers")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="an original checkpoint to a pipeline, or back",
        description="Convert an original checkpoint to a pipeline of diffusers, or back.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="folder or Hub id to read")
    parser.add_argument("output", metavar="OUTPUT", help="folder to write")
    parser.add_argument("--to", choices=["diffusers", "original"], default="diffusers", help="default: %(default)s")
    group = parser.add_argument_group("to diffusers")
    group.add_argument("--original_vqgan", help="the VQ model: folder, file or Hub id; needed")
    group.add_argument("--original_tokenizer", help="folder or Hub id of the tokenizer, if not the checkpoint's own")
    group.add_argument("--base_size", type=int, help="side of the square of the trained area; default: from the name")
    group.add_argument("--family", choices=families(), help="which it is of; default: what vocabulary and name show")
    group.add_argument("--dtype", choices=DTYPES, help="of the transformer's weights; by default they keep theirs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    logger.setLevel(logging.INFO)
    if args.to == "original":
        given = [name for name in TO_DIFFUSERS if getattr(args, name)]
        if given:
            raise ValueError(f"`--{given[0]}` is for a conversion to diffusers, but `--to` is 'original'.")
        folder = convert_diffusers_to_original(args.source, args.output)
    else:
        folder = to_diffusers(args)
    logger.info(f"The result is in {folder}.")


def to_diffusers(args: argparse.Namespace) -> Path:
    if args.original_vqgan is None:
        raise ValueError("A conversion to diffusers needs the VQ model: pass `--original_vqgan`.")
    return convert_original_to_diffusers(
        args.source,
        args.output,
        original_vqgan=args.original_vqgan,
        original_tokenizer=args.original_tokenizer,
        base_size=args.base_size,
        family=args.family,
        dtype=None if args.dtype is None else getattr(torch, args.dtype),
    )
