# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A static KV cache in which the key of position p lies in slot p, for each row of the batch by itself."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, StaticLayer


class SlotLayer(StaticLayer):
    """Keys and values of one layer, `(batch_size, num_kv_heads, max_length, head_dim)`, written by position."""

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        positions: torch.LongTensor,
        visible_length: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots = positions.to(key_states.device)[:, None, :, None]
        self.keys.scatter_(2, slots.expand(-1, key_states.shape[1], -1, key_states.shape[3]), key_states)
        self.values.scatter_(2, slots.expand(-1, value_states.shape[1], -1, value_states.shape[3]), value_states)
        return self.keys[:, :, :visible_length], self.values[:, :, :visible_length]


class SlotCache(Cache):
    """
    A KV cache for rows of different lengths.

    A query at position p sees the slots up to p of its own row. Hence rows of different prompt lengths need no padding
    mask, and tokens that were fed and then rejected need no rollback: their slots are written again before a query
    can see them.

    [`LuminaMGPTTransformer.forward`] sets `positions` from its `position_ids`. Before a forward, its caller may lower
    `visible_length`, the number of slots that attention reads, to any number above the positions that matter.

    Args:
        num_layers (`int`): Number of decoder layers.
        max_length (`int`): Number of slots of each row.
    """

    def __init__(self, num_layers: int, max_length: int) -> None:
        super().__init__(layers=[SlotLayer(max_length) for _ in range(num_layers)])
        self.positions: torch.LongTensor | None = None
        self.visible_length = max_length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers[layer_idx].update(key_states, value_states, self.positions, self.visible_length)

    def fill_from(self, source: SlotCache, rows: torch.LongTensor) -> None:
        """
        Allocate this cache and copy the slots of another, shorter one.

        Args:
            source ([`SlotCache`]): The cache to copy from. It is emptied layer by layer, to bound the memory.
            rows (`torch.LongTensor` of shape `(batch_size,)`): Row of `source` that each row of this cache copies.
        """
        for layer, filled in zip(self.layers, source.layers):
            picked = rows.to(filled.keys.device)
            layer.lazy_initialization(filled.keys[picked, :, :0], filled.values[picked, :, :0])
            layer.keys[:, :, : filled.max_cache_len] = filled.keys[picked]
            layer.values[:, :, : filled.max_cache_len] = filled.values[picked]
            filled.keys = filled.values = None

    def visibility(self) -> torch.BoolTensor:
        """Which slots each query sees: `(batch_size, 1, query_length, visible_length)`."""
        slots = torch.arange(self.visible_length, device=self.positions.device)
        return slots <= self.positions[:, None, :, None]
