# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is true of a scene as pictures, and read back from them: depth, normals, segmentation, boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from shapes import SHAPES
from world import FARTHEST, NEAREST, Maps, Scene, Thing

from lumina_mgpt_diffusers.lumina_mgpt.visual_results import read_depth, read_labels


FLOOR_COLOUR = (24, 26, 34)
BOX_COLOUR = (236, 238, 242)

PALETTE: dict[str, tuple[int, int, int]] = dict(
    zip(
        SHAPES,
        [
            (214, 40, 57), (247, 127, 0), (252, 213, 63), (56, 176, 0),
            (0, 180, 216), (38, 84, 224), (157, 78, 221), (250, 190, 212),
        ],
    )
)  # fmt: skip
"""Colour of each kind of object in a segmentation."""

# Objects stand out of the range that the floor spans.
_NEAR, _FAR = NEAREST - 0.45, FARTHEST + 0.05


def depth_picture(maps: Maps) -> np.ndarray:
    """Gray, the nearer the brighter, `(height, width, 3)`, uint8."""
    gray = np.clip((_FAR - maps.depth) / (_FAR - _NEAR), 0, 1) * 255
    return np.repeat((gray + 0.5).astype(np.uint8)[..., None], 3, axis=-1)


def read_depth_picture(pixels: np.ndarray) -> np.ndarray:
    return _FAR - read_depth(pixels) * (_FAR - _NEAR)


def normals_picture(maps: Maps) -> np.ndarray:
    """Right, up and towards the camera as red, green and blue, -1 to 1 as 0 to 255."""
    return ((maps.normals * 0.5 + 0.5) * 255 + 0.5).astype(np.uint8)


def labels(scene: Scene, maps: Maps) -> np.ndarray:
    """0 for the floor, else 1 + the index of the object's shape, `(height, width)`."""
    kinds = np.array([1 + list(SHAPES).index(thing.shape) for thing in scene.things] + [0])
    return kinds[maps.owner]


def segmentation_picture(scene: Scene, maps: Maps) -> np.ndarray:
    palette = np.array([FLOOR_COLOUR, *PALETTE.values()], dtype=np.uint8)
    return palette[labels(scene, maps)]


def read_segmentation_picture(pixels: np.ndarray) -> np.ndarray:
    return read_labels(pixels, palette=[FLOOR_COLOUR, *PALETTE.values()])


def boxes_picture(scene: Scene, things: Sequence[Thing]) -> np.ndarray:
    """The boxes of some objects, filled, on a dark ground."""
    pixels = np.empty((scene.height, scene.width, 3), dtype=np.uint8)
    pixels[:] = FLOOR_COLOUR
    for thing in things:
        left, top, right, bottom = (max(round(edge), 0) for edge in thing.box)
        pixels[top:bottom, left:right] = BOX_COLOUR
    return pixels
