# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Reads a picture of the small world back: which objects are where, and what the floor is.

What is not floor is cut into connected areas. Each is compared with every shape at the place and size that cover it
best, first by outline, then by the picture that the shape would make. An area that nothing covers well is an object of
no known shape, so that a judge can count it but never takes it for the right one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage
from shapes import PIXELS_PER_UNIT, SHAPES, Layer, place, sprite
from world import COLOURS, FLOORS, TEXTURES, Scene, Thing, render, thing_light, to_light, to_screen, unit_of


LEAST_OVERLAP = 0.72
"""Intersection over union with the outline of a shape, under which an area is of no known shape."""

GREATEST_ERROR = 0.16
"""Mean difference from the picture of a shape, values from 0 to 1, over which an area is of no known shape."""


ERROR_WEIGHT = 2.0


@dataclass(frozen=True)
class Detection:
    """
    An object that was found.

    Args:
        shape (`str`, *optional*), colour (`str`, *optional*): What it is; None where it looks like nothing known.
        texture (`str`), size (`str`): The nearest of those there are.
        box (`tuple[float, float, float, float]`): Left, top, right, bottom in pixels.
        foot (`tuple[float, float]`), unit (`float`): Place and scale of the shape that covers it.
        overlap (`float`), error (`float`): How well it does.
    """

    shape: str | None
    colour: str | None
    texture: str
    size: str
    box: tuple[float, float, float, float]
    foot: tuple[float, float]
    unit: float
    overlap: float
    error: float

    @property
    def middle(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return ((left + right) / 2, (top + bottom) / 2)

    @property
    def cost(self) -> float:
        """How badly the shape explains what is seen."""
        return 1 - self.overlap + ERROR_WEIGHT * self.error


@dataclass(frozen=True)
class Reading:
    """What was read from a picture: its floor and its objects."""

    floor: str
    things: tuple[Detection, ...]


@cache
def _floor_levels() -> np.ndarray:
    """Linear light of each floor where nothing stands, `(floors, 3)`."""
    scenes = [Scene(64, 64, floor, ()) for floor in FLOORS]
    return np.stack([np.median(to_light(render(scene)).reshape(-1, 3), axis=0) for scene in scenes])


@cache
def _hues() -> np.ndarray:
    """Direction of the hue of each colour on the circle, `(colours, 2)`."""
    directions = []
    for colour in COLOURS:
        scene = Scene(96, 96, "gray", (Thing("ball", colour, "plain", "large", (48, 66), 60),))
        directions.append(_hue_vector(render(scene)[34:54, 38:58].reshape(-1, 3) / 255.0))
    return np.stack(directions)


def _hue_vector(colours: np.ndarray) -> np.ndarray:
    """Mean direction of hue, weighted by saturation, from colours `(n, 3)`."""
    red, green, blue = colours.T
    vectors = np.stack([red - (green + blue) / 2, (green - blue) * np.sqrt(0.75)], axis=-1)
    mean = vectors.mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-6)


def _saturation(pixels: np.ndarray) -> np.ndarray:
    brightest = pixels.max(axis=-1)
    return (brightest - pixels.min(axis=-1)) / np.maximum(brightest, 0.08)


def _fit_floor(pixels: np.ndarray) -> np.ndarray:
    """The floor as it would be without objects and shadows, values 0 to 1, a smooth surface for each channel."""
    height, width = pixels.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1).reshape(-1, 6)
    values = pixels.reshape(-1, 3)
    brightness = values.mean(axis=-1)
    # The floor is what there is most of: start with pixels near the commonest colour.
    coarse = (values * 12).astype(int) @ [1, 16, 256]
    kinds, counts = np.unique(coarse, return_counts=True)
    common = values[coarse == kinds[counts.argmax()]].mean(axis=0)
    use = np.abs(values - common).max(axis=-1) < 0.13
    for _ in range(4):
        weights = np.linalg.lstsq(terms[use], values[use], rcond=None)[0]
        fitted = terms @ weights
        excess = brightness - fitted.mean(axis=-1)
        use = (np.abs(values - fitted).max(axis=-1) < 0.07) & (excess > -0.035)
        if use.sum() < 50:
            break
    return fitted.reshape(height, width, 3)


