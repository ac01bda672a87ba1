# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Gumbel noise that belongs to a place: a function of a key, the place and the code, and of nothing else.

It is a counter-based generator (compare Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011):
splitmix64 makes two 32-bit words of key and place, two rounds of multiply and xor-shift make 23 bits of them and the
code. All in integers, which are the same on every device; only the two logarithms round as the device does.
"""

from __future__ import annotations

import torch


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def draw_key(generator: torch.Generator) -> int:
    """Draw the 64-bit key of one image or answer, the only thing that is drawn from its generator."""
    return int(torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=generator.device))


def take_back_key(generator: torch.Generator, state: torch.Tensor) -> None:
    """
    Have a generator as it was before a key was drawn from it, unless something else was drawn since.

    Args:
        generator (`torch.Generator`): The generator.
        state (`torch.Tensor`): Its state before.
    """
    moved = torch.Generator(generator.device)
    moved.set_state(state)
    draw_key(moved)
    if torch.equal(generator.get_state(), moved.get_state()):
        generator.set_state(state)


def gumbel_noise(keys: torch.LongTensor, places: torch.LongTensor, num_codes: int) -> torch.Tensor:
    """
    The noise of places.

    Args:
        keys (`torch.LongTensor` of shape `(...)`): Key of the image that each place belongs to.
        places (`torch.LongTensor` of shape `(...)`): Index of the place in it.
        num_codes (`int`): Number of codes, or of token ids.

    Returns:
        `torch.Tensor` of shape `(..., num_codes)`: float32 noise of the standard Gumbel distribution.
    """
    return _noise_of(_mix64(keys), places, _words_of_codes(num_codes, keys.device))


def _words_of_codes(num_codes: int, device: torch.device) -> torch.IntTensor:
    return torch.arange(num_codes, dtype=torch.int32, device=device) * -0x61C88647


def _noise_of(mixed_keys: torch.LongTensor, places: torch.LongTensor, codes: torch.IntTensor) -> torch.Tensor:
    words = _mix64(mixed_keys + places * _GOLDEN)[..., None]
    first, second = words.int(), (words >> 32).int()
    bits = _round(codes ^ first, 16, 0x7FEB352D).add_(second)
    bits = _round(bits, 15, -0x7B935975)
    # float32 holds half a step beside 23 bits, so that neither 0 nor 1 comes out.
    uniform = bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).float().add_(0.5).mul_(2.0**-23)
    return uniform.neg_().log1p_().neg_().log_().neg_()


class NoiseStrip:
    """
    The noise of images whose places come up again and again: that of the last places is kept.

    To know which are new takes the host, which on a GPU would have to wait: there they are computed again.

    Args:
        keys (`torch.LongTensor` of shape `(batch_size, 1)`): Keys of the images.
        num_codes (`int`): Number of codes.
    """

    def __init__(self, keys: torch.LongTensor, num_codes: int) -> None:
        self.mixed_keys = _mix64(keys)
        self.codes = _words_of_codes(num_codes, keys.device)
        self._strip: torch.Tensor | None = None
        self._kept: list[tuple[int, int]] = []

    def read(self, places: torch.LongTensor) -> torch.Tensor:
        """The noise `(batch_size, number, num_codes)` of places `(batch_size, number)`, of each image consecutive."""
        number = places.shape[1]
        if places.device.type != "cpu" or (number == 1 and self._strip is None):
            return _noise_of(self.mixed_keys, places, self.codes)
        if self._strip is None or self._strip.shape[1] < number:
            self._strip = torch.empty(len(places), number, len(self.codes), device="cpu")
            self._kept = [(0, 0)] * len(places)
        size = self._strip.shape[1]
        wanted = [(first, first + number) for first in places[:, 0].tolist()]
        num_new = max(
            stop - kept_stop if kept_first <= first <= kept_stop else number
            for (first, stop), (kept_first, kept_stop) in zip(wanted, self._kept)
        )
        images, slots = torch.arange(len(places), device="cpu")[:, None], places % size
        if num_new > 0:
            new = places[:, -num_new:]
            self._strip[images, slots[:, -num_new:]] = _noise_of(self.mixed_keys, new, self.codes)
            for image, (first, stop) in enumerate(wanted):
                kept_first, kept_stop = self._kept[image]
                if kept_first <= first <= kept_stop:
                    last = max(stop, kept_stop)
                    self._kept[image] = (max(kept_first, last - size), last)
                else:
                    self._kept[image] = (first, stop)
        return self._strip[images, slots]


def _mix64(words: torch.LongTensor) -> torch.LongTensor:
    for shift, factor in _MIX:
        words = (words ^ _shift_right(words, shift, 64)) * factor
    return words ^ _shift_right(words, 31, 64)


def _round(words: torch.IntTensor, shift: int, factor: int) -> torch.IntTensor:
    words = (words ^ _shift_right(words, shift, 32)).mul_(factor)
    return words.bitwise_xor_(_shift_right(words, 15, 32))


def _shift_right(words: torch.Tensor, shift: int, width: int) -> torch.Tensor:
    """Shift in zeros, which torch does not do to signed integers."""
    return (words >> shift) & ((1 << (width - shift)) - 1)
