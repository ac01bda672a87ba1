# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images of two panels: the upper half is a picture that is given, the lower half the result."""

from __future__ import annotations

from collections.abc import Sequence

import PIL.Image
import torch
from diffusers import VQModel

from .components import stride_of
from .image_encoding import LoadedImage, encode_pixels, resize_and_crop, to_resizable, to_rgb
from .unirep import ImageVocabulary, nearest_size
from .validation import check_codes, check_size


def find_given(images: Sequence[LoadedImage], vocabulary: ImageVocabulary) -> LoadedImage | None:
    """The one image of a prompt, None if there is none. Raises a `ValueError` if it is none, or if there are more."""
    if len(images) > 1:
        raise ValueError(f"`image` holds {len(images)} images for one prompt, but a task of two panels takes one.")
    if images and isinstance(images[0], torch.Tensor):
        check_codes("image", images[0], vocabulary)
    return images[0] if images else None


def panels_size(
    image: LoadedImage | None, height: object, width: object, base_size: int, vocabulary: ImageVocabulary
) -> tuple[int, int]:
    """
    Size of an image of two panels: as asked for, else such that the upper one fits its picture.

    Args:
        image (`PIL.Image.Image` or `torch.LongTensor`, *optional*): The picture or its VQ codes.
        height (`int`, *optional*), width (`int`, *optional*): The size that is asked for, in pixels.
        base_size (`int`): Base size of the checkpoint in pixels, that of a panel.
        vocabulary ([`ImageVocabulary`]): Token ids of the image language.

    Returns:
        `tuple[int, int]`: `(height, width)` of the whole in pixels.

    Raises:
        `ValueError`: If the size cannot be, or if it does not fit the codes.
    """
    if image is None:
        panel = (base_size, base_size)
    elif isinstance(image, torch.Tensor):
        panel = tuple(side * vocabulary.patch_size for side in image.shape)
    else:
        panel = nearest_size(image.height, image.width, base_size, vocabulary.grid_size)
    default = (2 * panel[0], panel[1])
    height, width = check_size(
        default[0] if height is None else height, default[1] if width is None else width, base_size, vocabulary
    )
    if height % (2 * vocabulary.grid_size):
        raise ValueError(
            f"`height` has to be divisible by {2 * vocabulary.grid_size}, so that each of two panels is a multiple of"
            f" {vocabulary.grid_size}, but is {height}."
        )
    if isinstance(image, torch.Tensor) and (height, width) != default:
        raise ValueError(
            f"`height` and `width` have to be {default[0]} and {default[1]}, as `image` holds the VQ codes of a panel"
            f" of {panel[0]}x{panel[1]}, but are {height} and {width}."
        )
    return height, width


def encode_panels(
    vqvae: VQModel,
    image: LoadedImage | None,
    size: tuple[int, int],
    device: torch.device,
    generator: torch.Generator | None = None,
) -> torch.LongTensor:
    """
    The codes of an image of two panels of which the upper one is given.

    Args:
        vqvae ([`VQModel`]): The VQ model.
        image (`PIL.Image.Image` or `torch.LongTensor`, *optional*):
            The picture, which is cropped to the panel, or its VQ codes; None if it is to be sampled as well.
        size (`tuple[int, int]`): `(height, width)` of the whole in pixels.
        device (`torch.device`): Where the VQ model runs.
        generator (`torch.Generator`, *optional*): Decides a random place of the crop, which is else the centre.

    Returns:
        `torch.LongTensor` of shape `(rows, columns)`: The codes, -1 where one is to be sampled.
    """
    height, width = size
    stride = stride_of(vqvae)
    codes = torch.full((height // stride, width // stride), -1, device="cpu")
    if image is not None and not isinstance(image, torch.Tensor):
        fitted = to_rgb(resize_and_crop(to_resizable(image), height // 2, width, generator))
        image = encode_pixels(vqvae, fitted, device)
    if image is not None:
        codes[: len(codes) // 2] = image
    return codes


def lower_half(images: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """The lower half of images `(..., rows, columns)`, or of a list of them."""
    if isinstance(images, list):
        return [lower_half(one) for one in images]
    return images[..., images.shape[-2] // 2 :, :]


def lower_panel(image: PIL.Image.Image) -> PIL.Image.Image:
    """The lower half of a picture."""
    return image.crop((0, image.height // 2, image.width, image.height))
