# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The state of one answer that is being sampled: text and images, token by token. It knows no model.

Only what is well formed can be sampled:

- in text, the tokens of text, the start of an image, and the separator that ends the answer;
- after the start of an image, a height tag, then a width tag, which together are a grid of at most the trained area
  and aspect ratio, unless the caller forces the size;
- then codes alone; row ends and the end of the image follow from the size.

An answer thus ends in two ways: the model says the separator, or the number of tokens is reached. An image that is cut
off keeps the codes it has.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum

import torch
from transformers import PreTrainedTokenizerBase

from .image_sampling import ImageSampling, guide
from .scheduling_lumina_mgpt import LuminaMGPTScheduler
from .sequence_batch import Feed
from .size_tags import SizeTags, choose_id
from .unirep import ImageVocabulary, fill_missing_codes


@dataclass(frozen=True)
class Grammar:
    """
    Which token may follow.

    Args:
        vocabulary ([`ImageVocabulary`]): Token ids of the image language.
        size_tags ([`SizeTags`]): The sizes that an image may have.
        text_ids (`torch.LongTensor` of shape `(num_text_ids,)`):
            What may be sampled in text: text, the start of an image, the separator.
        forced_size (`tuple[int, int]`, *optional*): `(height, width)` in pixels of every image.
    """

    vocabulary: ImageVocabulary
    size_tags: SizeTags
    text_ids: torch.LongTensor
    forced_size: tuple[int, int] | None = None

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: ImageVocabulary,
        base_size: int,
        forced_size: tuple[int, int] | None = None,
    ) -> Grammar:
        """All that the tokenizer did not add to its text vocabulary is text."""
        control = {*tokenizer.added_tokens_encoder.values(), *vocabulary.code_ids.tolist(), *vocabulary.size_tag_ids}
        control |= {vocabulary.end_id, vocabulary.row_end_id}
        allowed = set(tokenizer.get_vocab().values()) - control | {vocabulary.start_id, vocabulary.separator_id}
        return cls(vocabulary, SizeTags(vocabulary, base_size), torch.tensor(sorted(allowed)), forced_size)


