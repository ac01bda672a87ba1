# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
First guesses of codes that a forward evaluates ahead. They decide how many forwards an image takes, never its codes.

A place is guessed once, when it comes into the window of a forward; from then on its draft is the code that the last
forward computed for it. Rows have images of their own sizes, so the places of a window are given as positions in their
images, row by row: `place` counts in raster order with a place for each row end, if there are any, `stride` is the
number of places from one row of codes to the next. All rules are tensor operations on the device and do not wait for
it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .batch import Batch, Window
from .row import Row
from .scheduling_lumina_mgpt import LuminaMGPTScheduler


def random_codes(window: Window, num_codes: int) -> torch.LongTensor:
    """The codes that the noise alone would choose; any, where there is none."""
    if window.noise is not None:
        return window.noise.argmax(dim=-1)
    return (window.place * 0x9E3779B1) % num_codes


def codes_above(window: Window, image: torch.LongTensor) -> torch.LongTensor:
    """
    The code above each place, or the nearest one above that is known.

    Args:
        window ([`Window`]): The places.
        image (`torch.LongTensor` of shape `(batch_size, num_places)`): Codes by place, -1 where there is none.

    Returns:
        `torch.LongTensor` of shape `(batch_size, number)`: Codes, -1 for no guess.
    """
    guesses = torch.full_like(window.place, -1)
    # Of a window of many rows, the places below its first row have only guesses above them.
    for hop in range(1, 4):
        above = window.place - hop * window.stride
        codes = image.gather(1, above.clamp(min=0, max=image.shape[1] - 1)).where(above >= 0, -1)
        guesses = torch.where(guesses < 0, codes, guesses)
    return guesses


class NeighborLogits:
    r"""
    What the sampler would choose, with the noise of the place, from logits of its neighbours.

    These are the logits of the place above, averaged with those of the last place that was evaluated if it is in the
    same row. As the noise is the place's own, the guess is right wherever a small change of the logits does not change
    the choice, which even for a flat distribution is far more often than two independent draws agree.

    Args:
        scheduler ([`LuminaMGPTScheduler`]): The sampler.
        batch_size (`int`), stride (`int`), num_codes (`int`):
            Number of images, greatest number of places from one row to the next, and codes of the codebook.
        device (`torch.device`): Where the sampling runs.
    """

    above_weight = 0.5

    def __init__(
        self, scheduler: LuminaMGPTScheduler, batch_size: int, stride: int, num_codes: int, device: torch.device
    ) -> None:
        self.scheduler = scheduler
        self._images = torch.arange(batch_size, device=device)[:, None]
        # The logits of the last place that was evaluated in each column, and a column to spare.
        self._logits = torch.zeros(batch_size, stride + 1, num_codes, device=device)
        self._is_known = torch.zeros(batch_size, stride + 1, dtype=torch.bool, device=device)
        self._last = torch.full((batch_size, 1), -1, device=device)

    def take(self, rows: torch.LongTensor, stride: int) -> None:
        """Go on with the images of other rows: `rows` holds for each the row it had, -1 for a new one."""
        old_logits, old_known, is_old = self._logits, self._is_known, rows >= 0
        source, number = rows.clamp(min=0), min(stride, old_logits.shape[1] - 1)
        self._images = torch.arange(len(rows), device=rows.device)[:, None]
        self._logits = old_logits.new_zeros(len(rows), stride + 1, old_logits.shape[2])
        self._is_known = old_known.new_zeros(len(rows), stride + 1)
        if not len(old_logits):
            self._last = torch.full_like(rows[:, None], -1)
            return
        self._logits[:, :number] = old_logits[source, :number]
        self._is_known[:, :number] = old_known[source, :number] & is_old[:, None]
        self._last = self._last[source].where(is_old[:, None], -1)

    def observe(self, window: Window, logits: torch.Tensor) -> None:
        """
        Take note of what a forward computed.

        Args:
            window ([`Window`]): Consecutive places.
            logits (`torch.Tensor` of shape `(batch_size, number, num_codes)`): Their guided logits.
        """
        spare = self._logits.shape[1] - 1
        place = window.place[:, -spare:]
        number, columns = place.shape[1], place % window.stride
        # Of two places in a column the later one has to stay: the earlier write to a spare column.
        is_last = torch.arange(number, device=columns.device) >= number - window.stride
        columns = columns.where(is_last, spare)
        self._logits[self._images, columns] = logits[:, -spare:]
        self._is_known[self._images, columns] = is_last
        self._last = window.place.amax(dim=1, keepdim=True)

    def guess(self, window: Window) -> torch.LongTensor:
        """Codes `(batch_size, number)` of consecutive places, -1 for no guess."""
        columns = window.place % window.stride
        is_above_known = self._is_known[self._images, columns]
        is_last_beside = self._last // window.stride == window.place // window.stride
        weight = torch.where(is_last_beside, self.above_weight, 1.0).where(is_above_known, 0.0)
        beside = self._logits[self._images, self._last % window.stride]
        logits = torch.lerp(beside, self._logits[self._images, columns], weight[..., None])
        return self.scheduler.choose(logits, window.noise, window.rule).where(self._last >= 0, -1)


