# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A static KV cache in which the key of position p lies in slot p, for each row of the batch by itself."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, StaticLayer


class SlotLayer(StaticLayer):
    """
    Keys and values of one layer, `(num_rows, num_kv_heads, max_length, head_dim)`, written by position.

    Args:
        max_length (`int`): Number of slots of each row.
        num_rows (`int`, *optional*): Number of rows to allocate, by default those of the first forward.
    """

    is_slot_major = False
    """Whether the heads of one slot lie together in memory, as xformers reads them, or the slots of one head."""

    def __init__(self, max_length: int, num_rows: int | None = None) -> None:
        with torch.device("cpu"):  # whatever the default device is
            super().__init__(max_length)
        self.num_rows = num_rows

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(
            *(states[:1].expand(self.num_rows or len(states), -1, -1, -1) for states in (key_states, value_states))
        )
        if self.is_slot_major:
            self.keys, self.values = (
                states.transpose(1, 2).contiguous().transpose(1, 2) for states in (self.keys, self.values)
            )
        if self.device.type != "cuda":
            # The superclass marks them as static, which CUDA graphs need. Where weights are frozen into compiled code,
            # that would make constants of them, and a later cache would be ignored.
            self.keys, self.values = self.keys.detach(), self.values.detach()

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
        # Under autocast keys and values come in types of their own.
        self.keys[rows, :, slots] = key_states.transpose(1, 2).to(self.keys.dtype)
        self.values[rows, :, slots] = value_states.transpose(1, 2).to(self.values.dtype)
        return self.keys[:, :, :visible_length], self.values[:, :, :visible_length]


class RowsLayer(SlotLayer):
    """Consecutive rows of another layer, in the same memory."""

    def __init__(self, layer: SlotLayer, start: int, stop: int) -> None:
        super().__init__(layer.max_cache_len)
        self._layer, self._start, self._stop = layer, start, stop
        if layer.is_initialized:
            self._share()

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        if not self._layer.is_initialized:
            self._layer.lazy_initialization(key_states, value_states)
        self._share()

    def _share(self) -> None:
        self.keys = self._layer.keys[self._start : self._stop]
        self.values = self._layer.values[self._start : self._stop]
        # Compiled code serves any number of rows, and caches of any length.
        for states in (self.keys, self.values):
            torch._dynamo.maybe_mark_dynamic(states, 0)
            torch._dynamo.maybe_mark_dynamic(states, 2)
            if states.is_cuda:
                torch._dynamo.mark_static_address(states)
        self.is_initialized = True


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
        num_rows (`int`, *optional*): Number of rows to allocate, by default those of the first forward.
    """

    def __init__(self, num_layers: int, max_length: int, num_rows: int | None = None) -> None:
        super().__init__(layers=[SlotLayer(max_length, num_rows) for _ in range(num_layers)])
        self.positions: torch.LongTensor | None = None
        # What the host knows of consecutive positions: a bound.
        self.reach: int | None = None
        self._visible_slots: torch.LongTensor | None = None

    @property
    def max_length(self) -> int:
        """Number of slots of each row."""
        return self.layers[0].max_cache_len

    @property
    def num_rows(self) -> int | None:
        """Number of rows that are allocated, or will be."""
        return self.layers[0].num_rows

    @property
    def visible_length(self) -> int:
        """Number of slots that attention reads."""
        return self.max_length if self._visible_slots is None else self._visible_slots.shape[0]

    def limit(self, length: int, device: torch.device, are_consecutive: bool = False) -> None:
        """
        Have attention read only the first `length` slots.

        Args:
            length (`int`): Number of slots, at most `max_length`.
            device (`torch.device`): Where the positions are.
            are_consecutive (`bool`, defaults to `False`): Whether the positions of each row follow one another.
        """
        self.reach = length if are_consecutive else None
        if self._visible_slots is not None and len(self._visible_slots) == length:
            return
        # A tensor, since only shapes of tensors can be marked for code to be compiled for any.
        self._visible_slots = torch.arange(length, device=device)
        torch._dynamo.maybe_mark_dynamic(self._visible_slots, 0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers[layer_idx].update(key_states, value_states, self.positions, self.visible_length)

    # Rows

    def rows(self, start: int, stop: int) -> SlotCache:
        """A cache of consecutive rows of this one, in the same memory."""
        view = SlotCache(0, self.max_length)
        view.layers = [RowsLayer(layer, start, stop) for layer in self.layers]
        return view

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of a row to another."""
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    def take_row(self, row: int, length: int) -> SlotCache:
        """A cache of its own for the first `length` slots of a row."""
        taken = SlotCache(len(self.layers), length, num_rows=1)
        taken.receive(self, row, 0, length)
        return taken

    def put_row(self, row: int, cache: SlotCache, length: int) -> None:
        """Copy the first `length` slots of a cache of one row."""
        self.receive(cache, 0, row, length)

    def receive(self, source: SlotCache, source_row: int, row: int, length: int) -> None:
        for layer, other in zip(self.layers, source.layers):
            if not layer.is_initialized:
                layer.is_slot_major = other.is_slot_major
                layer.lazy_initialization(other.keys[:, :, :0], other.values[:, :, :0])
            layer.keys[row, :, :length] = other.keys[source_row, :, :length]
            layer.values[row, :, :length] = other.values[source_row, :, :length]

    def grow(self, num_rows: int, max_length: int) -> None:
        """Have at least so many rows of so many slots. What is in the cache stays; views of it are of no use then."""
        for layer in self.layers:
            old_keys, old_values, was_initialized = layer.keys, layer.values, layer.is_initialized
            layer.num_rows = max(num_rows, layer.num_rows)
            layer.max_cache_len = max(max_length, layer.max_cache_len)
            if was_initialized:
                layer.is_initialized = False
                layer.lazy_initialization(old_keys[:, :, :0], old_values[:, :, :0])
                rows, _, length, _ = old_keys.shape
                layer.keys[:rows, :, :length] = old_keys
                layer.values[:rows, :, :length] = old_values
            del old_keys, old_values

    def fits(self, num_rows: int, max_length: int) -> bool:
        """Whether this cache, of an earlier call, can be used in this one as it is."""
        keys = self.layers[0].keys
        is_usable = keys is not None and (torch.is_inference_mode_enabled() or not keys.is_inference())
        return is_usable and self.num_rows >= num_rows and self.max_length >= max_length

    def clear(self) -> None:
        """Zero all slots. A NaN there would be seen: masked, it is 0 times itself."""
        for layer in self.layers:
            layer.keys.zero_()
            layer.values.zero_()

    def clear_row(self, row: int) -> None:
        """Zero the slots of a row that may hold a NaN."""
        for layer in self.layers:
            layer.keys[row].zero_()
            layer.values[row].zero_()

    @property
    def num_bytes(self) -> int:
        """Memory that the slots take."""
        layers = [layer for layer in self.layers if layer.is_initialized]
        return sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values))

    def make_slot_major(self) -> None:
        """Lay out the memory as xformers reads it, which it does not beyond the slots in use. Before the first use."""
        self._visible_slots = None
        for layer in self.layers:
            getattr(layer, "_layer", layer).is_slot_major = True

    def visibility(self) -> torch.BoolTensor:
        """Which slots each query sees: `(batch_size, 1, query_length, visible_length)`."""
        slots = self._visible_slots
        if slots is None:
            slots = torch.arange(self.max_length, device=self.positions.device)
        return slots <= self.positions[:, None, :, None]