def foreground(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where objects are, `(height, width)`, and the floor under them, both from values 0 to 1 `(height, width, 3)`."""
    floor = np.clip(_fit_floor(pixels), 0.02, 1)
    shade = (pixels / floor).mean(axis=-1, keepdims=True)
    # A shadow takes light from all channels nearly alike; an object changes their balance, or is brighter.
    tint = np.abs(pixels - floor * shade).max(axis=-1)
    brighter = (pixels - floor).mean(axis=-1)
    mask = (tint > 0.075) | (brighter > 0.085)
    return ndimage.binary_opening(mask, iterations=1), floor


def detect(pixels: np.ndarray) -> Reading:
    """
    Read a picture.

    Args:
        pixels (`np.ndarray` of shape `(height, width, 3)`): The picture, uint8.
    """
    values = pixels.astype(np.float64) / 255
    height, width = values.shape[:2]
    mask, floor = foreground(values)
    level = np.log(np.median(to_light((floor * 255).astype(np.uint8)).reshape(-1, 3), axis=0) + 0.01)
    name = list(FLOORS)[int(np.abs(np.log(_floor_levels() + 0.01) - level).sum(axis=-1).argmin())]
    labels, count = ndimage.label(ndimage.binary_dilation(mask), np.ones((3, 3)))
    units = unit_of("small", height, width), unit_of("large", height, width)
    small, full = units
    areas = [mask & (labels == index) for index in range(1, count + 1)]
    areas = [area for area in areas if area.sum() >= (0.1 * full) ** 2]
    found = [_recognise(values, area, units) for area in areas]
    _join_parts(values, areas, found, units)
    least_area = (0.35 * small) ** 2
    return Reading(name, tuple(thing for thing, area in zip(found, areas) if area.sum() >= least_area))


def _join_parts(
    values: np.ndarray, areas: list[np.ndarray], found: list[Detection], units: tuple[float, float]
) -> None:
    """Join areas that make a better object together, such as the bands of a striped one, in place."""
    full = units[1]
    pairs = [(one, other) for one in range(len(areas)) for other in range(one)]
    while pairs:
        one, other = pairs.pop()
        a, b = found[one].box, found[other].box
        gap = max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])
        extent = max(max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1]))
        if gap > 0.32 * full or extent > 1.4 * full:
            continue
        joint = _recognise(values, areas[one] | areas[other], units)
        if joint.cost < max(found[one].cost, found[other].cost):
            areas[other] |= areas[one]
            found[other] = joint
            del areas[one], found[one]
            pairs = [(one, other) for one in range(len(areas)) for other in range(one)]


@cache
def _outlines(shape: str) -> Layer:
    """Coverage, and the coverage of stripes and spots."""
    looks = sprite(shape).looks
    return Layer(np.ascontiguousarray(looks.values[:, [0, 4, 5]]), looks.left, looks.top)


@cache
def _certain_box(shape: str, texture: int) -> tuple[float, float, float, float]:
    """Left, right, bottom, top of what has the object's own colour, in units around its foot."""
    layer = _outlines(shape)
    own = layer.values[:, 0] - (layer.values[:, texture] if texture else 0) > 0.5
    rows, columns = (np.flatnonzero(own.any(axis=axis)) / PIXELS_PER_UNIT for axis in (1, 0))
    pixel = 1 / PIXELS_PER_UNIT
    return layer.left + columns[0], layer.left + columns[-1] + pixel, layer.top - rows[-1] - pixel, layer.top - rows[0]


@dataclass(frozen=True)
class _Fit:
    """A shape of some texture laid over an area, and their intersection over union."""

    overlap: float
    shape: str
    texture: int
    unit: float
    foot: tuple[float, float]


def _lay(shape: str, texture: int, area: np.ndarray, unit: float, foot: tuple[float, float]) -> _Fit:
    rows, columns, layer = place(_outlines(shape), unit, foot, *area.shape)
    outline, area_here = layer[..., 0] > 0.5, area[rows, columns]
    # White marks may look like the floor: there, nothing can be said.
    certain = (layer[..., texture] < 0.4 * layer[..., 0]) | ~outline if texture else np.ones_like(outline)
    shared = (area_here & outline & certain).sum()
    outside = area.sum() - (area_here & (outline | ~certain)).sum()
    return _Fit(float(shared / max(outside + (outline & certain).sum(), 1)), shape, texture, unit, foot)


def _fit(area: np.ndarray) -> list[_Fit]:
    """Shapes and textures that cover an area well, each at its best place and size."""
    y, x = np.nonzero(area)
    left, right, top, bottom = x.min(), x.max() + 1, y.min(), y.max() + 1
    first = []
    for shape in SHAPES:
        for texture in range(len(TEXTURES)):
            # The marks at the rim may have been taken for floor, or not.
            for box in {_certain_box(shape, texture), _certain_box(shape, 0)}:
                unit = np.sqrt((right - left) / (box[1] - box[0]) * (bottom - top) / (box[3] - box[2]))
                foot = (
                    (left + right) / 2 - (box[0] + box[1]) / 2 * unit,
                    (top + bottom) / 2 + (box[2] + box[3]) / 2 * unit,
                )
                first.append(_lay(shape, texture, area, unit, foot))
    fits = []
    for start in sorted(first, key=lambda fit: -fit.overlap)[:7]:
        tried = [
            _lay(start.shape, start.texture, area, start.unit * scale, (start.foot[0] + across, start.foot[1] + down))
            for scale in (0.95, 1.0, 1.05)
            for across, down in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
        ]
        fits.append(max(tried, key=lambda fit: fit.overlap))
    return fits


@dataclass(frozen=True)
class _Explanation:
    """A shape laid over an area, and how far the picture it would make is from what is seen."""

    fit: _Fit
    error: float

    @property
    def cost(self) -> float:
        return 1 - self.fit.overlap + ERROR_WEIGHT * self.error


def _explain(values: np.ndarray, area: np.ndarray, fit: _Fit, colour: str | None) -> _Explanation:
    rows, columns, layer = place(sprite(fit.shape).looks, fit.unit, fit.foot, *area.shape)
    inside = layer[..., 0] > 0.85
    if not inside.any():
        return _Explanation(fit, 1.0)
    made = to_screen(thing_light(layer[inside], colour or "red", TEXTURES[fit.texture])) / 255
    return _Explanation(fit, float(np.abs(made - values[rows, columns][inside]).mean()))


def _climb(values: np.ndarray, area: np.ndarray, best: _Explanation, colour: str | None) -> _Explanation:
    """Move and scale the shape a little for as long as that explains more of what is not explained yet."""
    while best.cost > 0.15:
        fit = best.fit
        x, y = fit.foot
        step = 0.03 * fit.unit
        moves = [(fit.unit, (x + step, y)), (fit.unit, (x - step, y)), (fit.unit, (x, y + step))]
        moves += [(fit.unit, (x, y - step)), (0.96 * fit.unit, fit.foot), (1.04 * fit.unit, fit.foot)]
        tried = [_explain(values, area, _lay(fit.shape, fit.texture, area, *move), colour) for move in moves]
        better = min(tried, key=lambda choice: choice.cost)
        if better.cost > best.cost - 0.003:
            break
        best = better
    return best


def _recognise(values: np.ndarray, area: np.ndarray, units: tuple[float, float]) -> Detection:
    y, x = np.nonzero(area)
    box = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
    # The object may reach beyond the area, with marks that look like the floor.
    margin = int(0.25 * units[1])
    left, top = (max(edge - margin, 0) for edge in box[:2])
    values = values[top : box[3] + margin, left : box[2] + margin]
    area = area[top : box[3] + margin, left : box[2] + margin]

    strong = values[area][_saturation(values[area]) > 0.35]
    hue = _hue_vector(strong) if len(strong) > 10 else np.zeros(2)
    similarity = _hues() @ hue
    colour = list(COLOURS)[int(similarity.argmax())] if similarity.max() > 0.9 else None
    choices = sorted((_explain(values, area, fit, colour) for fit in _fit(area)), key=lambda choice: choice.cost)
    best = min((_climb(values, area, choice, colour) for choice in choices[:3]), key=lambda choice: choice.cost)
    fit, error = best.fit, best.error
    known = fit.overlap >= LEAST_OVERLAP and error <= GREATEST_ERROR and colour is not None
    return Detection(
        shape=fit.shape if known else None,
        colour=colour if known else None,
        texture=TEXTURES[fit.texture],
        size="small" if fit.unit < np.sqrt(units[0] * units[1]) else "large",
        box=box,
        foot=(fit.foot[0] + left, fit.foot[1] + top),
        unit=fit.unit,
        overlap=fit.overlap,
        error=error,
    )
