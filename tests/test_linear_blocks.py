# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Linear layers whose rows have the same bits among any number of rows."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from lumina_mgpt_diffusers.lumina_mgpt import linear_blocks
from lumina_mgpt_diffusers.lumina_mgpt.linear_blocks import BLOCK_ROWS, LinearBlocks


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Numbers of rows of the products that are computed."""
    numbers, linear = [], F.linear

    def spy(input, weight, bias=None):
        numbers.append(input.numel() // input.shape[-1])
        return linear(input, weight, bias)

    monkeypatch.setattr(F, "linear", spy)
    return numbers


def products(layer: nn.Module, rows: torch.Tensor, size: int) -> torch.Tensor:
    return torch.cat([layer(some) for some in rows.split(size)])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_inputs, num_outputs", [(64, 96), (256, 256), (704, 256), (1024, 512)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_same_bits_among_any_number_of_rows(num_inputs, num_outputs, dtype, has_bias):
    layer = nn.Linear(num_inputs, num_outputs, bias=has_bias, dtype=dtype)
    # Of other rows a difference is seen in one of thousands of elements.
    rows, weight = linear_blocks.cancelling_product(330, num_outputs, num_inputs, dtype)
    layer.weight.copy_(weight)
    expected = products(layer, rows, 11)
    with LinearBlocks():
        for size in (33, 48, 110, 256, 330):
            assert torch.equal(products(layer, rows, size), expected), size
        assert torch.equal(layer(rows.view(30, 11, -1)).flatten(0, 1), expected)


@torch.no_grad()
@pytest.mark.parametrize("agree", [False, True])
def test_blocks_where_the_kernels_differ(monkeypatch, calls, agree):
    monkeypatch.setattr(linear_blocks, "_kernels_agree", lambda *shape: agree)
    rows, weight = torch.randn(2, 50, 16).bfloat16(), torch.randn(8, 16).bfloat16()
    assert linear_blocks.linear_in_blocks(rows, weight).shape == (2, 50, 8)
    assert calls == ([100] if agree else [25, 25, 25, 25])
    calls.clear()
    linear_blocks.linear_in_blocks(rows[:, :16], weight)
    assert calls == [BLOCK_ROWS]


@torch.no_grad()
def test_what_cannot_be_tried_goes_in_blocks(monkeypatch, calls):
    monkeypatch.setattr(linear_blocks, "_kernels_agree", lambda *shape: True)
    rows, weight = torch.randn(40, 16).bfloat16(), torch.randn(8, 16).bfloat16()
    linear_blocks.linear_in_blocks(rows, weight, torch.zeros(8).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        linear_blocks.linear_in_blocks(rows, weight)
    assert calls == [20, 20] * 2


@torch.no_grad()
def test_a_shape_is_tried_once(calls):
    linear_blocks._kernels_agree.cache_clear()
    rows, weight = torch.randn(40, 16).bfloat16(), torch.randn(8, 16).bfloat16()
    state = torch.random.get_rng_state()
    linear_blocks.linear_in_blocks(rows, weight)
    first = len(calls)
    linear_blocks.linear_in_blocks(rows, weight)
    assert first > len(calls) - first
    assert torch.equal(torch.random.get_rng_state(), state)
