# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images of every kind become the codes that the original gives."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
from omni import arrays

from lumina_mgpt_diffusers.lumina_mgpt.image_encoding import (
    blend_over_white,
    encode_images,
    encode_pixels,
    load_images,
    normalize_mode,
    prepare_image,
    resize_and_crop,
)
from lumina_mgpt_diffusers.lumina_mgpt.unirep import nearest_size


CPU = torch.device("cpu")
IMAGES = arrays("7b_like/images.npz")
ENCODED = arrays("7b_like/encode.npz")
CROPPED = [name for name in IMAGES if name.endswith("crop")]


@pytest.mark.parametrize("name", IMAGES)
def test_codes_and_tokens_are_those_of_the_original(random_pipe, name):
    # The original crops at random; its crops are fed as they are.
    image = ENCODED[f"cropped_seed7/{name}"] if name in CROPPED else IMAGES[name]
    (codes,) = encode_images(random_pipe.vqvae, load_images(image), 96, CPU)
    assert codes.flatten().tolist() == ENCODED[f"img_idx_seed7/{name}"].tolist()
    assert random_pipe.image_vocabulary.to_tokens(codes).tolist() == ENCODED[f"input_ids_seed7/{name}"].tolist()


@pytest.mark.parametrize("name", [name for name in IMAGES if f"whitened/{name}" in ENCODED])
def test_transparency_is_blended_over_white(name):
    assert np.array_equal(prepare_image(*load_images(IMAGES[name]), 96), ENCODED[f"whitened/{name}"])


@pytest.mark.parametrize("name", CROPPED)
def test_the_original_crop_is_a_part_of_the_resized_image(name):
    image = PIL.Image.fromarray(IMAGES[name])
    wanted = ENCODED[f"cropped_seed7/{name}"]
    height, width = wanted.shape[:2]
    assert nearest_size(image.height, image.width, 96) == (height, width)
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), PIL.Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    whole = np.asarray(
        image.resize((round(image.width * scale), round(image.height * scale)), PIL.Image.Resampling.BICUBIC)
    )
    parts = np.lib.stride_tricks.sliding_window_view(whole, (height, width, 3)).reshape(-1, height, width, 3)
    assert (parts == wanted).all(axis=(1, 2, 3)).any()
    for generator in (None, torch.Generator().manual_seed(0)):
        own = resize_and_crop(PIL.Image.fromarray(IMAGES[name]), height, width, generator)
        assert (parts == np.asarray(own)).all(axis=(1, 2, 3)).any()


def test_the_crop_is_at_the_centre_or_where_the_generator_says():
    image = PIL.Image.fromarray(np.tile(np.arange(120, dtype=np.uint8), (96, 1)))
    assert np.asarray(resize_and_crop(image, 96, 96))[0].tolist() == list(range(12, 108))
    seeded = [np.asarray(resize_and_crop(image, 96, 96, torch.Generator().manual_seed(seed))) for seed in (3, 3, 4)]
    assert np.array_equal(seeded[0], seeded[1]) and not np.array_equal(seeded[0], seeded[2])


def test_every_mode_of_an_image_gives_what_it_shows():
    gray = PIL.Image.fromarray(IMAGES["gray_96x96"])
    rgb = PIL.Image.fromarray(IMAGES["rgb_96x96"])
    rgba = PIL.Image.fromarray(IMAGES["rgba_96x96"])
    deep = PIL.Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    palette = rgb.quantize(64)
    transparent_palette = palette.copy()
    transparent_palette.info["transparency"] = 0
    cases = {
        "L": (gray, gray.convert("RGB")),
        "LA": (PIL.Image.merge("LA", (gray, rgba.getchannel("A"))), None),
        "I;16": (deep, gray.convert("RGB")),
        "I": (deep.convert("I"), gray.convert("RGB")),
        "1": (gray.convert("1"), gray.convert("1").convert("RGB")),
        "P": (palette, palette.convert("RGB")),
        "P with transparency": (transparent_palette, blend_over_white(transparent_palette.convert("RGBA"))),
        "CMYK": (rgb.convert("CMYK"), rgb.convert("CMYK").convert("RGB")),
        "YCbCr": (rgb.convert("YCbCr"), rgb.convert("YCbCr").convert("RGB")),
    }
    alpha = np.asarray(rgba.getchannel("A")) / 255
    la = (np.asarray(gray) * alpha + 255 * (1 - alpha)).astype(np.uint8)
    cases["LA"] = (cases["LA"][0], PIL.Image.fromarray(la).convert("RGB"))
    for mode, (image, expected) in cases.items():
        prepared = prepare_image(image, 96)
        assert prepared.mode == "RGB" and np.array_equal(prepared, expected), mode


