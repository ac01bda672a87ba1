# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""torch's scaled dot product attention, such that a query gets the same bits in a window of any length."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface


SLOT_SDPA = "slot_sdpa"
"""Name of the implementation, which [`LuminaMGPTTransformer`] takes for `"sdpa"`."""

# On CPUs, kernels for one query, on some for two, round otherwise than those for more.
LEAST_QUERIES = 4

# Heads that share keys are taken for queries of one head up to so many, by device type. Kernels of CPUs take more in
# larger blocks, and round otherwise. On CUDA it is the longest window of 8 heads to a key; of a whole prompt the mask
# would grow as large as the copies. (`enable_gqa` is no way out: with a mask, CUDA has no fused kernel for it.)
MOST_SHARED_QUERIES = {"cpu": 128, "cuda": 512}


def slot_mask(visible: torch.BoolTensor) -> torch.Tensor:
    """
    What the queries of a window see, in the form that [`slot_sdpa`] takes; made once for all layers.

    Args:
        visible (`torch.BoolTensor` of shape `(batch_size, 1, query_length, key_length)`): What each query sees.

    Returns:
        `torch.Tensor`: The same as scores to be added on CPUs, where the kernels would make them of it in each layer,
        with the last query once more until there are enough.
    """
    if visible.device.type != "cpu":
        return visible
    mask = torch.zeros(visible.shape, dtype=torch.float32, device=visible.device).masked_fill(~visible, -torch.inf)
    return _repeat_last(mask, LEAST_QUERIES)


def slot_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    r"""
    Attention of a window, for [`~transformers.AttentionInterface`].

    Args:
        module (`nn.Module`): The attention layer.
        query (`torch.Tensor` of shape `(batch_size, num_heads, query_length, head_dim)`): Queries.
        key, value (`torch.Tensor` of shape `(batch_size, num_kv_heads, key_length, head_dim)`): Keys and values.
        attention_mask (`torch.Tensor` of shape `(batch_size, 1, at least query_length, key_length)`, *optional*):
            What each query sees, a [`slot_mask`] where there is a [`SlotCache`].
        dropout (`float`, defaults to 0.0): Dropout of the attention weights.
        scaling (`float`, *optional*): Scale of the scores.

    Returns:
        `tuple[torch.Tensor, None]`: Of shape `(batch_size, query_length, num_heads, head_dim)`.
    """
    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    most_shared = MOST_SHARED_QUERIES.get(query.device.type, MOST_SHARED_QUERIES["cpu"])
    if attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, None, dropout=dropout, scaling=scaling, **kwargs)
    query = _repeat_last(query, attention_mask.shape[2])
    if groups > 1 and groups * query.shape[2] <= most_shared:
        # Otherwise keys and values would be copied for each head.
        shared = query.unflatten(1, (key.shape[1], groups)).flatten(2, 3)
        attention_mask = attention_mask.repeat(1, 1, groups, 1)
        output = F.scaled_dot_product_attention(shared, key, value, attention_mask, dropout, scale=scaling)
        output = output.unflatten(2, (groups, -1)).flatten(1, 2).transpose(1, 2)
    else:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    return output[:, :length], None


def _repeat_last(states: torch.Tensor, number: int) -> torch.Tensor:
    """`states` of shape `(batch_size, num_heads, length, size)` with the last one again, until there are so many."""
    missing = number - states.shape[2]
    if missing <= 0:
        return states
    return torch.cat([states, states[:, :, -1:].expand(-1, -1, missing, -1)], dim=2)


AttentionInterface.register(SLOT_SDPA, slot_sdpa)
AttentionMaskInterface.register(SLOT_SDPA, sdpa_mask)
