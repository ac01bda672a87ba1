# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Images as VQ codes.

An image is brought to the trained size of the nearest aspect ratio (halved by averaging while it is at least twice as
large, then resized and cropped), blended over white where it is transparent, and encoded. The original crops at
random; here the crop is at the centre, or at a random place that a generator decides.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Collection, Sequence
from urllib.request import DataHandler, Request

import numpy as np
import PIL.Image
import PIL.ImageOps
import requests
import torch
from diffusers import VQModel
from diffusers.utils.constants import DIFFUSERS_REQUEST_TIMEOUT

from .unirep import GRID_SIZE, nearest_size
from .validation import is_dense, kind_of, shown


ImageInput = PIL.Image.Image | np.ndarray | torch.Tensor | str | os.PathLike
"""One image; arrays and tensors with a batch dimension, and lists of any of these, are several."""

LoadedImage = PIL.Image.Image | torch.LongTensor
"""An image, or the VQ codes of one."""

ACCEPTED = (
    "a PIL image, a path, a URL, an array of shape (height, width, channels), a tensor of shape (channels, height,"
    " width), with 1, 3 or 4 channels of uint8 or of floating values in [0, 1], or VQ codes, torch.int64 of shape"
    " (rows, columns)"
)

SOURCES = {"files": "a path", "urls": "a URL"}
"""From where an image that is a string may be read, and what the string then is."""

# Pillow resizes single bits and the indices of a palette by nearest neighbour, and does not know that hue is an angle.
CONVERTED_FIRST = {"1": "L", "P": "RGB", "PA": "RGBA", "HSV": "RGB"}

# A resized image of more than so many times the area wanted is not made in whole.
MAX_EXCESS = 16

# Vectors that are compared with the codebook at once.
VECTORS_AT_ONCE = 256

# Pixels beside a part of an image, more than the bicubic filter reaches.
MARGIN = 8


def load_images(images: object, name: str = "image", load_from: Collection[str] = SOURCES) -> list[LoadedImage]:
    """
    Read images of any accepted kind, in their own mode and upright.

    Args:
        images (`ImageInput` or a list of them): One or several images.
        name (`str`, defaults to `"image"`): Name of the argument, for errors.
        load_from (`Collection[str]`, *optional*):
            What may be read for an image that is a string: `"files"`, `"urls"`, by default both. Data URLs
            (`data:image/png;base64,…`) read nothing and are always accepted.

    Returns:
        `list[PIL.Image.Image | torch.LongTensor]`: One PIL image for each, or the VQ codes where those were passed.

    Raises:
        `ValueError`: If one is not an image, naming it and what is accepted.
    """
    if not isinstance(images, (list, tuple)):
        return _load(images, name, load_from)
    return [image for index, one in enumerate(images) for image in _load(one, f"{name}[{index}]", load_from)]


def _load(image: object, name: str, load_from: Collection[str]) -> list[LoadedImage]:
    if isinstance(image, (str, os.PathLike)):
        return [_read(os.fspath(image), name, load_from)]
    if isinstance(image, PIL.Image.Image):
        return [_upright(image, name)]
    if isinstance(image, torch.Tensor):
        if not is_dense(image) or not (image.is_floating_point() or image.dtype in (torch.uint8, torch.long)):
            raise _unacceptable(name, image)
        if image.dtype == torch.long:
            if image.ndim not in (2, 3) or not image.numel():
                raise _unacceptable(name, image)
            return list(image.cpu()) if image.ndim == 3 else [image.cpu()]
        image = image.detach().cpu().resolve_neg()
        channels_last = image.movedim(-3, -1) if image.ndim >= 3 else image
        image = (channels_last.float() if image.is_floating_point() else channels_last).numpy()
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3, 4):
        raise _unacceptable(name, image)
    return [_from_array(array, name) for array in (image if image.ndim == 4 else [image])]


def _read(source: str | bytes, name: str, load_from: Collection[str]) -> PIL.Image.Image:
    is_data = source[:5] == "data:"
    kind = "urls" if source[:7] == "http://" or source[:8] == "https://" else "files"
    if not is_data and kind not in load_from:
        raise ValueError(
            f"`{name}` is {shown(source)}, {SOURCES[kind]}, which a message may only hold if its author is trusted:"
            f" then pass `load_from=({kind!r},)`. Otherwise pass the image itself, or as a data URL."
        )
    try:
        if is_data:
            file = io.BytesIO(DataHandler().data_open(Request(source)).read())
        elif kind == "urls":
            response = requests.get(source, timeout=DIFFUSERS_REQUEST_TIMEOUT)
            response.raise_for_status()
            file = io.BytesIO(response.content)
        elif os.path.isfile(source):
            file = source
        else:
            raise FileNotFoundError("there is no such file, nor is it an http, https or data URL")
        image = PIL.Image.open(file)
    except Exception as error:  # what decoders make of malformed files is of every kind
        raise ValueError(f"`{name}` is {shown(source)}, which cannot be opened: {error}") from error
    with image:
        return _upright(image, name)


