# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Images that stand for something else, as numbers.

The model answers every task with a picture, out of a codebook for pictures. What is read back is thus no better than
its colours: neighbouring values blur at edges, 8 bits are the finest step, and nothing has a unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image

from .validation import check_integer, kind_of


# Colours of a label map differ by more than this in some channel; the VQ model's noise within an area does not.
LABEL_DISTANCE = 48

# Areas smaller than this part of an image are taken for the blur between others.
LEAST_AREA = 0.005


def read_depth(pixels: np.ndarray, palette: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """
    Relative depth from the picture of a depth map.

    Args:
        pixels (`np.ndarray` of shape `(height, width, 3)`): The picture, uint8.
        palette (`list` of RGB colours, *optional*):
            The colours of the map from the smallest to the greatest value, if it is not a gray one.

    Returns:
        `np.ndarray` of shape `(height, width)`: float32 in [0, 1]: the brightness, or the place in the palette of the
        nearest colour. Which end is near, and by what scale, is a convention of the training data that the picture
        does not say.
    """
    _check_pixels(pixels)
    if palette is not None:
        return (_nearest(pixels, palette) / max(len(palette) - 1, 1)).astype(np.float32)
    return (pixels.astype(np.float32).mean(axis=-1) / 255).astype(np.float32)


def read_normals(pixels: np.ndarray) -> np.ndarray:
    """
    Surface normals from the picture of a normal map.

    Args:
        pixels (`np.ndarray` of shape `(height, width, 3)`): The picture, uint8.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`: float32 vectors of length 1, red, green and blue read as x, y and z
        from -1 to 1. The directions of the axes are a convention of the training data. Where a pixel is the middle
        gray, which is no direction, z is 1.
    """
    _check_pixels(pixels)
    vectors = pixels.astype(np.float32) / 255 * 2 - 1
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    facing = np.array([0, 0, 1], dtype=np.float32)
    return np.where(lengths > 2 / 255, vectors / np.maximum(lengths, 1e-6), facing).astype(np.float32)


def read_labels(pixels: np.ndarray, palette: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """
    Areas from the picture of a segmentation.

    Args:
        pixels (`np.ndarray` of shape `(height, width, 3)`): The picture, uint8.
        palette (`list` of RGB colours, *optional*):
            The colour of each class. By default the colours are found in the picture with [`find_palette`], and the
            labels number them by their area; they then tell areas apart but do not name classes.

    Returns:
        `np.ndarray` of shape `(height, width)`: int64, index of the nearest colour of the palette.
    """
    return _nearest(pixels, find_palette(pixels) if palette is None else palette)


def find_palette(pixels: np.ndarray) -> np.ndarray:
    """
    The colours of the areas of a picture, from the largest area to the smallest.

    Args:
        pixels (`np.ndarray` of shape `(height, width, 3)`): The picture, uint8.

    Returns:
        `np.ndarray` of shape `(num_colours, 3)`: uint8.
    """
    _check_pixels(pixels)
    flat = pixels.reshape(-1, 3)
    cells, cell_of, counts = np.unique(flat // 16, axis=0, return_inverse=True, return_counts=True)
    cell_of = cell_of.reshape(-1)
    palette: list[np.ndarray] = []
    for cell in np.argsort(-counts, kind="stable"):
        if palette and counts[cell] < LEAST_AREA * len(flat):
            break
        colour = flat[cell_of == cell].mean(axis=0)
        if all(np.abs(colour - other).max() > LABEL_DISTANCE for other in palette):
            palette.append(colour)
    return np.array(palette).round().astype(np.uint8)


def _check_pixels(pixels: object) -> None:
    is_picture = isinstance(pixels, np.ndarray) and pixels.ndim == 3 and pixels.shape[-1] == 3 and pixels.size
    if not is_picture or pixels.dtype != np.uint8:
        raise ValueError(
            f"`pixels` have to be an array of shape (height, width, 3), uint8, but are {kind_of(pixels)}."
        )


def _nearest(pixels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Index of the colour that is nearest to each pixel."""
    _check_pixels(pixels)
    try:
        colours = np.asarray(palette, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`palette` has to be a list of RGB colours: {error}") from error
    if colours.ndim != 2 or colours.shape[1] != 3 or not len(colours):
        raise ValueError(f"`palette` has to be a list of RGB colours but is of shape {colours.shape}.")
    nearest = np.zeros(pixels.shape[:2], dtype=np.int64)
    least = np.full(pixels.shape[:2], np.inf)
    for index, colour in enumerate(colours):
        distance = ((pixels.astype(np.float32) - colour) ** 2).sum(axis=-1)
        nearest[distance < least] = index
        least = np.minimum(least, distance)
    return nearest


def contact_sheet(images: Sequence[PIL.Image.Image], columns: int = 4) -> PIL.Image.Image:
    """
    Images side by side, in rows.

    Args:
        images (`list[PIL.Image.Image]`): One or more images. Each gets a cell of the size of the largest.
        columns (`int`, defaults to 4): Number of images in a row.
    """
    if not images:
        raise ValueError("`images` has to hold at least one image but is empty.")
    columns = check_integer("columns", columns, least=1)
    width, height = (max(sides) for sides in zip(*(image.size for image in images)))
    rows = -(-len(images) // columns)
    sheet = PIL.Image.new("RGB", (min(columns, len(images)) * width, rows * height), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet
