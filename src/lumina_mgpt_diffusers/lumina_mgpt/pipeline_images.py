# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the pipelines whose answers are images have in common: from the arguments of a call to its codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from .calls import CURRENT_CALL, Call, Codes, ImageCall, LuminaMGPTStreamOutput, arguments_of, stack_same
from .engine import Engine
from .noise import draw_key
from .pipeline_base import OUTPUT_TYPES, LuminaMGPTBasePipeline, start_generator, warn_once
from .request import Grammar
from .row import Row
from .validation import (
    MAX_IMAGES_PER_PROMPT,
    check_callback,
    check_callback_outputs,
    check_choice,
    check_drafts,
    check_flag,
    check_guidance_scale,
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
            [`ImageCall`]: The call with its requests. [`sample`] gives their codes, and [`finish`] makes images of
            them.
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
        if not self.can_draw:
            raise ValueError(
                f"This {self.family.title} cannot draw: the rows of its `lm_head` that score VQ codes are masked. It"
                " can chat and describe images, see `LuminaMGPTChatPipeline`."
            )
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

    def sample(self, call: ImageCall) -> Iterator[LuminaMGPTStreamOutput]:
        """
        Sample the codes of a prepared call, in an engine of its own.

        Yields:
            [`LuminaMGPTStreamOutput`]: After every `call.every` rows, if that is not None, and once at the end.
        """
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
        return self._run(call, engine, rows)

    @torch.no_grad()
    def _run(self, call: ImageCall, engine: Engine, rows: Sequence[Row]) -> Iterator[LuminaMGPTStreamOutput]:
        """
        Run an engine until the images of its rows are finished.

        Args:
            call ([`ImageCall`]): The call. Its callback may change it.
            engine ([`Engine`]): The engine, with these rows in it.
            rows (`list[Row]`): The images.

        Yields:
            [`LuminaMGPTStreamOutput`]: After every so many rows, if `call.every` is not None, and once at the end.
        """
        try:
            self.lend(engine, call.requests)
            num_rows = _num_rows(rows)
            with self.progress_bar(total=call.num_timesteps) as progress_bar:
                progress_bar.update(_num_final(rows, call))
                # Before all sizes are chosen there is nothing to stop at.
                while not engine.is_idle and not (call.interrupt and call.num_timesteps):
                    engine.step()
                    for row in rows:
                        if row.error is not None:
                            raise row.error
                    if call.callback is not None:
                        engine.settle()
                    if all(row.num_codes for row in rows):
                        call.num_timesteps = progress_bar.total = max(row.num_codes for row in rows)
                        if call.callback is not None:
                            self._run_callback(call, engine, rows)
                    progress_bar.update(max(_num_final(rows, call) - progress_bar.n, 0))
                    if call.every is not None and not engine.is_idle and _num_rows(rows) >= num_rows + call.every:
                        num_rows = _num_rows(rows)
                        yield LuminaMGPTStreamOutput(_codes(engine, rows), num_rows, self, call.output_type)
            engine.read()
            result = LuminaMGPTStreamOutput(
                _codes(engine, rows), _num_rows(rows), self, call.output_type, _log_probs(engine, rows)
            )
            self.keep(engine, call.requests)
            del engine  # and its KV cache, before the VQ model needs memory
            yield result
        finally:
            self.maybe_free_model_hooks()

    def _run_callback(self, call: ImageCall, engine: Engine, rows: Sequence[Row]) -> None:
        step = _num_final(rows, call) - 1
        guidance_scale = call.guidance_scale
        before = _codes(engine, rows)
        inputs = dict.fromkeys(call.callback_tensor_inputs, _copy(before))
        outer = CURRENT_CALL.get()
        try:
            CURRENT_CALL.set((self, call))
            outputs = call.callback(self, step, torch.tensor(step, device=engine.device), inputs)
        finally:
            CURRENT_CALL.set(outer)
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


def _num_final(rows: Sequence[Row], call: Call) -> int:
    """Number of codes, in raster order, that are final in every image; all of them when all are finished."""
    return min((row.num_final_codes for row in rows if not row.is_finished), default=call.num_timesteps)


def _num_rows(rows: Sequence[Row]) -> int:
    """Number of rows of codes that are final in every image; all of them when all are finished."""
    numbers = [row.num_final_codes // row.num_columns if row.num_codes else 0 for row in rows if not row.is_finished]
    return min(numbers) if numbers else max(len(row.codes) for row in rows)
