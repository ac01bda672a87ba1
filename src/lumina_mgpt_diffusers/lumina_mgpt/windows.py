# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
In which shapes the transformer runs: how many places of how many rows a forward takes.

The number of places decides the speed only, never an image, as far as the kernels give a token the same bits in each
of the shapes. In float32 they differ by too little to matter. In half precision on CPUs they agree up to 32 tokens:
linear layers take more in blocks, or, where they are compiled or quantised, forwards have no more. Attention is
computed row by row, so it limits windows to 32 places.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from .linear_blocks import BLOCK_ROWS, LinearBlocks


PREFILL_CHUNKS = (256, 32)

MAX_WINDOW = 64


@dataclass(frozen=True)
class ForwardShapes:
    """
    The shapes of forwards.

    Args:
        max_tokens (`int`, *optional*): Most tokens of one forward; more rows take several. None for all at once.
        window (`int`, *optional*): The number of places of every forward, where no other is allowed.
        has_blocks (`bool`, defaults to `False`): Whether linear layers go over the tokens in blocks.
    """

    max_tokens: int | None = None
    window: int | None = None
    has_blocks: bool = False

    @classmethod
    def for_device(
        cls, device: torch.device, dtype: torch.dtype, batch_invariant: bool | None, is_plain: bool
    ) -> ForwardShapes:
        """
        What an image does not depend on.

        Args:
            device (`torch.device`): Where the transformer runs.
            dtype (`torch.dtype`): Type that it computes in.
            batch_invariant (`bool`, *optional*): As in [`LuminaMGPTScheduler`].
            is_plain (`bool`): Whether its linear layers are those of torch, neither compiled nor quantised.
        """
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        is_exact = dtype in (torch.float32, torch.float64)
        if is_exact or batch_invariant is False or (batch_invariant is None and device.type != "cpu"):
            return cls()
        if device.type == "cpu":
            return cls(has_blocks=True) if is_plain else cls(max_tokens=BLOCK_ROWS)
        # Elsewhere kernels may change with any number of tokens: one shape serves all.
        return cls(max_tokens=32, window=16)

    @property
    def is_canonical(self) -> bool:
        return self.has_blocks or self.max_tokens is not None

    @property
    def max_window(self) -> int:
        return self.window or self.max_tokens or (BLOCK_ROWS if self.has_blocks else MAX_WINDOW)

    def context(self, num_tokens: int) -> AbstractContextManager:
        """What a forward of so many tokens runs in."""
        return LinearBlocks() if self.has_blocks and num_tokens > BLOCK_ROWS else nullcontext()

    def num_rows(self, window: int) -> int | None:
        """Most rows of one forward."""
        return None if self.max_tokens is None else max(self.max_tokens // window, 1)


class WindowTuner:
    """
    Chooses how many places a forward takes by what it measures: the time of a step and the codes it makes final.

    It climbs: from time to time it tries the next larger and the next smaller number, and stays with the one that
    makes the most codes in a second.

    Args:
        windows (`list[int]`): The windows to choose from, ascending.
    """

    first_tokens = 32
    """Tokens of a forward to begin with: about as many as cost little more than one."""

    trial_steps = 4
    """Steps of a window that is tried."""

    trial_interval = 24
    """Steps between two trials; it doubles with every trial that changes nothing."""

    max_trial_interval = 192

    def __init__(self, windows: Sequence[int]) -> None:
        self.windows = list(windows)
        self._best: int | None = None
        self._tried: int | None = None
        self._direction = 1
        self._interval = self.trial_interval
        self._steps = 0
        self._num_failed = 0
        self._load = None
        self._times: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=4))
        self._means: dict[int, float] = {}

    def choose(self, load: int) -> int:
        """
        The window of the next step.

        Args:
            load (`int`): Number of rows of the forward; times are only comparable at the same one.
        """
        if self._best is None:
            wanted = max(self.first_tokens // load, 1)
            self._best = max((i for i, window in enumerate(self.windows) if window <= wanted), default=0)
        if load != self._load:
            self._load, self._tried, self._steps = load, None, self._interval
            self._times.clear()
        return self.windows[self._best if self._tried is None else self._tried]

    def observe(self, window: int, seconds: float, num_final: Sequence[int]) -> None:
        """
        Take note of a step.

        Args:
            window (`int`): Its window, as chosen.
            seconds (`float`): How long it took.
            num_final (`list[int]`): How many places it made final in each image.
        """
        index = self.windows.index(window)
        self._times[index].append(seconds)
        for other in range(index + 1):
            # What a smaller window would have made final is known too.
            mean = sum(min(number, self.windows[other]) for number in num_final) / len(num_final)
            before = self._means.get(other, mean)
            self._means[other] = before + 0.1 * (mean - before)
        self._steps += 1
        if self._tried is None:
            if self._steps >= self._interval and len(self._times[self._best]) >= 2:
                self._try_next()
        elif self._steps >= self.trial_steps and self._times[self._tried]:
            # Steps near the end of an image may have no room for the window that is tried.
            if self._rate(self._tried) > self._rate(self._best):
                # A gain in this direction makes another one likely.
                self._best, self._interval, self._steps = self._tried, self.trial_interval, self.trial_interval
                self._num_failed = 0
            else:
                self._direction = -self._direction
                self._num_failed += 1
                # After one side the other; after both there is time.
                self._steps = self._interval
                if self._num_failed > 1:
                    self._interval = min(2 * self._interval, self.max_trial_interval)
                    self._steps = self._num_failed = 0
            self._tried = None

    def _try_next(self) -> None:
        self._steps = 0
        for direction in (self._direction, -self._direction):
            index = self._best + direction
            if 0 <= index < len(self.windows):
                self._tried, self._direction = index, direction
                self._means[index] = max(self._means.get(index, 0.0), self._means[min(index, self._best)])
                return

    def _rate(self, index: int) -> float:
        """Places that a window makes final in a second."""
        return self._means[index] / min(self._times[index])
