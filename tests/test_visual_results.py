# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import PIL.Image
import pytest

from lumina_mgpt_diffusers import contact_sheet, find_palette, read_depth, read_labels, read_normals


def noisy(pixels: np.ndarray, amount: int = 10) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-amount, amount + 1, pixels.shape)
    return (pixels.astype(int) + noise).clip(0, 255).astype(np.uint8)


def test_depth_of_a_gray_map():
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (4, 1, 3))
    depth = read_depth(ramp)
    assert depth.dtype == np.float32 and depth.shape == (4, 256)
    assert np.allclose(depth[0], np.arange(256) / 255)


def test_depth_of_a_coloured_map():
    palette = [(0, 0, 128), (0, 200, 0), (255, 255, 0), (255, 0, 0)]
    pixels = noisy(np.array(palette, dtype=np.uint8)[None].repeat(5, axis=0))
    assert np.allclose(read_depth(pixels, palette)[0], [0, 1 / 3, 2 / 3, 1])


def test_normals():
    vectors = np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0], [0.6, 0, 0.8]])
    pixels = ((vectors + 1) / 2 * 255).round().astype(np.uint8)[None]
    normals = read_normals(pixels)
    assert normals.dtype == np.float32 and normals.shape == (1, 4, 3)
    assert np.allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-6)
    assert np.allclose(normals[0], vectors, atol=0.02)
    gray = read_normals(np.full((1, 1, 3), 128, dtype=np.uint8))
    assert gray[0, 0].tolist() == [0, 0, 1]


def segmentation() -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros((40, 60), dtype=np.int64)
    labels[:, 30:] = 1
    labels[20:, :20] = 2
    colours = np.array([(120, 120, 120), (4, 200, 3), (224, 5, 255)], dtype=np.uint8)
    return labels, colours


def test_labels_of_a_palette():
    labels, colours = segmentation()
    assert np.array_equal(read_labels(noisy(colours[labels]), colours), labels)


def test_labels_of_a_palette_found_in_the_picture():
    labels, colours = segmentation()
    pixels = noisy(colours[labels])
    palette = find_palette(pixels)
    # Found from the largest area to the smallest.
    assert len(palette) == 3
    assert np.abs(palette.astype(int) - colours[[1, 0, 2]]).max() < 12
    expected = np.array([1, 0, 2])[labels]
    assert np.array_equal(read_labels(pixels), expected)


def test_blurred_edges_are_no_areas():
    labels, colours = segmentation()
    pixels = colours[labels]
    pixels[:, 30] = (62, 160, 61)  # one column between two areas, of a colour of its own
    pixels = pixels.repeat(8, axis=0).repeat(8, axis=1)[:, 3:-3]
    blurred = PIL.Image.fromarray(pixels).resize((240, 160), PIL.Image.Resampling.BICUBIC)
    assert 3 <= len(find_palette(np.asarray(blurred))) <= 4


def test_a_contact_sheet_of_few_images():
    images = [PIL.Image.new("RGB", (8, 4), colour) for colour in ("red", "green", "blue")]
    assert contact_sheet(images, columns=4).size == (24, 4)
    assert contact_sheet(images, columns=2).size == (16, 8)
    with pytest.raises(ValueError, match="`images` has to hold at least one image"):
        contact_sheet([])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: read_depth(np.zeros((4, 4), dtype=np.uint8)), r"`pixels` have to be .* uint8 of shape \(4, 4\)"),
        (lambda: read_normals(np.zeros((4, 4, 3))), r"`pixels` have to be .* float64 of shape \(4, 4, 3\)"),
        (lambda: find_palette(np.zeros((0, 4, 3), dtype=np.uint8)), "`pixels` have to be"),
        (lambda: read_labels("picture.png"), "`pixels` have to be .* <class 'str'>"),
        (lambda: read_labels(np.zeros((4, 4, 3), dtype=np.uint8), []), r"`palette` has to be .* of shape \(0,\)"),
        (lambda: read_depth(np.zeros((4, 4, 3), dtype=np.uint8), [[1, 2], [3]]), "`palette` has to be a list of RGB"),
        (lambda: contact_sheet([PIL.Image.new("RGB", (8, 4))], columns=0), "`columns` has to be an integer >= 1"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
