# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The objects of the small world as sprites.

The camera is orthographic and looks down at a fixed angle, and light and objects never turn. So what an object looks
like does not depend on where it stands: each shape is ray-marched once at high resolution, with its soft shadow on the
floor, and scenes are put together from copies resampled to the place and size wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np


ELEVATION = np.radians(33.0)
"""How steeply the camera looks down."""

RIGHT = np.array([1.0, 0.0, 0.0])
UP = np.array([0.0, np.cos(ELEVATION), -np.sin(ELEVATION)])
VIEW = np.array([0.0, np.sin(ELEVATION), np.cos(ELEVATION)])
"""Axes of the picture in the world, where x goes right, y up, z towards the viewer. `VIEW` points at the camera."""

LIGHT = np.array([-0.5, 0.78, 0.42]) / np.linalg.norm([-0.5, 0.78, 0.42])

PIXELS_PER_UNIT = 96
WINDOW = (-0.75, 1.125, -0.6, 1.275)
"""What a sprite covers, left, right, bottom, top, in units around the foot of the object on the floor."""

SURFACE = 1e-3


@dataclass(frozen=True)
class Layer:
    """
    Channels of a sprite, no larger than what is in them.

    Args:
        values (`np.ndarray` of shape `(rows, channels, columns)`): float32.
        left (`float`), top (`float`): The upper left corner, in units from the foot of the object on the floor.
    """

    values: np.ndarray
    left: float
    top: float


@dataclass(frozen=True)
class Sprite:
    """
    A shape of about one unit across, seen by the camera.

    Args:
        looks ([`Layer`] with channels coverage, key light, ambient light, highlight, stripes, spots):
            Premultiplied by the coverage.
        geometry ([`Layer`] with channels coverage, depth towards the camera, normal right, up, towards the camera):
            Premultiplied by the coverage.
        shadow ([`Layer`] with channels key light, ambient light): What the object takes from the floor, 0 to 1.
        box (`tuple[float, float, float, float]`): Left, right, bottom, top of the silhouette in units.
    """

    looks: Layer
    geometry: Layer
    shadow: Layer
    box: tuple[float, float, float, float]


Field = Callable[[np.ndarray], np.ndarray]
"""Signed distance to a surface from points `(…, 3)`."""


def _ball(p: np.ndarray) -> np.ndarray:
    return np.linalg.norm(p - [0, 0.46, 0], axis=-1) - 0.46


def _cube(p: np.ndarray) -> np.ndarray:
    turn = np.radians(32)
    x = np.cos(turn) * p[..., 0] + np.sin(turn) * p[..., 2]
    z = np.cos(turn) * p[..., 2] - np.sin(turn) * p[..., 0]
    q = np.abs(np.stack([x, p[..., 1] - 0.36, z], axis=-1)) - 0.28
    return np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(axis=-1), 0) - 0.08


def _cylinder(p: np.ndarray) -> np.ndarray:
    radius = np.hypot(p[..., 0], p[..., 2])
    q = np.stack([radius - 0.22, np.abs(p[..., 1] - 0.46) - 0.38], axis=-1)
    return np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(axis=-1), 0) - 0.08


def _cone(p: np.ndarray) -> np.ndarray:
    radius, height = np.hypot(p[..., 0], p[..., 2]), p[..., 1]
    rounding, base, top = 0.06, 0.42, 0.9
    slope = np.array([top, base]) / np.hypot(top, base)
    side = slope[0] * radius + slope[1] * (height - rounding) - slope[0] * base
    return np.maximum(side, rounding - height) - rounding


def _ring(p: np.ndarray) -> np.ndarray:
    across = np.hypot(p[..., 0], p[..., 1] - 0.48) - 0.34
    return np.hypot(across, p[..., 2]) - 0.14


def _diamond(p: np.ndarray) -> np.ndarray:
    turn = np.radians(25)
    x = np.cos(turn) * p[..., 0] + np.sin(turn) * p[..., 2]
    z = np.cos(turn) * p[..., 2] - np.sin(turn) * p[..., 0]
    flat = np.abs(x) + np.abs(z) + np.abs(p[..., 1] - 0.52) * 0.88 - 0.44
    return flat / np.sqrt(2 + 0.88**2) - 0.02


