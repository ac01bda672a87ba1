# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Text from token ids that come one after the other."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """
    Decodes tokens to text piece by piece. A character that spans several tokens comes out once it is whole.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): The tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._held: list[int] = []

    def push(self, ids: list[int]) -> str:
        """The text that is certain now; the empty string where a character is still open."""
        self._held += ids
        text = self._decode()
        if text.endswith(INCOMPLETE):
            return ""
        self._held = []
        return text

    def flush(self) -> str:
        """What is held back, with replacement characters for what is no text."""
        text = self._decode()
        self._held = []
        return text

    def _decode(self) -> str:
        return self._tokenizer.decode(self._held, skip_special_tokens=False, clean_up_tokenization_spaces=False)
