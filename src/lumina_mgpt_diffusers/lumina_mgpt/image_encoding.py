# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Images as VQ codes.

An image is brought to the trained size of the nearest aspect ratio (halved by averaging while it is at least twice as
large, then resized and cropped), blended over white where it is transparent, and encoded. The original crops at
random; here the crop is at the centre, or at a random place that a generator decides.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from diffusers import VQModel
from diffusers.utils import load_image

from .unirep import nearest_size


ImageInput = PIL.Image.Image | np.ndarray | torch.Tensor | str | os.PathLike
"""One image; arrays and tensors with a batch dimension, and lists of any of these, are several."""

LoadedImage = PIL.Image.Image | torch.LongTensor
"""An image, or the VQ codes of one."""

ACCEPTED = (
    "a PIL image, a path, a URL, an array of shape (height, width, channels), a tensor of shape (channels, height,"
    " width), with 1, 3 or 4 channels of uint8 or of floating values in [0, 1], or VQ codes, torch.int64 of shape"
    " (height / 16, width / 16)"
)


def load_images(images: object, name: str = "image") -> list[PIL.Image.Image | torch.LongTensor]:
    """
    Read images of any accepted kind, in their own mode and upright.

    Args:
        images (`ImageInput` or a list of them): One or several images.
        name (`str`, defaults to `"image"`): Name of the argument, for errors.

    Returns:
        `list[PIL.Image.Image | torch.LongTensor]`: One PIL image for each, or the VQ codes where those were passed.

    Raises:
        `ValueError`: If one is not an image, naming it and what is accepted.
    """
    if isinstance(images, (list, tuple)):
        return [image for index, one in enumerate(images) for image in load_images(one, f"{name}[{index}]")]
    if isinstance(images, torch.Tensor) and images.dtype == torch.long:
        if images.ndim not in (2, 3) or not images.numel():
            raise _unacceptable(name, images)
        return list(images.cpu()) if images.ndim == 3 else [images.cpu()]
    if isinstance(images, (str, os.PathLike)):
        try:
            return [load_image(os.fspath(images), convert_method=_keep_mode)]
        except (OSError, ValueError) as error:
            raise ValueError(f"`{name}` is {os.fspath(images)!r}, which cannot be opened: {error}") from error
    if isinstance(images, PIL.Image.Image):
        return [load_image(images, convert_method=_keep_mode)]
    if isinstance(images, torch.Tensor):
        channels_last = images.detach().cpu().movedim(-3, -1) if images.ndim >= 3 else images.detach().cpu()
        images = (channels_last.float() if images.is_floating_point() else channels_last).numpy()
    if not isinstance(images, np.ndarray) or images.ndim not in (2, 3, 4):
        raise _unacceptable(name, images)
    return [_from_array(array, name) for array in (images if images.ndim == 4 else [images])]


def _keep_mode(image: PIL.Image.Image) -> PIL.Image.Image:
    return image


def _unacceptable(name: str, found: object) -> ValueError:
    kind = f"{found.dtype} of shape {tuple(found.shape)}" if hasattr(found, "shape") else repr(found)
    return ValueError(f"`{name}` has to be {ACCEPTED}, or a list of these, but is {kind}.")


def _from_array(array: np.ndarray, name: str) -> PIL.Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not array.size or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise _unacceptable(name, array)
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


def normalize_mode(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image as `L`, `RGB` or `RGBA`, in which it can be resized. 16-bit gray keeps its range, not its low bits."""
    mode = image.mode
    if mode in ("L", "RGB", "RGBA"):
        return image
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return PIL.Image.fromarray((values >> 8).astype(np.uint8))
    if mode == "1":
        return image.convert("L")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("RGB")


def resize_and_crop(
    image: PIL.Image.Image, height: int, width: int, generator: torch.Generator | None = None
) -> PIL.Image.Image:
    """
    Cover `height x width` pixels with an image and cut off what stands out.

    Args:
        image (`PIL.Image.Image`): The image, in any mode.
        height (`int`), width (`int`): The size wanted.
        generator (`torch.Generator`, *optional*): Decides a random place of the crop, which is else the centre.
    """
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), PIL.Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    resized = (round(image.width * scale), round(image.height * scale))
    image = image.resize(resized, PIL.Image.Resampling.BICUBIC)
    spare_columns, spare_rows = image.width - width, image.height - height
    if generator is None:
        left, top = spare_columns // 2, spare_rows // 2
    else:
        left, top = (
            int(torch.randint(spare + 1, (1,), generator=generator, device=generator.device))
            for spare in (spare_columns, spare_rows)
        )
    return image.crop((left, top, left + width, top + height))


def blend_over_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image as `RGB`, transparent parts blended over white and truncated to whole levels."""
    if image.mode != "RGBA" or image.getextrema()[3][0] == 255:
        return image.convert("RGB")
    rgba = np.asarray(image).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    return PIL.Image.fromarray((rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8))


def prepare_image(image: PIL.Image.Image, base_size: int, generator: torch.Generator | None = None) -> PIL.Image.Image:
    """
    What the VQ model gets to see of an image: `RGB`, of a trained size.

    Args:
        image (`PIL.Image.Image`): The image, in any mode.
        base_size (`int`): Base size of the checkpoint in pixels.
        generator (`torch.Generator`, *optional*): Decides a random place of the crop, which is else the centre.
    """
    height, width = nearest_size(image.height, image.width, base_size)
    return blend_over_white(resize_and_crop(normalize_mode(image), height, width, generator))


def encode_pixels(vqvae: VQModel, image: PIL.Image.Image, device: torch.device) -> torch.LongTensor:
    """
    VQ codes of an image as it is.

    Args:
        vqvae ([`VQModel`]): The VQ model.
        image (`PIL.Image.Image`): An `RGB` image whose sides are multiples of 32.
        device (`torch.device`): Where the VQ model runs.

    Returns:
        `torch.LongTensor` of shape `(height / 16, width / 16)`: The codes, on the CPU.
    """
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)[None]
    latents = vqvae.encode(pixels.to(device, vqvae.dtype)).latents  # (1, channels, rows, columns)
    # Called as a module, the embedding works even where accelerate's hooks hold its weight elsewhere.
    embedding = vqvae.quantize.embedding
    codebook = embedding(torch.arange(embedding.num_embeddings, device=latents.device))
    vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cdist(vectors.float(), codebook.float()).argmin(dim=1).view(latents.shape[2:]).cpu()


def encode_images(
    vqvae: VQModel,
    images: Sequence[PIL.Image.Image | torch.LongTensor],
    base_size: int,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> list[torch.LongTensor]:
    """
    VQ codes of images, one at a time to bound the memory.

    Args:
        vqvae ([`VQModel`]): The VQ model.
        images (`list[PIL.Image.Image | torch.LongTensor]`): From [`load_images`]; codes are passed through.
        base_size (`int`): Base size of the checkpoint in pixels.
        device (`torch.device`): Where the VQ model runs.
        generator (`torch.Generator`, *optional*): Decides random places of the crops, which are else at the centre.

    Returns:
        `list[torch.LongTensor]`: Codes of shape `(height / 16, width / 16)`, on the CPU.
    """
    return [
        image
        if isinstance(image, torch.Tensor)
        else encode_pixels(vqvae, prepare_image(image, base_size, generator), device)
        for image in images
    ]
