# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Checks of arguments: each raises a `ValueError` that names the argument, its value and what would be accepted, and
gives the value in the form that the rest of the code expects.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from .unirep import ImageVocabulary, nearest_size


MAX_RESOLUTION = 4096
"""Largest base size in pixels. Tokenizers have size tags for sides of a few thousand pixels."""

MAX_DRAFT_TOKENS = 1024

DRAFT_INITS = ("logits", "above", "random")

MAX_IMAGES_PER_PROMPT = 1024

MAX_TOP_K = (1 << 31) - 1
"""More than any vocabulary has."""

MAX_GUIDANCE_SCALE = 1e6
"""Beyond it, guided logits divided by the least temperature would overflow in float32."""

LEAST_TEMPERATURE = 1e-20
"""Below it, the noise is lost in the rounding of float32 logits divided by it: the choice is greedy."""


class _Shortened(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write very long integers out.
        return repr(value) if value.bit_length() < 256 else f"an integer of {value.bit_length()} bits"


shown = _Shortened().repr
"""`repr` for error messages: short and without an error of its own, however long or deeply nested the value."""


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def as_integer(value: object) -> int | None:
    """The integer that a Python or NumPy number is, and None if it is none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        whole = int(value)
    except (OverflowError, ValueError):  # infinity and NaN
        return None
    return whole if whole == value else None


def plain_number(value: Real) -> int | float:
    """A number of any type as one of Python's, which JSON can hold."""
    whole = None if isinstance(value, float) else as_integer(value)
    return float(value) if whole is None else whole


def check_integer(name: str, value: object, least: int, most: int | None = None) -> int:
    whole = as_integer(value)
    if whole is None or whole < least or (most is not None and whole > most):
        limit = "" if most is None else f" and <= {most}"
        raise ValueError(f"`{name}` has to be an integer >= {least}{limit} but is {shown(value)}.")
    return whole


def check_number(name: str, value: object, most: float | None = None) -> float:
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else float("nan")
    except OverflowError:
        number = float("inf")
    if not 0 <= number < float("inf") or (most is not None and number > most):
        limit = f" and <= {most:g}" if most is not None and most < number < float("inf") else ""
        raise ValueError(f"`{name}` has to be a finite number >= 0{limit} but is {shown(value)}.")
    return number


def check_top_p(value: object) -> float:
    top_p = check_number("top_p", value, 1.0)
    if not top_p:
        raise ValueError(f"`top_p` has to be greater than 0 but is {shown(value)}.")
    return top_p


def check_num_draft_tokens(value: object) -> int | str:
    if isinstance(value, str) and value == "auto":
        return value
    number = as_integer(value)
    if number is None or not 0 <= number <= MAX_DRAFT_TOKENS:
        raise ValueError(
            f"`num_draft_tokens` has to be an integer from 0 to {MAX_DRAFT_TOKENS} or 'auto' but is {shown(value)}."
        )
    return number


def check_drafts(num_draft_tokens: object, draft_init: object) -> tuple[int | str | None, str | None]:
    """How many drafts a call wants and of which kind, None where it leaves that to the scheduler."""
    if draft_init is not None:
        check_choice("draft_init", draft_init, DRAFT_INITS)
    return None if num_draft_tokens is None else check_num_draft_tokens(num_draft_tokens), draft_init


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"`{name}` has to be one of {list(choices)} but is {shown(value)}.")


