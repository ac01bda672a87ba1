# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""How good an answer is, for each task of the small world, from its pixels or its text."""

from __future__ import annotations

import numpy as np
from detect import Detection, Reading
from maps import BOX_COLOUR, FLOOR_COLOUR, labels, read_depth_picture, read_segmentation_picture
from scipy import ndimage
from tasks import Example
from world import Scene, Thing, measure

from lumina_mgpt_diffusers.lumina_mgpt.visual_results import read_normals


ROUND_TRIP = ": round trip"
"""After the name of a measure: that of what was wanted after the VQ model, which no transformer can pass."""


def depth_error(example: Example, pixels: np.ndarray) -> float:
    """Mean relative error of the depth."""
    depth = measure(example.scene).depth
    return float((np.abs(read_depth_picture(pixels) - depth) / depth).mean())


def normals_error(example: Example, pixels: np.ndarray) -> float:
    """Mean angle between the normals, in degrees."""
    cosine = (read_normals(pixels) * measure(example.scene).normals).sum(axis=-1)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())


def segmentation_iou(example: Example, pixels: np.ndarray) -> float:
    """Intersection over union, mean over the classes that are in the scene or in the answer."""
    wanted = labels(example.scene, measure(example.scene))
    found = read_segmentation_picture(pixels)
    # Between two areas the picture blurs through the colours of others; a class of a few pixels is none.
    counts = np.bincount(found.ravel())
    classes = set(np.unique(wanted)) | set(np.flatnonzero(counts > 0.01 * found.size))
    ious = [((wanted == one) & (found == one)).sum() / ((wanted == one) | (found == one)).sum() for one in classes]
    return float(np.mean(ious))


def read_boxes(pixels: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of the boxes in a picture of boxes."""
    middle = (np.array(BOX_COLOUR) + np.array(FLOOR_COLOUR)).mean() / 2
    areas, _ = ndimage.label(pixels.mean(axis=-1) > middle)
    windows = ndimage.find_objects(areas)
    boxes = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in windows]
    return [box for box in boxes if (box[2] - box[0]) * (box[3] - box[1]) >= 36]


def box_iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / max(sum(areas) - shared, 1e-6)


def boxes_iou(example: Example, pixels: np.ndarray) -> float:
    """Intersection over union of boxes that are paired, over the number there should be or are, whichever is more."""
    found = read_boxes(pixels)
    wanted = [thing.box for thing in example.targets]
    total, most = 0.0, max(len(found), len(wanted))
    while found and wanted:
        best, one, other = max((box_iou(one, other), one, other) for one in wanted for other in found)
        total += best
        wanted.remove(one)
        found.remove(other)
    return total / most


def answer_is_right(wanted: str, answer: str) -> bool:
    return answer.strip().strip(".").lower() == wanted


def edit_is_right(example: Example, reading: Reading) -> bool:
    """Whether the instruction was followed and all else is as it was."""
    before = example.before
    return reading.floor == example.scene.floor and _same_things(
        example.scene, reading, before.things if before else ()
    )


def control_is_right(example: Example, reading: Reading) -> bool:
    """Whether the objects of the caption stand where the map has them."""
    return _same_things(example.scene, reading, example.scene.things)


def _same_things(scene: Scene, reading: Reading, placed: tuple[Thing, ...]) -> bool:
    """Whether all that is in the scene was found, at its place where it has a place among `placed`."""
    left = list(reading.things)
    if len(left) != len(scene.things):
        return False
    feet = {thing.foot for thing in placed}
    for thing in sorted(scene.things, key=lambda thing: thing.foot not in feet):
        alike = [found for found in left if (found.shape, found.colour) == (thing.shape, thing.colour)]
        if thing.foot in feet:
            alike = [found for found in alike if _distance(found, thing) < 0.35 * thing.unit]
        textured = [found for found in alike if found.texture == thing.texture]
        if not textured:
            return False
        left.remove(textured[0])
    return True


def _distance(found: Detection, thing: Thing) -> float:
    return float(np.hypot(found.middle[0] - thing.middle[0], found.middle[1] - thing.middle[1]))


def interval(values: list[float], num_draws: int = 2000) -> tuple[float, float, float]:
    """Mean and its 95% interval by bootstrap."""
    array = np.asarray(values, dtype=float)
    means = np.random.default_rng(0).choice(array, (num_draws, len(array))).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(array.mean()), float(low), float(high)
