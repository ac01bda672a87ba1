# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What the engine is asked for, and which token may follow in an answer. It knows no model.

Only what is well formed can be sampled:

- in text, the tokens of text, the start of an image, and the separator that ends the answer;
- after the start of an image, a height tag, then a width tag, which together are a grid of at most the trained area
  and aspect ratio, unless the caller forces the size or all images have one;
- then codes alone; row ends and the end of the image follow from the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from .kv_cache import SlotCache
from .scheduling_lumina_mgpt import SamplerSettings
from .unirep import MAX_ASPECT_RATIO, ImageVocabulary


@dataclass(frozen=True)
class Grammar:
    """
    Which token may follow.

    Sizes that the model chooses are more than the trained ones, which no grid of the same aspect ratio exceeds: models
    also answer with smaller images where they are asked to.

    Args:
        vocabulary ([`ImageVocabulary`]): Token ids of the image language.
        base_size (`int`): Base size of the checkpoint in pixels.
        text_ids (`torch.LongTensor` of shape `(num_text_ids,)`):
            What may be sampled in text: text, the start of an image, the separator. Not needed for images alone.
    """

    vocabulary: ImageVocabulary
    base_size: int
    text_ids: torch.LongTensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long, device="cpu"))

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, vocabulary: ImageVocabulary, base_size: int, draws: bool = True
    ) -> Grammar:
        """All that the tokenizer did not add to its text vocabulary is text. Images begin if the model `draws` any."""
        control = {*tokenizer.added_tokens_encoder.values(), *vocabulary.code_ids.tolist(), *vocabulary.size_tag_ids}
        control |= {vocabulary.end_id, vocabulary.row_end_id}
        allowed = set(tokenizer.get_vocab().values()) - control | {vocabulary.start_id, vocabulary.separator_id}
        if not draws:
            allowed.remove(vocabulary.start_id)
        return cls(vocabulary, base_size, torch.tensor(sorted(allowed), device="cpu"))

    def height_ids(self, max_pixels: int | None = None) -> torch.LongTensor:
        """Tags that may stand for the height of an image. Any of them can be followed by some width."""
        return self._tag_ids([height for height in self._grids if self._widths(height, max_pixels)])

    def width_ids(self, height_id: int, max_pixels: int | None = None) -> torch.LongTensor:
        """Tags that may follow that of a height."""
        return self._tag_ids(self._widths(self.vocabulary.size_tag_ids.index(height_id) + 1, max_pixels))

    def size(self, height_id: int, width_id: int) -> tuple[int, int]:
        """`(height, width)` in pixels that two size tags say."""
        tags, grid_size = self.vocabulary.size_tag_ids, self.vocabulary.grid_size
        return (tags.index(height_id) + 1) * grid_size, (tags.index(width_id) + 1) * grid_size

    @property
    def _grids(self) -> range:
        return range(1, len(self.vocabulary.size_tag_ids) + 1)

    def _widths(self, height: int, max_pixels: int | None) -> list[int]:
        cells = (self.base_size // self.vocabulary.grid_size) ** 2
        if max_pixels is not None:
            cells = min(cells, max_pixels // self.vocabulary.grid_size**2)
        return [
            width
            for width in self._grids
            if height * width <= cells and max(height, width) <= MAX_ASPECT_RATIO * min(height, width)
        ]

    def _tag_ids(self, grids: list[int]) -> torch.LongTensor:
        return torch.tensor([self.vocabulary.size_tag_ids[number - 1] for number in grids], device="cpu")


@dataclass(eq=False)
class Request:
    """
    One answer to be sampled: a single image, or text and images up to the separator.

    Args:
        context (`list[int]`): Token ids before the answer.
        settings ([`SamplerSettings`]): How it is sampled.
        key (`int`, defaults to 0): 64-bit key of its noise, see [`~noise.draw_key`].
        unconditional_context (`list[int]`):
            Token ids before an image in the unconditional branch of classifier-free guidance, none as trained.
        size (`tuple[int, int]`, *optional*): `(height, width)` in pixels that its images are forced to.
        max_pixels (`int`, *optional*): Most pixels of a size that the model chooses, if it is to be less than trained.
        is_image (`bool`, defaults to `False`): Whether the answer is one image and nothing else.
        codes (`torch.LongTensor` of shape `(rows, columns)`, *optional*):
            With `is_image` and a `size`, the given codes, -1 where a code is to be sampled.
        max_new_tokens (`int`, *optional*): Most tokens of the answer.
        cache ([`SlotCache`], *optional*), num_cached (`int`, defaults to 0):
            One row with keys and values of the first `num_cached` tokens of the context.
        keep_cache (`bool`, defaults to `False`): Whether the row of the KV cache is wanted when all is finished.
        needs_log_probs (`bool`, defaults to `False`): Whether the log-probabilities of the codes are wanted.
    """

    context: Sequence[int]
    settings: SamplerSettings
    key: int = 0
    unconditional_context: Sequence[int] = ()
    size: tuple[int, int] | None = None
    max_pixels: int | None = None
    is_image: bool = False
    codes: torch.LongTensor | None = None
    max_new_tokens: int | None = None
    cache: SlotCache | None = None
    num_cached: int = 0
    keep_cache: bool = False
    needs_log_probs: bool = False