class Drafts:
    r"""
    The drafts of all images that are being sampled.

    Args:
        scheduler ([`LuminaMGPTScheduler`]): The sampler.
        draft_init (`str`): The rule of first guesses.
        batch ([`Batch`]): The rows.
    """

    def __init__(self, scheduler: LuminaMGPTScheduler, draft_init: str, batch: Batch) -> None:
        self.scheduler = scheduler
        self.draft_init = draft_init
        self.batch = batch
        self._images: list[Row] = []
        self._neighbors: NeighborLogits | None = None
        # For every image, the position after the last that was in a window.
        self._stops: dict[Row, int] = {}

    def follow(self, loaded: Sequence[Row]) -> None:
        """Go on with the images that the batch has now; those of `loaded` rows begin anew."""
        batch, images = self.batch, self.batch.images
        self._stops = {row: stop for row, stop in self._stops.items() if row in images and row not in loaded}
        if self.draft_init == "logits" and images:
            stride = max(row.image.stride for row in images)
            if self._neighbors is None:
                self._neighbors = NeighborLogits(self.scheduler, 0, stride, batch.num_codes, batch.device)
            old = {row: index for index, row in enumerate(self._images) if row not in loaded}
            self._neighbors.take(batch.upload([old.get(row, -1) for row in images]), stride)
        self._images = list(images)

    def observe(self, window: Window, logits: torch.Tensor) -> None:
        """Take note of the guided logits of a window."""
        if self._neighbors is not None:
            self._neighbors.observe(window, logits)

    def offsets(self, window: int, is_read: bool) -> torch.LongTensor:
        """
        How far after the last final code of each image the places stand that a window has for the first time.

        Args:
            window (`int`): Number of its places.
            is_read (`bool`): Whether the host knows how far each image is.

        Returns:
            `torch.LongTensor` of shape `(number,)`: From 1 to `window`.
        """
        number = window
        if is_read:
            number = max(row.num_fed + window - self._stops.get(row, row.num_fed) for row in self._images)
            number = min(max(number, 1), window)
            self._stops = {row: row.num_fed + window for row in self._images}
        return torch.arange(window - number + 1, window + 1, device=self.batch.device)

    def guess(self, offsets: torch.LongTensor) -> None:
        """Guess the codes of places, by their [`offsets`], where none is known or guessed yet."""
        batch, images = self.batch, self.batch.image_index
        positions = batch.fed[images][:, None] + offsets
        new, symbols = batch.open(positions), batch.symbols[images]
        drafts = symbols.gather(1, positions)
        if self._neighbors is not None:
            drafts = drafts.where(drafts >= 0, self._neighbors.guess(new))
        elif self.draft_init == "above":
            places = batch.first[images] + torch.arange(symbols.shape[1], device=batch.device)
            image = symbols.gather(1, places.clamp(max=symbols.shape[1] - 1))
            drafts = drafts.where(drafts >= 0, codes_above(new, image))
        drafts = drafts.where(drafts >= 0, random_codes(new, batch.num_codes))
        batch.symbols[images] = symbols.scatter(1, positions, drafts)