@cache
def _outline(name: str) -> np.ndarray:
    """Signed distances to a closed curve on a grid over [-1, 1]², rows from the bottom."""
    if name == "star":
        angles = np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2, 0.22, 0.44)
        points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)
    else:
        t = np.linspace(0, 2 * np.pi, 80, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        points = np.stack([x, y + 2.5], axis=-1) / 40
    side = np.linspace(-1, 1, 161)
    grid = np.stack(np.meshgrid(side, side), axis=-1)
    start, step = points, np.roll(points, -1, axis=0) - points
    offset = grid[..., None, :] - start
    along = np.clip((offset * step).sum(-1) / (step * step).sum(-1), 0, 1)
    distance = np.linalg.norm(offset - along[..., None] * step, axis=-1).min(axis=-1)
    crosses = (offset[..., 1] >= 0) != (offset[..., 1] - step[:, 1] >= 0)
    run = offset[..., 0] - step[:, 0] * offset[..., 1] / np.where(step[:, 1] == 0, 1, step[:, 1])
    inside = (crosses & (run < 0)).sum(axis=-1) % 2 == 1
    return np.where(inside, -distance, distance)


def _plate(p: np.ndarray, name: str, middle: float) -> np.ndarray:
    """A puffy plate of some outline that stands upright."""
    table = _outline(name)
    place = np.clip((np.stack([p[..., 1] - middle, p[..., 0]], axis=-1) + 1) * 80, 0, 159.999)
    low = place.astype(int)
    part = place - low
    row, column = low[..., 0], low[..., 1]
    upper = table[row + 1, column] * (1 - part[..., 1]) + table[row + 1, column + 1] * part[..., 1]
    lower = table[row, column] * (1 - part[..., 1]) + table[row, column + 1] * part[..., 1]
    flat = lower * (1 - part[..., 0]) + upper * part[..., 0]
    # Thicker in the middle than at the rim, like a cushion.
    thickness = 0.03 + 0.5 * np.clip(-flat, 0, 0.12)
    q = np.stack([flat, np.abs(p[..., 2]) - thickness], axis=-1)
    return (np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(axis=-1), 0) - 0.07) * 0.8


def _star(p: np.ndarray) -> np.ndarray:
    return _plate(p, "star", 0.44)


def _heart(p: np.ndarray) -> np.ndarray:
    return _plate(p, "heart", 0.43)


SHAPES: dict[str, Field] = {
    "ball": _ball,
    "cube": _cube,
    "cylinder": _cylinder,
    "cone": _cone,
    "ring": _ring,
    "star": _star,
    "heart": _heart,
    "diamond": _diamond,
}


def _march(field: Field, start: np.ndarray, direction: np.ndarray, steps: int, reach: float) -> np.ndarray:
    """Distance along rays `(n, 3)` to the surface, or infinity."""
    travelled = np.zeros(len(start))
    hit = np.zeros(len(start), dtype=bool)
    live = np.arange(len(start))
    for _ in range(steps):
        distance = field(start[live] + travelled[live, None] * direction)
        hit[live[distance < SURFACE]] = True
        travelled[live] += np.maximum(distance, SURFACE)
        live = live[(distance >= SURFACE) & (travelled[live] < reach)]
        if not len(live):
            break
    return np.where(hit, travelled, np.inf)


def _lit(field: Field, points: np.ndarray) -> np.ndarray:
    """How much of a broad light each point sees, 0 to 1."""
    lit = np.ones(len(points))
    for travelled in np.geomspace(0.02, 1.6, 28):
        lit = np.minimum(lit, 0.5 + 4.5 * field(points + travelled * LIGHT) / travelled)
    lit = np.clip(lit, 0, 1)
    return lit * lit * (3 - 2 * lit)


