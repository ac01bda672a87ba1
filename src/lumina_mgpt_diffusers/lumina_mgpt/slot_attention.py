# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""torch's scaled dot product attention, such that a query gets the same bits in a window of any length."""

from __future__ import annotations

import torch
import torch.nn as nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface


SLOT_SDPA = "slot_sdpa"
"""Name of the implementation, which [`LuminaMGPTTransformer`] takes for `"sdpa"`."""

# On CPUs, kernels for one query, on some for two, round otherwise than those for more.
LEAST_QUERIES = 4


def slot_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    r"""
    Attention of a window, for [`~transformers.AttentionInterface`].

    Args:
        module (`nn.Module`): The attention layer.
        query (`torch.Tensor` of shape `(batch_size, num_heads, query_length, head_dim)`): Queries.
        key, value (`torch.Tensor` of shape `(batch_size, num_kv_heads, key_length, head_dim)`): Keys and values.
        attention_mask (`torch.Tensor` of shape `(batch_size, 1, query_length, key_length)`, *optional*):
            What each query sees.

    Returns:
        `tuple[torch.Tensor, None]`: Of shape `(batch_size, query_length, num_heads, head_dim)`.
    """
    length = query.shape[2]
    if attention_mask is None or length >= LEAST_QUERIES or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # The last query once more, until there are enough.
    queries = torch.arange(LEAST_QUERIES, device=query.device).clamp(max=length - 1)
    query, attention_mask = query[:, :, queries], attention_mask[:, :, queries]
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output[:, :length], None


AttentionInterface.register(SLOT_SDPA, slot_sdpa)
AttentionMaskInterface.register(SLOT_SDPA, sdpa_mask)
