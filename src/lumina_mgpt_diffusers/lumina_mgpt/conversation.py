# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Conversations with the model: what they consist of, and the state that one carries from turn to turn."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch

from .kv_cache import SlotCache
from .validation import shown


# Guards the beginning of turns, so that of two at once only one begins.
_TURNS = threading.Lock()


@dataclass
class TextPart:
    """
    Text of an answer.

    Args:
        text (`str`): The text.
    """

    text: str


@dataclass
class ImagePart:
    """
    An image of an answer.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*):
            The image as `output_type` asks for it. What was not sampled before the answer was cut off repeats the
            codes above it. None if nothing was sampled.
        codes (`torch.LongTensor` of shape `(height / stride, width / stride)`, *optional*):
            Its VQ codes, -1 where none was sampled. None if the answer was cut off before the size of the image was
            known.
        is_complete (`bool`, defaults to `True`): Whether all of it was sampled.
    """

    image: PIL.Image.Image | np.ndarray | torch.Tensor | None
    codes: torch.LongTensor | None
    is_complete: bool = True


class LuminaMGPTConversation:
    """
    A conversation over several calls of [`LuminaMGPTChatPipeline`].

    It holds the exact tokens so far and the KV cache of them, so that a turn costs no more than its own tokens and a
    short forward, which tells whether the weights are still those of the cache.

    An image that was cut off is whole in it: what was not sampled repeats the codes above. If nothing was sampled, the
    conversation goes on without the image.

    Args:
        generator (`torch.Generator`, *optional*):
            Draws the noise of all its answers; by default the generator of its first call.

    Attributes:
        token_ids (`list[int]`): The conversation so far, each turn with its separator.
        finish_reason (`str`, *optional*): How its last answer ended, `"stop"` or `"length"`.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(f"`generator` has to be a `torch.Generator`, or None, but is {shown(generator)}.")
        self.generator = generator
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self._cache: SlotCache | None = None
        self._num_cached = 0
        self._cache_kind: object = None
        self._turn: object = None

    @property
    def num_cached_tokens(self) -> int:
        """How many of [`token_ids`] are in the cache. The next turn feeds the others and its own."""
        return self._num_cached

    @property
    def cache_size(self) -> int:
        """Memory of the cache in bytes."""
        return 0 if self._cache is None else self._cache.num_bytes

    def drop_cache(self) -> None:
        """Free the memory of the cache. The next turn computes it anew."""
        self._cache, self._num_cached = None, 0

    def check_free(self) -> None:
        """Raise a `ValueError` if a turn is being answered."""
        if self._turn is not None:
            raise ValueError(
                "`conversation` is in the middle of a turn: another call or stream answers it. Finish or close that"
                " first, or go on with a conversation of its own."
            )

    def begin_turn(self, turn: object, before: list[int]) -> None:
        """
        Have the conversation for a turn, alone, until [`extend`] or [`leave_turn`].

        Args:
            turn (`object`): What the turn is known by.
            before (`list[int]`): The tokens that the turn comes after.

        Raises:
            `ValueError`: If another turn is being answered, or was since.
        """
        with _TURNS:
            self.check_free()
            if self.token_ids != before:
                raise ValueError("`conversation` has gone on since this turn was made: make it anew.")
            self._turn = turn

    def is_in(self, turn: object) -> bool:
        """Whether a turn is being answered and is this one."""
        return self._turn is turn

    def leave_turn(self, turn: object) -> None:
        """End a turn that came to no answer. One that did has ended."""
        if self.is_in(turn):
            self._turn = None

    def take_cache(self, kind: object) -> tuple[SlotCache | None, int]:
        """
        The cache, to be extended, and the number of tokens in it. Without it the conversation is still whole.

        Args:
            kind (`object`): What it has to have been made with, see [`~engine.Engine.contents_kind`].
        """
        taken = (self._cache, self._num_cached) if kind == self._cache_kind else (None, 0)
        self.drop_cache()
        return taken

    def extend(
        self,
        token_ids: list[int],
        finish_reason: str,
        generator: torch.Generator,
        cache: SlotCache | None,
        num_cached: int,
        kind: object,
    ) -> None:
        """
        Go on to after an answer, all at once, and end its turn.

        Args:
            token_ids (`list[int]`): The whole conversation, up to the separator after the answer.
            finish_reason (`str`): How the answer ended.
            generator (`torch.Generator`): The generator of its noise.
            cache ([`SlotCache`], *optional*): Cache of one row.
            num_cached (`int`): Number of tokens in it.
            kind (`object`): As for [`take_cache`].
        """
        # Assignments alone, which Ctrl-C does not come between.
        cache, num_cached = (None, 0) if cache is None else (cache, num_cached)
        self.token_ids, self.finish_reason, self.generator = token_ids, finish_reason, generator
        self._cache, self._num_cached, self._cache_kind = cache, num_cached, kind
        self._turn = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.token_ids)} tokens, {self._num_cached} of them cached)"
