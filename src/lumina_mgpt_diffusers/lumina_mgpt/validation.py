# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Checks of arguments: each raises a `ValueError` that names the argument, its value and what would be accepted."""

from __future__ import annotations

import math
from numbers import Real

import torch

from .unirep import GRID_SIZE, ImageVocabulary, nearest_size


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_integer(name: str, value: object, least: int) -> None:
    if not is_integer(value) or value < least:
        raise ValueError(f"`{name}` has to be an integer >= {least} but is {value!r}.")


def check_guidance_scale(value: object) -> None:
    if not is_finite_number(value) or value < 0:
        raise ValueError(f"`guidance_scale` has to be a finite number >= 0 but is {value!r}.")


def check_temperature(value: object, name: str = "temperature") -> None:
    if not is_finite_number(value) or value < 0:
        raise ValueError(f"`{name}` has to be a finite number >= 0 but is {value!r}.")


def check_top_k(value: object, name: str = "top_k") -> None:
    if value is not None and (not is_integer(value) or value < 0):
        raise ValueError(f"`{name}` has to be an integer >= 0, or None, but is {value!r}.")


def check_size(height: object, width: object, base_size: int, max_side: int) -> None:
    if not (is_integer(height) and is_integer(width) and height > 0 and width > 0):
        raise ValueError(f"`height` and `width` have to be positive integers but are {height!r} and {width!r}.")
    nearest = "{}x{}".format(*nearest_size(height, width, base_size))
    if height % GRID_SIZE or width % GRID_SIZE:
        raise ValueError(
            f"`height` and `width` have to be divisible by {GRID_SIZE} but are {height} and {width}. Nearest trained"
            f" size: {nearest}."
        )
    if max(height, width) > max_side:
        raise ValueError(
            f"`height` and `width` have to be at most {max_side}, for which the tokenizer has size tags, but are"
            f" {height} and {width}. Nearest trained size: {nearest}."
        )


def check_prompts(name: str, prompt: object, token_ids: object, attention_mask: object) -> int:
    """
    Check one kind of prompt, as text or as token ids.

    Args:
        name (`str`): `"prompt"` or `"negative_prompt"`.
        prompt (`str` or `list[str]`, *optional*): The text.
        token_ids (`torch.LongTensor`, *optional*), attention_mask (`torch.Tensor`, *optional*): Or the ids.

    Returns:
        `int`: Number of prompts.
    """
    if (prompt is None) == (token_ids is None):
        given = "neither was" if prompt is None else "both were"
        raise ValueError(f"Exactly one of `{name}` and `{name}_token_ids` has to be given but {given}.")
    if prompt is not None:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
            raise ValueError(f"`{name}` has to be a string or a non-empty list of strings but is {prompt!r}.")
        return len(prompts)
    for kind, tensor in (("token_ids", token_ids), ("attention_mask", attention_mask)):
        if tensor is None and kind == "attention_mask":
            continue
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2 or tensor.is_floating_point() or not len(tensor):
            found = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor)
            raise ValueError(
                f"`{name}_{kind}` has to be an integer tensor of shape (num_prompts, length) but is {found}."
            )
    if attention_mask is not None and attention_mask.shape != token_ids.shape:
        raise ValueError(
            f"`{name}_attention_mask` has to be of the shape of `{name}_token_ids`, {tuple(token_ids.shape)}, but is"
            f" {tuple(attention_mask.shape)}."
        )
    return len(token_ids)


def check_generator(generator: object, batch_size: int) -> None:
    generators = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in generators):
        raise ValueError(f"`generator` has to be a `torch.Generator` or a list of them but is {generator!r}.")
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(
            f"You have passed a list of generators of length {len(generator)}, but requested an effective batch size"
            f" of {batch_size}. Make sure the batch size matches the length of the generators."
        )


def check_crop_generator(generator: object) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"`crop_generator` has to be a `torch.Generator` but is {generator!r}.")


def check_codes(name: str, codes: torch.LongTensor, vocabulary: ImageVocabulary) -> None:
    try:
        vocabulary.to_tokens(codes)
    except ValueError as error:
        raise ValueError(f"`{name}` holds VQ codes that are no image: {error}") from None


def check_latents(latents: object, shape: tuple[int, int, int], num_codes: int) -> None:
    if not isinstance(latents, torch.Tensor) or latents.dtype != torch.long or latents.shape != shape:
        found = f"{latents.dtype} {tuple(latents.shape)}" if isinstance(latents, torch.Tensor) else type(latents)
        raise ValueError(f"`latents` have to be VQ codes, torch.int64 of shape {shape}, but are {found}.")
    if latents.min() < -1 or latents.max() >= num_codes:
        raise ValueError(
            f"`latents` have to be VQ codes in [0, {num_codes}), or -1 where one is to be sampled, but range from"
            f" {int(latents.min())} to {int(latents.max())}."
        )
