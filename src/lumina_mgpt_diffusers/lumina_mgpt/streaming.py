# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Watching images while they are sampled: callbacks, progress and what `stream` yields, all in one loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch

from .decoding import ImageDecoder, is_compiled
from .kv_cache import SlotCache


if TYPE_CHECKING:
    from .pipeline_base import LuminaMGPTBasePipeline


@dataclass
class LuminaMGPTStreamOutput:
    """
    Images that are being sampled.

    Args:
        codes (`torch.LongTensor` of shape `(num_images, height / 16, width / 16)`):
            The VQ codes so far, -1 where there is none yet.
        num_rows (`int`): Number of rows of codes that are complete in every image.
        pipe ([`LuminaMGPTBasePipeline`]): Decodes them.
        output_type (`str`): Default of [`preview`].
    """

    codes: torch.LongTensor
    num_rows: int
    pipe: LuminaMGPTBasePipeline = field(repr=False)
    output_type: str

    @torch.no_grad()
    def preview(
        self, output_type: str | None = None
    ) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor | torch.LongTensor:
        """
        Decode the codes, those that are missing filled with the codes above them.

        The VQ model runs on the whole images whenever this is called, and not otherwise.

        Args:
            output_type (`str`, *optional*): As in the call.
        """
        output_type = output_type or self.output_type
        if output_type == "latent":
            return self.codes
        return self.pipe.image_processor.postprocess(self.pipe.decode_codes(self.codes), output_type=output_type)


class SamplingLoopMixin:
    """Gives a pipeline the loop that runs an [`ImageDecoder`] to its end."""

    _kept_cache: SlotCache | None = None

    def _take_kept_cache(self) -> SlotCache | None:
        """
        The KV cache that the last images were sampled with, if the code is compiled: recorded CUDA graphs read and
        write the very buffers they were recorded with. Whoever takes it has it alone until [`_sample_codes`] ends.
        """
        cache, self._kept_cache = self._kept_cache, None
        return cache

    @torch.no_grad()
    def _sample_codes(
        self,
        decoder: ImageDecoder,
        callback: Callable | None,
        callback_tensor_inputs: Sequence[str],
        output_type: str,
        every: int | None,
    ) -> Iterator[LuminaMGPTStreamOutput]:
        """Yield after every so many rows, if `every` is not None, and once at the end."""
        num_rows = decoder.num_final // decoder.columns
        kept_cache = decoder.cache if is_compiled(self.transformer) else None
        try:
            with self.progress_bar(total=decoder.num_codes) as progress_bar:
                progress_bar.update(decoder.num_final)
                while not decoder.is_finished and not self.interrupt:
                    decoder.guidance_scale = self._guidance_scale
                    decoder.step()
                    if callback is not None:
                        decoder.read_frontier()
                        codes = decoder.codes
                        step = decoder.num_final - 1
                        callback_kwargs = dict.fromkeys(callback_tensor_inputs, codes)
                        outputs = callback(self, step, self.scheduler.timesteps[step], callback_kwargs) or {}
                        decoder.edit(outputs.pop("latents", codes))
                    progress_bar.update(decoder.num_final - progress_bar.n)
                    is_due = every is not None and decoder.num_final // decoder.columns >= num_rows + every
                    if is_due and not decoder.is_finished:
                        num_rows = decoder.num_final // decoder.columns
                        yield LuminaMGPTStreamOutput(decoder.codes, num_rows, self, output_type)
            codes, num_rows = decoder.codes, decoder.num_final // decoder.columns
            del decoder  # and its KV cache, before the VQ model needs memory
            yield LuminaMGPTStreamOutput(codes, num_rows, self, output_type)
        finally:
            self._kept_cache = kept_cache
            self.maybe_free_model_hooks()
