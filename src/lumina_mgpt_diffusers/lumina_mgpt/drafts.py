# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
First guesses of codes that a forward evaluates ahead. They decide how many forwards an image takes, never its codes.

A place is guessed once, when it comes into the window of a forward; from then on its draft is the code that the last
forward computed for it. Each rule takes the places `(batch_size, number)` to guess, counted as in
[`ImageSampling`], and gives codes of that shape, -1 where it has no guess. All of it are tensor operations on the
device, without waiting for it.
"""

from __future__ import annotations

import torch

from .scheduling_lumina_mgpt import LuminaMGPTScheduler


class DraftRule:
    """The rule `"random"`: it has no guess of its own, so the code stands that the noise alone would choose."""

    def observe(self, places: torch.LongTensor, logits: torch.Tensor) -> None:
        """
        Take note of what a forward computed.

        Args:
            places (`torch.LongTensor` of shape `(batch_size, window)`): Consecutive places.
            logits (`torch.Tensor` of shape `(batch_size, window, num_codes)`): Their guided logits.
        """

    def guess(
        self, places: torch.LongTensor, sample: torch.LongTensor, noise: torch.Tensor | None
    ) -> torch.LongTensor:
        """
        Guess the codes of consecutive places.

        Args:
            places (`torch.LongTensor` of shape `(batch_size, number)`): The places, also ones past the end.
            sample (`torch.LongTensor` of shape `(batch_size, num_places)`):
                Final codes, drafts, and -1 where there is neither.
            noise (`torch.Tensor` of shape `(batch_size, number, num_codes)`, *optional*):
                Gumbel noise of the places; None where the sampler is greedy.

        Returns:
            `torch.LongTensor` of shape `(batch_size, number)`: Codes, -1 for no guess.
        """
        return torch.full_like(places, -1)


class CopyAbove(DraftRule):
    """
    The rule `"above"`: the code above, or the nearest one above that is known.

    Args:
        stride (`int`): Places from one row to the next.
    """

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def guess(
        self, places: torch.LongTensor, sample: torch.LongTensor, noise: torch.Tensor | None
    ) -> torch.LongTensor:
        guesses = torch.full_like(places, -1)
        for hop in range(1, places.shape[1] // self.stride + 2):
            above = places - hop * self.stride
            codes = sample.gather(1, above.clamp(min=0, max=sample.shape[1] - 1)).where(above >= 0, -1)
            guesses = torch.where(guesses < 0, codes, guesses)
        return guesses


class NeighborLogits(DraftRule):
    r"""
    The rule `"logits"`: what the sampler would choose, with the noise of the place, from logits of its neighbours.

    These are the logits of the place above, averaged with those of the last place that was evaluated if it is in the
    same row. As the noise is the place's own, the guess is right wherever a small change of the logits does not change
    the choice, which even for a flat distribution is far more often than two independent draws agree.

    Args:
        scheduler ([`LuminaMGPTScheduler`]): The sampler.
        batch_size (`int`), stride (`int`), num_codes (`int`):
            Number of images, places from one row to the next, and codes of the codebook.
        device (`torch.device`): Where the sampling runs.
        temperature (`float`), top_k (`int`): Sampler settings, see [`LuminaMGPTScheduler`].
    """

    above_weight = 0.5

    def __init__(
        self,
        scheduler: LuminaMGPTScheduler,
        batch_size: int,
        stride: int,
        num_codes: int,
        device: torch.device,
        temperature: float,
        top_k: int,
    ) -> None:
        self.scheduler = scheduler
        self.stride = stride
        self.temperature = temperature
        self.top_k = top_k
        self._images = torch.arange(batch_size, device=device)[:, None]
        # The logits of the last place that was evaluated in each column.
        self._logits = torch.zeros(batch_size, stride, num_codes, device=device)
        self._is_known = torch.zeros(batch_size, stride, dtype=torch.bool, device=device)
        self._last = torch.full((batch_size, 1), -1, device=device)

    def observe(self, places: torch.LongTensor, logits: torch.Tensor) -> None:
        # At most a row: of two places in a column the later one has to stay.
        columns = places[:, -self.stride :] % self.stride
        self._logits[self._images, columns] = logits[:, -self.stride :].float()
        self._is_known[self._images, columns] = True
        self._last = places[:, -1:]

    def guess(
        self, places: torch.LongTensor, sample: torch.LongTensor, noise: torch.Tensor | None
    ) -> torch.LongTensor:
        columns = places % self.stride
        last_column = self._last % self.stride
        is_above_known = self._is_known[self._images, columns]
        is_last_beside = self._last // self.stride == places // self.stride
        weight = torch.where(is_last_beside, self.above_weight, 1.0).where(is_above_known, 0.0)
        beside, above = self._logits[self._images, last_column], self._logits[self._images, columns]
        logits = torch.lerp(beside, above, weight[..., None])
        guesses = self.scheduler.sample(logits, noise, self.temperature, self.top_k)
        return guesses.where(self._last >= 0, -1)


__all__ = ["CopyAbove", "DraftRule", "NeighborLogits"]
