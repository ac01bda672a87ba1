# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""`lumina-mgpt chat`: a conversation in the terminal."""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from ..lumina_mgpt import ImagePart, LuminaMGPTChatPipeline, LuminaMGPTConversation, TextPart
from .arguments import (
    add_model_arguments,
    add_sampler_arguments,
    add_size_arguments,
    load_pipeline,
    sampler_settings,
)


EXAMPLE = """\
example:
  lumina-mgpt chat --model lumina-mgpt-7b-768-omni

An image goes where its path stands after an @: `Describe @fox.png in detail.`, or `Make it night. @"my fox.png"`. The
images of the answers are saved to `--output`. `/new` begins a new conversation, `/quit` or the end of input ends.
"""

IMAGE_PATH = re.compile(r'@(?:"([^"]+)"|(\S+))')


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "chat",
        help="a conversation with images in and out",
        description="Talk to the model, with images in and out.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--max_new_tokens", type=int, default=10240, help="longest answer; default: %(default)s")
    add_size_arguments(parser, "the model chooses")
    parser.add_argument("--greedy", action="store_true", help="both temperatures 0: always the most likely token")
    parser.add_argument("--seed", type=int, help="default: another one every time")
    parser.add_argument("--output", type=Path, default=Path("chat"), help="folder of images; default: %(default)s")
    add_sampler_arguments(parser, with_text=True)
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    settings = sampler_settings(args)
    if args.greedy:
        for name in ("temperature", "text_temperature"):
            if settings[name] not in (None, 0.0):
                raise ValueError(f"`{name}` has to be left out or 0 with `greedy` but is {settings[name]}.")
            settings[name] = 0.0
    settings |= {name: getattr(args, name) for name in ("height", "width", "max_new_tokens")}
    pipe = load_pipeline(LuminaMGPTChatPipeline, args)
    pipe.set_progress_bar_config(disable=True)
    conversation = new_conversation(args.seed)
    num_images = 0
    while (line := read_line()) is not None:
        if line == "/new":
            conversation = new_conversation(args.seed)
        elif line:
            content, paths = to_content(line)
            message = {"role": "user", "content": content}
            try:
                parts = pipe.stream([message], images=paths, conversation=conversation, **settings)
            except ValueError as error:
                print(error)
                continue
            num_images = print_answer(parts, args.output, num_images)
            print(" [cut off]" if conversation.finish_reason == "length" else "")


def new_conversation(seed: int | None) -> LuminaMGPTConversation:
    return LuminaMGPTConversation(None if seed is None else torch.Generator().manual_seed(seed))


def read_line() -> str | None:
    """The next line of the user, None at the end."""
    print("> ", end="", flush=True)
    line = sys.stdin.readline()
    return None if not line or line.strip() == "/quit" else line.strip()


def to_content(line: str) -> tuple[list[dict[str, str]], list[str]]:
    """Text and image parts of a line, in which images stand as @path, and the paths."""
    content, paths, end = [], [], 0
    for match in IMAGE_PATH.finditer(line):
        content += [{"type": "text", "text": line[end : match.start()]}, {"type": "image"}]
        paths.append(match[1] or match[2])
        end = match.end()
    content.append({"type": "text", "text": line[end:]})
    return [part for part in content if part != {"type": "text", "text": ""}], paths


def print_answer(parts: Iterable[TextPart | ImagePart], folder: Path, num_images: int) -> int:
    """Print the text and save the images as they come; gives the number of images saved by now."""
    for part in parts:
        if isinstance(part, TextPart):
            print(part.text, end="", flush=True)
        elif part.image is not None:
            num_images += 1
            path = folder / f"{num_images:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            part.image.save(path)
            print(f"[{path}]", end="", flush=True)
    return num_images
