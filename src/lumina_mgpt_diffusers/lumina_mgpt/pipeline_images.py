# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the pipelines whose answers are images have in common: from the arguments of a call to its codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .engine import Engine
from .noise import draw_key
from .pipeline_base import OUTPUT_TYPES, LuminaMGPTBasePipeline, start_generator, warn_once
from .request import Grammar
from .streaming import ImageCall, LuminaMGPTStreamOutput, arguments_of, sample_images
from .validation import (
    MAX_IMAGES_PER_PROMPT,
    check_callback,
    check_choice,
    check_drafts,
    check_flag,
    check_integer,
    check_number,
)


class LuminaMGPTImagePipeline(LuminaMGPTBasePipeline):
    """Base class of the pipelines whose answers are images. A subclass says by `_ask` what it samples."""

    _callback_tensor_inputs = ["latents"]

    def prepare(self, *args, **kwargs) -> ImageCall:
        """
        All that comes before sampling: check the arguments, which are those of [`stream`], and encode what goes in.

        For those who sample the requests themselves, many calls in one [`Engine`].

        Returns:
            [`ImageCall`]: The call with its requests. [`finish`] makes images of their codes.
        """
        return self._prepare(**arguments_of(self.stream, *args, **kwargs))

    @torch.no_grad()
    def _prepare(
        self,
        *,
        guidance_scale: float | None,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        min_p: float | None,
        num_draft_tokens: int | str | None,
        draft_init: str | None,
        return_log_probs: bool,
        generator: torch.Generator | list[torch.Generator] | None,
        num_images_per_prompt: int,
        output_type: str,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: list[str],
        num_inference_steps: int | None,
        every: int | None,
        strength: float | None = None,
        **inputs: object,
    ) -> ImageCall:
        self.check_components()
        settings = self.scheduler.settings(
            guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
        )
        num_draft_tokens, draft_init = check_drafts(num_draft_tokens, draft_init)
        check_choice("output_type", output_type, OUTPUT_TYPES)
        if num_inference_steps is not None:
            check_integer("num_inference_steps", num_inference_steps, least=1)
        if strength is not None:
            check_number("strength", strength, 1.0)
        call = ImageCall(
            guidance_scale=settings.guidance_scale,
            settings=settings,
            num_draft_tokens=num_draft_tokens,
            draft_init=draft_init,
            needs_log_probs=check_flag("return_log_probs", return_log_probs),
            generator=generator,
            repeats=check_integer("num_images_per_prompt", num_images_per_prompt, least=1, most=MAX_IMAGES_PER_PROMPT),
            output_type=output_type,
            callback=callback_on_step_end,
            callback_tensor_inputs=check_callback(
                callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
            ),
            every=None if every is None else check_integer("every", every, least=1),
        )
        self._ask(call, **inputs)
        if num_inference_steps not in (None, call.num_timesteps):
            warn_once(
                "`num_inference_steps` does not apply to Lumina-mGPT, which samples one code for every"
                f" {self.vae_scale_factor}x{self.vae_scale_factor} pixels: the number of steps follows from the size."
                " The value is ignored."
            )
        if strength is not None:
            warn_once(
                "`strength` does not apply to Lumina-mGPT: codes are kept or sampled anew, one by one. The value is"
                " ignored."
            )
        for request, own in zip(call.requests, start_generator(call.generator, len(call.requests))):
            request.key = draw_key(own)
        return call

    def _ask(self, call: ImageCall, **inputs: object) -> None:
        """Check what goes in, first of all its number, then encode it and [`~ImageCall.add`] the requests."""
        raise NotImplementedError

    def _sample(self, call: ImageCall) -> Iterator[LuminaMGPTStreamOutput]:
        grammar = Grammar(self.image_vocabulary, self.scheduler.config.resolution)
        engine = Engine(
            self.transformer,
            self.scheduler,
            grammar,
            self._execution_device,
            call.num_draft_tokens,
            call.draft_init,
        )
        rows = [engine.submit(request) for request in call.requests]
        self._last_call = call
        return sample_images(self, call, engine, rows)
