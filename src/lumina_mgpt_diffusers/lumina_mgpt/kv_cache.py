# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A static KV cache in which the key of position p lies in slot p, for each row of the batch by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, StaticLayer


class SlotLayer(StaticLayer):
    """Keys and values of one layer, `(batch_size, num_kv_heads, max_length, head_dim)`, written by position."""

    is_slot_major = False
    """Whether the heads of one slot lie together in memory, as xformers reads them, or the slots of one head."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        if self.is_slot_major:
            self.keys, self.values = (
                states.transpose(1, 2).contiguous().transpose(1, 2) for states in (self.keys, self.values)
            )
        if self.device.type != "cuda":
            # The superclass marks them as static, which CUDA graphs need. Where weights are frozen into compiled code,
            # that would make constants of them, and a later cache would be ignored.
            self.keys, self.values = self.keys.detach(), self.values.detach()
        # Compiled code serves caches of any length.
        for states in (self.keys, self.values):
            torch._dynamo.maybe_mark_dynamic(states, 2)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        positions: torch.LongTensor,
        visible_length: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots = positions.to(key_states.device)
        rows = torch.arange(len(slots), device=slots.device)[:, None]
        self.keys[rows, :, slots] = key_states.transpose(1, 2)
        self.values[rows, :, slots] = value_states.transpose(1, 2)
        return self.keys[:, :, :visible_length], self.values[:, :, :visible_length]


class SlotCache(Cache):
    """
    A KV cache for rows of different lengths.

    A query at position p sees the slots up to p of its own row. Hence rows of different prompt lengths need no padding
    mask, and tokens that were fed and then rejected need no rollback: their slots are written again before a query
    can see them.

    [`LuminaMGPTTransformer.forward`] sets `positions` from its `position_ids`. Before a forward, its caller may have
    [`limit`] spare attention the slots above the positions that matter.

    Args:
        num_layers (`int`): Number of decoder layers.
        max_length (`int`): Number of slots of each row.
    """

    def __init__(self, num_layers: int, max_length: int) -> None:
        super().__init__(layers=[SlotLayer(max_length) for _ in range(num_layers)])
        self.positions: torch.LongTensor | None = None
        self._visible_slots: torch.LongTensor | None = None

    @property
    def max_length(self) -> int:
        """Number of slots of each row."""
        return self.layers[0].max_cache_len

    @property
    def visible_length(self) -> int:
        """Number of slots that attention reads."""
        return self.max_length if self._visible_slots is None else self._visible_slots.shape[0]

    def limit(self, length: int, device: torch.device) -> None:
        """
        Have attention read only the first `length` slots.

        Args:
            length (`int`): Number of slots, at most `max_length`.
            device (`torch.device`): Where the positions are.
        """
        if self._visible_slots is not None and len(self._visible_slots) == length:
            return
        # A tensor, since only shapes of tensors can be marked for code to be compiled for any.
        self._visible_slots = torch.arange(length, device=device)
        torch._dynamo.maybe_mark_dynamic(self._visible_slots, 0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers[layer_idx].update(key_states, value_states, self.positions, self.visible_length)

    def fill_from(self, source: SlotCache, rows: torch.LongTensor) -> None:
        """
        Copy the slots of another, shorter cache, and allocate this one if it is not yet.

        Args:
            source ([`SlotCache`]): The cache to copy from. It is emptied layer by layer, to bound the memory.
            rows (`torch.LongTensor` of shape `(batch_size,)`): Row of `source` that each row of this cache copies.
        """
        for layer, filled in zip(self.layers, source.layers):
            layer.is_slot_major = filled.is_slot_major
            picked = rows.to(filled.keys.device)
            if not layer.is_initialized:
                layer.lazy_initialization(filled.keys[picked, :, :0], filled.values[picked, :, :0])
            layer.keys[:, :, : filled.max_cache_len] = filled.keys[picked]
            layer.values[:, :, : filled.max_cache_len] = filled.values[picked]
            filled.keys = filled.values = None

    def can_hold(self, source: SlotCache, num_rows: int, max_length: int) -> bool:
        """Whether [`fill_from`] could fill this cache, allocated before, for `num_rows` rows of `max_length` slots."""

        def kind(layer: SlotLayer, shape: tuple[int, int]) -> tuple:
            return (*shape, layer.keys.shape[1], layer.keys.dtype, layer.keys.device, layer.is_slot_major)

        return len(self.layers) == len(source.layers) and all(
            kind(layer, (layer.keys.shape[0], layer.max_cache_len)) == kind(filled, (num_rows, max_length))
            for layer, filled in zip(self.layers, source.layers)
        )

    @classmethod
    def from_rows(cls, rows: Sequence[tuple[SlotCache, int] | None], num_layers: int, max_length: int) -> SlotCache:
        """
        A cache whose rows are copied from other caches.

        Args:
            rows (`list[tuple[SlotCache, int] | None]`):
                For each row the cache and the row of it to copy as far as there is room, or None for an empty one.
                These caches are emptied layer by layer, to bound the memory.
            num_layers (`int`): Number of decoder layers.
            max_length (`int`): Number of slots of each row.
        """
        cache = cls(num_layers, max_length)
        filled = [row[0] for row in rows if row is not None]
        if not filled:
            return cache
        for index, layer in enumerate(cache.layers):
            like = filled[0].layers[index]
            layer.lazy_initialization(
                like.keys[:1, :, :0].expand(len(rows), -1, -1, -1),
                like.values[:1, :, :0].expand(len(rows), -1, -1, -1),
            )
            for row, source in enumerate(rows):
                if source is not None:
                    old, old_row = source[0].layers[index], source[1]
                    length = min(old.max_cache_len, max_length)
                    layer.keys[row, :, :length] = old.keys[old_row, :, :length]
                    layer.values[row, :, :length] = old.values[old_row, :, :length]
            for source in filled:
                source.layers[index].keys = source.layers[index].values = None
        return cache

    def copy_row(self, row: int, length: int) -> SlotCache:
        """A cache of the first `length` slots of one row."""
        cache = SlotCache(len(self.layers), length)
        for layer, old in zip(cache.layers, self.layers):
            layer.lazy_initialization(old.keys[:1, :, :0], old.values[:1, :, :0])
            layer.keys[0] = old.keys[row, :, :length]
            layer.values[0] = old.values[row, :, :length]
        return cache

    def free(self) -> None:
        """Give back the memory. The cache is of no further use."""
        for layer in self.layers:
            layer.keys = layer.values = None

    @property
    def num_bytes(self) -> int:
        """Memory that the slots take."""
        layers = [layer for layer in self.layers if layer.is_initialized]
        return sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values))

    def make_slot_major(self) -> None:
        """Lay out the memory as xformers reads it, which it does not beyond the slots in use. Before the first use."""
        self._visible_slots = None
        for layer in self.layers:
            layer.is_slot_major = True

    def visibility(self) -> torch.BoolTensor:
        """Which slots each query sees: `(batch_size, 1, query_length, visible_length)`."""
        slots = self._visible_slots
        if slots is None:
            slots = torch.arange(self.max_length, device=self.positions.device)
        return slots <= self.positions[:, None, :, None]
