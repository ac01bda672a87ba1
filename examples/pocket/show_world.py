# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
A sheet of the small world itself, as it is rendered: scenes of several shapes, and what is known of one of them.

    python examples/pocket/show_world.py --output docs/pocket_world.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
from maps import boxes_picture, depth_picture, normals_picture, segmentation_picture
from tasks import draw_edit
from world import draw_scene, measure, random_generator, render


GAP = 6


def side_by_side(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    """Pictures of one height (axis 1) or width (axis 0), with white between them."""
    gap = np.full((GAP, pictures[0].shape[1], 3) if axis == 0 else (pictures[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=axis)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--first", type=int, default=40, help="number of the first scene")
    args = parser.parse_args()
    shapes = ((192, 192), (192, 288), (192, 96), (192, 192), (192, 288))
    rows = []
    for row in range(3):
        scenes = [draw_scene("test", args.first + 10 * row + place, *size) for place, size in enumerate(shapes)]
        rows.append(side_by_side([render(scene) for scene in scenes], 1))
    scene = draw_scene("test", args.first + 3, 192, 192, num_things=4)
    maps = measure(scene)
    _, edited = draw_edit(scene, random_generator("test", args.first), "test")
    known = [
        render(scene), depth_picture(maps), normals_picture(maps), segmentation_picture(scene, maps),
        boxes_picture(scene, scene.things), render(edited),
    ]  # fmt: skip
    last = side_by_side(known, 1)
    width = max(row.shape[1] for row in [*rows, last])
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in [*rows, last]]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(side_by_side(rows, 0)).save(args.output, optimize=True)


if __name__ == "__main__":
    main()