def _upright(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    _check_num_pixels(name, image.height, image.width)
    try:
        image = PIL.ImageOps.exif_transpose(image)
    except Exception as error:  # the file may only be decoded here
        raise ValueError(f"`{name}` is an image that cannot be read: {error}") from error
    return _from_array(np.asarray(image), name) if image.mode == "F" else image


def _check_num_pixels(name: str, height: int, width: int) -> None:
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if not height or not width or (limit is not None and height * width > limit):
        raise ValueError(
            f"`{name}` has to have at least one pixel, and at most {limit} (`PIL.Image.MAX_IMAGE_PIXELS`), but is of"
            f" {height}x{width} (height x width)."
        )


def _unacceptable(name: str, found: object) -> ValueError:
    kind = kind_of(found) if isinstance(found, (np.ndarray, torch.Tensor)) else shown(found)
    return ValueError(f"`{name}` has to be {ACCEPTED}, or a flat list of these, but is {kind}.")


def _from_array(array: np.ndarray, name: str) -> PIL.Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not array.size or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise _unacceptable(name, array)
    _check_num_pixels(name, *array.shape[:2])
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ValueError(
                f"`{name}` has to hold values in [0, 1] if they are floating but they range from {array.min()} to"
                f" {array.max()}."
            )
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise _unacceptable(name, array)
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def to_resizable(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image in its own mode or, where that cannot be resized well, in the nearest one that can."""
    if image.mode in ("1", "L", "P", "RGB") and image.has_transparency_data:
        return image.convert("RGBA")  # a blend of a colour that means transparent would be another colour
    return image.convert(CONVERTED_FIRST[image.mode]) if image.mode in CONVERTED_FIRST else image


def resize_and_crop(
    image: PIL.Image.Image, height: int, width: int, generator: torch.Generator | None = None
) -> PIL.Image.Image:
    """
    Cover `height x width` pixels with an image and cut off what stands out.

    Args:
        image (`PIL.Image.Image`): The image, in a mode that can be resized.
        height (`int`), width (`int`): The size wanted.
        generator (`torch.Generator`, *optional*): Decides a random place of the crop, which is else the centre.
    """
    while image.size != (halved := _halved(image.size, height, width)):
        image = image.resize(halved, PIL.Image.Resampling.BOX)
    resized = _covering(image.size, height, width)
    spare_columns, spare_rows = resized[0] - width, resized[1] - height
    if generator is None:
        left, top = spare_columns // 2, spare_rows // 2
    else:
        left, top = (
            int(torch.randint(spare + 1, (1,), generator=generator, device=generator.device))
            for spare in (spare_columns, spare_rows)
        )
    if resized[0] * resized[1] <= MAX_EXCESS * height * width:
        return image.resize(resized, PIL.Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))
    # The same but for the rounding of the filter: exact agreement with the original is for images of sane shapes.
    columns, rows = image.width / resized[0], image.height / resized[1]
    begin, end = (left * columns, top * rows), ((left + width) * columns, (top + height) * rows)
    x, y = (max(int(edge) - MARGIN, 0) for edge in begin)
    right, bottom = (min(math.ceil(edge) + MARGIN, side) for edge, side in zip(end, image.size))
    part = image.crop((x, y, right, bottom))
    box = (begin[0] - x, begin[1] - y, min(end[0] - x, part.width), min(end[1] - y, part.height))
    return part.resize((width, height), PIL.Image.Resampling.BICUBIC, box=box)


def _halved(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """`(width, height)` of an image after one halving, if it is at least twice as large as wanted."""
    return (size[0] // 2, size[1] // 2) if size[0] >= 2 * width and size[1] >= 2 * height else size


def _covering(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """`(width, height)` of an image once it just covers what is wanted."""
    scale = max(width / size[0], height / size[1])
    return round(size[0] * scale), round(size[1] * scale)


def kept_box(size: tuple[int, int], height: int, width: int) -> tuple[float, float, float, float]:
    """
    The part of an image that [`resize_and_crop`] keeps of it when it crops at the centre.

    Args:
        size (`tuple[int, int]`): `(width, height)` of the image.
        height (`int`), width (`int`): The size wanted.

    Returns:
        `tuple[float, float, float, float]`: Left, top, right and bottom edge in pixels of the image.
    """
    last = size
    while last != (halved := _halved(last, height, width)):
        last = halved
    resized = _covering(last, height, width)
    columns, rows = size[0] / resized[0], size[1] / resized[1]
    left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
    return left * columns, top * rows, (left + width) * columns, (top + height) * rows


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """
    The image as `RGB`, transparent parts blended over white and truncated to whole levels. 16-bit gray keeps its
    range, not its low bits.
    """
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return PIL.Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode not in ("LA", "RGBA", "RGBa"):
        return image.convert("RGB")
    image = image.convert("RGBA")
    if image.getextrema()[3][0] == 255:
        return image.convert("RGB")
    rgba = np.asarray(image).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    return PIL.Image.fromarray((rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8))


def prepare_image(
    image: PIL.Image.Image,
    base_size: int,
    generator: torch.Generator | None = None,
    grid_size: int = GRID_SIZE,
) -> PIL.Image.Image:
    """
    What the VQ model gets to see of an image: `RGB`, of a trained size.

    Args:
        image (`PIL.Image.Image`): The image, in any mode.
        base_size (`int`): Base size of the checkpoint in pixels.
        generator (`torch.Generator`, *optional*): Decides a random place of the crop, which is else the centre.
        grid_size (`int`, defaults to 32): Pixels that one step of a size tag stands for.
    """
    height, width = nearest_size(image.height, image.width, base_size, grid_size)
    return to_rgb(resize_and_crop(to_resizable(image), height, width, generator))


def encode_pixels(vqvae: VQModel, image: PIL.Image.Image, device: torch.device) -> torch.LongTensor:
    """
    VQ codes of an image as it is.

    Args:
        vqvae ([`VQModel`]): The VQ model.
        image (`PIL.Image.Image`): An `RGB` image whose sides are multiples of the stride of the VQ model.
        device (`torch.device`): Where the VQ model runs.

    Returns:
        `torch.LongTensor` of shape `(rows, columns)`: The codes, on the CPU.
    """
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)[None]
    latents = vqvae.encode(pixels.to(device, vqvae.dtype)).latents  # (1, channels, rows, columns)
    # Called as a module, the embedding works even where accelerate's hooks hold its weight elsewhere.
    embedding = vqvae.quantize.embedding
    codebook = embedding(torch.arange(embedding.num_embeddings, device=latents.device))
    vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
    return nearest_entries(vectors, codebook).view(latents.shape[2:]).cpu()


def nearest_entries(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.LongTensor:
    """
    Index of the nearest entry of a codebook, a part of the vectors at a time to bound the memory.

    Args:
        vectors (`torch.Tensor` of shape `(number, channels)`): Latents.
        codebook (`torch.Tensor` of shape `(num_codes, channels)`): Entries.

    Returns:
        `torch.LongTensor` of shape `(number,)`: Codes.
    """
    codebook = codebook.float()
    return torch.cat([torch.cdist(part.float(), codebook).argmin(dim=1) for part in vectors.split(VECTORS_AT_ONCE)])


def encode_images(
    vqvae: VQModel,
    images: Sequence[LoadedImage],
    base_size: int,
    device: torch.device,
    generator: torch.Generator | None = None,
    grid_size: int = GRID_SIZE,
) -> list[torch.LongTensor]:
    """
    VQ codes of images, one at a time to bound the memory.

    Args:
        vqvae ([`VQModel`]): The VQ model.
        images (`list[PIL.Image.Image | torch.LongTensor]`): From [`load_images`]; codes are passed through.
        base_size (`int`): Base size of the checkpoint in pixels.
        device (`torch.device`): Where the VQ model runs.
        generator (`torch.Generator`, *optional*): Decides random places of the crops, which are else at the centre.
        grid_size (`int`, defaults to 32): Pixels that one step of a size tag stands for.

    Returns:
        `list[torch.LongTensor]`: Codes of shape `(rows, columns)`, on the CPU.
    """
    return [
        image
        if isinstance(image, torch.Tensor)
        else encode_pixels(vqvae, prepare_image(image, base_size, generator, grid_size), device)
        for image in images
    ]
