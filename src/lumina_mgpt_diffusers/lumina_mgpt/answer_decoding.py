# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Decoding of the answers of several conversations at once, one forward at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn

from .answer_sampling import AnswerSampling, SampledImage, SampledText
from .kv_cache import SlotCache
from .sequence_batch import SequenceBatch


class AnswerDecoder:
    r"""
    Decodes a batch of answers, each by itself: one may be in its text, another in an image, a third finished.

    Args:
        transformer ([`LuminaMGPTTransformer`]): The model.
        answers (`list[AnswerSampling]`): The answers to sample.
        caches (`list[SlotCache | None]`): What each conversation has in a cache; they are emptied.
        keep_caches (`list[bool]`): Whether to hand the cache of each conversation back when its answer is finished.
        device (`torch.device`): Where the transformer runs.
    """

    def __init__(
        self,
        transformer: nn.Module,
        answers: Sequence[AnswerSampling],
        caches: Sequence[SlotCache | None],
        keep_caches: Sequence[bool],
        device: torch.device,
    ) -> None:
        self.answers = answers
        self.caches: list[SlotCache | None] = [None] * len(answers)
        self._keep_caches = keep_caches
        self._batch = SequenceBatch(transformer, device)
        for answer, cache in zip(answers, caches):
            if cache is not None:
                self._batch.put(answer.conversation_key, cache)

    @property
    def is_finished(self) -> bool:
        return all(answer.is_finished for answer in self.answers)

    def step(self) -> list[tuple[int, SampledText | SampledImage]]:
        """
        Run the transformer once and give every unfinished answer at least one more token.

        Returns:
            `list[tuple[int, SampledText | SampledImage]]`: What was completed, with the index of its answer.
        """
        active = [(index, answer) for index, answer in enumerate(self.answers) if not answer.is_finished]
        feeds = [answer.feeds() for _, answer in active]
        code_range = active[0][1].grammar.vocabulary.code_range
        only_codes = all(answer.in_image for _, answer in active)
        logits = self._batch.forward(
            [feed for of_answer in feeds for feed in of_answer], code_range if only_codes else None
        )
        pieces = []
        for (index, answer), of_answer in zip(active, feeds):
            own, logits = logits[: len(of_answer)], logits[len(of_answer) :]
            if answer.in_image and not only_codes:
                own = [one[:, slice(*code_range)] for one in own]
            answer.accept(own)
            if answer.is_finished and self._keep_caches[index]:
                self.caches[index] = self._batch.take(answer.conversation_key, answer.num_cached)
            pieces += [(index, piece) for piece in answer.take_pieces()]
        return pieces

    def stop(self) -> list[tuple[int, SampledText | SampledImage]]:
        """End the answers that are not finished, as if they had reached their last token."""
        pieces = []
        for index, answer in enumerate(self.answers):
            if not answer.is_finished:
                answer.stop()
                if self._keep_caches[index]:
                    self.caches[index] = self._batch.take(answer.conversation_key, answer.num_cached)
                pieces += [(index, piece) for piece in answer.take_pieces()]
        return pieces