@dataclass(frozen=True)
class SamplerSettings:
    """Sampler settings of an answer, see [`LuminaMGPTScheduler`]; `top_k` and `text_top_k` are 0 for all."""

    guidance_scale: float
    temperature: float
    top_k: int
    text_temperature: float
    text_top_k: int


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
    """

    codes: torch.LongTensor | None

    @property
    def is_complete(self) -> bool:
        return self.codes is not None and bool((self.codes >= 0).all())


class Phase(Enum):
    TEXT = "text"
    HEIGHT = "height"
    WIDTH = "width"
    IMAGE = "image"
    FINISHED = "finished"


class AnswerSampling:
    r"""
    Samples one answer. Each round goes [`feeds`], a forward of the model over these tokens, [`accept`].

    Args:
        key (`Hashable`): Names the sequences of this answer in the batch.
        scheduler ([`LuminaMGPTScheduler`]): The sampler.
        grammar ([`Grammar`]): Which token may follow.
        settings ([`SamplerSettings`]): Sampler settings.
        context (`list[int]`): Token ids of the conversation, up to the separator before the answer.
        num_cached (`int`): How many of these the cache holds already.
        max_new_tokens (`int`): Most tokens of the answer.
        generator (`torch.Generator`): Draws the noise of text and images in their order.
        device (`torch.device`): Where images are sampled.
    """

    def __init__(
        self,
        key: Hashable,
        scheduler: LuminaMGPTScheduler,
        grammar: Grammar,
        settings: SamplerSettings,
        context: list[int],
        num_cached: int,
        max_new_tokens: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.key = key
        self.scheduler = scheduler
        self.grammar = grammar
        self.settings = settings
        self.generator = generator
        self.device = device
        self.sequence = list(context)
        self.num_cached = num_cached
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self._context_length = len(context)
        self._max_length = len(context) + max_new_tokens
        self._phase = Phase.TEXT
        self._pieces: list[SampledText | SampledImage] = []

    @property
    def is_finished(self) -> bool:
        return self._phase is Phase.FINISHED

    @property
    def conversation_key(self) -> Hashable:
        """Name of the sequence of the conversation itself."""
        return (self.key, "conversation")

    @property
    def in_image(self) -> bool:
        """Whether the next logits are those of codes."""
        return self._phase is Phase.IMAGE

    @property
    def max_new_tokens(self) -> int:
        return self._max_length - self._context_length

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the answer so far."""
        if self.is_finished:
            return len(self.token_ids)
        num_in_image = self._image.first_places[0] if self.in_image else 0
        return min(len(self.sequence) + num_in_image, self._max_length) - self._context_length

    def take_pieces(self) -> list[SampledText | SampledImage]:
        """What was sampled since the last call: text, and images that are finished."""
        pieces, self._pieces = self._pieces, []
        return pieces

    # What to feed

    @property
    def _is_guided(self) -> bool:
        return self.in_image and self.settings.guidance_scale != 1.0

    def feeds(self) -> list[Feed]:
        """What the next forward has to take: the conversation, and of a guided image the unconditional branch."""
        if not self.in_image:
            return [Feed(self.conversation_key, self.num_cached, self.sequence[self.num_cached :], 1)]
        # The window begins with the last final token, the width tag or one of the image.
        ids = self._image.window_ids(self._places)[0].tolist()
        feeds = [Feed(self.conversation_key, self.num_cached, self.sequence[self.num_cached : -1] + ids, len(ids))]
        if self._is_guided:
            # This branch sees the image alone.
            before = self.sequence[-3:-1][self._num_cached_unconditional :]
            key = (self.key, "unconditional")
            feeds.append(Feed(key, self._num_cached_unconditional, before + ids, len(ids)))
        return feeds

    def stop(self) -> None:
        """End the answer here."""
        self._max_length = self._context_length + self.num_tokens
        self._finish("length")

    # What came back

    def accept(self, logits: list[torch.Tensor]) -> None:
        """
        Go on by what the model said.

        Args:
            logits (`list[torch.Tensor]`):
                For each of [`feeds`] its logits, float32 of shape `(num_logits, vocab_size)`, or in an image of the
                range of ids that holds the codes.
        """
        if self.in_image:
            self._accept_codes(logits)
        else:
            self.num_cached = len(self.sequence)
            self._accept_token(logits[0][-1])
        if not self.is_finished and self.num_tokens >= self.max_new_tokens:
            self._finish("length")

    def _accept_token(self, logits: torch.Tensor) -> None:
        vocabulary = self.grammar.vocabulary
        if self._phase is Phase.TEXT:
            id = self._choose(logits, self.grammar.text_ids, self.settings.text_temperature, self.settings.text_top_k)
            if id == vocabulary.separator_id:
                self._finish("stop")
            elif id == vocabulary.start_id:
                self._open_image()
            else:
                self.sequence.append(id)
                self._pieces.append(SampledText([id]))
        elif self._phase is Phase.HEIGHT:
            self.sequence.append(self._choose_tag(logits, self.grammar.size_tags.height_ids()))
            self._phase = Phase.WIDTH
        else:
            self.sequence.append(self._choose_tag(logits, self.grammar.size_tags.width_ids(self.sequence[-1])))
            self._start_codes(*self.grammar.size_tags.size(*self.sequence[-2:]))

    def _choose(self, logits: torch.Tensor, allowed: torch.LongTensor, temperature: float, top_k: int) -> int:
        return choose_id(self.scheduler, logits, allowed, self.generator, temperature, top_k)

    def _choose_tag(self, logits: torch.Tensor, allowed: torch.LongTensor) -> int:
        return self._choose(logits, allowed, self.settings.temperature, self.settings.top_k)

    def _open_image(self) -> None:
        if self.grammar.forced_size is None:
            self.sequence.append(self.grammar.vocabulary.start_id)
            self._phase = Phase.HEIGHT
        else:
            self.sequence += self.grammar.vocabulary.prefix(*self.grammar.forced_size)
            self._start_codes(*self.grammar.forced_size)

    def _start_codes(self, height: int, width: int) -> None:
        patch_size = self.grammar.vocabulary.patch_size
        self._image = ImageSampling(
            self.scheduler,
            self.grammar.vocabulary,
            torch.full((1, height // patch_size, width // patch_size), -1),
            [self.generator],
            self.device,
            self.settings.temperature,
            self.settings.top_k,
        )
        self._places = self._image.open_window()
        self._num_cached_unconditional = 0
        self._phase = Phase.IMAGE

    def _accept_codes(self, logits: list[torch.Tensor]) -> None:
        logits = [self._image.select_codes(one) for one in logits]
        guided = guide(*logits, self.settings.guidance_scale) if self._is_guided else logits[0]
        self._image.accept(self._places, guided[None])
        num_final = self._image.first_places[0]
        head = len(self.sequence) - 1
        # The last final token is still to be fed: in the next window, or with the end of the image.
        self.num_cached = head + num_final
        self._num_cached_unconditional = 2 + num_final
        if self._image.is_finished:
            if len(self.sequence) + num_final <= self._max_length:
                self._close_image(self._image.codes[0].cpu())
        else:
            self._places = self._image.open_window()

    def _close_image(self, codes: torch.LongTensor) -> None:
        """Append the image to the sequence as a whole."""
        del self.sequence[-3:]
        self.sequence += self.grammar.vocabulary.to_tokens(fill_missing_codes(codes)).tolist()
        self._pieces.append(SampledImage(codes))
        self._image = None
        self._phase = Phase.TEXT

    def _finish(self, reason: str) -> None:
        """End the answer such that the conversation can go on from it: every image whole, then the separator."""
        num_opening = {Phase.HEIGHT: 1, Phase.WIDTH: 2, Phase.IMAGE: 3}.get(self._phase, 0)
        if self.in_image:
            codes = self._codes_in_time()
            if (codes >= 0).any():
                self._close_image(codes)
                num_opening = 0
            else:
                self._pieces.append(SampledImage(codes))
        elif num_opening:
            self._pieces.append(SampledImage(None))
        self.token_ids = self.sequence[self._context_length : self._max_length]
        # The conversation goes on without an image of which there is nothing.
        del self.sequence[len(self.sequence) - num_opening :]
        self.num_cached = min(self.num_cached, len(self.sequence), self._max_length)
        self.sequence.append(self.grammar.vocabulary.separator_id)
        self.finish_reason = reason
        self._phase = Phase.FINISHED

    def _codes_in_time(self) -> torch.LongTensor:
        """Codes of the image, -1 from the most tokens of the answer on, which drafts may have passed."""
        codes = self._image.codes[0].cpu()
        rows, columns = codes.shape
        places = torch.arange(rows)[:, None] * (columns + 1) + torch.arange(columns)
        return codes.masked_fill(len(self.sequence) + places >= self._max_length, -1)
