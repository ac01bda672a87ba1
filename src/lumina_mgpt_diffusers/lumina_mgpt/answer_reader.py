# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pieces that are sampled of an answer as text and images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from .conversation import ImagePart, TextPart
from .row import SampledImage, SampledText


class AnswerReader:
    """
    Reads the pieces of one answer in their order.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): Decodes text.
        to_image_part (`Callable[[SampledImage], ImagePart]`): Decodes images.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, to_image_part: Callable[[SampledImage], ImagePart]) -> None:
        self.tokenizer = tokenizer
        self._to_image_part = to_image_part
        self._text = DecodeStream()
        self._held: list[int] = []

    def read(self, piece: SampledText | SampledImage) -> Iterator[TextPart | ImagePart]:
        """The parts that a piece completes: text as soon as its characters are whole."""
        if isinstance(piece, SampledImage):
            yield from self.rest()
            yield self._to_image_part(piece)
            return
        self._held += piece.ids
        chunk = self._text.step(self.tokenizer.backend_tokenizer, piece.ids)
        if chunk is not None:
            self._held.clear()
            yield TextPart(chunk)

    def rest(self) -> Iterator[TextPart]:
        """What is left at the end of a text: bytes that are no whole character."""
        if self._held:
            yield TextPart(self.tokenizer.decode(self._held, clean_up_tokenization_spaces=False))
        self._text = DecodeStream()
        self._held.clear()
