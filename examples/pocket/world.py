# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
A small world of toys on a floor: seeded scenes of any size, their pictures, and what is true of them.

A scene is drawn from a split and an index and nothing else. Some pairs of shape and colour (`HELD_OUT`) are never in
the training split.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from shapes import ELEVATION, SHAPES, place, sprite


COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.035, 0.03),
    "orange": (0.95, 0.24, 0.01),
    "yellow": (0.95, 0.66, 0.02),
    "green": (0.05, 0.48, 0.06),
    "turquoise": (0.02, 0.55, 0.55),
    "blue": (0.02, 0.13, 0.75),
    "purple": (0.27, 0.05, 0.66),
    "pink": (0.95, 0.18, 0.45),
}
"""Linear light. Everything coloured in the world has more saturation than any floor."""

FLOORS: dict[str, tuple[float, float, float]] = {
    "white": (0.86, 0.86, 0.86),
    "gray": (0.36, 0.37, 0.38),
    "sand": (0.66, 0.57, 0.45),
    "mint": (0.55, 0.66, 0.58),
    "sky blue": (0.52, 0.60, 0.69),
    "lilac": (0.61, 0.54, 0.66),
    "charcoal": (0.085, 0.09, 0.105),
}

TEXTURES = ("plain", "striped", "spotted")

SIZES = ("small", "large")

LATTICE = 8
"""Objects stand where columns and rows are multiples of this, half the stride of the VQ model: an object of a kind
meets the grid of codes in four ways and no more."""

LIGHTS = ((0.2, 0.2), (0.5, 0.15), (0.35, 0.45))
"""Where a floor may be brightest, as parts of width and height."""

HELD_OUT = frozenset((shape, list(COLOURS)[(3 * index + 2) % 8]) for index, shape in enumerate(SHAPES))
"""Pairs of shape and colour that training never shows, one for every shape and every colour."""

SPLITS = ("train", "test", "held_out")
"""`test` scenes are of the same kind as `train` scenes; in `held_out` every object is of a held-out pair."""

KEY_LIGHT = np.array([0.80, 0.76, 0.70], dtype=np.float32)
AMBIENT_LIGHT = np.array([0.27, 0.30, 0.34], dtype=np.float32)

NEAREST, FARTHEST = 1.0, 3.0
"""Depth at the lower and the upper edge of the picture, and about the range of all depths."""


@dataclass(frozen=True)
class Thing:
    """
    One object.

    Args:
        shape (`str`), colour (`str`), texture (`str`), size (`str`): What it is, by the names above.
        foot (`tuple[float, float]`): Where it touches the floor, column and row in pixels.
        unit (`float`): Pixels per unit of its sprite.
    """

    shape: str
    colour: str
    texture: str
    size: str
    foot: tuple[float, float]
    unit: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of what is seen of it, in pixels."""
        left, right, bottom, top = sprite(self.shape).box
        x, y = self.foot
        return (x + left * self.unit, y - top * self.unit, x + right * self.unit, y - bottom * self.unit)

    @property
    def middle(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return ((left + right) / 2, (top + bottom) / 2)


@dataclass(frozen=True)
class Scene:
    """
    A picture to be rendered.

    Args:
        height (`int`), width (`int`): Size in pixels.
        floor (`str`): Name of the floor.
        things (`tuple[Thing, ...]`): The objects, which do not touch or hide each other.
        light (`tuple[float, float]`): Where the floor is brightest, one of `LIGHTS`.
    """

    height: int
    width: int
    floor: str
    things: tuple[Thing, ...]
    light: tuple[float, float] = LIGHTS[0]


def unit_of(size: str, height: int, width: int) -> float:
    """
    Pixels per unit of an object of some size: one of a few multiples of `LATTICE`, which grows more slowly than the
    picture, so that larger ones hold more.
    """
    steps = 4 + 2 * SIZES.index(size) + 2 * (height * width >= 150**2)
    return min(LATTICE * steps, 0.75 * min(height, width))


def most_things(height: int, width: int) -> int:
    area = height * width
    return 1 if area < 80**2 else 3 if area < 110**2 else 4 if area < 160**2 else 5


def random_generator(split: str, index: int) -> np.random.Generator:
    if split not in SPLITS:
        raise ValueError(f"`split` has to be one of {list(SPLITS)} but is {split!r}.")
    return np.random.default_rng([20480, SPLITS.index(split), index])


def draw_kind(random: np.random.Generator, split: str) -> tuple[str, str]:
    """A shape and a colour that may be in a scene of the split."""
    shapes, colours = list(SHAPES), list(COLOURS)
    if split == "held_out":
        return sorted(HELD_OUT)[random.integers(len(HELD_OUT))]
    while True:
        pair = (shapes[random.integers(len(shapes))], colours[random.integers(len(colours))])
        if pair not in HELD_OUT:
            return pair


def draw_thing(random: np.random.Generator, split: str, height: int, width: int) -> Thing:
    """An object somewhere in the picture, of any attributes the split allows."""
    shape, colour = draw_kind(random, split)
    texture = TEXTURES[random.choice(3, p=[0.64, 0.2, 0.16])]
    size = "large" if random.random() < 0.5 else "small"
    return put(random, Thing(shape, colour, texture, size, (0, 0), 1), height, width)


def put(random: np.random.Generator, thing: Thing, height: int, width: int) -> Thing:
    """The same object at another place that is wholly inside the picture."""
    unit = unit_of(thing.size, height, width)
    left, right, bottom, top = (edge * unit for edge in sprite(thing.shape).box)
    margin = 0.03 * min(height, width)
    x = _between(random, margin - left, width - margin - right)
    y = _between(random, margin + top, height - margin + bottom)
    return replace(thing, foot=(x, y), unit=unit)


def _between(random: np.random.Generator, low: float, high: float) -> float:
    first, last = int(np.ceil(low / LATTICE)), int(np.floor(high / LATTICE))
    return LATTICE * float(random.integers(first, last + 1)) if first <= last else (low + high) / 2


def gap(one: Thing, other: Thing) -> float:
    """Pixels between two objects' boxes, the greater of across and down; negative where they overlap."""
    a, b = one.box, other.box
    return max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])


