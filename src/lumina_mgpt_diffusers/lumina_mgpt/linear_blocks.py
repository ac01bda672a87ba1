# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Linear layers that give a row of half precision the same bits among any number of rows, on CPUs.

Up to `BLOCK_ROWS` rows the kernels round alike, beyond that oneDNN takes others on CPUs with AMX. So layers go over
more rows in blocks. Whatever is not a matrix product works on each row by itself and needs none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


BLOCK_ROWS = 32


class LinearBlocks(TorchFunctionMode):
    """While it is entered, by a thread for itself, linear layers go over their rows in blocks where that matters."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func is F.linear:
            return linear_in_blocks(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def linear_in_blocks(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear` whose rows do not depend on how many there are."""
    rows = input.numel() // input.shape[-1]
    if rows <= BLOCK_ROWS or _is_alike(input, weight, bias):
        return F.linear(input, weight, bias)
    blocks = _in_blocks(input.reshape(rows, -1), weight, bias)
    return blocks.view(*input.shape[:-1], blocks.shape[-1])


def _in_blocks(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    # Of about one size: a single row is other code in float16.
    blocks = rows.tensor_split(-(-len(rows) // BLOCK_ROWS))
    return torch.cat([F.linear(block, weight, bias) for block in blocks])


def _is_alike(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether all rows at once are known to give the same bits, as narrow layers do."""
    # Weights of other types are quantised; under autocast neither dtype is that of the product.
    is_plain = type(weight) in (nn.Parameter, torch.Tensor) and input.dtype == weight.dtype and bias is None
    if not is_plain or torch.is_autocast_enabled(input.device.type):
        return False
    shape = (*weight.shape, weight.dtype, torch.get_num_threads())
    # Most layers already fail with one row too many, and need no further trial.
    return _kernels_agree(BLOCK_ROWS + 1, *shape) and _kernels_agree(input.numel() // input.shape[-1], *shape)


@functools.cache
def _kernels_agree(num_rows: int, num_outputs: int, num_inputs: int, dtype: torch.dtype, num_threads: int) -> bool:
    """Whether a product of this shape has the bits of its blocks: tried once on this machine."""
    rows, weight = cancelling_product(num_rows, num_outputs, num_inputs, dtype)
    return torch.equal(F.linear(rows, weight), _in_blocks(rows, weight))


def cancelling_product(
    num_rows: int, num_outputs: int, num_inputs: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rows and a weight whose products are 0 but for how they are rounded, so that one more way of rounding is seen.

    Args:
        num_rows (`int`), num_outputs (`int`), num_inputs (`int`): The shape of the product.
        dtype (`torch.dtype`): Type of both.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Of shapes `(num_rows, num_inputs)` and `(num_outputs, num_inputs)`.
    """
    half = num_inputs // 2
    generator = torch.Generator("cpu").manual_seed(0)
    numbers = torch.randn(half + max(num_rows, num_outputs), generator=generator, device="cpu").to(dtype)
    order = torch.randperm(half, generator=generator, device="cpu")
    # Rows that are shifted ones of each other are as good as independent ones, and made at the speed of a copy.
    windows = numbers.unfold(0, half, 1)
    rows, weight = windows[:num_rows].flip(0), windows[:num_outputs]
    return tuple(
        F.pad(torch.cat([first, second[:, order]], dim=1), (0, num_inputs % 2))
        for first, second in ((rows, -rows), (weight, weight))
    )
