# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the commands that run a model share: which model, and the settings of the sampler."""

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from ..lumina_mgpt import LuminaMGPTScheduler
from ..lumina_mgpt.pipeline_base import LuminaMGPTBasePipeline
from ..lumina_mgpt.scheduling_lumina_mgpt import GUIDANCE_SCHEDULES
from ..lumina_mgpt.validation import DRAFT_INITS
from ..shipped import POCKET_NAME


DTYPES = ("float32", "bfloat16", "float16")


def add_model_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--model",
        default=POCKET_NAME,
        help="Hub id or folder, in diffusers' or the original format; default: %(default)s, the small model of this"
        " package",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    add_model_argument(group)
    group.add_argument("--original_vqgan", help="VQ model of an original checkpoint: folder, file or Hub id")
    group.add_argument("--original_tokenizer", help="tokenizer of an original checkpoint that has none")
    group.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, else bfloat16")
    group.add_argument("--device", help="default: cuda where there is a GPU, else cpu")


def add_sampler_arguments(
    parser: argparse.ArgumentParser, with_text: bool = False, with_schedule: bool = True
) -> None:
    """The settings of the sampler, `with_text` those of text too, `with_schedule` that of the guidance."""
    group = parser.add_argument_group("sampler", "by default what the model was saved with, or what the task needs")
    group.add_argument("--guidance_scale", type=float, help="1 and less turn guidance off, which halves the work")
    group.add_argument("--temperature", type=float, help="0 takes the most likely code")
    group.add_argument("--top_k", type=int, help="codes that may be drawn, 0 for all")
    group.add_argument("--top_p", type=float, help="only the most likely codes whose probabilities add up to this")
    group.add_argument("--min_p", type=float, help="only codes at least this times as likely as the most likely one")
    if with_text:
        group.add_argument("--text_temperature", type=float, help="0 takes the most likely token")
        group.add_argument("--text_top_k", type=int, help="text tokens that may be drawn, 0 for all")
    if with_schedule:
        group.add_argument(
            "--guidance_schedule", choices=GUIDANCE_SCHEDULES, help="`decay` lets the scale fall over an image"
        )
    group.add_argument("--num_draft_tokens", type=draft_tokens, help="a number or `auto`, a matter of speed alone")
    group.add_argument("--draft_init", choices=DRAFT_INITS, help="first guess of a code, a matter of speed alone")


def draft_tokens(value: str) -> int | str:
    return value if value == "auto" else int(value)


def sizes(value: str) -> list[int]:
    return [int(size) for size in value.split(",")]


def add_size_arguments(parser: argparse.ArgumentParser, default: str, for_each: bool = False) -> None:
    """The height and the width, with `for_each` as lists, of one for all prompts or one for each."""
    what = "in pixels, a multiple of 32" + (", or with commas one for each prompt" if for_each else "")
    for name in ("--height", "--width"):
        parser.add_argument(name, type=sizes if for_each else int, help=f"{what}; default: {default}")


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_pipeline(pipeline_class: type[LuminaMGPTBasePipeline], args: argparse.Namespace) -> LuminaMGPTBasePipeline:
    """The pipeline that the arguments name, with what of the sampler is the scheduler's alone."""
    # Where it is loaded decides, which for jobs on many machines is not where the command runs.
    device = args.device or default_device()
    pipe = pipeline_class.from_pretrained(
        args.model,
        original_vqgan=args.original_vqgan,
        original_tokenizer=args.original_tokenizer,
        dtype=getattr(torch, args.dtype or ("float32" if device == "cpu" else "bfloat16")),
    )
    names = ("guidance_schedule", "num_draft_tokens", "draft_init")
    own = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if own:
        pipe.scheduler = LuminaMGPTScheduler.from_config(pipe.scheduler.config, **own)
    return pipe.to(device)


def sampler_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the sampler that a call takes."""
    names = ("guidance_scale", "temperature", "top_k", "top_p", "min_p", "text_temperature", "text_top_k")
    return {name: getattr(args, name) for name in names if name in args}


def generators(seeds: range) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def output_paths(output: str, seeds: range) -> Iterator[str]:
    """`output` for one image, else `output` with the seed at the end of its stem."""
    stem = output.removesuffix(".png")
    return (f"{stem}.png" if len(seeds) == 1 else f"{stem}_{seed}.png" for seed in seeds)
