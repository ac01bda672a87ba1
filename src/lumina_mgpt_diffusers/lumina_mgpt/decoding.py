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


# Lengths of cached sequences are rounded up to this: attention reads little that is unused, and its inputs seldom
# change their shapes. Compiled code is made for a shape, so it gets fewer of them.
LENGTH_STEP = 64
COMPILED_LENGTH_STEP = 512

# By device type: a device that works through a queue has the next round in it while the host reads of the last.
FRONTIER_LAG = {"cuda": 1}


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
        kept_cache ([`SlotCache`], *optional*):
            The `cache` of an earlier decoder, which is used again if it fits.
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
        kept_cache: SlotCache | None = None,
    ) -> None:
        super().__init__(scheduler, vocabulary, codes, generators, device, temperature, top_k)
        self.transformer = transformer
        self.guidance_scale = guidance_scale
        if scheduler.config.num_draft_tokens:
            self.frontier_lag = FRONTIER_LAG.get(device.type, 0)
        sequences = [[*context, *self._prefix] for context in [*contexts, *(unconditional_contexts or [])]]
        self.num_branches = len(sequences) // len(codes)
        self._length_step = COMPILED_LENGTH_STEP if is_compiled(transformer) else LENGTH_STEP
        self.cache: SlotCache | None = None
        if not self.is_finished:
            self._prefill(sequences, kept_cache)

    def _prefill(self, sequences: list[list[int]], kept_cache: SlotCache | None) -> None:
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
        # A compiled prompt would have to be compiled anew for every length, to run once.
        with torch.compiler.set_stance("force_eager"):
            self.transformer(
                input_ids=ids.to(self.device),
                position_ids=torch.arange(prompt_length, device=self.device).expand(len(distinct), -1),
                past_key_values=prompts,
                logits_to_keep=1,
                logits_range=self._logits_range,
            )
        length = slots_needed(self._longest_head, self._sample.shape[1], self.scheduler.config.num_draft_tokens)
        self._max_length = round_up(length, self._length_step)
        # Compiled code takes a part of a cache for another case than the whole: one slot more is never read.
        num_slots = self._max_length + 1
        if kept_cache is not None and kept_cache.can_hold(prompts, len(fed), num_slots):
            self.cache = kept_cache
        else:
            self.cache = SlotCache(num_layers, num_slots)
        self.cache.fill_from(prompts, torch.tensor([distinct.index(beginning) for beginning in fed]))

    def step(self) -> None:
        """Run the transformer once and make at least one more code of every unfinished image final."""
        places = self.open_window()
        self.accept(places, self._code_logits(places))

    def _code_logits(self, places: torch.LongTensor) -> torch.Tensor:
        """Guided logits over the codebook, float32 `(batch_size, window, num_codes)`, of the places."""
        ids = self.window_ids(places)
        window = places.shape[1]
        most_unread = len(self._unread) * max(window, MAX_RUN + 1)
        reach = self._longest_head + max(self._frontier) + most_unread + window
        self.cache.limit(min(round_up(reach, self._length_step), self._max_length), self.device)
        logits = self.transformer(
            input_ids=ids.repeat(self.num_branches, 1),
            position_ids=self._head_positions[:, None] + places.repeat(self.num_branches, 1),
            past_key_values=self.cache,
            logits_range=self._logits_range,
        ).logits.float()
        logits = self.select_codes(logits)
        if self.num_branches == 1:
            return logits
        return guide(*logits.chunk(2), self.guidance_scale)


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled code, by `torch.compile(module)` or `module.compile()`."""
    return is_compiled_module(module) or module._compiled_call_impl is not None


def slots_needed(head_length: int, num_places: int, num_draft_tokens: int) -> int:
    """Slots of a cache row: `head_length` tokens before the image, its places, and a window past its end."""
    return head_length + num_places + max(num_draft_tokens, MAX_RUN) + 1


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step
