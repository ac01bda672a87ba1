# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Autoregressive decoding of images: transformer, KV cache and sampler, one forward at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
from diffusers.utils.torch_utils import is_compiled_module

from .image_sampling import MAX_RUN, ImageSampling, guide
from .kv_cache import SlotCache
from .scheduling_lumina_mgpt import LuminaMGPTScheduler
from .unirep import ImageVocabulary


# Lengths are rounded up to this, so that calls of about the same length have the same shapes.
LENGTH_STEP = 64


class ImageDecoder(ImageSampling):
    r"""
    Decodes a batch of images of one size, row by row of the batch independently.

    Each [`step`] runs the transformer once, on the last final token of every image and the drafts after it, and hands
    the logits to the scheduler. Nothing of it depends on what else is in the batch.

    Args:
        transformer ([`LuminaMGPTTransformer`]): The model.
        scheduler ([`LuminaMGPTScheduler`]): The sampler.
        vocabulary ([`ImageVocabulary`]): Token ids of the image language.
        contexts (`list[list[int]]`): Token ids before each image's start token.
        unconditional_contexts (`list[list[int]]`, *optional*):
            The same for the unconditional branch of classifier-free guidance. Without them there is no guidance.
        codes (`torch.LongTensor` of shape `(batch_size, rows, columns)`):
            The given codes; -1 where a code is to be sampled.
        generators (`list[torch.Generator]`): One for each image.
        device (`torch.device`): Where the transformer runs.
        guidance_scale (`float`), temperature (`float`), top_k (`int`): Sampler settings, see [`LuminaMGPTScheduler`].
    """

    def __init__(
        self,
        transformer: nn.Module,
        scheduler: LuminaMGPTScheduler,
        vocabulary: ImageVocabulary,
        contexts: Sequence[Sequence[int]],
        unconditional_contexts: Sequence[Sequence[int]] | None,
        codes: torch.LongTensor,
        generators: Sequence[torch.Generator],
        device: torch.device,
        guidance_scale: float,
        temperature: float,
        top_k: int,
    ) -> None:
        super().__init__(scheduler, vocabulary, codes, generators, device, temperature, top_k)
        self.transformer = transformer
        self.guidance_scale = guidance_scale
        sequences = [[*context, *self._prefix] for context in [*contexts, *(unconditional_contexts or [])]]
        self.num_branches = len(sequences) // len(codes)
        if not self.is_finished:
            self._prefill(sequences)

    def _prefill(self, sequences: list[list[int]]) -> None:
        """Feed everything before the first window: prompts, size tags and the codes given from the start on."""
        # A window begins with the token before the first place to sample.
        starts = self._next_sampled[:, 0].tolist()
        self._first = torch.tensor(starts, device=self.device)
        self._frontier = starts
        self._head_positions = torch.tensor([len(sequence) - 1 for sequence in sequences], device=self.device)
        self._longest_head = int(self._head_positions.max())

        known = self._token_ids[self._sample.clamp(min=0)].tolist() * self.num_branches
        fed = [
            tuple((sequence + given[:start])[:-1])
            for sequence, given, start in zip(sequences, known, starts * self.num_branches)
        ]
        # Images of one prompt, and all unconditional branches, begin alike: feed every beginning once.
        distinct = list(dict.fromkeys(fed))
        prompt_length = round_up(max(map(len, distinct)), LENGTH_STEP)
        ids = torch.zeros(len(distinct), prompt_length, dtype=torch.long)
        for row, beginning in zip(ids, distinct):
            row[: len(beginning)] = torch.tensor(beginning)

        num_layers = self.transformer.config.num_hidden_layers
        prompts = SlotCache(num_layers, prompt_length)
        self.transformer(
            input_ids=ids.to(self.device),
            position_ids=torch.arange(prompt_length, device=self.device).expand(len(distinct), -1),
            past_key_values=prompts,
            logits_to_keep=1,
            logits_range=self._logits_range,
        )
        widest_window = max(self.scheduler.config.num_draft_tokens, MAX_RUN) + 1
        self._max_length = round_up(self._longest_head + self._sample.shape[1] + widest_window, LENGTH_STEP)
        self._cache = SlotCache(num_layers, self._max_length)
        self._cache.fill_from(prompts, torch.tensor([distinct.index(beginning) for beginning in fed]))

    def step(self) -> None:
        """Run the transformer once and make at least one more code of every unfinished image final."""
        places = self.open_window()
        self.accept(places, self._code_logits(places))

    def _code_logits(self, places: torch.LongTensor) -> torch.Tensor:
        """Guided logits over the codebook, float32 `(batch_size, window, num_codes)`, of the places."""
        ids = self.window_ids(places)
        if not is_compiled(self.transformer):
            reach = max(self._frontier) + self._longest_head + places.shape[1]
            self._cache.visible_length = min(round_up(reach, LENGTH_STEP), self._max_length)
        logits = self.transformer(
            input_ids=ids.repeat(self.num_branches, 1),
            position_ids=self._head_positions[:, None] + places.repeat(self.num_branches, 1),
            past_key_values=self._cache,
            logits_range=self._logits_range,
        ).logits.float()
        logits = self.select_codes(logits)
        if self.num_branches == 1:
            return logits
        return guide(*logits.chunk(2), self.guidance_scale)


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled code, by `torch.compile(module)` or `module.compile()`."""
    return is_compiled_module(module) or module._compiled_call_impl is not None


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step
