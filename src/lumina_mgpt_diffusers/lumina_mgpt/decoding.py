# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Autoregressive decoding of images: transformer, KV cache and sampler, one forward at a time.

A batch of images of one size is laid out in **places**: raster order, with a place for the end of each row but the
last. A place holds a code, or the row end written as the code `num_codes`, or -1. Row ends and codes that the caller
gives are known beforehand, so they are never sampled; a forward passes over them on its way to the next code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
from diffusers.utils.torch_utils import is_compiled_module

from .kv_cache import SlotCache
from .scheduling_lumina_mgpt import LuminaMGPTScheduler
from .unirep import ImageVocabulary


# Lengths are rounded up to this, so that calls of about the same length have the same shapes.
LENGTH_STEP = 64

# Most known places that one forward passes over.
MAX_RUN = 31


class ImageDecoder:
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
        self.transformer = transformer
        self.scheduler = scheduler
        self.device = device
        self.guidance_scale = guidance_scale
        self.temperature = temperature
        self.top_k = top_k

        batch_size, self.rows, self.columns = codes.shape
        self.num_codes = self.rows * self.columns
        self._row_end = vocabulary.num_codes
        self._token_ids = torch.cat([vocabulary.code_ids, torch.tensor([vocabulary.row_end_id])]).to(device)
        self._logits_range = vocabulary.code_range
        in_range = vocabulary.code_ids - self._logits_range[0]
        # Where the range holds the codes in order and nothing else, the logits are already those of the codebook.
        is_identity = torch.equal(in_range, torch.arange(self._logits_range[1] - self._logits_range[0]))
        self._codebook_order = None if is_identity else in_range.to(device)

        places = torch.arange(self.rows * (self.columns + 1) - 1, device=device)
        self._raster_index = places - places // (self.columns + 1)
        self._draw(codes, generators)
        self._set_places(self._to_places(codes.to(device)), torch.zeros(batch_size, dtype=torch.long, device=device))

        height, width = self.rows * vocabulary.patch_size, self.columns * vocabulary.patch_size
        prefix = vocabulary.prefix(height, width)
        self._width_tag = prefix[-1]
        sequences = [[*context, *prefix] for context in [*contexts, *(unconditional_contexts or [])]]
        self.num_branches = len(sequences) // batch_size
        if not self.is_finished:
            self._prefill(sequences)

    # The image as places

    def _to_places(self, codes: torch.LongTensor) -> torch.LongTensor:
        return nn.functional.pad(codes, (0, 1), value=self._row_end).flatten(1)[:, :-1]

    def _to_codes(self, places: torch.LongTensor) -> torch.LongTensor:
        return nn.functional.pad(places, (0, 1)).view(-1, self.rows, self.columns + 1)[:, :, :-1]

    def _set_places(self, known: torch.LongTensor, first: torch.LongTensor) -> None:
        """Start from `known`, with -1 where a code is to be sampled; the places before `first` have been fed."""
        self._given = known >= 0
        given = self._given.cpu()
        num_places = given.shape[1]
        index = torch.arange(num_places)
        # For every place, the first place from there on that is to be sampled.
        upcoming = index.where(~given, num_places).flip(1).cummin(dim=1).values.flip(1)
        self._next_sampled = nn.functional.pad(upcoming, (0, 1), value=num_places)  # (batch_size, num_places + 1)
        self._stops = (index.where(~given, -1).amax(dim=1) + 1).tolist()
        self._sample = torch.where(self._given, known, self._first_drafts)
        self._first = first
        self._frontier = first.tolist()
        # Without drafts, rows with the same known places advance together, by a known number of places.
        self._in_lockstep = (
            self.scheduler.config.num_draft_tokens == 0
            and len(set(self._frontier)) == 1
            and bool((given == given[:1]).all())
        )

    def _draw(self, codes: torch.LongTensor, generators: Sequence[torch.Generator]) -> None:
        codebook_size = self._row_end
        self._noise = None
        if not self.scheduler.is_greedy(self.temperature, self.top_k):
            noise = [
                self.scheduler.draw_noise((self.num_codes, codebook_size), one, self.device) for one in generators
            ]
            self._noise = torch.stack(noise)  # (batch_size, num_codes, codebook_size)

        if self.scheduler.config.num_draft_tokens == 0:
            drafts = torch.zeros(codes.shape, dtype=torch.long, device=self.device)
        elif self._noise is not None:
            drafts = self._noise.argmax(dim=-1).view(codes.shape)
        else:
            # Drafts only decide the speed, so any generator of our own will do.
            guesses = torch.randint(codebook_size, codes.shape, generator=torch.Generator().manual_seed(0))
            drafts = guesses.to(self.device)
        if self.scheduler.config.draft_init == "above":
            drafts[:, 1:] = -1
        self._first_drafts = self._to_places(drafts)

    @property
    def codes(self) -> torch.LongTensor:
        """Codes `(batch_size, rows, columns)`, -1 where none is final yet."""
        is_fed = torch.arange(self._sample.shape[1], device=self.device) < self._first[:, None]
        return self._to_codes(torch.where(self._given | is_fed, self._sample, -1))

    @property
    def num_final(self) -> int:
        """Number of codes, in raster order, that are final in every image."""
        places = [
            self._sample.shape[1] if first >= stop else first for first, stop in zip(self._frontier, self._stops)
        ]
        return min(places) - min(places) // (self.columns + 1)

    @property
    def is_finished(self) -> bool:
        return all(first >= stop for first, stop in zip(self._frontier, self._stops))

    def edit(self, codes: torch.LongTensor) -> None:
        """
        Change the image while it is being decoded.

        Codes that differ from [`codes`] become given ones; where they are -1 they will be sampled anew. Decoding goes
        on from the first change, so that all that is still to be sampled sees it.

        Args:
            codes (`torch.LongTensor` of shape `(batch_size, rows, columns)`): The codes to go on from.
        """
        before = self._to_places(self.codes)
        after = self._to_places(codes.to(self.device))
        changed = before != after
        if not changed.any():
            return
        num_places = changed.shape[1]
        first_change = torch.where(changed.any(dim=1), changed.long().argmax(dim=1), num_places)
        self._set_places(after, torch.minimum(self._first, first_change))

    # The model

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
        window = max(self.scheduler.config.num_draft_tokens, self._longest_run()) + 1
        places = self._first[:, None] + torch.arange(window, device=self.device)  # (batch_size, window)
        if self.scheduler.config.num_draft_tokens:
            self._fill_drafts(places)

        logits = self._code_logits(places)
        noise = None
        if self._noise is not None:
            raster_index = self._raster_index[places.clamp(max=len(self._raster_index) - 1)]
            noise = self._noise[torch.arange(len(places), device=self.device)[:, None], raster_index]
        output = self.scheduler.step(
            logits,
            self._first,
            self._sample,
            noise=noise,
            given=self._given,
            temperature=self.temperature,
            top_k=self.top_k,
        )
        self._sample = output.prev_sample
        num_places = self._sample.shape[1]
        self._first = (self._first + output.num_accepted).clamp(max=num_places)
        if self._in_lockstep:
            self._frontier = [min(first + window, num_places) for first in self._frontier]
        else:
            self._frontier = self._first.tolist()

    def _longest_run(self) -> int:
        """The most known places that follow the last final one in an unfinished image."""
        runs = [
            int(self._next_sampled[index, first]) - first
            for index, (first, stop) in enumerate(zip(self._frontier, self._stops))
            if first < stop
        ]
        return min(max(runs), MAX_RUN)

    def _fill_drafts(self, places: torch.LongTensor) -> None:
        """Guess the codes of the places that come into the window for the first time by copying the codes above."""
        sample, stride = self._sample, self.columns + 1
        last = sample.shape[1] - 1
        drafts = sample.gather(1, places.clamp(max=last))
        for hop in range(1, places.shape[1] // stride + 2):
            above = places - hop * stride
            guess = sample.gather(1, above.clamp(min=0, max=last)).where(above >= 0, -1)
            drafts = torch.where(drafts < 0, guess, drafts)
        self._sample = nn.functional.pad(sample, (0, places.shape[1])).scatter(1, places, drafts)[:, : last + 1]

    def _code_logits(self, places: torch.LongTensor) -> torch.Tensor:
        """Guided logits over the codebook, float32 `(batch_size, window, num_codes)`, of the places."""
        before = (places - 1).clamp(min=0, max=self._sample.shape[1] - 1)
        ids = self._token_ids[self._sample.gather(1, before).clamp(min=0)]
        ids = torch.where(places == 0, self._width_tag, ids)
        if not is_compiled(self.transformer):
            reach = max(self._frontier) + self._longest_head + places.shape[1]
            self._cache.visible_length = min(round_up(reach, LENGTH_STEP), self._max_length)
        logits = self.transformer(
            input_ids=ids.repeat(self.num_branches, 1),
            position_ids=self._head_positions[:, None] + places.repeat(self.num_branches, 1),
            past_key_values=self._cache,
            logits_range=self._logits_range,
        ).logits.float()
        if self._codebook_order is not None:
            logits = logits[..., self._codebook_order]
        if self.num_branches == 1:
            return logits
        conditional, unconditional = logits.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled code, by `torch.compile(module)` or `module.compile()`."""
    return is_compiled_module(module) or module._compiled_call_impl is not None


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step
