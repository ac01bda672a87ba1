# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""`lumina-mgpt generate`: text to image."""

import argparse

from ..lumina_mgpt import LuminaMGPTPipeline
from ..png import describe, save_png
from .arguments import (
    add_model_arguments,
    add_sampler_arguments,
    add_size_arguments,
    generators,
    load_pipeline,
    output_paths,
    sampler_settings,
)


EXAMPLE = """\
examples:
  lumina-mgpt generate "a red ball on a sand floor" --seed 41 -o toys.png
  lumina-mgpt generate "a red fox in the snow" --model lumina-mgpt-7b-768 --seed 0 --output fox.png
  lumina-mgpt generate "a red ball" "a blue star" --height 128,64 --width 128,256

Several prompts, of any sizes, or several images of each, are made in one batch. Image i has
the seed `--seed` + i, which then stands at the end of its name. A file carries its settings in its metadata.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="images from text",
        description="Generate images from text.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what the image shows, in quotes; one or several")
    parser.add_argument("--negative_prompt", help="what guidance leads away from")
    add_size_arguments(parser, "the model's base size", for_each=True)
    parser.add_argument("--num_images", type=int, default=1, help="images of each prompt; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("-o", "--output", default="lumina_mgpt.png", help="default: %(default)s")
    add_sampler_arguments(parser)
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    if args.num_images < 1:
        raise ValueError(f"`num_images` has to be 1 or more but is {args.num_images}.")
    height, width = (one_or_each(name, getattr(args, name), len(args.prompts)) for name in ("height", "width"))
    pipe = load_pipeline(LuminaMGPTPipeline, args)
    prompts = [prompt for prompt in args.prompts for _ in range(args.num_images)]
    seeds = range(args.seed, args.seed + len(prompts))
    settings = {"negative_prompt": args.negative_prompt, **sampler_settings(args)}
    images = pipe(
        args.prompts,
        height=height,
        width=width,
        num_images_per_prompt=args.num_images,
        generator=generators(seeds),
        **settings,
    ).images
    for prompt, seed, image, path in zip(prompts, seeds, images, output_paths(args.output, seeds)):
        own = {"model": args.model, "prompt": prompt, "height": image.height, "width": image.width, "seed": seed}
        save_png(image, path, {**own, **settings, "batch_size": len(images), **describe(pipe)})
        print(f"Saved {path}")


def one_or_each(name: str, sides: list[int] | None, num_prompts: int) -> int | list[int] | None:
    """A side for all prompts or a list of one for each."""
    if sides is None or len(sides) == num_prompts:
        return sides
    if len(sides) > 1:
        raise ValueError(f"`{name}` has to be one number, or one for each of {num_prompts} prompts, but is {sides}.")
    return sides[0]
