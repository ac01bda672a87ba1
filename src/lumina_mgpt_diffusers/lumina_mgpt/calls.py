# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A call of a pipeline: its arguments, what callbacks know it by, and what its `stream` yields."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch

from .request import Request
from .scheduling_lumina_mgpt import SamplerSettings
from .validation import check_generator


if TYPE_CHECKING:
    from .pipeline_base import LuminaMGPTBasePipeline


Codes = torch.LongTensor | list[torch.LongTensor]
"""Of images of one size `(num_images, rows, columns)`, of several sizes a list of `(rows, columns)`."""


@dataclass
class Call:
    """
    What callbacks know a call by: `pipe._guidance_scale`, `pipe._interrupt` and `pipe.num_timesteps` are those of the
    call that runs the callback, and outside of callbacks those of the last call.
    """

    guidance_scale: float = 1.0
    num_timesteps: int = 0
    interrupt: bool = False


@dataclass(kw_only=True)
class ImageCall(Call):
    """
    A call for images: its arguments, checked and with their defaults, and what is to be sampled for it.

    Args:
        settings ([`SamplerSettings`]): How codes are sampled.
        num_draft_tokens (`int` or `"auto"`, *optional*), draft_init (`str`, *optional*): See [`Engine`].
        needs_log_probs (`bool`): Whether the log-probabilities of the codes are wanted.
        generator (`torch.Generator` or `list[torch.Generator]`, *optional*): Draws the keys of the noise.
        repeats (`int`): Number of images for each prompt.
        output_type (`str`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
        callback (`Callable`, *optional*), callback_tensor_inputs (`list[str]`): See [`LuminaMGPTPipeline.__call__`].
        every (`int`, *optional*): Yield after so many rows of codes.
        requests (`list[Request]`): One for each image.
        inputs (`object`): What else the pipeline needs to make images of the codes.
    """

    settings: SamplerSettings
    num_draft_tokens: int | str | None
    draft_init: str | None
    needs_log_probs: bool
    generator: torch.Generator | list[torch.Generator] | None
    repeats: int
    output_type: str
    callback: Callable | None
    callback_tensor_inputs: Sequence[str]
    every: int | None
    requests: list[Request] = field(default_factory=list)
    inputs: object = None

    def check_number(self, num_prompts: int) -> None:
        """Raise a `ValueError` if there are not as many generators as images."""
        self.generator = check_generator(self.generator, num_prompts * self.repeats)

    def add(
        self,
        context: Sequence[int],
        unconditional_context: Sequence[int],
        size: tuple[int, int] | None,
        codes: torch.LongTensor | None = None,
    ) -> None:
        """Ask for one image."""
        request = Request(
            context=context,
            settings=self.settings,
            unconditional_context=unconditional_context,
            size=size,
            is_image=True,
            codes=codes,
            needs_log_probs=self.needs_log_probs,
        )
        self.requests.append(request)


CURRENT_CALL: ContextVar[tuple[object, Call] | None] = ContextVar("current_call", default=None)
"""The pipeline and the call whose callback runs."""


@dataclass
class LuminaMGPTStreamOutput:
    """
    Images that are being sampled.

    Args:
        codes (`torch.LongTensor` of shape `(num_images, height / stride, width / stride)`):
            The VQ codes so far, -1 where there is none yet. Of images of different sizes a list.
        num_rows (`int`): Number of rows of codes that are complete in every image.
        pipe ([`LuminaMGPTBasePipeline`]): Decodes them.
        output_type (`str`): Default of [`preview`].
        log_probs (`torch.Tensor` of the shape of `codes`, *optional*):
            At the end, if they were asked for: log-probabilities with which the codes were sampled.
    """

    codes: Codes
    num_rows: int
    pipe: LuminaMGPTBasePipeline = field(repr=False)
    output_type: str
    log_probs: torch.Tensor | list[torch.Tensor] | None = None

    @torch.no_grad()
    def preview(self, output_type: str | None = None) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor | Codes:
        """
        Decode the codes, those that are missing filled with the codes above them.

        The VQ model runs on the whole images whenever this is called, and not otherwise.

        Args:
            output_type (`str`, *optional*): As in the call.
        """
        return self.pipe.decode_images(self.codes, output_type or self.output_type)


def stream_signature(pipeline_class: type) -> inspect.Signature:
    """That of a call without `return_dict`, and with what `stream` takes beside."""
    call = inspect.signature(pipeline_class.__call__).parameters
    own = inspect.signature(pipeline_class.stream).parameters.values()
    kept = [one for name, one in call.items() if name != "return_dict"]
    return inspect.Signature(kept + [one for one in own if one.kind is one.KEYWORD_ONLY])


def arguments_of(stream: Callable, *args, **kwargs) -> dict[str, object]:
    """The arguments of a call of `stream` by name, with its defaults."""
    bound = inspect.signature(stream).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def call_arguments(values: dict[str, object]) -> dict[str, object]:
    """The arguments of a call from its `locals()`."""
    return {name: value for name, value in values.items() if name not in ("self", "return_dict")}


def stack_same(tensors: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """Tensors of one shape as one, else the list."""
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors
