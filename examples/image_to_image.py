# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Edit images, or get their depth, normals, segmentation, pose or detections, with a model of the Omni kind.

    python examples/image_to_image.py --model Alpha-VLLM/Lumina-mGPT-7B-768-Omni --original_vqgan chameleon/tokenizer \
        --image fox.png --prompt "Make it night." --output night.png
    python examples/image_to_image.py … --image fox.png --task depth --output depth.png

What an image means as numbers (depth, normals, labels) is saved beside it as `.npy`. Without `--model` it runs on the
pocket model of the package, which knows toys on a floor, and without `--image` on a picture that it draws first.
"""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from lumina_mgpt_diffusers import TASKS, LuminaMGPTImg2ImgPipeline, LuminaMGPTPipeline


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Generate images from images with Lumina-mGPT.")
    parser.add_argument(
        "--model",
        default="pocket",
        help="Hub id or folder, in diffusers' or the original format; default: the small model of the package",
    )
    parser.add_argument(
        "--original_vqgan", help="VQ files for a --model in the original format: folder, file or Hub id"
    )
    parser.add_argument("--original_tokenizer", help="tokenizer for a --model in the original format, if it has none")
    parser.add_argument(
        "--image", nargs="+", help="paths or URLs; several are for one prompt, which marks each of them by <|image|>"
    )
    parser.add_argument("--prompt", help="instruction, object to detect or caption, for the tasks that take one")
    parser.add_argument("--task", help=f"{', '.join(TASKS)}, or a template; default: edit with a prompt, else depth")
    parser.add_argument("--height", type=int, help="in pixels, a multiple of 32; default: that of the input")
    parser.add_argument("--width", type=int, help="in pixels, a multiple of 32; default: that of the input")
    parser.add_argument("--free_size", action="store_true", help="let the model choose the size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance_scale", type=float, help="1 turns guidance off; default: the task's")
    parser.add_argument("--temperature", type=float, help="0 takes the most likely code; default: the task's")
    parser.add_argument("--top_k", type=int, help="codes that may be drawn, 0 for all; default: the task's")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: bfloat16 on GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default="lumina_mgpt.png")
    return parser.parse_args()


def load_pipeline(args: argparse.Namespace) -> LuminaMGPTImg2ImgPipeline:
    dtype = getattr(torch, args.dtype or ("float32" if args.device == "cpu" else "bfloat16"))
    pipe = LuminaMGPTImg2ImgPipeline.from_pretrained(
        args.model, original_vqgan=args.original_vqgan, original_tokenizer=args.original_tokenizer, dtype=dtype
    )
    return pipe.to(args.device)


def draw_picture(pipe: LuminaMGPTImg2ImgPipeline, seed: int) -> PIL.Image.Image:
    """A picture by the same model, to have one."""
    generator = torch.Generator().manual_seed(seed)
    return LuminaMGPTPipeline.from_pipe(pipe)("a red ball and a blue cube", generator=generator).images[0]


def main() -> None:
    args = parse_args()
    pipe = load_pipeline(args)
    output = pipe(
        args.prompt,
        image=[args.image or [draw_picture(pipe, args.seed)]],
        task=args.task or ("depth" if args.prompt is None else "edit"),
        height=args.height,
        width=args.width,
        size="free" if args.free_size else None,
        guidance_scale=args.guidance_scale,
        temperature=args.temperature,
        top_k=args.top_k,
        generator=torch.Generator().manual_seed(args.seed),
    )
    path = Path(args.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    output.images[0].save(path)
    print(f"Saved {path}")
    if output.arrays is not None:
        np.save(path.with_suffix(".npy"), output.arrays[0])
        print(f"Saved {path.with_suffix('.npy')}")


if __name__ == "__main__":
    main()
