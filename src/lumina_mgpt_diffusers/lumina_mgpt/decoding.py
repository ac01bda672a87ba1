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
# change their shapes.
LENGTH_STEP = 64

# By device type, where compiled code may be CUDA graphs, which are recorded for a length and for the very cache: both
# get fewer lengths.
COMPILED_LENGTH_STEP = {"cuda": 512}

# By device type: a device that works through a queue has the next round in it while the host reads of the last.
FRONTIER_LAG = {"cuda": 1}

# Finished images leave the forward once they are this share of it: the cache of the others has to be copied for that.
FINISHED_SHARE = 0.25


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
            The `cache` of an earlier decoder, which is used again if it fits and else emptied.
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
        self._sequences = [[*context, *self._prefix] for context in [*contexts, *(unconditional_contexts or [])]]
        self.num_branches = len(self._sequences) // len(codes)
        self._is_compiled = is_compiled(transformer)
        self._length_step = LENGTH_STEP
        if self._is_compiled:
            self._length_step = COMPILED_LENGTH_STEP.get(device.type, LENGTH_STEP)
        self.cache: SlotCache | None = None
        if not self.is_finished:
            self._prefill(kept_cache)

    def _prefill(self, kept_cache: SlotCache | None = None) -> None:
        """Feed everything before the first window: prompts, size tags and the codes given from the start on."""
        sequences = self._sequences
        self._set_images(range(len(self._stops)))
        # A window begins with the token before the first place to sample.
        starts = self._next_sampled[:, 0].tolist()
        self._first = torch.tensor(starts, device=self.device)
        self._frontier = starts
        self._longest_head = max(map(len, sequences)) - 1

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
        num_drafts = self.scheduler.config.num_draft_tokens
        num_slots = slots_needed(self._longest_head, self._sample.shape[1], num_drafts, self._length_step)
        if kept_cache is not None and kept_cache.can_hold(prompts, len(fed), num_slots):
            self.cache = kept_cache
        else:
            if kept_cache is not None:
                kept_cache.free()
            self.cache = SlotCache(num_layers, num_slots)
        self.cache.fill_from(prompts, torch.tensor([distinct.index(beginning) for beginning in fed]))

    def _set_images(self, images: Sequence[int]) -> None:
        """Have the forward run for these images of the batch."""
        self._images = list(images)
        batch_size = len(self._stops)
        rows = [branch * batch_size + image for branch in range(self.num_branches) for image in self._images]
        heads = [len(self._sequences[row]) - 1 for row in rows]
        self._head_positions = torch.tensor(heads, device=self.device)[:, None]
        self._picked = torch.tensor(self._images, device=self.device) if len(self._images) < batch_size else None

    def _drop_finished(self) -> None:
        """Take the images that are finished out of the forward."""
        kept = [row for row, image in enumerate(self._images) if self._frontier[image] < self._stops[image]]
        num_images = len(self._images)
        # Compiled code would have to be compiled anew for every number of images.
        if self._is_compiled or num_images - len(kept) < FINISHED_SHARE * num_images:
            return
        rows = [branch * num_images + row for branch in range(self.num_branches) for row in kept]
        cache = SlotCache(len(self.cache.layers), self.cache.max_length)
        cache.fill_from(self.cache, torch.tensor(rows))
        self.cache = cache
        self._set_images([self._images[row] for row in kept])

    def edit(self, codes: torch.LongTensor) -> None:
        super().edit(codes)
        # The cache of an image that left the forward is gone.
        unfinished = {image for image, (first, stop) in enumerate(zip(self._frontier, self._stops)) if first < stop}
        if not unfinished <= set(self._images):
            self.cache = None
            self._prefill()

    def step(self) -> None:
        """Run the transformer once and make at least one more code of every unfinished image final."""
        self._drop_finished()
        places = self.open_window()
        self.accept(places, self._code_logits(places))

    def _code_logits(self, places: torch.LongTensor) -> torch.Tensor:
        """Guided logits over the codebook, float32 `(batch_size, window, num_codes)`, of the places."""
        ids = self.window_ids(places)
        batch_size, window = places.shape
        if self._picked is not None:
            ids, places = ids[self._picked], places[self._picked]
        most_unread = len(self._unread) * max(window, MAX_RUN + 1)
        frontier = max(self._frontier[image] for image in self._images)
        reach = self._longest_head + frontier + most_unread + window
        self.cache.limit(min(round_up(reach, self._length_step), self.cache.max_length - 1), self.device)
        logits = self.transformer(
            input_ids=ids.repeat(self.num_branches, 1),
            position_ids=self._head_positions + places.repeat(self.num_branches, 1),
            past_key_values=self.cache,
            logits_range=self._logits_range,
        ).logits.float()
        logits = self.select_codes(logits)
        if self.num_branches == 2:
            logits = guide(*logits.chunk(2), self.guidance_scale)
        if self._picked is None:
            return logits
        return logits.new_zeros(batch_size, *logits.shape[1:]).index_copy_(0, self._picked, logits)


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled code, by `torch.compile(module)` or `module.compile()`."""
    return is_compiled_module(module) or module._compiled_call_impl is not None


def slots_needed(head_length: int, num_places: int, num_draft_tokens: int, step: int = LENGTH_STEP) -> int:
    """Slots of a cache row: `head_length` tokens before the image, its places, and a window past its end."""
    num_read = round_up(head_length + num_places + max(num_draft_tokens, MAX_RUN) + 1, step)
    # Reading all of a cache is other code than reading a part of it, once compiled. With a slot that is never read it
    # is always a part.
    return num_read + 1


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step
