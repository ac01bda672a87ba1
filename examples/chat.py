# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Talk to Lumina-mGPT in a terminal, with images in and out.

    python examples/chat.py --model Alpha-VLLM/Lumina-mGPT-7B-768-Omni --original_vqgan chameleon/tokenizer

An image goes where its path stands after an @, as in `Describe @fox.png in detail.` or `Make it night. @"my fox.png"`.
The images of the answers are saved to `--output`. `/new` begins a new conversation, `/quit` or the end of input ends.
Without `--model` it runs on the pocket model of the package, which answers questions about pictures of toys
("How many objects are there? @toys.png") and draws, and knows no other talk.
"""

import argparse
import re
import sys
from pathlib import Path

import torch

from lumina_mgpt_diffusers import ImagePart, LuminaMGPTChatPipeline, LuminaMGPTConversation


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Talk to Lumina-mGPT.")
    parser.add_argument(
        "--model",
        default="pocket",
        help="Hub id or folder, in diffusers' or the original format; default: the small model of the package",
    )
    parser.add_argument(
        "--original_vqgan", help="VQ files for a --model in the original format: folder, file or Hub id"
    )
    parser.add_argument("--original_tokenizer", help="tokenizer for a --model in the original format, if it has none")
    parser.add_argument("--max_new_tokens", type=int, default=10240, help="longest answer, images included")
    parser.add_argument("--height", type=int, help="height of all images of the answers; default: the model chooses")
    parser.add_argument("--width", type=int, help="width of all images of the answers; default: the model chooses")
    parser.add_argument("--guidance_scale", type=float, help="of images; 1 turns it off; default: the model's sampler")
    parser.add_argument("--greedy", action="store_true", help="always take the most likely token")
    parser.add_argument("--seed", type=int, help="default: another one every time")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: bfloat16 on GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("chat"), help="folder for the images of the answers")
    return parser.parse_args()


def load_pipeline(args: argparse.Namespace) -> LuminaMGPTChatPipeline:
    dtype = getattr(torch, args.dtype or ("float32" if args.device == "cpu" else "bfloat16"))
    pipe = LuminaMGPTChatPipeline.from_pretrained(
        args.model, original_vqgan=args.original_vqgan, original_tokenizer=args.original_tokenizer, dtype=dtype
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(args.device)


def read_line(line: str) -> tuple[list[dict], list[str]]:
    """Text and image parts of a line, in which images stand as @path, and the paths."""
    content, paths, end = [], [], 0
    for match in re.finditer(r'@(?:"([^"]+)"|(\S+))', line):
        content += [{"type": "text", "text": line[end : match.start()]}, {"type": "image"}]
        paths.append(match[1] or match[2])
        end = match.end()
    content.append({"type": "text", "text": line[end:]})
    return [part for part in content if part != {"type": "text", "text": ""}], paths


def new_conversation(args: argparse.Namespace) -> LuminaMGPTConversation:
    return LuminaMGPTConversation(None if args.seed is None else torch.Generator().manual_seed(args.seed))


def main() -> None:
    args = parse_args()
    pipe = load_pipeline(args)
    conversation = new_conversation(args)
    settings = {"height": args.height, "width": args.width, "guidance_scale": args.guidance_scale}
    if args.greedy:
        settings |= {"temperature": 0.0, "text_temperature": 0.0}
    num_images = 0
    while True:
        print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            break
        line = line.strip()
        if line == "/new":
            conversation = new_conversation(args)
            continue
        if not line:
            continue
        content, paths = read_line(line)
        try:
            parts = pipe.stream(
                [{"role": "user", "content": content}],
                images=paths,
                conversation=conversation,
                max_new_tokens=args.max_new_tokens,
                **settings,
            )
        except ValueError as error:
            print(error)
            continue
        for part in parts:
            if not isinstance(part, ImagePart):
                print(part.text, end="", flush=True)
            elif part.image is not None:
                num_images += 1
                path = args.output / f"{num_images:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                part.image.save(path)
                print(f"[{path}]", end="", flush=True)
        print(" [cut off]" if conversation.finish_reason == "length" else "")


if __name__ == "__main__":
    main()