def check_flag(name: str, value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` has to be True or False but is {shown(value)}.")
    return bool(value)


def check_guidance_scale(value: object, name: str = "guidance_scale") -> float:
    return check_number(name, value, MAX_GUIDANCE_SCALE)


def check_temperature(value: object, name: str = "temperature") -> float:
    """The temperature, 0 where it is below [`LEAST_TEMPERATURE`]."""
    temperature = check_number(name, value)
    return temperature if temperature >= LEAST_TEMPERATURE else 0.0


def check_top_k(value: object, name: str = "top_k") -> int:
    """The number, 0 for None."""
    top_k = 0 if value is None else as_integer(value)
    if top_k is None or not 0 <= top_k <= MAX_TOP_K:
        limit = f" and <= {MAX_TOP_K}" if top_k is not None and top_k > 0 else ""
        raise ValueError(f"`{name}` has to be an integer >= 0{limit}, or None, but is {shown(value)}.")
    return top_k


def check_resolution(value: object) -> int:
    resolution = as_integer(value)
    if resolution is None or not 0 < resolution <= MAX_RESOLUTION:
        raise ValueError(
            f"`resolution` has to be a positive number of pixels, a multiple of what one step of a size tag stands"
            f" for, but is {shown(value)}. The greatest is {MAX_RESOLUTION}."
        )
    return resolution


def check_size(height: object, width: object, base_size: int, vocabulary: ImageVocabulary) -> tuple[int, int]:
    max_side, grid_size = vocabulary.max_side, vocabulary.grid_size
    sides = as_integer(height), as_integer(width)
    if any(side is None or side <= 0 for side in sides):
        raise ValueError(
            f"`height` and `width` have to be positive integers but are {shown(height)} and {shown(width)}."
        )
    if vocabulary.fixed_size not in (None, sides):
        raise ValueError(
            "`height` and `width` have to be {} and {}, the one size of the images of this model, but are"
            " {} and {}.".format(*vocabulary.fixed_size, *map(shown, sides))
        )
    if max(sides) > max_side:
        raise ValueError(
            f"`height` and `width` have to be at most {max_side}, for which the tokenizer has size tags, but are"
            f" {shown(sides[0])} and {shown(sides[1])}."
        )
    if any(side % grid_size for side in sides):
        raise ValueError(
            f"`height` and `width` have to be divisible by {grid_size} but are {sides[0]} and {sides[1]}. Nearest"
            " trained size: {}x{}.".format(*nearest_size(*sides, base_size, grid_size))
        )
    return sides


def check_text(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"`{name}` has to be Unicode text but holds a lone surrogate, {text[error.start]!r}, at index"
            f" {error.start}: {shown(text)}."
        ) from None
    return text


def check_prompts(
    name: str, prompt: object, token_ids: object, attention_mask: object, vocab_size: int | None = None
) -> int:
    """
    Check one kind of prompt, as text or as token ids.

    Args:
        name (`str`): `"prompt"` or `"negative_prompt"`.
        prompt (`str` or a list or tuple of them, *optional*): The text.
        token_ids (`torch.LongTensor`, *optional*), attention_mask (`torch.Tensor`, *optional*): Or the ids.
        vocab_size (`int`, *optional*): Number of ids that the transformer knows.

    Returns:
        `int`: Number of prompts.
    """
    if (prompt is None) == (token_ids is None):
        given = "neither was" if prompt is None else "both were"
        raise ValueError(f"Exactly one of `{name}` and `{name}_token_ids` has to be given but {given}.")
    if prompt is None:
        return check_token_ids(name, token_ids, attention_mask, vocab_size)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"`{name}` has to be a string or a non-empty list of strings but is {shown(prompt)}.")
    for index, text in enumerate(prompts):
        check_text(name if isinstance(prompt, str) else f"{name}[{index}]", text)
    return len(prompts)


def check_token_ids(name: str, token_ids: object, attention_mask: object, vocab_size: int | None = None) -> int:
    """
    Check encoded prompts and their mask. Any id of the vocabulary may stand in them, those of images too.

    Args:
        name (`str`): `"prompt"` or `"negative_prompt"`.
        token_ids (`torch.LongTensor` of shape `(num_prompts, length)`): The ids.
        attention_mask (`torch.Tensor` of shape `(num_prompts, length)`, *optional*): 1 for tokens, 0 for padding.
        vocab_size (`int`, *optional*): Number of ids that the transformer knows.

    Returns:
        `int`: Number of prompts.
    """
    for kind, tensor in (("token_ids", token_ids), ("attention_mask", attention_mask)):
        if tensor is None and kind == "attention_mask":
            continue
        is_wrong = not is_dense(tensor) or tensor.ndim != 2 or not tensor.numel()
        is_wrong = is_wrong or tensor.is_floating_point() or tensor.is_complex()
        if is_wrong or (kind == "token_ids" and tensor.dtype == torch.bool):
            raise ValueError(
                f"`{name}_{kind}` has to be an integer tensor of shape (num_prompts, length) but is {kind_of(tensor)}."
            )
    tokens = token_ids.long().cpu()
    if attention_mask is not None:
        if attention_mask.shape != token_ids.shape:
            raise ValueError(
                f"`{name}_attention_mask` has to be of the shape of `{name}_token_ids`, {tuple(token_ids.shape)}, but"
                f" is {tuple(attention_mask.shape)}."
            )
        mask = attention_mask.long().cpu()
        if not ((mask == 0) | (mask == 1)).all() or not (mask != 0).any(dim=1).all():
            raise ValueError(
                f"`{name}_attention_mask` has to be 1 for tokens and 0 for padding, with a token in every row, but is"
                f" {mask.tolist() if mask.numel() <= 32 else kind_of(mask)}."
            )
        tokens = tokens[mask.bool()]
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        bounds = ">= 0" if vocab_size is None else f"in [0, {vocab_size})"
        raise ValueError(f"`{name}_token_ids` have to be {bounds} but range from {low} to {high}.")
    return len(token_ids)


def check_generator(generator: object, batch_size: int) -> torch.Generator | list[torch.Generator] | None:
    """The generator, or a list of as many as there are images."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if not isinstance(generator, (list, tuple)) or not all(isinstance(one, torch.Generator) for one in generator):
        raise ValueError(f"`generator` has to be a `torch.Generator` or a list of them but is {shown(generator)}.")
    if len(generator) != batch_size:
        raise ValueError(
            f"You have passed a list of generators of length {len(generator)}, but requested an effective batch size"
            f" of {batch_size}. Make sure the batch size matches the length of the generators."
        )
    return list(generator)


def check_crop_generator(generator: object) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"`crop_generator` has to be a `torch.Generator` but is {shown(generator)}.")


def check_callback(callback: object, tensor_inputs: Sequence[str] | None, allowed: Sequence[str]) -> list[str]:
    """
    Check a callback.

    Args:
        callback (`Callable`, [`PipelineCallback`] or [`MultiPipelineCallbacks`], *optional*): The callback.
        tensor_inputs (`list[str]`, *optional*): The tensors that it wants, unless it says so itself.
        allowed (`list[str]`): The tensors that there are.

    Returns:
        `list[str]`: Names of the tensors that it gets.
    """
    if callback is not None and not callable(callback):
        raise ValueError(f"`callback_on_step_end` has to be callable, or None, but is {shown(callback)}.")
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        tensor_inputs = callback.tensor_inputs
    names = [] if tensor_inputs is None else tensor_inputs
    is_list = isinstance(names, (list, tuple))
    unknown = [name for name in names if not isinstance(name, str) or name not in allowed] if is_list else names
    if not is_list or unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` has to be in {list(allowed)}, but found {shown(unknown)}"
        )
    return list(names)


