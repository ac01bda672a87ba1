# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Samples as batches: padded on the right, or packed into one row without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence


IGNORED = -100
"""Label of tokens that are not learnt."""

Sample = dict[str, torch.Tensor]


@dataclass(frozen=True)
class PaddedCollator:
    """
    Makes a batch of one row for each sample. No mask is made: what is padded stands behind the tokens, which cannot
    see it, and is not learnt.

    Args:
        pad_token_id (`int`): Token id to pad with.
    """

    pad_token_id: int

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        return {
            name: pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=padding)
            for name, padding in (("input_ids", self.pad_token_id), ("labels", IGNORED))
        }


@dataclass(frozen=True)
class PackedCollator:
    """
    Makes a batch of one row of samples, one after another; positions restart with each. Says where each starts in the
    form that `packed_sdpa` and flash attention take.
    """

    def __call__(self, rows: Sequence[Sequence[Sample]]) -> dict[str, torch.Tensor | int]:
        (samples,) = rows
        lengths = [len(sample["input_ids"]) for sample in samples]
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        labels = torch.cat([sample["labels"] for sample in samples])
        labels[ends[:-1].long()] = IGNORED  # nothing comes before the first token of a sample
        return {
            "input_ids": torch.cat([sample["input_ids"] for sample in samples])[None],
            "labels": labels[None],
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }
