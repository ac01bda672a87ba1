# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images of every kind become the codes that the original gives."""

import base64
import io
import time
import zlib

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import requests
import torch
from omni import arrays

from lumina_mgpt_diffusers.lumina_mgpt import image_encoding
from lumina_mgpt_diffusers.lumina_mgpt.image_encoding import (
    encode_images,
    encode_pixels,
    load_images,
    prepare_image,
    resize_and_crop,
    to_rgb,
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
        "P with transparency": (transparent_palette, to_rgb(transparent_palette.convert("RGBA"))),
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
    image = to_rgb(PIL.Image.fromarray(np.tile(values, (96, 1))))
    assert np.asarray(image)[0, :, 0].tolist() == (values >> 8).tolist()


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
        response = requests.Response()
        response.status_code, response.raw = 200, io.BytesIO((tmp_path / "image.png").read_bytes())
        return response

    monkeypatch.setattr(requests, "get", get)
    data_url = "data:image/png;base64," + base64.b64encode((tmp_path / "image.png").read_bytes()).decode()
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
        data_url,
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


def original_order(image: PIL.Image.Image, height: int, width: int) -> np.ndarray:
    """Resized in its own mode, cropped at the centre, then made RGB."""
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), PIL.Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), PIL.Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(to_rgb(image.crop((left, top, left + width, top + height))))


def in_mode(mode: str) -> PIL.Image.Image:
    rgba = PIL.Image.fromarray(IMAGES["rgba_96x96"]).resize((331, 170), PIL.Image.Resampling.BICUBIC)
    if mode.startswith("I"):
        levels = np.random.default_rng(0).integers(0, 65536, (170, 331))
        return PIL.Image.fromarray(levels.astype({"I;16": "<u2", "I;16B": ">u2", "I": np.int32}[mode]))
    if mode == "LAB":
        lab = PIL.ImageCms.createProfile("LAB")
        return PIL.ImageCms.profileToProfile(rgba.convert("RGB"), PIL.ImageCms.createProfile("sRGB"), lab, 0, "LAB")
    if mode in ("LA", "La"):
        return rgba.convert("LA").convert(mode)
    return rgba.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "L", "RGBX") else rgba.convert(mode)


@pytest.mark.parametrize(
    "mode", ["L", "RGB", "RGBX", "RGBA", "RGBa", "LA", "La", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I"]
)
def test_modes_that_can_be_resized_keep_the_order_of_the_original(mode):
    image = in_mode(mode)
    assert image.mode == mode
    height, width = nearest_size(image.height, image.width, 96)
    assert np.array_equal(prepare_image(image, 96), original_order(image, height, width))


def test_modes_that_cannot_be_resized_are_converted_before():
    rgb = in_mode("RGB")
    palette = rgb.quantize(64)
    cases = {"1": (rgb.convert("1"), "L"), "P": (palette, "RGB"), "HSV": (rgb.convert("HSV"), "RGB")}
    cases["PA"] = (PIL.Image.merge("LA", (rgb.convert("L"), in_mode("RGBA").getchannel("A"))).convert("PA"), "RGBA")
    keyed = PIL.Image.new("RGB", (200, 100), "red")
    keyed.paste("blue", (0, 0, 100, 100))
    keyed.info["transparency"] = (255, 0, 0)
    cases["keyed"] = (keyed, "RGBA")
    for mode, (image, first) in cases.items():
        expected = prepare_image(image.convert(first), 96)
        assert np.array_equal(prepare_image(image, 96), expected), mode
    assert np.asarray(prepare_image(keyed, 96))[0, -1].tolist() == [255, 255, 255]


def test_floating_images_are_read_as_floating_arrays():
    values = np.linspace(0, 1, 96, dtype=np.float32)[None].repeat(96, axis=0)
    (loaded,) = load_images(PIL.Image.fromarray(values))
    assert np.array_equal(loaded, (values * 255).round())
    with pytest.raises(ValueError, match=r"`image` has to hold values in \[0, 1\].* to 255.0"):
        load_images(PIL.Image.fromarray(values * 255))


@pytest.mark.parametrize("size", [(1, 10000), (10000, 1), (3, 20000), (1, 1_000_000), (20000, 7)])
def test_narrow_images_take_no_more_than_others(size):
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8))
    begin = time.perf_counter()
    prepared = prepare_image(image, 768)
    seeded = prepare_image(image, 768, torch.Generator().manual_seed(0))
    assert prepared.size == seeded.size == ((384, 1536) if size[0] < size[1] else (1536, 384))
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize("size", [(40, 900), (900, 40), (75, 3000), (400, 9), (200, 4000)])
def test_only_the_part_that_is_wanted_is_resized_of_narrow_images(size, monkeypatch):
    pattern = np.add.outer(np.arange(size[1]) * 3, np.arange(size[0]) * 5) % 97 + 80
    image = PIL.Image.fromarray(pattern.astype(np.uint8))
    for generator in (lambda: None, lambda: torch.Generator().manual_seed(3)):
        monkeypatch.setattr(image_encoding, "MAX_EXCESS", 1000)
        whole = np.asarray(prepare_image(image, 96, generator())).astype(int)
        monkeypatch.setattr(image_encoding, "MAX_EXCESS", 1)
        part = np.asarray(prepare_image(image, 96, generator())).astype(int)
        assert np.abs(whole - part).max() <= 1


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG file of 8-bit gray whose header says what it likes."""
    chunks = [
        (b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])),
        (b"IDAT", zlib.compress(pixels)),
        (b"IEND", b""),
    ]
    parts = [
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot identify image file"),
        (png(12000, 12000), "at most 89478485 .* but is of 12000x12000"),
        (png(60000, 60000), "could be decompression bomb"),
        (png(50, 50, b"\0" * 100), "truncated|image file|broken"),
        (png(50, 50)[:60], "Truncated|truncated|cannot identify|broken"),
        (png(0, 50), "cannot|pixel"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_that_cannot_be_decoded_are_refused_by_name(tmp_path, content, message):
    (tmp_path / "image.png").write_bytes(content)
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    for source in (tmp_path / "image.png", url):
        with pytest.raises(ValueError, match=f"`image` .*({message})"):
            load_images(source)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_warning_of_a_bomb_that_is_an_error_is_refused_by_name(tmp_path):
    (tmp_path / "image.png").write_bytes(png(12000, 12000))
    with pytest.raises(ValueError, match="`image` .*could be decompression bomb"):
        load_images(tmp_path / "image.png")


def test_a_file_that_is_opened_but_truncated_is_refused_by_name():
    image = PIL.Image.open(io.BytesIO(png(50, 50, b"\0" * 100)))
    with pytest.raises(ValueError, match="`image` is an image that cannot be read"):
        load_images(image)


def test_urls_that_answer_with_an_error_are_refused_by_name(monkeypatch):
    response = requests.Response()
    response.status_code, response.reason = 404, "Not Found"
    monkeypatch.setattr(requests, "get", lambda url, **kwargs: response)
    with pytest.raises(ValueError, match="`image` is 'https://example.com/a.png', which cannot be opened: 404"):
        load_images("https://example.com/a.png")


def test_what_is_not_allowed_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "image.png").write_bytes(png(32, 32, b"\0" * 33 * 32))
    monkeypatch.setattr(requests, "get", None)
    monkeypatch.setattr(PIL.Image, "open", None)
    for source in (tmp_path / "image.png", str(tmp_path / "image.png"), [str(tmp_path / "image.png")]):
        with pytest.raises(ValueError, match=r"`image.* a path, .* pass `load_from=\('files',\)`"):
            load_images(source, load_from=("urls",))
    with pytest.raises(ValueError, match=r"`image` .* a URL, .* pass `load_from=\('urls',\)`"):
        load_images("http://169.254.169.254/", load_from=("files",))


def test_tensors_that_require_gradients_are_images():
    pixels = torch.rand(3, 8, 8, requires_grad=True)
    assert np.array_equal(load_images(pixels)[0], load_images(pixels.detach())[0])


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
        ([[np.zeros((8, 8, 3), dtype=np.uint8)]], r"`image\[0\]` has to be .* flat list"),
        (memoryview(b"abc"), "`image` has to be .* <memory at"),
        (b"abc", "`image` has to be .* b'abc'"),
        (torch.rand(3, 8, 8).to_sparse(), r"`image` has to be .* is torch.sparse_coo torch.float32 of shape"),
        (torch.zeros(8, 8).long().to_sparse(), r"`image` has to be .* is torch.sparse_coo torch.int64"),
        (torch.rand(3, 8, 8, device="meta"), r"`image` has to be .*\(3, 8, 8\) on meta"),
        (torch.zeros(8, 8, dtype=torch.long, device="meta"), "`image` has to be .* on meta"),
        (
            torch.nested.nested_tensor([torch.rand(2), torch.rand(1)], layout=torch.jagged),
            "`image` has to be .* a nested",
        ),
        (torch.quantize_per_tensor(torch.rand(3, 8, 8), 0.1, 0, torch.quint8), "`image` has to be .* torch.quint8"),
        (torch.zeros(3, 8, 8, dtype=torch.complex64), "`image` has to be .* torch.complex64"),
        (torch.zeros(3, 8, 8, dtype=torch.int16), "`image` has to be .* torch.int16"),
        (np.zeros((0, 8, 3), dtype=np.uint8), r"`image` has to be .*\(0, 8, 3\)"),
        (np.broadcast_to(np.uint8(0), (10**6, 10**6, 3)), "`image` has to have at least one pixel, and at most"),
        (np.zeros((8, 8), dtype=object), "`image` has to be .* object of shape"),
        (PIL.Image.new("RGB", (0, 8)), "`image` has to have at least one pixel"),
        ("/no/such\0file.png", "`image` is .*cannot be opened"),
        ("data:image/png;base64,====", "`image` is 'data:image/png;base64,====', which cannot be opened"),
        ("data:", "`image` is 'data:', which cannot be opened"),
        ("data:image/png;base64," + "A" * 10**6, r"`image` is .{100,130}, which cannot be opened: .{,100}$"),
    ],
)
def test_what_is_no_image_is_refused_by_name(image, message):
    with pytest.raises(ValueError, match=message):
        load_images(image)


def test_a_file_that_is_no_image_is_refused_by_name(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="`image` is .*text.png.* cannot be opened"):
        load_images(tmp_path / "text.png")