def fits(thing: Thing, others: tuple[Thing, ...] | list[Thing], height: int, width: int) -> bool:
    return all(gap(thing, other) >= 0.06 * np.sqrt(height * width) for other in others)


def draw_scene(
    split: str, index: int, height: int, width: int, num_things: int | None = None, same: bool = False
) -> Scene:
    """
    Draw a scene.

    Args:
        split (`str`): One of `SPLITS`.
        index (`int`): Its number in the split. The same number gives the same scene.
        height (`int`), width (`int`): Size in pixels.
        num_things (`int`, *optional*): Number of objects; by default drawn, as many as the size has room for.
        same (`bool`, defaults to `False`): Whether all objects are of the same shape and colour, to be counted.
    """
    random = random_generator(split, index)
    most = most_things(height, width)
    count = num_things or int(random.choice(most, p=_COUNT_ODDS[most])) + 1
    floor = list(FLOORS)[random.integers(len(FLOORS))]
    light = LIGHTS[random.integers(len(LIGHTS))]
    while True:
        things: list[Thing] = []
        for _ in range(60 * count):
            thing = draw_thing(random, split, height, width)
            if same and things:
                thing = put(random, replace(things[0]), height, width)
            elif same and (count > 2 or most < 4):
                thing = put(random, replace(thing, size="small"), height, width)
            if fits(thing, things, height, width):
                things.append(thing)
            if len(things) == count:
                return Scene(height, width, floor, tuple(things), light)
        count = max(count - 1, 1) if num_things is None else count


_COUNT_ODDS = {1: [1.0], 3: [0.45, 0.35, 0.2], 4: [0.35, 0.3, 0.2, 0.15], 5: [0.3, 0.28, 0.18, 0.14, 0.1]}


# Pictures

_BRIGHTEST = 2.0


def _screen_levels() -> np.ndarray:
    """8-bit levels of linear light up to `_BRIGHTEST`. What is bright rolls off instead of clipping."""
    light = (np.arange(8192) + 0.5) * (_BRIGHTEST / 8192)
    light = np.where(light > 0.8, 1 - 0.2 * np.exp(-(light - 0.8) / 0.2), light)
    return (light ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)


_SCREEN = _screen_levels()


def to_screen(light: np.ndarray) -> np.ndarray:
    """8-bit pixels of linear light."""
    return _SCREEN[np.clip(light * (len(_SCREEN) / _BRIGHTEST), 0, len(_SCREEN) - 1).astype(np.int16)]


def to_light(pixels: np.ndarray) -> np.ndarray:
    """Linear light of 8-bit pixels."""
    return (np.searchsorted(_SCREEN, np.arange(256)) / len(_SCREEN) * _BRIGHTEST)[pixels]


