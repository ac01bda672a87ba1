# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
A script for any text-to-image pipeline of diffusers. For Lumina-mGPT it needs the import and the model id, no more.

    python examples/drop_in.py --prompt "a red ball on a sand floor"
    python examples/drop_in.py --model lumina-mgpt-7b-768 --prompt "a red fox in the snow"
"""

import argparse

import torch
from diffusers import DiffusionPipeline

from lumina_mgpt_diffusers import POCKET  # the import makes diffusers know the pipelines


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate images from text.")
    parser.add_argument("--model", default=POCKET, help="Hub id or folder of a pipeline; default: the pocket model")
    parser.add_argument("--prompt", default="a red ball on a sand floor")
    parser.add_argument("--negative_prompt")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default="image", help="beginning of the names of the images")
    args = parser.parse_args()

    pipe = DiffusionPipeline.from_pretrained(args.model, dtype=torch.bfloat16)
    pipe = pipe.to(args.device)
    images = pipe(
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        height=args.height,
        width=args.width,
        num_inference_steps=28,
        guidance_scale=4.0,
        num_images_per_prompt=2,
        generator=torch.Generator(args.device).manual_seed(0),
        output_type="pil",
    ).images
    for number, image in enumerate(images):
        image.save(f"{args.output}-{number}.png")


if __name__ == "__main__":
    main()
