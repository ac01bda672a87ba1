# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Measure what a model of the small world draws and answers. Writes a table and contact sheets.

    python examples/pocket/evaluate.py --pipeline pocket --output pocket_figures
    python examples/pocket/evaluate.py --judge_only --pipeline pocket --output pocket_figures

`--judge_only` measures the judge instead: on pictures of the world that are right, on the same after the VQ model's
round trip, which is the most that any transformer can reach, and on pictures that are wrong in one thing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from detect import detect
from judge import CATEGORIES, cases_with_room, draw_right, is_right, spoil
from measures import (
    ROUND_TRIP,
    answer_is_right,
    boxes_iou,
    control_is_right,
    depth_error,
    edit_is_right,
    interval,
    normals_error,
    segmentation_iou,
)
from tasks import Example, draw_example
from torchmetrics.image.fid import FrechetInceptionDistance
from world import draw_scene, render

from lumina_mgpt_diffusers import LuminaMGPTChatPipeline, LuminaMGPTImg2ImgPipeline, LuminaMGPTPipeline
from lumina_mgpt_diffusers.lumina_mgpt.tasks import IMAGE_PLACEHOLDER, Task
from lumina_mgpt_diffusers.lumina_mgpt.visual_results import contact_sheet


IMAGE_MEASURES: dict[str, Callable[[Example, np.ndarray], float]] = {
    "depth": depth_error,
    "normal": normals_error,
    "segmentation": segmentation_iou,
    "detection": boxes_iou,
    "edit": lambda example, pixels: float(edit_is_right(example, detect(pixels))),
    "control": lambda example, pixels: float(control_is_right(example, detect(pixels))),
}

MEASURE_NAMES = {
    "depth": "depth, relative error",
    "normal": "normals, mean angle in degrees",
    "segmentation": "segmentation, mean IoU",
    "detection": "boxes, IoU",
    "edit": "edits that are right",
    "control": "images from maps that are right",
    "question": "questions that are answered right",
}

NUM_SHOWN = 8
"""Pictures of each category, or task, on a contact sheet."""


