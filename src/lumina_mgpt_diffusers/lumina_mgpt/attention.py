# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
xformers as an attention implementation of transformers.

With a [`SlotCache`] a query at position p sees the slots up to p. Where the positions of a row follow one another, as
they do whenever an image is sampled, that is xformers' causal bias over padded keys, and the kernel reads just the
slots in use. Where they do not, and without such a cache, the mask becomes a dense bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from diffusers.utils import is_xformers_available
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from .kv_cache import SlotCache


if TYPE_CHECKING:
    from xformers.ops import AttentionBias


XFORMERS = "xformers"
"""Name of the implementation for `set_attn_implementation`."""

# The kernels read a dense bias in steps of this many keys.
BIAS_ALIGNMENT = 8


class XformersAttentionMixin:
    """Gives a transformers model what `enable_xformers_memory_efficient_attention` of a pipeline looks for."""

    _attention_op: Callable | None = None
    _attn_implementation_before_xformers: str | None = None

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Callable | None = None) -> None:
        r"""
        Switch to xformers and back to what was set before.

        Args:
            valid (`bool`): Whether to use xformers.
            attention_op (`Callable`, *optional*): The kernel, see `xformers.ops.memory_efficient_attention`.

        Raises:
            `ModuleNotFoundError`: If xformers is not installed.
            `ValueError`: If there is no CUDA device.
        """
        is_on = self.config._attn_implementation == XFORMERS
        if valid:
            check_xformers()
            self._attention_op = attention_op
            if not is_on:
                self._attn_implementation_before_xformers = self.config._attn_implementation
                self.set_attn_implementation(XFORMERS)
        elif is_on:
            self.set_attn_implementation(self._attn_implementation_before_xformers)

    def _xformers_arguments(self, cache: SlotCache | None) -> dict[str, Any]:
        """What the attention function needs beside the mask."""
        if self.config._attn_implementation != XFORMERS:
            return {}
        return {"attention_op": self._attention_op, "slot_bias": None if cache is None else slot_bias(cache)}


def check_xformers() -> None:
    """Raise the errors of diffusers if xformers cannot be used."""
    if not is_xformers_available():
        raise ModuleNotFoundError(
            "Refer to https://github.com/facebookresearch/xformers for more information on how to install xformers",
            name="xformers",
        )
    if not torch.cuda.is_available():
        raise ValueError(
            "torch.cuda.is_available() should be True but is False. xformers' memory efficient attention is only"
            " available for GPU"
        )


def slot_bias(cache: SlotCache) -> AttentionBias | None:
    """The bias over the whole of a cache for its `positions`, None if those of a row do not follow one another."""
    num_rows, query_length = cache.positions.shape
    if cache.reach is not None:
        # The host need not know them: the kernels read where each row ends on the device.
        bias = _padded_keys_bias(cache, [max(cache.reach, query_length)] * num_rows)
        bias.k_seqinfo.seqlen.copy_(cache.positions[:, -1] + 1)
        return bias
    positions = cache.positions.tolist()
    if any(row != list(range(row[0], row[0] + query_length)) for row in positions):
        return None
    return _padded_keys_bias(cache, [row[-1] + 1 for row in positions])


def _padded_keys_bias(cache: SlotCache, lengths: list[int]) -> AttentionBias:
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalWithOffsetPaddedKeysMask

    return BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        q_seqlen=[cache.positions.shape[1]] * len(lengths),
        kv_padding=cache.visible_length,
        kv_seqlen=lengths,
        device=cache.positions.device,
    )


def dense_bias(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """
    A mask as an additive bias in the form that the kernels take.

    Args:
        mask (`torch.Tensor` of shape `(batch_size, 1, query_length, key_length)`): True where a key may be seen.
        query (`torch.Tensor` of shape `(batch_size, num_heads, query_length, head_dim)`): For its dtype and heads.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_heads, query_length, key_length)`.
    """
    key_length = mask.shape[-1]
    bias = query.new_zeros(*mask.shape[:-1], -(-key_length // BIAS_ALIGNMENT) * BIAS_ALIGNMENT)[..., :key_length]
    bias.masked_fill_(~mask, torch.finfo(query.dtype).min)
    return bias.expand(-1, query.shape[1], -1, -1)


def xformers_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    attention_op: Callable | None = None,
    slot_bias: AttentionBias | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    r"""
    Attention by xformers, for [`~transformers.AttentionInterface`].

    Args:
        module (`nn.Module`): The attention layer.
        query (`torch.Tensor` of shape `(batch_size, num_heads, query_length, head_dim)`): Queries.
        key, value (`torch.Tensor` of shape `(batch_size, num_kv_heads, key_length, head_dim)`): Keys and values.
        attention_mask (`torch.Tensor` of shape `(batch_size, 1, query_length, key_length)`):
            True where a key may be seen. Not used with a `slot_bias`.
        dropout (`float`, defaults to 0.0): Dropout of the attention weights.
        scaling (`float`, *optional*): Scale of the scores.
        attention_op (`Callable`, *optional*): The kernel.
        slot_bias ([`~xformers.ops.AttentionBias`], *optional*): The mask of a [`SlotCache`].

    Returns:
        `tuple[torch.Tensor, None]`: Of shape `(batch_size, query_length, num_heads, head_dim)`.
    """
    from xformers.ops import memory_efficient_attention

    batch_size, num_heads, query_length, head_dim = query.shape
    num_kv_heads = key.shape[1]
    # (batch_size, length, num_heads, head_dim)
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    bias = slot_bias
    if bias is None:
        bias = dense_bias(attention_mask, query.transpose(1, 2))
    else:
        # The rows lie one behind the other in one sequence of blocks.
        query, key, value = (states.reshape(1, -1, *states.shape[2:]) for states in (query, key, value))
    if num_kv_heads != num_heads:
        # (…, num_kv_heads, num_heads of each, head_dim): the kernels share a key between the heads of its group.
        groups = num_heads // num_kv_heads
        query = query.unflatten(2, (num_kv_heads, groups))
        key, value = (states.unsqueeze(3).expand(-1, -1, -1, groups, -1) for states in (key, value))
        if slot_bias is None:
            bias = bias.unflatten(1, (num_kv_heads, groups))
    output = memory_efficient_attention(query, key, value, attn_bias=bias, p=dropout, scale=scaling, op=attention_op)
    return output.reshape(batch_size, query_length, num_heads, head_dim), None


def xformers_mask(*args, **kwargs) -> torch.Tensor:
    """The mask of sdpa, but always there: [`xformers_attention`] has no notion of causality of its own."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(XFORMERS, xformers_attention)
AttentionMaskInterface.register(XFORMERS, xformers_mask)
