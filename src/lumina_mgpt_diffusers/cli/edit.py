# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""`lumina-mgpt edit`: image to image."""

import argparse
from pathlib import Path

import numpy as np
import torch

from ..lumina_mgpt import LuminaMGPTImg2ImgPipeline
from ..lumina_mgpt.families import families
from ..png import describe, save_png
from .arguments import (
    add_model_arguments,
    add_sampler_arguments,
    add_size_arguments,
    load_pipeline,
    sampler_settings,
)


EXAMPLE = """\
examples:
  lumina-mgpt edit fox.png --prompt "Make it night." --model lumina-mgpt-7b-768-omni --output night.png
  lumina-mgpt edit fox.png --task depth --model lumina-mgpt-7b-768-omni --output depth.png

What an image means as numbers (depth, normals, labels) is saved beside it as `.npy`. The tasks of the models:
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    tasks = "".join(f"  {family.title}: {', '.join(family.tasks)}\n" for family in families().values() if family.tasks)
    parser = subparsers.add_parser(
        "edit",
        aliases=["task"],
        help="images from images: editing, depth, segmentation, …",
        description="Edit an image, or get its depth, normals, segmentation, pose or detections.",
        epilog=EXAMPLE + tasks,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="file; several are for one prompt that marks each by <|image|>"
    )
    parser.add_argument("--prompt", help="instruction, object to detect or caption, for the tasks that take one")
    parser.add_argument("--task", help="a name of those below or a template; default: edit, or depth without a prompt")
    add_size_arguments(parser, "that of the input")
    parser.add_argument("--result_only", action="store_true", help="of two panels, leave the given one out")
    parser.add_argument("--free_size", action="store_true", help="let the model choose the size")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, default=Path("lumina_mgpt.png"), help="default: %(default)s")
    add_sampler_arguments(parser)
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    pipe = load_pipeline(LuminaMGPTImg2ImgPipeline, args)
    settings = {"task": args.task or ("depth" if args.prompt is None else "edit"), **sampler_settings(args)}
    output = pipe(
        args.prompt,
        image=[args.images],
        height=args.height,
        width=args.width,
        size="free" if args.free_size else None,
        result_only=args.result_only,
        generator=torch.Generator().manual_seed(args.seed),
        **settings,
    )
    path, image = args.output.with_suffix(".png"), output.images[0]
    own = {"model": args.model, "prompt": args.prompt, "images": args.images, "seed": args.seed}
    own |= {"height": image.height, "width": image.width}
    if args.result_only:  # the height is that of both panels
        own |= {"result_only": True, "height": 2 * image.height}
    save_png(image, path, {**own, **settings, **describe(pipe)})
    print(f"Saved {path}")
    if output.arrays is not None:
        np.save(path.with_suffix(".npy"), output.arrays[0])
        print(f"Saved {path.with_suffix('.npy')}")
