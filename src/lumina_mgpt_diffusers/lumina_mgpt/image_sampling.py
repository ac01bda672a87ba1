# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The state of images that are being sampled: what is final, what comes next, what to feed for it. It knows no model.

A batch of images of one size is laid out in **places**: raster order, with a place for the end of each row but the
last. A place holds a code, or the row end written as the code `num_codes`, or -1. Row ends and codes that the caller
gives are known beforehand, so they are never sampled; a forward passes over them on its way to the next code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
import torch.nn as nn

from .drafts import CopyAbove, DraftRule, NeighborLogits
from .host_copy import HostCopy
from .scheduling_lumina_mgpt import LuminaMGPTScheduler
from .unirep import ImageVocabulary


# Most known places that one forward passes over.
MAX_RUN = 31


class ImageSampling:
    r"""
    Samples a batch of images of one size, row by row of the batch independently.

    Each round goes [`open_window`], [`window_ids`], a forward of the model over these tokens, [`accept`].

    Args:
        scheduler ([`LuminaMGPTScheduler`]): The sampler.
        vocabulary ([`ImageVocabulary`]): Token ids of the image language.
        codes (`torch.LongTensor` of shape `(batch_size, rows, columns)`):
            The given codes; -1 where a code is to be sampled.
        generators (`list[torch.Generator]`): One for each image.
        device (`torch.device`): Where the sampling runs.
        temperature (`float`), top_k (`int`): Sampler settings, see [`LuminaMGPTScheduler`].
    """

    frontier_lag = 0
    """How many rounds late the host may learn how far each image is, so that it need not wait for the device."""

    def __init__(
        self,
        scheduler: LuminaMGPTScheduler,
        vocabulary: ImageVocabulary,
        codes: torch.LongTensor,
        generators: Sequence[torch.Generator],
        device: torch.device,
        temperature: float,
        top_k: int,
    ) -> None:
        self.scheduler = scheduler
        self.device = device
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
        height, width = self.rows * vocabulary.patch_size, self.columns * vocabulary.patch_size
        self._prefix = vocabulary.prefix(height, width)

        places = torch.arange(self.rows * (self.columns + 1) - 1, device=device)
        self._raster_index = places - places // (self.columns + 1)
        self._draw(codes, generators)
        self._set_places(self._to_places(codes.to(device)), torch.zeros(batch_size, dtype=torch.long, device=device))

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
        has_drafts = self.scheduler.config.num_draft_tokens > 0
        self._sample = known.where(self._given, -1 if has_drafts else 0)
        self._draft_rule = self._make_draft_rule()
        # For every image, the first place that never was in a window.
        self._drafted = [0] * len(known)
        self._first = first
        self._frontier = first.tolist()
        self._unread: deque[HostCopy] = deque()
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

        # Drafts only decide the speed, so any generator of our own will do.
        self._random_codes = torch.randint(
            codebook_size, (1, self.columns + 1), generator=torch.Generator().manual_seed(0)
        ).to(self.device)

    def _make_draft_rule(self) -> DraftRule:
        stride = self.columns + 1
        if self.scheduler.config.draft_init == "above":
            return CopyAbove(stride)
        if self.scheduler.config.draft_init == "logits":
            batch_size, num_codes = len(self._given), self._row_end
            return NeighborLogits(
                self.scheduler, batch_size, stride, num_codes, self.device, self.temperature, self.top_k
            )
        return DraftRule()

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
    def first_places(self) -> list[int]:
        """The first place of each image that is not final."""
        return list(self._frontier)

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

    # A round

    def open_window(self) -> torch.LongTensor:
        """The places `(batch_size, window)` that the next forward evaluates, with drafts put into them."""
        window = max(self.scheduler.config.num_draft_tokens, self._longest_run()) + 1
        places = self._first[:, None] + torch.arange(window, device=self.device)
        if self.scheduler.config.num_draft_tokens:
            self._fill_drafts(places)
        return places

    def window_ids(self, places: torch.LongTensor) -> torch.LongTensor:
        """Token ids `(batch_size, window)` to feed for logits of the places: those of the places before them."""
        before = (places - 1).clamp(min=0, max=self._sample.shape[1] - 1)
        ids = self._token_ids[self._sample.gather(1, before).clamp(min=0)]
        return torch.where(places == 0, self._prefix[-1], ids)

    def select_codes(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of the codebook, `(..., num_codes)`, from those of the range of token ids that holds it."""
        return logits if self._codebook_order is None else logits[..., self._codebook_order]

    def accept(self, places: torch.LongTensor, logits: torch.Tensor) -> None:
        """
        Sample the places of a window and make at least one more code of every unfinished image final.

        Args:
            places (`torch.LongTensor` of shape `(batch_size, window)`): From [`open_window`].
            logits (`torch.Tensor` of shape `(batch_size, window, num_codes)`): Guided logits over the codebook.
        """
        if self.scheduler.config.num_draft_tokens:
            self._draft_rule.observe(places, logits)
        output = self.scheduler.step(
            logits,
            self._first,
            self._sample,
            noise=self._noise_of(places),
            given=self._given,
            temperature=self.temperature,
            top_k=self.top_k,
        )
        self._sample = output.prev_sample
        num_places = self._sample.shape[1]
        self._first = (self._first + output.num_accepted).clamp(max=num_places)
        if self._in_lockstep:
            self._frontier = [min(first + places.shape[1], num_places) for first in self._frontier]
        else:
            self._unread.append(HostCopy(self._first))
            while len(self._unread) > self.frontier_lag:
                self._frontier = self._unread.popleft().tolist()

    def read_frontier(self) -> None:
        """Wait until [`num_final`] and [`is_finished`] know of the last round."""
        while self._unread:
            self._frontier = self._unread.popleft().tolist()

    def _longest_run(self) -> int:
        """The most known places that follow the last final one in an unfinished image."""
        runs = [
            int(self._next_sampled[index, first]) - first
            for index, (first, stop) in enumerate(zip(self._frontier, self._stops))
            if first < stop
        ]
        return min(max(runs), MAX_RUN)

    def _noise_of(self, places: torch.LongTensor) -> torch.Tensor | None:
        if self._noise is None:
            return None
        raster_index = self._raster_index[places.clamp(max=len(self._raster_index) - 1)]
        return self._noise[torch.arange(len(places), device=self.device)[:, None], raster_index]

    def _fill_drafts(self, places: torch.LongTensor) -> None:
        """Guess the codes of the places that come into the window for the first time."""
        places = places[:, -self._num_new(places.shape[1]) :]
        sample, num_places = self._sample, self._sample.shape[1]
        drafts = sample.gather(1, places.clamp(max=num_places - 1))
        noise = self._noise_of(places)
        drafts = torch.where(drafts < 0, self._draft_rule.guess(places, sample, noise), drafts)
        if noise is not None:
            random_codes = noise.argmax(dim=-1)
        else:
            random_codes = self._random_codes[0, places % (self.columns + 1)]
        drafts = torch.where(drafts < 0, random_codes, drafts)
        # All places past the end share one that is cut off again.
        padded = nn.functional.pad(sample, (0, 1))
        self._sample = padded.scatter(1, places.clamp(max=num_places), drafts)[:, :num_places]

    def _num_new(self, window: int) -> int:
        """How many places at the end of the window may be new in some image."""
        if self._unread:
            # How far the last rounds went is not known on the host yet.
            return window
        ends = [first + window for first in self._frontier]
        num_new = max(end - drafted for end, drafted in zip(ends, self._drafted))
        self._drafted = ends
        return min(max(num_new, 1), window)


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance of float32 logits."""
    return unconditional + guidance_scale * (conditional - unconditional)