def check_callback_outputs(outputs: object, shape: tuple[int, int, int], num_codes: int) -> torch.LongTensor | None:
    """The `latents` that a callback returned, on the CPU, and None if it returned none."""
    if outputs is not None and not isinstance(outputs, Mapping):
        raise ValueError(f"`callback_on_step_end` has to return a dict, or None, but returned {shown(outputs)}.")
    latents = (outputs or {}).get("latents")
    name = "latents` returned by `callback_on_step_end"
    return None if latents is None else check_latents(latents, shape, num_codes, name)


def check_codes(name: str, codes: torch.LongTensor, vocabulary: ImageVocabulary) -> None:
    try:
        vocabulary.to_tokens(codes)
    except ValueError as error:
        raise ValueError(f"`{name}` holds VQ codes that are no image: {error}") from None


def check_latents(
    latents: object, shape: tuple[int, int, int], num_codes: int, name: str = "latents"
) -> torch.LongTensor:
    """The codes, on the CPU: on a GPU an index out of range would end the process."""
    if not is_dense(latents) or latents.dtype != torch.long or latents.shape != shape:
        raise ValueError(
            f"`{name}` have to be VQ codes, torch.int64 of shape {tuple(shape)}, but are {kind_of(latents)}."
        )
    codes = latents.detach().cpu()
    low, high = int(codes.min()), int(codes.max())
    if low < -1 or high >= num_codes:
        raise ValueError(
            f"`{name}` have to be VQ codes in [0, {num_codes}), or -1 where one is to be sampled, but range from {low}"
            f" to {high}."
        )
    return codes


def is_dense(value: object) -> bool:
    """Whether it is a tensor with elements that can be read one by one: not sparse, nested, quantized or on `meta`."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not (value.is_meta or value.is_nested or value.is_quantized)
    )


def kind_of(value: object) -> str:
    """What a value is, for error messages: dtype and shape of tensors and arrays."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    if not isinstance(value, torch.Tensor):
        return str(type(value))
    if value.is_nested:
        return f"a nested {value.dtype}"
    kind = "" if value.layout is torch.strided else f"{value.layout} "
    return f"{kind}{value.dtype} of shape {tuple(value.shape)}{' on meta' if value.is_meta else ''}"