def test_16_bit_gray_keeps_its_range():
    values = np.linspace(0, 65535, 96, dtype=np.uint16)
    image = normalize_mode(PIL.Image.fromarray(np.tile(values, (96, 1))))
    assert np.asarray(image)[0].tolist() == (values >> 8).tolist()


def test_photographs_are_turned_upright(tmp_path):
    image = PIL.Image.fromarray(IMAGES["rgb_64x128_wh"])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.rotate(90, expand=True).save(tmp_path / "photo.png", exif=exif)
    (loaded,) = load_images(tmp_path / "photo.png")
    assert np.array_equal(loaded, image)


def test_every_way_to_pass_an_image_is_the_same(tmp_path, monkeypatch):
    pixels = IMAGES["rgb_96x96"]
    image = PIL.Image.fromarray(pixels)
    image.save(tmp_path / "image.png")

    def get(url, **kwargs):
        return type("Response", (), {"raw": io.BytesIO((tmp_path / "image.png").read_bytes())})

    monkeypatch.setattr("diffusers.utils.loading_utils.requests.get", get)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for way in (
        image,
        pixels,
        pixels / 255,
        tensor,
        tensor / 255,
        tensor.double() / 255,
        pixels[None],
        tensor[None] / 255,
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        "https://example.com/image.png",
    ):
        (loaded,) = load_images(way)
        assert np.array_equal(loaded, pixels)
    gray = IMAGES["gray_96x96"]
    for way in (gray, gray[..., None], torch.from_numpy(gray), torch.from_numpy(gray)[None]):
        assert np.array_equal(load_images(way)[0], gray)


def test_batches_and_codes():
    pixels = IMAGES["rgb_96x96"]
    batch = np.stack([pixels, pixels[::-1]])
    codes = torch.arange(12).view(2, 6)
    loaded = load_images([batch, torch.from_numpy(batch).movedim(-1, 1), PIL.Image.fromarray(pixels), codes])
    assert len(loaded) == 6
    assert np.array_equal(loaded[1], pixels[::-1]) and np.array_equal(loaded[3], pixels[::-1])
    assert torch.equal(loaded[5], codes)
    assert len(load_images(torch.stack([codes, codes]))) == 2


def test_codes_are_passed_through(random_pipe):
    codes = torch.arange(12).view(2, 6)
    assert torch.equal(encode_images(random_pipe.vqvae, [codes], 96, CPU)[0], codes)


def test_the_vq_model_sees_values_from_minus_one_to_one(random_pipe):
    seen = []
    hook = random_pipe.vqvae.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = PIL.Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (32, 16))).convert("RGB")
    with torch.no_grad():
        encode_pixels(random_pipe.vqvae, image, CPU)
    hook.remove()
    assert seen[0].min() == -1 and seen[0].max() == 1 and seen[0].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "`image` has to be a PIL image, a path"),
        ("/no/such/file.png", "`image` is '/no/such/file.png', which cannot be opened"),
        (np.zeros((8, 8, 5), dtype=np.uint8), r"`image` has to be .* uint8 of shape \(8, 8, 5\)"),
        (np.zeros((8, 8, 3), dtype=np.int32), "`image` has to be .* int32"),
        (np.full((8, 8, 3), 1.5), r"`image` has to hold values in \[0, 1\] .* from 1.5 to 1.5"),
        (torch.full((3, 8, 8), -0.5), r"`image` has to hold values in \[0, 1\]"),
        (np.full((8, 8, 3), np.nan), r"`image` has to hold values in \[0, 1\]"),
        (torch.zeros(0, 8, 8), "`image` has to be"),
        ([np.zeros((8, 8, 3), dtype=np.uint8), None], r"`image\[1\]` has to be"),
    ],
)
def test_what_is_no_image_is_refused_by_name(image, message):
    with pytest.raises(ValueError, match=message):
        load_images(image)


def test_a_file_that_is_no_image_is_refused_by_name(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="`image` is .*text.png.* cannot be opened"):
        load_images(tmp_path / "text.png")
