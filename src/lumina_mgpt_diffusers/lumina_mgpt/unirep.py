# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
UniRep: one image as a sequence of tokens (Lumina-mGPT, https://huggingface.co/papers/2408.02657, section 3.1).

An image of `rows x columns` codes is written `[start, height tag, width tag, row, row end, …, row, row end, end]`. The
size tags count the grids of each side, of 32 px as released, so the size is part of the sequence and any aspect ratio
can be read back. Models whose images all have one size write them without tags, and may have no row ends: `[start,
codes, end]`. This module is the only place that translates between **codes** (what the VQ model knows) and **token
ids** (what the transformer knows). It knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch


GRID_SIZE = 32
"""Pixels that one step of a size tag stands for, unless a family of models says otherwise."""

MAX_ASPECT_RATIO = 4.0


@lru_cache(maxsize=16)
def trained_sizes(base_size: int, grid_size: int = GRID_SIZE) -> tuple[tuple[int, int], ...]:
    """
    The image sizes a checkpoint was trained on: all grids of at most `(base_size / grid_size)²` cells that cannot be
    made wider at the same height or the reverse, with an aspect ratio of at most 4.

    Args:
        base_size (`int`): Side of the square image of the same area, in pixels.
        grid_size (`int`, defaults to 32): Side of a cell of the grid in pixels.

    Returns:
        `tuple[tuple[int, int], ...]`: `(height, width)` in pixels, from the widest to the tallest.
    """
    side = base_size // grid_size
    cells = side**2
    sizes = []
    # Wider than the root of cells * 4 no grid of an aspect ratio of 4 can be, nor taller than 4 times its width.
    for width in range(min(cells, int(side * MAX_ASPECT_RATIO**0.5)), 0, -1):
        # The staircase under the curve height * width = cells: heights that the next wider grid cannot have.
        for height in range(max(cells // (width + 1), 1), min(cells // width, int(width * MAX_ASPECT_RATIO)) + 1):
            if width <= MAX_ASPECT_RATIO * height:
                sizes.append((height * grid_size, width * grid_size))
    return tuple(sizes)


def nearest_size(height: int, width: int, base_size: int, grid_size: int = GRID_SIZE) -> tuple[int, int]:
    """
    The trained size whose aspect ratio is nearest to that of an image, as the original chooses it.

    Args:
        height (`int`), width (`int`): Size of the image in pixels.
        base_size (`int`): Base size of the checkpoint in pixels.
        grid_size (`int`, defaults to 32): Pixels that one step of a size tag stands for.

    Returns:
        `tuple[int, int]`: `(height, width)` in pixels.
    """

    def closeness(size: tuple[int, int]) -> tuple[float, int, int]:
        ratios = (size[0] / height, size[1] / width)
        return (min(ratios) / max(ratios), size[1], size[0])

    return max(trained_sizes(base_size, grid_size), key=closeness)


def fill_missing_codes(codes: torch.LongTensor) -> torch.LongTensor:
    """
    Fill the -1 in `codes`, `(..., rows, columns)`, of an unfinished image: with the code above, in the first row with
    the code to the left, and with code 0 where there is neither.
    """
    codes = codes.clone()
    for column in range(codes.shape[-1]):
        left = codes[..., 0, column - 1] if column else 0
        codes[..., 0, column] = torch.where(codes[..., 0, column] < 0, left, codes[..., 0, column])
    for row in range(1, codes.shape[-2]):
        codes[..., row, :] = torch.where(codes[..., row, :] < 0, codes[..., row - 1, :], codes[..., row, :])
    return codes


class MalformedImageError(ValueError):
    """A token sequence that is not a UniRep image. The message says what is wrong and at which index."""


@dataclass(frozen=True)
class ImageVocabulary:
    """
    The token ids of the image language of one checkpoint.

    The ids are read from token names, never assumed, see [`~vocabulary.read_vocabulary`].

    Args:
        code_ids (`torch.LongTensor` of shape `(num_codes,)`): Token id of each VQ code.
        size_tag_ids (`tuple[int, ...]`):
            Token id of the size tag of 1, 2, … grids; none where all images are squares of one grid.
        start_id (`int`), end_id (`int`), row_end_id (`int`, *optional*), separator_id (`int`):
            Ids of the tokens that open and close an image, close a row of codes, if any does, and close a turn.
        patch_size (`int`): Pixels per code, the stride of the VQ model.
        grid_size (`int`, defaults to 32): Pixels that one step of a size tag stands for, a multiple of `patch_size`.
    """

    code_ids: torch.LongTensor
    size_tag_ids: tuple[int, ...]
    start_id: int
    end_id: int
    row_end_id: int | None
    separator_id: int
    patch_size: int
    grid_size: int = GRID_SIZE

    @property
    def num_codes(self) -> int:
        return len(self.code_ids)

    @property
    def code_range(self) -> tuple[int, int]:
        """The smallest range of token ids `[first, stop)` that holds every code."""
        return int(self.code_ids.min()), int(self.code_ids.max()) + 1

    @property
    def codes_per_grid(self) -> int:
        return self.grid_size // self.patch_size

    @property
    def max_side(self) -> int:
        """Longest side, in pixels, for which the tokenizer has a size tag, or the one there is."""
        return max(len(self.size_tag_ids), 1) * self.grid_size

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """`(height, width)` in pixels of all images, None where size tags say it."""
        return None if self.size_tag_ids else (self.grid_size, self.grid_size)

    @property
    def prefix_length(self) -> int:
        """Number of tokens before the first code of an image."""
        return 3 if self.size_tag_ids else 1

    @property
    def row_end_length(self) -> int:
        """Number of tokens between two rows of codes."""
        return 0 if self.row_end_id is None else 1

    def prefix(self, height: int, width: int) -> list[int]:
        """Token ids `[start, height tag, width tag]` that open an image of `height x width` pixels."""
        if not self.size_tag_ids:
            return [self.start_id]
        return [
            self.start_id,
            self.size_tag_ids[height // self.grid_size - 1],
            self.size_tag_ids[width // self.grid_size - 1],
        ]

    def num_tokens(self, height: int, width: int) -> int:
        """Number of tokens of an image of `height x width` pixels, from start to end."""
        columns = width // self.patch_size + self.row_end_length
        return self.prefix_length + (height // self.patch_size) * columns + 1

    def to_tokens(self, codes: torch.LongTensor) -> torch.LongTensor:
        """
        Write an image as tokens.

        Args:
            codes (`torch.LongTensor` of shape `(rows, columns)`): VQ codes of the image.

        Returns:
            `torch.LongTensor` of shape `(rows * (columns + 1) + 4,)`: The token ids; less without row ends or tags.

        Raises:
            `ValueError`: If the codes are not a grid of whole cells of the size tags, or not all in `[0, num_codes)`.
        """
        if codes.ndim != 2:
            raise ValueError(f"`codes` have to be of shape (rows, columns) but are of shape {tuple(codes.shape)}.")
        rows, columns = codes.shape
        most = self.max_side // self.patch_size
        for name, side in (("rows", rows), ("columns", columns)):
            if side % self.codes_per_grid or not 0 < side <= most:
                raise ValueError(
                    f"The number of {name} of `codes` has to be a multiple of {self.codes_per_grid} of at most {most}"
                    f" but is {side}."
                )
        if codes.min() < 0 or codes.max() >= self.num_codes:
            raise ValueError(
                f"`codes` have to be in [0, {self.num_codes}) but range from {int(codes.min())} to {int(codes.max())}."
            )
        ids = self.code_ids.to(codes.device)[codes]
        if self.row_end_id is not None:
            ids = torch.nn.functional.pad(ids, (0, 1), value=self.row_end_id)
        head = ids.new_tensor(self.prefix(rows * self.patch_size, columns * self.patch_size))
        return torch.cat([head, ids.flatten(), ids.new_tensor([self.end_id])])

    def to_codes(self, token_ids: Sequence[int] | torch.LongTensor) -> torch.LongTensor:
        """
        Read an image back from its tokens.

        Args:
            token_ids (`Sequence[int]` or `torch.LongTensor` of shape `(length,)`):
                One whole image, from the start to the end token.

        Returns:
            `torch.LongTensor` of shape `(rows, columns)`: The VQ codes.

        Raises:
            [`MalformedImageError`]: If the sequence is anything but one whole image: wrong length, a token where it
                may not stand, a missing row end or end, a size tag that is none.
        """
        ids = _as_integers(token_ids)
        if ids.ndim != 1:
            raise MalformedImageError(f"`token_ids` have to be one sequence but are of shape {tuple(ids.shape)}.")
        start, gap = self.prefix_length, self.row_end_length
        if len(ids) <= start:
            raise MalformedImageError(f"An image has at least {start + 1} tokens but the sequence has {len(ids)}.")
        if ids[0] != self.start_id:
            raise MalformedImageError(f"Index 0 has to hold the start token {self.start_id} but holds {int(ids[0])}.")
        sides = [] if self.size_tag_ids else [self.codes_per_grid] * 2
        for index, name in ((1, "height"), (2, "width"))[: start - 1]:
            try:
                sides.append((self.size_tag_ids.index(int(ids[index])) + 1) * self.codes_per_grid)
            except ValueError:
                raise MalformedImageError(
                    f"Index {index} has to hold the {name} tag, a token id from {self.size_tag_ids[0]} to"
                    f" {self.size_tag_ids[-1]}, but holds {int(ids[index])}."
                ) from None
        rows, columns = sides
        stride = columns + gap
        expected = start + rows * stride + 1
        if len(ids) != expected:
            what = "The size tags say" if self.size_tag_ids else "An image has"
            raise MalformedImageError(
                f"{what} {rows}x{columns} codes, {expected} tokens, but the sequence has {len(ids)}."
            )
        if ids[-1] != self.end_id:
            raise MalformedImageError(
                f"Index {expected - 1} has to hold the end token {self.end_id} but holds {int(ids[-1])}."
            )
        places = ids[start:-1].view(rows, stride)
        grid, row_ends = places[:, :columns].contiguous(), places[:, columns:]
        wrong = (row_ends != self.row_end_id).nonzero() if gap else []
        if len(wrong):
            row = int(wrong[0, 0])
            raise MalformedImageError(
                f"Index {start + row * stride + columns} has to hold the end of row {row}, {self.row_end_id}, but"
                f" holds {int(row_ends[row])}."
            )
        sorted_ids, order = self.code_ids.sort()
        place = torch.searchsorted(sorted_ids, grid).clamp(max=self.num_codes - 1)
        wrong = (sorted_ids[place] != grid).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            raise MalformedImageError(
                f"Index {start + row * stride + column} has to hold a code (row {row}, column {column}) but holds"
                f" token id {int(grid[row, column])}."
            )
        return order[place]


def _as_integers(token_ids: object) -> torch.LongTensor:
    try:
        ids = torch.as_tensor(token_ids)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        ids = None
    if ids is None or ids.layout is not torch.strided or ids.is_meta or ids.is_nested or ids.is_quantized:
        raise MalformedImageError(f"`token_ids` have to be integers but are {type(token_ids)}.")
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise MalformedImageError(f"`token_ids` have to be integers but are {ids.dtype}.")
    return ids.long().cpu()