def _open(field: Field, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """How little of the sky above each point is hidden, 0 to 1."""
    hidden = np.zeros(len(points))
    for reach, weight in ((0.06, 1.2), (0.12, 1.0), (0.24, 0.8), (0.4, 0.6)):
        ahead = points + reach * normals
        # The floor hides as well as the object itself.
        nearest = np.minimum(field(ahead), np.maximum(ahead[:, 1], 0))
        hidden += weight * np.clip(reach - nearest, 0, None) / reach / 3.6
    return np.clip(1 - 1.1 * hidden, 0, 1)


def _normals(field: Field, points: np.ndarray) -> np.ndarray:
    step = 4e-3
    normals = np.stack([field(points + step * axis) - field(points - step * axis) for axis in np.eye(3)], axis=-1)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def _spots(points: np.ndarray, name: str) -> np.ndarray:
    """1 where a spot is, by direction from the middle on round bodies, by place on flat ones."""
    if name in ("star", "heart", "ring"):
        row = np.round((points[:, 1] - 0.44) / 0.2)
        across = points[:, 0] - 0.115 * (row % 2)
        offset = np.hypot(across - 0.23 * np.round(across / 0.23), points[:, 1] - 0.44 - 0.2 * row)
        return (offset < 0.075).astype(np.float64)
    towards = points - [0, 0.46, 0]
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    index = np.arange(34)
    height = 1 - (2 * index + 1) / 34
    turn = index * np.pi * (3 - np.sqrt(5)) + 0.4
    width = np.sqrt(1 - height**2)
    centres = np.stack([width * np.cos(turn), height, width * np.sin(turn)], axis=-1)
    return ((towards @ centres.T).max(axis=-1) > np.cos(0.2)).astype(np.float64)


@cache
def sprite(name: str) -> Sprite:
    """The sprite of a shape. The first call of each takes a fraction of a second."""
    field = SHAPES[name]
    left, right, bottom, top = WINDOW
    scale = 2 * PIXELS_PER_UNIT
    columns, rows = round((right - left) * scale), round((top - bottom) * scale)
    x = left + (np.arange(columns) + 0.5) / scale
    y = top - (np.arange(rows) + 0.5) / scale
    x, y = (side.ravel() for side in np.meshgrid(x, y))

    floor = np.stack([x, np.zeros_like(x), -y / np.sin(ELEVATION)], axis=-1)
    shade = 1 - _lit(field, floor)
    blocked = 1 - _open(field, floor, np.broadcast_to([0.0, 1.0, 0.0], floor.shape))
    shadow = np.stack([shade, blocked], axis=-1)

    start = x[:, None] * RIGHT + y[:, None] * UP + 2.0 * VIEW
    distance = _march(field, start, -VIEW, 90, 4.0)
    hit = np.isfinite(distance)
    points = start[hit] - distance[hit, None] * VIEW
    normals = _normals(field, points)
    facing = normals @ VIEW
    cosine = normals @ LIGHT
    wrapped = np.clip((cosine + 0.25) / 1.25, 0, 1)
    key = wrapped * np.minimum(_lit(field, points + 0.03 * normals), 1)
    ambient = (0.72 + 0.28 * normals[:, 1]) * _open(field, points, normals) + 0.25 * (1 - np.clip(facing, 0, 1)) ** 3
    half = (LIGHT + VIEW) / np.linalg.norm(LIGHT + VIEW)
    highlight = 0.5 * np.clip(normals @ half, 0, 1) ** 50 + 0.08 * np.clip(normals @ half, 0, 1) ** 8
    stripes = (np.sin((points[:, 1] - 0.03) * 2 * np.pi / 0.3) > 0.1).astype(np.float64)

    looks = np.zeros((len(x), 6))
    looks[hit] = np.stack([np.ones(len(points)), key, ambient, highlight, stripes, _spots(points, name)], axis=-1)
    geometry = np.zeros((len(x), 5))
    axes = np.stack([RIGHT, UP, VIEW])
    geometry[hit] = np.concatenate([np.ones((len(points), 1)), (points @ VIEW)[:, None], normals @ axes.T], axis=-1)

    def shrink(image: np.ndarray) -> Layer:
        values = image.reshape(rows // 2, 2, columns // 2, 2, -1).mean(axis=(1, 3)).astype(np.float32)
        filled = np.abs(values).max(axis=-1) > 0.004
        (first_row, *_, last_row), (first, *_, last) = (np.flatnonzero(filled.any(axis=axis)) for axis in (1, 0))
        values = values[first_row : last_row + 1, first : last + 1].transpose(0, 2, 1)
        corner = left + first / PIXELS_PER_UNIT, top - first_row / PIXELS_PER_UNIT
        return Layer(np.ascontiguousarray(values), *corner)

    half_pixel = 0.5 / scale
    box = tuple(
        float(edge)
        for edge in (
            x[hit].min() - half_pixel, x[hit].max() + half_pixel, y[hit].min() - half_pixel, y[hit].max() + half_pixel,
        )
    )  # fmt: skip
    return Sprite(shrink(looks), shrink(geometry), shrink(shadow), box)


def place(
    layer: Layer, unit: float, foot: tuple[float, float], height: int, width: int
) -> tuple[slice, slice, np.ndarray]:
    """
    Resample a layer of a sprite into a picture.

    Args:
        layer ([`Layer`]): The layer.
        unit (`float`): Pixels of the picture per unit.
        foot (`tuple[float, float]`): Column and row, in pixels of the picture, where the object touches the floor.
        height (`int`), width (`int`): Size of the picture.

    Returns:
        `tuple[slice, slice, np.ndarray]`: Rows and columns of the picture that are touched, and what they get,
        `(rows, columns, channels)`.
    """
    length, channels, breadth = layer.values.shape
    rows, row_weights = _weights(length, foot[1] - layer.top * unit, unit, height)
    columns, column_weights = _weights(breadth, foot[0] + layer.left * unit, unit, width)
    tall = row_weights @ layer.values.reshape(length, -1)
    values = tall.reshape(-1, breadth) @ column_weights.T
    return rows, columns, values.reshape(len(row_weights), channels, -1).transpose(0, 2, 1)


def _weights(length: int, begin: float, unit: float, limit: int) -> tuple[slice, np.ndarray]:
    """Pixels of one side of the picture, and their weights on the sprite's pixels: a box of one pixel, exactly."""
    step = unit / PIXELS_PER_UNIT
    first = max(int(np.floor(begin)), 0)
    last = max(min(int(np.ceil(begin + length * step)), limit), first)
    pixels = np.arange(first, last, dtype=np.float32)[:, None]
    edges = begin + np.arange(length, dtype=np.float32) * step
    overlap = np.minimum(pixels + 1, edges + step) - np.maximum(pixels, edges)
    return slice(first, last), np.maximum(overlap, 0)
