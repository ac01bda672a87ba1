# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sequences of different lengths, fed to the transformer by one forward for all, over one KV cache."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn

from .decoding import LENGTH_STEP, round_up
from .kv_cache import SlotCache


@dataclass(frozen=True)
class Feed:
    """
    Tokens of one sequence for the next forward.

    Args:
        sequence (`Hashable`): Which sequence.
        start (`int`): Position of the first of the tokens. All positions before it have been fed.
        ids (`list[int]`): The tokens.
        num_logits (`int`): How many of the last of them logits are wanted for.
    """

    sequence: Hashable
    start: int
    ids: list[int]
    num_logits: int

    @property
    def stop(self) -> int:
        return self.start + len(self.ids)


class SequenceBatch:
    r"""
    The sequences that are being continued, each on its row of one [`SlotCache`].

    A forward takes as many tokens of each sequence as there are; short ones are padded to the longest. A key lies in
    the slot of its position, so what padding leaves in later slots is overwritten before anything can see it.

    Args:
        transformer ([`LuminaMGPTTransformer`]): The model.
        device (`torch.device`): Where it runs.
    """

    def __init__(self, transformer: nn.Module, device: torch.device) -> None:
        self.transformer = transformer
        self.device = device
        self._cache: SlotCache | None = None
        self._rows: list[Hashable] = []
        self._max_length = 0
        self._incoming: dict[Hashable, SlotCache] = {}

    def put(self, sequence: Hashable, cache: SlotCache) -> None:
        """Continue a sequence from a cache of one row, which is emptied by the next forward."""
        self._incoming[sequence] = cache

    def take(self, sequence: Hashable, length: int) -> SlotCache | None:
        """A copy of the first `length` slots of a sequence. None if nothing of it was fed."""
        if sequence not in self._rows:
            return self._incoming.pop(sequence, None)
        return self._cache.copy_row(self._rows.index(sequence), length)

    def forward(self, feeds: Sequence[Feed], logits_range: tuple[int, int] | None = None) -> list[torch.Tensor]:
        """
        Run the transformer once. Sequences that are not fed are dropped.

        Args:
            feeds (`list[Feed]`): What to feed, one for each sequence.
            logits_range (`tuple[int, int]`, *optional*): Compute only the logits of the token ids `[first, stop)`.

        Returns:
            `list[torch.Tensor]`: For each, float32 logits of shape `(num_logits, vocab_size or stop - first)`.
        """
        # The last slot is never read: padding beyond the end goes there.
        needed = max(feed.stop for feed in feeds) + 1
        self._arrange([feed.sequence for feed in feeds], needed)
        width = max(len(feed.ids) for feed in feeds)
        num_logits = max(feed.num_logits for feed in feeds)
        ids = torch.tensor([feed.ids + [0] * (width - len(feed.ids)) for feed in feeds])
        starts = torch.tensor([feed.start for feed in feeds])
        lengths = torch.tensor([len(feed.ids) for feed in feeds])
        positions = (starts[:, None] + torch.arange(width)).clamp(max=self._max_length - 1)
        kept = (lengths[:, None] - num_logits + torch.arange(num_logits)).clamp(min=0)

        self._cache.limit(min(round_up(needed, LENGTH_STEP), self._max_length), self.device)
        # Shapes change from one forward to the next, and compiled code is made for a shape.
        with torch.compiler.set_stance("force_eager"):
            logits = self.transformer(
                input_ids=ids.to(self.device),
                position_ids=positions.to(self.device),
                past_key_values=self._cache,
                logits_to_keep=kept.to(self.device),
                logits_range=logits_range,
            ).logits
        return [row[num_logits - feed.num_logits :].float() for row, feed in zip(logits, feeds)]

    def _arrange(self, sequences: list[Hashable], needed: int) -> None:
        """Give each of the sequences a row of at least `needed` slots, in this order."""
        if sequences == self._rows and needed <= self._max_length:
            return
        if needed > self._max_length:
            # A quarter more than needed, so that growing step by step copies little.
            self._max_length = round_up(needed + max(needed // 4, LENGTH_STEP), LENGTH_STEP)
        sources = []
        for sequence in sequences:
            if sequence in self._incoming:
                sources.append((self._incoming.pop(sequence), 0))
            else:
                sources.append((self._cache, self._rows.index(sequence)) if sequence in self._rows else None)
        self._cache = SlotCache.from_rows(sources, self.transformer.config.num_hidden_layers, self._max_length)
        self._rows = list(sequences)
