# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Attention over samples that lie one after another in a row and must not see each other.

transformers' `sdpa` computes all pairs of tokens of such a row and masks most of them. Here every sample is a causal
attention of its own, so that a row costs what its samples cost and no mask is made. `flash_attention_2` does the same
in one kernel where it is installed.
"""

from __future__ import annotations

import torch
import torch.nn as nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask


PACKED_SDPA = "packed_sdpa"
"""Name of the attention implementation. It is `sdpa` for rows that hold one sample."""


def packed_sdpa_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segment_lengths: tuple[int, ...] | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    Causal attention of each segment of the rows by itself.

    Args:
        module (`nn.Module`): The attention layer.
        query, key, value (`torch.Tensor` of shape `(batch_size, heads, length, head_dim)`): What it attends with.
        attention_mask (`torch.Tensor`, *optional*): As of `sdpa`, for rows of one sample.
        segment_lengths (`tuple[int, ...]`, *optional*): Length of each sample in the row.

    Returns:
        `tuple[torch.Tensor, None]`: The output of shape `(batch_size, length, heads, head_dim)`, and no weights.
    """
    if segment_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    parts = zip(*(states.split(segment_lengths, dim=2) for states in (query, key, value)))
    return torch.cat([sdpa_attention_forward(module, *part, None, **kwargs)[0] for part in parts], dim=1), None


def packed_sdpa_mask(*args, attention_mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor | None:
    """The mask of `sdpa` where there is padding; else none, which means causal."""
    if attention_mask is None:
        return None
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(PACKED_SDPA, packed_sdpa_attention)
AttentionMaskInterface.register(PACKED_SDPA, packed_sdpa_mask)
