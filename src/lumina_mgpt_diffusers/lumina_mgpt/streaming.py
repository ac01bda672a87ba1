# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Watching images while they are sampled: callbacks, progress and what `stream` yields, all in one loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch

from .engine import Engine
from .request import Grammar, Request
from .row import Row
from .validation import check_callback_outputs, check_guidance_scale


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


CURRENT_CALL: ContextVar[tuple[object, Call] | None] = ContextVar("current_call", default=None)
"""The pipeline and the call whose callback runs."""


@dataclass
class LuminaMGPTStreamOutput:
    """
    Images that are being sampled.

    Args:
        codes (`torch.LongTensor` of shape `(num_images, height / 16, width / 16)`):
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


@dataclass
class PreparedCall:
    """
    A call whose arguments are checked and encoded.

    Args:
        requests (`list[Request]`): What an engine has to sample, one for each image.
        grammar ([`Grammar`]): Which token may follow.
        drafts (`tuple`): The `num_draft_tokens` and the `draft_init` of the call.
        call ([`Call`]): What its callback may change.
        callback (`Callable`, *optional*), callback_tensor_inputs (`list[str]`): See [`LuminaMGPTPipeline.__call__`].
        output_type (`str`): As in the call.
        every (`int`, *optional*): Yield after so many rows of codes.
    """

    requests: list[Request]
    grammar: Grammar
    drafts: tuple[int | str | None, str | None]
    call: Call
    callback: Callable | None
    callback_tensor_inputs: Sequence[str]
    output_type: str
    every: int | None


@torch.no_grad()
def sample_images(pipe: LuminaMGPTBasePipeline, prepared: PreparedCall) -> Iterator[LuminaMGPTStreamOutput]:
    """
    Run an engine until the images of a call are finished.

    Args:
        pipe ([`LuminaMGPTBasePipeline`]): The pipeline.
        prepared ([`PreparedCall`]): The call.

    Yields:
        [`LuminaMGPTStreamOutput`]: After every so many rows, if `every` is not None, and once at the end.
    """
    call, callback, every = prepared.call, prepared.callback, prepared.every
    engine = Engine(pipe.transformer, pipe.scheduler, prepared.grammar, pipe._execution_device, *prepared.drafts)
    rows = [engine.submit(request) for request in prepared.requests]
    try:
        pipe.lend_cache(engine)
        num_rows = _num_rows(rows)
        with pipe.progress_bar(total=call.num_timesteps) as progress_bar:
            progress_bar.update(_num_final(rows, call))
            # Before all sizes are chosen there is nothing to stop at.
            while not engine.is_idle and not (call.interrupt and call.num_timesteps):
                engine.step()
                for row in rows:
                    if row.error is not None:
                        raise row.error
                if callback is not None:
                    engine.settle()
                if all(row.num_codes for row in rows):
                    call.num_timesteps = progress_bar.total = max(row.num_codes for row in rows)
                    if callback is not None:
                        _run_callback(pipe, call, engine, rows, callback, prepared.callback_tensor_inputs)
                progress_bar.update(max(_num_final(rows, call) - progress_bar.n, 0))
                if every is not None and not engine.is_idle and _num_rows(rows) >= num_rows + every:
                    num_rows = _num_rows(rows)
                    yield LuminaMGPTStreamOutput(_codes(engine, rows), num_rows, pipe, prepared.output_type)
        engine.read()
        result = LuminaMGPTStreamOutput(
            _codes(engine, rows), _num_rows(rows), pipe, prepared.output_type, _log_probs(engine, rows)
        )
        pipe.keep_cache(engine)
        del engine  # and its KV cache, before the VQ model needs memory
        yield result
    finally:
        pipe.maybe_free_model_hooks()


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


def _run_callback(
    pipe: LuminaMGPTBasePipeline,
    call: Call,
    engine: Engine,
    rows: Sequence[Row],
    callback: Callable,
    tensor_inputs: Sequence[str],
) -> None:
    step = _num_final(rows, call) - 1
    guidance_scale = call.guidance_scale
    before = _codes(engine, rows)
    token = CURRENT_CALL.set((pipe, call))
    try:
        inputs = dict.fromkeys(tensor_inputs, _copy(before))
        outputs = callback(pipe, step, torch.tensor(step, device=engine.device), inputs)
    finally:
        CURRENT_CALL.reset(token)
    changed_scale = check_guidance_scale(call.guidance_scale, "pipe._guidance_scale")
    if changed_scale != guidance_scale:
        for row in rows:
            engine.set_settings(row, replace(row.settings, guidance_scale=max(changed_scale, 1.0)))
    after = outputs["latents"] if isinstance(outputs, dict) and "latents" in outputs else None
    if after is None:
        check_callback_outputs(outputs, (), 0)
        return
    num_codes = engine.grammar.vocabulary.num_codes
    if not isinstance(before, list):
        before, after = before.cpu(), check_callback_outputs(outputs, tuple(before.shape), num_codes)
    for row, old, new in zip(rows, before, after, strict=True):
        old = old.cpu()
        new = check_callback_outputs({"latents": new}, tuple(old.shape), num_codes)
        changed = (old != new).flatten().nonzero()
        if len(changed):
            engine.set_codes(row, new, int(changed[0]))


def _copy(codes: Codes) -> Codes:
    return [one.clone() for one in codes] if isinstance(codes, list) else codes.clone()


def _codes(engine: Engine, rows: Sequence[Row]) -> Codes:
    return stack_same([engine.codes(row) for row in rows])


def _log_probs(engine: Engine, rows: Sequence[Row]) -> torch.Tensor | list[torch.Tensor] | None:
    log_probs = [engine.log_probs(row) for row in rows]
    return None if log_probs[0] is None else stack_same(log_probs)


def stack_same(tensors: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """Tensors of one shape as one, else the list."""
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors


def _num_final(rows: Sequence[Row], call: Call) -> int:
    """Number of codes, in raster order, that are final in every image; all of them when all are finished."""
    return min((row.num_final_codes for row in rows if not row.is_finished), default=call.num_timesteps)


def _num_rows(rows: Sequence[Row]) -> int:
    """Number of rows of codes that are final in every image; all of them when all are finished."""
    numbers = [row.num_final_codes // row.num_columns if row.num_codes else 0 for row in rows if not row.is_finished]
    return min(numbers) if numbers else max(len(row.codes) for row in rows)
