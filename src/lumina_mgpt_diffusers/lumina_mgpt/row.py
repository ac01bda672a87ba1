# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
A row of the engine: one request and how far its answer is. It knows no model.

An answer ends in two ways: the model says the separator, or the number of tokens is reached. An image that is cut off
keeps the codes it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from .kv_cache import SlotCache
from .request import Grammar, Request
from .scheduling_lumina_mgpt import SamplerSettings
from .unirep import fill_missing_codes


class Phase(Enum):
    TEXT = "text"
    HEIGHT = "height"
    WIDTH = "width"
    IMAGE = "image"
    FINISHED = "finished"


@dataclass(frozen=True)
class SampledText:
    """Token ids of text, one or more, that followed the last piece of the answer."""

    ids: list[int]


@dataclass(frozen=True)
class SampledImage:
    """
    An image of the answer.

    Args:
        codes (`torch.LongTensor` of shape `(rows, columns)`, *optional*):
            VQ codes, -1 where the answer was cut off; None if that was before the size was said.
        log_probs (`torch.Tensor` of shape `(rows, columns)`, *optional*):
            Log-probabilities with which the codes were sampled, 0 for those that were given.
    """

    codes: torch.LongTensor | None
    log_probs: torch.Tensor | None = None

    @property
    def is_complete(self) -> bool:
        return self.codes is not None and bool((self.codes >= 0).all())


class ImageSpan:
    """
    The places of an image in a row: raster order, with a place for the end of each row of codes but the last, if the
    rows of the model end in a token.

    Args:
        first (`int`): Position of the first code.
        codes (`torch.LongTensor` of shape `(rows, columns)`): The given codes, -1 where one is to be sampled.
        row_end_length (`int`): Places between two rows of codes, 1 or 0.
    """

    def __init__(self, first: int, codes: torch.LongTensor, row_end_length: int) -> None:
        self.first = first
        self.given = codes
        self.rows, self.columns = codes.shape
        self.row_end_length = row_end_length
        self.stride = self.columns + row_end_length
        places = torch.full((self.rows, self.stride), -2, device="cpu")  # row ends are known too
        places[:, : self.columns] = codes
        self.known = places.flatten()[: self.rows * self.stride - row_end_length] != -1
        index = torch.arange(len(self.known), device="cpu")
        upcoming = index.where(~self.known, len(index)).flip(0).cummin(dim=0).values.flip(0)
        self._next_sampled = [*upcoming.tolist(), len(index)]
        self.stop = first + int(index.where(~self.known, -1).amax()) + 1

    @property
    def num_places(self) -> int:
        return len(self.known)

    @property
    def end(self) -> int:
        """Position after the last code."""
        return self.first + self.num_places

    def next_sampled(self, position: int) -> int:
        """The first position from there on that is to be sampled."""
        return self.first + self._next_sampled[position - self.first]

    def num_codes_before(self, position: int) -> int:
        """Number of codes, in raster order, before a position. All, where nothing is to be sampled from there on."""
        if position >= self.stop:
            return self.rows * self.columns
        place = position - self.first
        return place - place // self.stride * self.row_end_length

    def place_of(self, index: int) -> int:
        """The place of a code, by its raster index."""
        return index + index // self.columns * self.row_end_length


class Row:
    r"""
    The state of one request.

    Args:
        request ([`Request`]): What is asked for.
        grammar ([`Grammar`]): Which token may follow.

    Attributes:
        tokens (`list[int]`): The context and what is final of the answer; an image as a whole when it is finished.
        num_fed (`int`): Number of tokens that are final and in the KV cache, as far as the host knows.
        image ([`ImageSpan`], *optional*): The image that is being sampled.
        codes (`torch.LongTensor` of shape `(rows, columns)`, *optional*), log_probs (`torch.Tensor`, *optional*):
            Those of the last image that is finished.
        cache ([`SlotCache`], *optional*): With `keep_cache`, when it is finished: the first `num_fed` tokens.
    """

    def __init__(self, request: Request, grammar: Grammar) -> None:
        self.request = request
        self.grammar = grammar
        self.settings = request.settings
        self.tokens = list(request.context)
        self.num_fed = request.num_cached
        self.phase = Phase.TEXT
        self.image: ImageSpan | None = None
        self.cache: SlotCache | None = None
        self.finish_reason: str | None = None
        self.token_ids: list[int] = []
        self.error: Exception | None = None
        self.codes: torch.LongTensor | None = None
        self.log_probs: torch.Tensor | None = None
        self._pieces: list[SampledText | SampledImage] = []
        if request.is_image:
            self._open_image()

    # What it is

    @property
    def is_finished(self) -> bool:
        return self.phase is Phase.FINISHED

    @property
    def in_image(self) -> bool:
        return self.phase is Phase.IMAGE

    @property
    def is_guided(self) -> bool:
        """Whether the next logits are guided, so that the unconditional branch has to be fed too."""
        return self.in_image and self.settings.is_guided

    @property
    def answer_start(self) -> int:
        return len(self.request.context)

    @property
    def image_start(self) -> int:
        """Position of the start of the image."""
        return self.image.first - self.grammar.vocabulary.prefix_length

    @property
    def limit(self) -> float:
        """Position at which the answer is cut off."""
        most = self.request.max_new_tokens
        return float("inf") if most is None else self.answer_start + most

    @property
    def stop(self) -> int:
        """Position at which the sampling of this phase ends."""
        return self.image.stop if self.in_image else len(self.tokens) + 1

    @property
    def reach(self) -> int:
        """Number of positions that this phase needs."""
        return self.image.end if self.in_image else len(self.tokens) + 1

    @property
    def num_new_tokens(self) -> int:
        """Number of tokens of the answer so far."""
        if self.is_finished:
            return len(self.token_ids)
        length = max(len(self.tokens), self.num_fed + 1)
        return int(min(length, self.limit)) - self.answer_start

    @property
    def num_codes(self) -> int:
        """Number of codes of the image that is sampled, or that was last; 0 while there is none."""
        if self.in_image:
            return self.image.given.numel()
        return 0 if self.codes is None else self.codes.numel()

    @property
    def num_given_codes(self) -> int:
        """Number of codes, in raster order, that the request gives before the first that is sampled."""
        codes = self.request.codes if self.request.is_image else None
        return 0 if codes is None else int((codes.flatten() < 0).int().argmax())

    @property
    def num_columns(self) -> int:
        return self.image.columns if self.in_image else self.codes.shape[1]

    @property
    def num_final_codes(self) -> int:
        """Number of codes, in raster order, that are final in the image that is being sampled."""
        if not self.in_image:
            return self.num_codes
        first = max(self.num_fed + 1, self.image.first)
        return self.image.num_codes_before(self.image.next_sampled(min(first, self.image.end)))

    def run(self) -> int:
        """How many tokens are known from the next one on that is not fed."""
        if self.in_image and self.num_fed + 1 >= self.image.first:
            return min(self.image.next_sampled(self.num_fed + 1), self.stop) - self.num_fed - 1
        return len(self.tokens) - self.num_fed - 1

    def known_ids(self) -> list[int]:
        """Token ids that are final, with the codes that an image is given from its start on."""
        if not self.in_image:
            return list(self.tokens)
        number = self.image.next_sampled(self.image.first) - self.image.first
        codes = self.image.given.clamp(min=0)
        vocabulary = self.grammar.vocabulary
        return [*self.tokens, *vocabulary.to_tokens(codes)[vocabulary.prefix_length :][:number].tolist()]

    def token_settings(self) -> SamplerSettings:
        """How the next token of text, or size tag, is sampled."""
        if self.phase is Phase.TEXT:
            return self.settings.for_text()
        return self.settings

    @property
    def chooses_from(self) -> tuple[Phase, int | None]:
        """What [`allowed_ids`] follow from."""
        return self.phase, self.tokens[-1] if self.phase is Phase.WIDTH else None

    def allowed_ids(self) -> torch.LongTensor:
        """What the next token of text, or size tag, may be."""
        if self.phase is Phase.TEXT:
            return self.grammar.text_ids
        if self.phase is Phase.HEIGHT:
            return self.grammar.height_ids(self.request.max_pixels)
        return self.grammar.width_ids(self.tokens[-1], self.request.max_pixels)

    def take_pieces(self) -> list[SampledText | SampledImage]:
        """What was sampled since the last call: text, and images that are finished."""
        pieces, self._pieces = self._pieces, []
        return pieces

    # How it goes on

    def accept_token(self, id: int) -> None:
        """Go on by the token that was sampled."""
        vocabulary = self.grammar.vocabulary
        if self.phase is Phase.TEXT and id == vocabulary.separator_id:
            self.finish("stop")
            return
        if self.phase is Phase.TEXT and id == vocabulary.start_id:
            self._open_image()
        else:
            self.tokens.append(id)
            if self.phase is Phase.TEXT:
                self._pieces.append(SampledText([id]))
            elif self.phase is Phase.HEIGHT:
                self.phase = Phase.WIDTH
            else:
                self._start_codes(*self.grammar.size(*self.tokens[-2:]))
        self._check_limit()

    def _open_image(self) -> None:
        vocabulary = self.grammar.vocabulary
        size = self.request.size or vocabulary.fixed_size
        if size is None:
            self.tokens.append(vocabulary.start_id)
            self.phase = Phase.HEIGHT
        else:
            self.tokens += vocabulary.prefix(*size)
            self._start_codes(*size)

    def _start_codes(self, height: int, width: int) -> None:
        patch_size = self.grammar.vocabulary.patch_size
        codes = self.request.codes if self.request.is_image else None
        if codes is None:
            codes = torch.full((height // patch_size, width // patch_size), -1, device="cpu")
        self.set_codes(codes)
        self.phase = Phase.IMAGE

    def set_codes(self, codes: torch.LongTensor) -> None:
        """Sample the image anew where codes are -1 and take the others as given."""
        self.image = ImageSpan(len(self.tokens), codes, self.grammar.vocabulary.row_end_length)
        self.phase = Phase.IMAGE

    def reopen(self, codes: torch.LongTensor, first_change: int) -> None:
        """
        Go on with another version of the image, while it is sampled or after.

        Args:
            codes (`torch.LongTensor` of shape `(rows, columns)`): Its codes, -1 where one is to be sampled.
            first_change (`int`): Raster index of the first that differs.
        """
        if self.is_finished:
            size = (side * self.grammar.vocabulary.patch_size for side in codes.shape)
            self.tokens = [*self.request.context, *self.grammar.vocabulary.prefix(*size)]
            self.finish_reason, self._pieces = None, []
        self.set_codes(codes)
        self.num_fed = min(self.num_fed, self.image.first + self.image.place_of(first_change) - 1)

    def is_image_done(self) -> bool:
        """Whether all of the image is sampled, or as much of it as fits into the answer."""
        return self.in_image and self.num_fed + 1 >= min(self.stop, self.limit)

    def close_image(self, codes: torch.LongTensor, log_probs: torch.Tensor | None = None) -> None:
        """
        Go on after the image.

        Args:
            codes (`torch.LongTensor` of shape `(rows, columns)`): Its codes, -1 where there is none.
            log_probs (`torch.Tensor` of shape `(rows, columns)`, *optional*): Their log-probabilities.
        """
        self.codes, self.log_probs = codes, log_probs
        if self.image.end > self.limit:
            self._cut_image(codes, log_probs)
            return
        self._append_image(codes, log_probs)
        self.phase = Phase.TEXT
        if self.request.is_image:
            self.finish("stop")
        self._check_limit()

    def _append_image(self, codes: torch.LongTensor, log_probs: torch.Tensor | None) -> None:
        del self.tokens[-self.grammar.vocabulary.prefix_length :]
        self.tokens += self.grammar.vocabulary.to_tokens(fill_missing_codes(codes)).tolist()
        self._pieces.append(SampledImage(codes, log_probs))
        self.image = None

    def _cut_image(self, codes: torch.LongTensor, log_probs: torch.Tensor | None) -> None:
        """End the answer in its image such that a conversation can go on from it: the image whole, if there is any."""
        rows, columns = (torch.arange(side, device="cpu") for side in codes.shape)
        places = rows[:, None] * self.image.stride + columns
        codes = codes.masked_fill(len(self.tokens) + places >= self.limit, -1)
        opening = self.grammar.vocabulary.prefix_length
        if (codes >= 0).any():
            self._append_image(codes, log_probs)
            opening = 0
        else:
            self._pieces.append(SampledImage(codes, log_probs))
        self._end("length", opening)

    def _check_limit(self) -> None:
        if not self.is_finished and not self.in_image and len(self.tokens) >= self.limit:
            self.finish("length")
        elif self.in_image and len(self.tokens) >= self.limit:
            self._cut_image(self.image.given, None)

    def finish(self, reason: str) -> None:
        """End the answer here, outside of the codes of an image."""
        opening = {Phase.HEIGHT: 1, Phase.WIDTH: 2}.get(self.phase, 0)
        if opening:
            self._pieces.append(SampledImage(None))
        self._end(reason, opening)

    def stop_here(self, codes: torch.LongTensor | None = None, log_probs: torch.Tensor | None = None) -> None:
        """End the answer at what there is, in an image at its `codes`."""
        if self.in_image:
            self.request.max_new_tokens = self.num_new_tokens
            self._cut_image(codes, log_probs)
        else:
            self.finish("length")

    def fail(self, error: Exception) -> None:
        """End without an answer."""
        self.error = error
        self.phase = Phase.FINISHED

    def _end(self, reason: str, num_opening: int) -> None:
        self.token_ids = self.tokens[self.answer_start :]
        if self.limit != float("inf"):
            self.token_ids = self.token_ids[: int(self.limit) - self.answer_start]
        # A conversation goes on without an image of which there is nothing.
        del self.tokens[len(self.tokens) - num_opening :]
        self.num_fed = int(min(self.num_fed, len(self.tokens), self.limit))
        self.tokens.append(self.grammar.vocabulary.separator_id)
        self.finish_reason = reason
        self.phase = Phase.FINISHED
