# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sizes that the model chooses itself, by the two size tags at the start of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .scheduling_lumina_mgpt import LuminaMGPTScheduler
from .sequence_batch import Feed, SequenceBatch
from .unirep import GRID_SIZE, MAX_ASPECT_RATIO, ImageVocabulary


@dataclass(frozen=True)
class SizeTags:
    """
    The size tags that may follow one another: grids of at most the trained area and aspect ratio.

    These are more than the trained sizes, which no grid of the same aspect ratio exceeds: models also answer with
    smaller images where they are asked to.

    Args:
        vocabulary ([`ImageVocabulary`]): Token ids of the image language.
        base_size (`int`): Base size of the checkpoint in pixels.
    """

    vocabulary: ImageVocabulary
    base_size: int

    def height_ids(self) -> torch.LongTensor:
        """Tags that may stand for the height of an image. Any of them can be followed by some width."""
        return self._tag_ids([height for height in self._grids if self._widths(height)])

    def width_ids(self, height_id: int) -> torch.LongTensor:
        """Tags that may follow that of a height."""
        return self._tag_ids(self._widths(self.vocabulary.size_tag_ids.index(height_id) + 1))

    def size(self, height_id: int, width_id: int) -> tuple[int, int]:
        """`(height, width)` in pixels that two size tags say."""
        tags = self.vocabulary.size_tag_ids
        return (tags.index(height_id) + 1) * GRID_SIZE, (tags.index(width_id) + 1) * GRID_SIZE

    @property
    def _grids(self) -> range:
        return range(1, len(self.vocabulary.size_tag_ids) + 1)

    def _widths(self, height: int) -> list[int]:
        cells = (self.base_size // GRID_SIZE) ** 2
        return [
            width
            for width in self._grids
            if height * width <= cells and max(height, width) <= MAX_ASPECT_RATIO * min(height, width)
        ]

    def _tag_ids(self, grids: list[int]) -> torch.LongTensor:
        return torch.tensor([self.vocabulary.size_tag_ids[number - 1] for number in grids])


def choose_id(
    scheduler: LuminaMGPTScheduler,
    logits: torch.Tensor,
    allowed: torch.LongTensor,
    generator: torch.Generator,
    temperature: float,
    top_k: int,
) -> int:
    """
    Sample a token id.

    The noise is drawn over the whole vocabulary, so that what is drawn next does not depend on what is allowed here.

    Args:
        scheduler ([`LuminaMGPTScheduler`]): The sampler.
        logits (`torch.Tensor` of shape `(vocab_size,)`): float32 logits.
        allowed (`torch.LongTensor`): The ids to choose from.
        generator (`torch.Generator`): Draws the noise.
        temperature (`float`), top_k (`int`): Sampler settings, `top_k=0` for all.
    """
    allowed = allowed.to(logits.device)
    noise = None
    if not scheduler.is_greedy(temperature, top_k):
        noise = scheduler.draw_noise(logits.shape, generator, logits.device)[allowed]
    return int(allowed[scheduler.sample(logits[allowed], noise, temperature, top_k)])


def choose_sizes(
    transformer: torch.nn.Module,
    scheduler: LuminaMGPTScheduler,
    size_tags: SizeTags,
    contexts: Sequence[Sequence[int]],
    generators: Sequence[torch.Generator],
    device: torch.device,
    temperature: float,
    top_k: int,
) -> list[tuple[int, int]]:
    """
    Let the model choose the size of an image after each context.

    Args:
        transformer ([`LuminaMGPTTransformer`]): The model.
        scheduler ([`LuminaMGPTScheduler`]): The sampler.
        size_tags ([`SizeTags`]): The sizes to choose from.
        contexts (`list[list[int]]`): Token ids before each image's start token.
        generators (`list[torch.Generator]`): One for each image.
        device (`torch.device`): Where the transformer runs.
        temperature (`float`), top_k (`int`): Sampler settings, `top_k=0` for all.

    Returns:
        `list[tuple[int, int]]`: `(height, width)` in pixels.
    """
    batch = SequenceBatch(transformer, device)
    sequences = [[*context, size_tags.vocabulary.start_id] for context in contexts]
    logits = batch.forward([Feed(row, 0, sequence, 1) for row, sequence in enumerate(sequences)])
    heights = [
        choose_id(scheduler, row[-1], size_tags.height_ids(), generator, temperature, top_k)
        for row, generator in zip(logits, generators)
    ]
    logits = batch.forward([Feed(row, len(sequence), [heights[row]], 1) for row, sequence in enumerate(sequences)])
    widths = [
        choose_id(scheduler, row[-1], size_tags.width_ids(height), generator, temperature, top_k)
        for row, height, generator in zip(logits, heights, generators)
    ]
    return [size_tags.size(height, width) for height, width in zip(heights, widths)]
