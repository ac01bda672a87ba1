# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Training data of the small world as tokens, in the folders that `examples/training/train_fp_sft.py` and
`train_omni_sft.py` take as `data`. The samples are drawn as they are encoded: no picture is ever written.

    python examples/pocket/make_data.py --pipeline pocket_start --base_size 96 --num_samples 100000 \
        --tasks text-to-image --output pocket_data

Each task gets a folder `{output}/{base_size}/{task}`. Start it again if it was killed: it goes on.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
from tasks import EXAMPLES, draw_example

from lumina_mgpt_diffusers import LuminaMGPTPipeline
from lumina_mgpt_diffusers.training import EncodingSettings, pretokenize
from lumina_mgpt_diffusers.training.samples import Sample, read_conversation


@dataclass(frozen=True)
class WorldSource:
    """
    The samples of a task as [`SampleSource`].

    Args:
        task (`str`): One of `EXAMPLES`.
        base_size (`int`): Base size in pixels.
        first (`int`), num_samples (`int`): Which of the samples of the training split.
        num_things (`int`, *optional*): Number of objects in each scene, where it should not be drawn.
    """

    task: str
    base_size: int
    first: int
    num_samples: int
    num_things: int | None = None

    def __len__(self) -> int:
        return self.num_samples

    def name_of(self, index: int) -> str:
        return f"{self.task}-{self.first + index}"

    def __getitem__(self, index: int) -> Sample:
        example = draw_example(self.task, "train", self.first + index, self.base_size, self.num_things)
        messages = read_conversation(example.conversations, len(example.images))
        images: list[str | bytes] = []
        for pixels in example.images:
            content = io.BytesIO()
            PIL.Image.fromarray(pixels).save(content, "BMP")
            images.append(content.getvalue())
        return Sample(self.name_of(index), messages, images)

    @property
    def fingerprint(self) -> str:
        return f"{self.task} {self.base_size} {self.first} {self.num_samples} {self.num_things}"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder of the pipeline, for its tokenizer and VQ model")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=list(EXAMPLES), default=["text-to-image"])
    parser.add_argument("--base_size", type=int, required=True, help="in pixels")
    parser.add_argument("--first", type=int, default=0, help="number of the first sample")
    parser.add_argument("--num_samples", type=int, default=100_000, help="of each task")
    parser.add_argument("--num_things", type=int, help="objects in each scene; drawn where not given")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that draw samples")
    parser.add_argument("--vqvae_dtype", choices=["float32", "bfloat16"], default="float32")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    dtype = getattr(torch, args.vqvae_dtype)
    pipe = LuminaMGPTPipeline.from_pretrained(args.pipeline, transformer=None, dtype=dtype)
    for task in args.tasks:
        report = pretokenize(
            WorldSource(task, args.base_size, args.first, args.num_samples, args.num_things),
            args.output / str(args.base_size) / task,
            pipe.tokenizer,
            pipe.vqvae,
            EncodingSettings(base_size=args.base_size),
            batch_size=32,
            num_workers=args.num_workers,
        )
        print(f"{task}: {report.num_samples} samples, {len(report.skipped)} left out")
        for one in report.skipped[:5]:
            print(f"  {one.id}: {one.reason}")


if __name__ == "__main__":
    main()
