# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The sheets of the README: what the pocket model draws, at which sizes, and what it makes of pictures.

    python examples/pocket/show_pocket.py prompts --output docs/pocket_first.png
    python examples/pocket/show_pocket.py sizes --output docs/pocket_sizes.png
    python examples/pocket/show_pocket.py tasks --output docs/pocket_tasks.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from lumina_mgpt_diffusers import LuminaMGPTChatPipeline, LuminaMGPTImg2ImgPipeline, LuminaMGPTPipeline


PROMPTS = (
    "a large yellow star on a mint floor",
    "a red ball on a sand floor",
    "a purple cylinder on a white floor",
    "two pink hearts",
    "an orange ring on a charcoal floor",
    "a green cone and a blue cube",
)

SIZES = (((64, 256), (96, 160), (96, 128)), ((128, 128), (128, 96)), ((160, 96), (64, 160)), ((256, 64),))
"""Height and width, of those of the last stage of training, by column of the sheet."""

SCENES = (
    ("a red ball to the left of a blue cube on a mint floor", "Make the cube yellow", "ball"),
    ("a green cone behind an orange ring on a lilac floor", "Remove the ring", "cone"),
)
"""A prompt, and what is then made of its picture: an edit, and a shape to find."""

QUESTION = "How many objects are there? <|image|>"

GAP = 8
LINE = 18


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labelled(image: PIL.Image.Image, text: str) -> PIL.Image.Image:
    """A picture with a text below it, in as many lines as it takes."""
    font = PIL.ImageFont.load_default(14)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > image.width:
            lines.append(word)
        else:
            lines[-1] = longer
    sheet = PIL.Image.new("RGB", (image.width, image.height + LINE * len(lines)), "white")
    sheet.paste(image, (0, 0))
    draw = PIL.ImageDraw.Draw(sheet)
    for index, line in enumerate(lines):
        draw.text((1, image.height + LINE * index + 1), line, fill="black", font=font)
    return sheet


def in_rows(rows: list[list[PIL.Image.Image]]) -> PIL.Image.Image:
    """Rows of pictures, with white between them."""
    heights = [max(image.height for image in row) + GAP for row in rows]
    width = max(sum(image.width + GAP for image in row) for row in rows) - GAP
    sheet = PIL.Image.new("RGB", (width, sum(heights) - GAP), "white")
    for index, row in enumerate(rows):
        left = 0
        for image in row:
            sheet.paste(image, (left, sum(heights[:index])))
            left += image.width + GAP
    return sheet


def show_prompts(pipe: LuminaMGPTPipeline, seed: int) -> PIL.Image.Image:
    generators = [seeded(seed + index) for index in range(len(PROMPTS))]
    images = pipe(list(PROMPTS), generator=generators).images
    return in_rows([[labelled(image, prompt) for image, prompt in zip(images, PROMPTS)]])


def show_sizes(pipe: LuminaMGPTPipeline, seed: int) -> PIL.Image.Image:
    """One prompt at sizes of one area, in one call."""
    heights, widths = zip(*(size for column in SIZES for size in column))
    generators = [seeded(seed + index) for index in range(len(heights))]
    prompts = [PROMPTS[0]] * len(heights)
    images = pipe(prompts, height=list(heights), width=list(widths), generator=generators).images
    cells = (labelled(image, f"{image.width}x{image.height}") for image in images)
    return in_rows([[in_rows([[next(cells)] for _ in column]) for column in SIZES]])


def show_tasks(pipe: LuminaMGPTPipeline, seed: int) -> PIL.Image.Image:
    """A picture that the model draws, and what it makes of it."""
    of_images, chat = LuminaMGPTImg2ImgPipeline.from_pipe(pipe), LuminaMGPTChatPipeline.from_pipe(pipe)
    for other in (of_images, chat):
        other.set_progress_bar_config(disable=True)
    rows = []
    for index, (prompt, instruction, shape) in enumerate(SCENES):
        image = pipe(prompt, generator=seeded(seed + index)).images[0]
        answer = chat(QUESTION, images=image, max_new_tokens=16, text_temperature=0.0).text
        asked = QUESTION.removesuffix(" <|image|>")
        row = [labelled(image, f"{prompt} · {asked} {answer}")]
        made = {}
        for task, text in (
            ("edit", instruction),
            ("depth", None),
            ("normal", None),
            ("segmentation", None),
            ("detection", shape),
        ):
            made[task] = of_images(text, image=image, task=task, generator=seeded(seed)).images[0]
            row.append(labelled(made[task], text if task == "edit" else f"{task}: {text}" if text else task))
        control = of_images(prompt, image=made["depth"], task="control", generator=seeded(seed)).images[0]
        rows.append([*row, labelled(control, "control, from the depth")])
    return in_rows(rows)


SHEETS = {"prompts": show_prompts, "sizes": show_sizes, "tasks": show_tasks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", choices=list(SHEETS))
    parser.add_argument("--model", default="pocket", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    pipe = LuminaMGPTPipeline.from_pretrained(args.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    SHEETS[args.sheet](pipe, args.seed).save(args.output, optimize=True)


if __name__ == "__main__":
    main()