class EncoderFeatures(torch.nn.Module):
    """
    Features for the Fréchet distance: mean and deviation over the picture of what the VQ model's encoder sees before
    it is quantised. Not those of Inception, so the distances compare with each other only.

    Args:
        vqvae ([`VQModel`]): The VQ model.
    """

    def __init__(self, vqvae: torch.nn.Module) -> None:
        super().__init__()
        self.vqvae = vqvae
        self.num_features = 2 * vqvae.config.block_out_channels[-1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        encoder = self.vqvae.encoder
        hidden = encoder.conv_in(images.to(self.vqvae.dtype) / 127.5 - 1)
        for block in encoder.down_blocks:
            hidden = block(hidden)
        hidden = encoder.mid_block(hidden).float().flatten(2)
        return torch.cat([hidden.mean(dim=-1), hidden.std(dim=-1)], dim=1)


def batches(items: list, size: int) -> Iterable[list]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def seeded(seeds: Iterable[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def round_trip(pipe: LuminaMGPTPipeline, pixels: np.ndarray) -> np.ndarray:
    """The picture after the VQ model's encoder, codebook and decoder."""
    vqvae = pipe.vqvae
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(vqvae.dtype) / 127.5 - 1
    with torch.no_grad():
        latents = vqvae.encode(image).latents
        codes = vqvae.quantize(latents.float())[2][2].view(1, *latents.shape[2:])
        decoded = pipe.decode_codes(codes)[0].float()
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def judge_figures(pipe: LuminaMGPTPipeline, args: argparse.Namespace) -> dict[str, list[float]]:
    """How often right pictures are accepted, as they are and after the VQ model, and wrong ones."""
    results: dict[str, list[float]] = {}
    height, width = args.size
    for category in CATEGORIES:
        for index, case in enumerate(cases_with_room(category, args.split, args.num_prompts, height, width)):
            random = np.random.default_rng(index)
            right = render(draw_right(case, random, height, width))
            pictures = {"right": right, "round trip": round_trip(pipe, right)}
            with suppress(ValueError):  # one object more may have no room
                pictures["wrong"] = render(draw_right(spoil(case, random), random, height, width))
            for name, pixels in pictures.items():
                results.setdefault(f"{category}: {name}", []).append(float(is_right(case, detect(pixels))))
    return results


def draw_prompts(
    pipe: LuminaMGPTPipeline, args: argparse.Namespace
) -> tuple[dict[str, list[float]], list[PIL.Image.Image]]:
    """Whether each picture is right, by category, and some pictures of each."""
    height, width = args.size
    results: dict[str, list[float]] = {}
    shown = []
    for category in CATEGORIES:
        wanted = cases_with_room(category, args.split, args.num_prompts, height, width)
        cases = [(case, 1_000_003 * seed + index) for seed in args.seeds for index, case in enumerate(wanted)]
        for batch in batches(cases, args.batch_size):
            images = pipe(
                [case.prompt for case, _ in batch],
                height=height,
                width=width,
                guidance_scale=args.guidance_scale,
                temperature=args.temperature,
                top_k=args.top_k,
                generator=seeded(seed for _, seed in batch),
            ).images
            verdicts = [is_right(case, detect(np.asarray(image))) for (case, _), image in zip(batch, images)]
            known = results.setdefault(category, [])
            shown += images[: max(NUM_SHOWN - len(known), 0)]
            known.extend(map(float, verdicts))
    results["overall"] = [value for values in results.values() for value in values]
    return results, shown


def run_tasks(
    pipe: LuminaMGPTPipeline, args: argparse.Namespace
) -> tuple[dict[str, list[float]], list[PIL.Image.Image]]:
    """
    The measure of each task, of what was wanted after the VQ model too, and rows of what was given, made and wanted.
    """
    image_to_image = LuminaMGPTImg2ImgPipeline.from_pipe(pipe)
    chat = LuminaMGPTChatPipeline.from_pipe(pipe)
    for other in (image_to_image, chat):
        other.set_progress_bar_config(disable=True)
    results: dict[str, list[float]] = {}
    shown = []
    base_size = pipe.scheduler.config.resolution
    for task, measure_of in IMAGE_MEASURES.items():
        for index in range(args.num_prompts):
            example = draw_example(task, args.split, index, base_size)
            request = example.turns[0][0]
            made = image_to_image(
                image=PIL.Image.fromarray(example.images[0]),
                task=Task(request, 1.0 if task != "edit" else args.guidance_scale, args.task_temperature, 0),
                generator=seeded([index])[0],
            ).images[0]
            reached = {"": np.asarray(made), ROUND_TRIP: round_trip(pipe, example.images[1])}
            for kind, pixels in reached.items():
                results.setdefault(MEASURE_NAMES[task] + kind, []).append(measure_of(example, pixels))
            if index < 2:
                shown += [PIL.Image.fromarray(example.images[0]), made, PIL.Image.fromarray(example.images[1])]
    for index in range(args.num_prompts):
        example = draw_example("question", args.split, index, base_size)
        question, answer = example.turns[0]
        content = [{"type": "text", "text": question.removesuffix(IMAGE_PLACEHOLDER)}, {"type": "image"}]
        output = chat(
            [{"role": "user", "content": content}],
            images=[PIL.Image.fromarray(example.images[0])],
            max_new_tokens=12,
            text_temperature=0.0,
        )
        results.setdefault(MEASURE_NAMES["question"], []).append(float(answer_is_right(answer, output.text)))
    return results, shown


def frechet_distance(pipe: LuminaMGPTPipeline, args: argparse.Namespace) -> float:
    """Between pictures of the world and pictures that the model draws from captions of other scenes."""

    base_size = pipe.scheduler.config.resolution
    distance = FrechetInceptionDistance(feature=EncoderFeatures(pipe.vqvae), input_img_size=(3, base_size, base_size))
    for batch in batches(list(range(args.num_fid_images)), args.batch_size):
        real = [render(draw_scene("test", 500_000 + index, base_size, base_size)) for index in batch]
        distance.update(torch.from_numpy(np.stack(real)).permute(0, 3, 1, 2), real=True)
        prompts = [draw_example("caption", "test", index, base_size).turns[0][1] for index in batch]
        made = pipe(
            prompts,
            height=base_size,
            width=base_size,
            guidance_scale=args.guidance_scale,
            temperature=args.temperature,
            top_k=args.top_k,
            generator=seeded(batch),
            output_type="np",
        ).images
        made = torch.from_numpy((made * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)
        distance.update(made, real=False)
    return float(distance.compute())


def write_table(results: dict[str, list[float]], path: Path, title: str) -> None:
    lines = [f"# {title}", "", "| what | mean | 95% interval | number |", "|---|---|---|---|"]
    for name, values in results.items():
        mean, low, high = interval(values)
        lines.append(f"| {name} | {mean:.3f} | {low:.3f} to {high:.3f} | {len(values)} |")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    path.with_suffix(".json").write_text(json.dumps(results))
    print("\n".join(lines), flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder of the pipeline")
    parser.add_argument("--output", type=Path, required=True, help="folder of the tables and sheets")
    parser.add_argument("--judge_only", action="store_true", help="measure the judge, not the model")
    parser.add_argument("--tasks", action="store_true", help="measure the tasks of Omni-SFT as well")
    parser.add_argument("--split", choices=["test", "held_out"], default="test")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: the base size, square"
    )
    parser.add_argument("--num_prompts", type=int, default=100, help="of each category and task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_fid_images", type=int, default=0)
    parser.add_argument("--guidance_scale", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top_k", type=int)
    parser.add_argument("--task_temperature", type=float, default=0.0)
    parser.add_argument("--batch_size", type=int, default=16)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    components = {"transformer": None} if args.judge_only else {}
    pipe = LuminaMGPTPipeline.from_pretrained(args.pipeline, dtype=torch.float32, **components)
    pipe.set_progress_bar_config(disable=True)
    base_size = pipe.scheduler.config.resolution
    args.size = args.size or [base_size, base_size]
    name = f"{args.split}_{args.size[0]}x{args.size[1]}"
    if args.judge_only:
        write_table(judge_figures(pipe, args), args.output / f"judge_{name}", f"The judge, {name}")
        return
    began = time.perf_counter()
    results, shown = draw_prompts(pipe, args)
    write_table(results, args.output / f"prompts_{name}", f"Prompts, {name}")
    contact_sheet(shown, columns=8).save(args.output / f"prompts_{name}.png")
    if args.tasks:
        results, shown = run_tasks(pipe, args)
        write_table(results, args.output / f"tasks_{args.split}", f"Tasks, {args.split}")
        contact_sheet(shown, columns=6).save(args.output / f"tasks_{args.split}.png")
    if args.num_fid_images:
        distance = {"distance": frechet_distance(pipe, args), "num_images": args.num_fid_images}
        (args.output / "frechet.json").write_text(json.dumps(distance))
        print("Fréchet distance {distance:.3f} over {num_images} images".format(**distance))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
