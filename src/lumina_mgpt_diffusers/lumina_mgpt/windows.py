# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
In which shapes the transformer runs: how many places of how many rows a forward takes.

The number of places decides the speed only, never an image, as far as the kernels give a token the same bits in each
of the shapes. In float32 they differ by too little to matter. In half precision on CPUs they agree up to 32 tokens:
linear layers take more in blocks, or, where they are compiled or quantised, forwards have no more. Attention is
computed row by row, so it limits windows to 32 places.
"""

from __future__ import annotations

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