def thing_light(layer: np.ndarray, colour: str, texture: str) -> np.ndarray:
    """Linear light of an object, `(…, 3)`, from the channels of its sprite's looks, `(…, 6)`; also premultiplied."""
    cover, key, ambient, highlight = (layer[..., channel : channel + 1] for channel in range(4))
    paint = np.array(COLOURS[colour], dtype=np.float32)
    if texture != "plain":
        mark = layer[..., 3 + TEXTURES.index(texture), None] / np.maximum(cover, 1e-6)
        paint = paint + mark * (0.62 * (1 - paint))
    return paint * (key * (1.25 * KEY_LIGHT) + ambient * (1.5 * AMBIENT_LIGHT)) + highlight * 0.8


def _back_to_front(scene: Scene) -> list[Thing]:
    return sorted(scene.things, key=lambda thing: thing.foot[1])


def _floor_light(scene: Scene) -> np.ndarray:
    """A broad pool of light, `(height, width, 1)`."""
    side = np.hypot(scene.height, scene.width)
    y = (np.arange(scene.height, dtype=np.float32) + 0.5 - scene.light[1] * scene.height) / side
    x = (np.arange(scene.width, dtype=np.float32) + 0.5 - scene.light[0] * scene.width) / side
    return (1.08 / (1 + 0.9 * (y[:, None] ** 2 * 1.5 + x[None, :] ** 2)))[..., None]


def render(scene: Scene) -> np.ndarray:
    """The picture, `(height, width, 3)`, uint8."""
    size = (scene.height, scene.width)
    lit = np.ones((*size, 2), dtype=np.float32)
    looks = []
    for thing in _back_to_front(scene):
        rows, columns, shadow = place(sprite(thing.shape).shadow, thing.unit, thing.foot, *size)
        lit[rows, columns] *= 1 - shadow
        looks.append((thing, *place(sprite(thing.shape).looks, thing.unit, thing.foot, *size)))
    floor = np.array(FLOORS[scene.floor], dtype=np.float32)
    picture = (lit[..., :1] * KEY_LIGHT + lit[..., 1:] * AMBIENT_LIGHT) * floor * _floor_light(scene)
    for thing, rows, columns, layer in looks:
        light = thing_light(layer, thing.colour, thing.texture)
        picture[rows, columns] = picture[rows, columns] * (1 - layer[..., :1]) + light
    return to_screen(picture)


@dataclass(frozen=True)
class Maps:
    """
    What is true of each pixel of a scene.

    Args:
        depth (`np.ndarray` of shape `(height, width)`): Distance from the camera, about `NEAREST` to `FARTHEST`.
        normals (`np.ndarray` of shape `(height, width, 3)`): Of length 1; x right, y up, z towards the camera.
        owner (`np.ndarray` of shape `(height, width)`): Index of the object in `scene.things`, or -1 for the floor.
    """

    depth: np.ndarray
    normals: np.ndarray
    owner: np.ndarray


def measure(scene: Scene) -> Maps:
    """The exact maps of a scene."""
    size = (scene.height, scene.width)
    # Along the line of sight a floor point that is 1 px higher in the picture is this much farther away.
    slope = 1 / np.tan(ELEVATION)
    span = (FARTHEST - NEAREST) / (scene.height * slope)
    row = np.arange(scene.height, dtype=np.float32)[:, None] + 0.5
    depth = np.broadcast_to(FARTHEST - row * slope * span, size).copy()
    normals = np.empty((*size, 3), dtype=np.float32)
    normals[:] = [0, np.cos(ELEVATION), np.sin(ELEVATION)]
    owner = np.full(size, -1)
    for thing in _back_to_front(scene):
        rows, columns, layer = place(sprite(thing.shape).geometry, thing.unit, thing.foot, *size)
        cover = layer[..., 0]
        inside = cover > 0.5
        foot_depth = FARTHEST - thing.foot[1] * slope * span
        nearer = layer[..., 1] / np.maximum(cover, 1e-6) * thing.unit * span
        depth[rows, columns][inside] = (foot_depth - nearer)[inside]
        normal = layer[..., 2:] / np.maximum(np.linalg.norm(layer[..., 2:], axis=-1, keepdims=True), 1e-6)
        normals[rows, columns][inside] = normal[inside]
        owner[rows, columns][inside] = scene.things.index(thing)
    return Maps(depth, normals, owner)
