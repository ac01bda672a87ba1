# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Which row of the KV cache holds the tokens of which row of the engine, and how they get there before its first window.

A row has one slot row in the cache, and another for the unconditional branch while an image of it is guided. They lie
at the beginning of the cache without holes, so that a forward takes a slice of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn as nn

from .kv_cache import SlotCache
from .row import Row
from .windows import PREFILL_CHUNKS, ForwardShapes


# Lengths of cached sequences are rounded up to this: attention reads little that is unused, and its inputs seldom
# change their shapes.
LENGTH_STEP = 64

CONDITIONAL, UNCONDITIONAL = 0, 1


class Slots:
    r"""
    The rows of a KV cache.

    Args:
        transformer ([`LuminaMGPTTransformer`]): The model.
        device (`torch.device`): Where it runs.
        shapes ([`ForwardShapes`]): The shapes of its forwards.
        max_window (`int`): Most places of a forward.
        length_step (`int`): What lengths of sequences are rounded up to.
        logits_range (`tuple[int, int]`): Token ids of codes, since a forward computes some logits.

    Attributes:
        entries (`list[tuple[Row, int]]`): Whose tokens each row of the cache holds, of which branch.
        offsets (`list[int]`): Positions of the row that its branch does not have.
        cache ([`SlotCache`], *optional*): The cache, once there is one; one of an earlier call if that fits.
    """

    def __init__(
        self,
        transformer: nn.Module,
        device: torch.device,
        shapes: ForwardShapes,
        max_window: int,
        length_step: int,
        logits_range: tuple[int, int],
    ) -> None:
        self.transformer = transformer
        self.device = device
        self.shapes = shapes
        self.max_window = max_window
        self.length_step = length_step
        self.logits_range = logits_range
        self.cache: SlotCache | None = None
        self.entries: list[tuple[Row, int]] = []
        self.offsets: list[int] = []
        self._views: dict[int, list[tuple[int, int, SlotCache]]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def num_padded(self) -> int:
        """Number of rows of the cache that forwards take: where all have one shape, that of a number of forwards."""
        window = self.shapes.window
        return len(self.entries) if window is None else round_up(len(self.entries), self.shapes.num_rows(window))

    def take(self, row: Row) -> SlotCache:
        """A copy of what the cache holds of a row."""
        return self.cache.take_row(self.entries.index((row, CONDITIONAL)), row.num_fed)

    def groups(self, window: int) -> Iterator[tuple[int, int, SlotCache]]:
        """The rows of the cache `[start, stop)` that each forward takes, and a view of them."""
        number = self.num_padded
        size = min(self.shapes.num_rows(window) or number, number)
        if size not in self._views:
            stops = [(start, min(start + size, number)) for start in range(0, number, size)]
            self._views[size] = [(*ends, self.cache.rows(*ends)) for ends in stops]
        return iter(self._views[size])

    def hold(self, rows: Sequence[Row], known_ids: Callable[[Row], list[int]]) -> None:
        """
        Hold these rows, each with the branches that it needs.

        Args:
            rows (`list[Row]`): The rows.
            known_ids (`Callable[[Row], list[int]]`): Gives the token ids of a row that are final.
        """
        was_empty = not self.entries
        wanted = [(row, branch) for row in rows for branch in range(1 + row.is_guided)]
        self._free([entry for entry in self.entries if entry not in wanted])
        new = [entry for entry in wanted if entry not in self.entries]
        feeds = {entry: self._feed_of(*entry, known_ids) for entry in new}
        # Those that come together and are the same, such as one prompt of several images, are fed once.
        first_of: dict[tuple, tuple[Row, int]] = {}
        for entry, (start, ids) in feeds.items():
            first_of.setdefault((tuple(ids), entry if start else None), entry)
        distinct = list(first_of.values())
        copies = [entry for entry in new if entry not in distinct]
        self.entries += distinct + copies
        self._views = {}
        if not self.entries:
            return
        self.offsets = [self._offset(*entry) for entry in self.entries]
        self._allocate(was_empty)
        for row, branch in distinct:
            request = row.request
            if branch == CONDITIONAL and request.cache is not None:
                self.cache.put_row(self.entries.index((row, branch)), request.cache, request.num_cached)
                request.cache, request.num_cached = None, 0
        self._prefill([(self.entries.index(entry), *feeds[entry]) for entry in distinct if feeds[entry][1]])
        for entry in copies:
            ids = feeds[entry][1]
            source = self.entries.index(first_of[tuple(ids), None])
            self.cache.copy_row(source, self.entries.index(entry), len(ids))

    def _free(self, unwanted: Sequence[tuple[Row, int]]) -> None:
        """Give rows of the cache up; the last ones move to where there is a hole."""
        for index in sorted(map(self.entries.index, unwanted), reverse=True):
            last = self.entries.pop()
            if (last if index == len(self.entries) else self.entries[index])[0].error is not None:
                self.cache.clear_row(index)
            if index < len(self.entries):
                self.cache.copy_row(len(self.entries), index, last[0].num_fed - self._offset(*last) + 1)
                self.entries[index] = last

    @staticmethod
    def _offset(row: Row, branch: int) -> int:
        if branch == CONDITIONAL:
            return 0
        return row.image_start - len(row.request.unconditional_context)

    @staticmethod
    def _feed_of(row: Row, branch: int, known_ids: Callable[[Row], list[int]]) -> tuple[int, list[int]]:
        """What has to be fed before the first window, which begins with the last token: the start, and token ids."""
        ids = known_ids(row)
        if branch == UNCONDITIONAL:
            return 0, [*row.request.unconditional_context, *ids[row.image_start : -1]]
        row.num_fed = len(ids) - 1
        return row.request.num_cached, ids[row.request.num_cached : -1]

    def _allocate(self, was_empty: bool) -> None:
        """Have a cache with room for all rows."""
        needed = max(
            slots_needed(row.reach - offset, self.max_window, self.length_step)
            for (row, _), offset in zip(self.entries, self.offsets)
        )
        if self.cache is None or (was_empty and not self.cache.fits(self.num_padded, needed)):
            self.cache = None  # before there is another one
            self.cache = SlotCache(self.transformer.config.num_hidden_layers, needed, self.num_padded)
        elif was_empty:
            self.cache.clear()
        elif needed > self.cache.max_length or self.num_padded > self.cache.num_rows:
            # A quarter more than needed, so that growing step by step copies little.
            self.cache.grow(self.num_padded, round_up(needed + needed // 4, LENGTH_STEP) + 1)

    def _prefill(self, feeds: list[tuple[int, int, list[int]]]) -> None:
        """Run the transformer over tokens of rows of the cache `(index, start, ids)`, to fill it."""
        if not self.shapes.is_canonical:
            for start, stop in runs_of([index for index, _, _ in feeds]):
                length = max(len(ids) for _, _, ids in feeds[start:stop])
                self._prefill_chunk(feeds[start:stop], round_up(length, LENGTH_STEP))
            return
        # Each row by itself, in chunks that follow from its own length alone.
        for index, start, ids in feeds:
            while ids:
                size = next((size for size in PREFILL_CHUNKS if size <= len(ids)), PREFILL_CHUNKS[-1])
                self._prefill_chunk([(index, start, ids[:size])], size)
                start, ids = start + size, ids[size:]

    def _prefill_chunk(self, feeds: list[tuple[int, int, list[int]]], size: int) -> None:
        ids = torch.zeros(len(feeds), size, dtype=torch.long, device="cpu")
        for row, (_, _, own) in zip(ids, feeds):
            row[: len(own)] = torch.tensor(own, device="cpu")
        starts = torch.tensor([start for _, start, _ in feeds], device="cpu")
        # What pads a row goes to slots that are written again before they are seen, or to the last, never seen.
        positions = (starts[:, None] + torch.arange(size, device="cpu")).clamp(max=self.cache.max_length - 1)
        view = self.cache.rows(feeds[0][0], feeds[-1][0] + 1)
        reach = max(start + len(own) for _, start, own in feeds)
        view.limit(min(round_up(reach, LENGTH_STEP), self.cache.max_length), self.device)
        # Compiled, it would be compiled anew for every length, to run once.
        eager_call(self.transformer)(
            input_ids=ids.to(self.device),
            position_ids=positions.to(self.device),
            past_key_values=view,
            logits_to_keep=1,
            logits_range=self.logits_range,
        )


def eager_call(module: nn.Module) -> Callable:
    """What calls a module without its compiled code."""
    return getattr(module, "_orig_mod", module)._call_impl


def runs_of(values: Sequence[int]) -> Iterator[tuple[int, int]]:
    """`(start, stop)` of the stretches of values that follow one another."""
    start = 0
    for index in range(1, len(values) + 1):
        if index == len(values) or values[index] != values[index - 1] + 1:
            yield start, index
            start = index


def slots_needed(length: int, max_window: int, step: int = LENGTH_STEP) -> int:
    """Slots of a cache row for `length` tokens, and a window past its end."""
    # Reading all of a cache is other code than reading a part of it, once compiled. With a slot that is never read it
    # is always a part.
    return round_up(length + max_window + 1, step) + 1


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step
