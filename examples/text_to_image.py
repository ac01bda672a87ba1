# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Generate images from text and save them as PNG files that carry their settings.

    python examples/text_to_image.py --model Alpha-VLLM/Lumina-mGPT-7B-768 --original_vqgan chameleon/tokenizer \
        --prompt "a red fox in the snow" --seed 0 --output fox.png

Without `--model` it runs on the pocket model of the package, which knows toys on a floor and nothing else.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from PIL.PngImagePlugin import PngInfo

from lumina_mgpt_diffusers import LuminaMGPTPipeline, LuminaMGPTScheduler


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Generate images from text with Lumina-mGPT.")
    parser.add_argument(
        "--model",
        default="pocket",
        help="Hub id or folder, in diffusers' or the original format; default: the small model of the package",
    )
    parser.add_argument(
        "--original_vqgan", help="VQ files for a --model in the original format: folder, file or Hub id"
    )
    parser.add_argument("--original_tokenizer", help="tokenizer for a --model in the original format, if it has none")
    parser.add_argument("--prompt", default="a red ball on a sand floor")
    parser.add_argument("--negative_prompt")
    parser.add_argument("--height", type=int, help="in pixels, a multiple of 32; default: the model's base size")
    parser.add_argument("--width", type=int, help="in pixels, a multiple of 32; default: the model's base size")
    parser.add_argument("--seed", type=int, default=0, help="the images have the seeds seed, seed + 1, ...")
    parser.add_argument("--guidance_scale", type=float, help="1 turns guidance off; default: the model's sampler")
    parser.add_argument("--temperature", type=float, help="0 takes the most likely code; default: the model's sampler")
    parser.add_argument("--top_k", type=int, help="codes that may be drawn, 0 for all; default: the model's sampler")
    parser.add_argument(
        "--num_draft_tokens", type=int, help="tokens that a forward guesses ahead; only a matter of speed"
    )
    parser.add_argument("--num_images", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: bfloat16 on GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default="lumina_mgpt.png", help="file, or for several images its first part")
    return parser.parse_args()


def load_pipeline(args: argparse.Namespace) -> LuminaMGPTPipeline:
    dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    pipe = LuminaMGPTPipeline.from_pretrained(
        args.model,
        original_vqgan=args.original_vqgan,
        original_tokenizer=args.original_tokenizer,
        dtype=getattr(torch, dtype),
    )
    if args.num_draft_tokens is not None:
        config = pipe.scheduler.config
        pipe.scheduler = LuminaMGPTScheduler.from_config(config, num_draft_tokens=args.num_draft_tokens)
    return pipe.to(args.device)


def save(image, path: Path, settings: dict) -> None:
    info = PngInfo()
    info.add_text("parameters", json.dumps(settings))
    # Under another name first, so that an interruption leaves no half of a file.
    partial = path.with_name(path.name + ".partial")
    image.save(partial, format="PNG", pnginfo=info)
    os.replace(partial, path)


def main() -> None:
    args = parse_args()
    pipe = load_pipeline(args)
    seeds = [args.seed + index for index in range(args.num_images)]
    images = pipe(
        args.prompt,
        negative_prompt=args.negative_prompt,
        height=args.height,
        width=args.width,
        guidance_scale=args.guidance_scale,
        temperature=args.temperature,
        top_k=args.top_k,
        num_images_per_prompt=args.num_images,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images

    config = pipe.scheduler.config
    output = Path(args.output).with_suffix(".png")
    output.parent.mkdir(parents=True, exist_ok=True)
    for seed, image in zip(seeds, images):
        path = output if len(images) == 1 else output.with_stem(f"{output.stem}_{seed}")
        settings = {
            "model": args.model,
            "prompt": args.prompt,
            "negative_prompt": args.negative_prompt,
            "height": image.height,
            "width": image.width,
            "seed": seed,
            "guidance_scale": config.guidance_scale if args.guidance_scale is None else args.guidance_scale,
            "temperature": config.temperature if args.temperature is None else args.temperature,
            "top_k": config.top_k if args.top_k is None else args.top_k,
            "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        }
        save(image, path, settings)
        print(f"Saved {path}")


if __name__ == "__main__":
    main()
