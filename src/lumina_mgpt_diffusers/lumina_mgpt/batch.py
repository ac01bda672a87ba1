# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The tensors of the rows that are being sampled, on the device, one entry for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .noise import NoiseStrip
from .row import ImageSpan, Row
from .scheduling_lumina_mgpt import SamplingPlaces
from .unirep import ImageVocabulary


@dataclass
class Window:
    """
    Places of a forward, those past the end of an image included.

    Args:
        place (`torch.LongTensor` of shape `(batch_size, number)`): Index of each place in its image.
        stride (`torch.LongTensor` of shape `(batch_size, 1)`): Places from one row of codes to the next.
        noise (`torch.Tensor` of shape `(batch_size, number, num_codes)`, *optional*):
            Gumbel noise of the places; None where nothing is random.
        rule ([`SamplingPlaces`]): The places as the sampler sees them.
    """

    place: torch.LongTensor
    stride: torch.LongTensor
    noise: torch.Tensor | None
    rule: SamplingPlaces


class Batch:
    r"""
    What the device has to know of rows: their tokens by position, and where their images lie.

    Tokens are held as **symbols**: a code is itself, any other token is the number of codes plus its id; -1 is what is
    neither known nor guessed.

    Args:
        vocabulary ([`ImageVocabulary`]): Token ids of the image language.
        vocab_size (`int`): Number of token ids.
        device (`torch.device`): Where the sampling runs.

    Attributes:
        rows, images, texts (`list[Row]`): The rows, those in an image, and the others.
        symbols (`torch.LongTensor` of shape `(batch_size, length)`): Final symbols, then drafts.
        is_known (`torch.BoolTensor` of shape `(batch_size, length)`): Which of them are not to be sampled.
        fed (`torch.LongTensor` of shape `(batch_size,)`): Number of tokens that are final and in the KV cache.
        log_probs (`torch.Tensor` of shape `(batch_size, length)`): Log-probabilities of sampled codes.
    """

    def __init__(self, vocabulary: ImageVocabulary, vocab_size: int, device: torch.device) -> None:
        self.vocabulary = vocabulary
        self.device = device
        self.num_codes = vocabulary.num_codes
        ids = torch.arange(vocab_size, device="cpu")
        self._ids = torch.cat([vocabulary.code_ids.cpu(), ids]).to(device)
        self.rows: list[Row] = []
        self.images: list[Row] = []
        self.texts: list[Row] = []
        self.symbols = torch.empty(0, 0, dtype=torch.long, device=device)
        self.is_known = torch.empty(0, 0, dtype=torch.bool, device=device)
        self.log_probs = torch.empty(0, 0, device=device)
        self.fed = torch.empty(0, dtype=torch.long, device=device)

    def rearrange(self, rows: Sequence[Row], length: int) -> None:
        """Hold these rows, of at least so many positions. Those that are new still have to be loaded."""
        length = max(length, self.symbols.shape[1])
        spare = length - self.symbols.shape[1]
        old = {row: index for index, row in enumerate(self.rows)}
        picked = self.upload([old.get(row, -1) for row in rows])

        def pick(tensor: torch.Tensor, fill: int) -> torch.Tensor:
            if not self.rows:
                return tensor.new_full((len(rows), length), fill)
            return torch.nn.functional.pad(tensor, (0, spare), value=fill)[picked]

        self.symbols, self.is_known = pick(self.symbols, -1), pick(self.is_known, True)
        self.log_probs = pick(self.log_probs, 0)
        self.fed = self.fed[picked] if self.rows else self.upload([0] * len(rows))
        self.rows = list(rows)

    def load(self, row: Row) -> None:
        """Take over what the host knows of a row: its tokens and how far they are fed."""
        index = self.rows.index(row)
        symbols = torch.tensor(row.tokens, device="cpu") + self.num_codes
        is_known = torch.ones(self.symbols.shape[1], dtype=torch.bool, device="cpu")
        if row.in_image:
            image = row.image
            symbols = torch.cat([symbols, self._image_symbols(image)])
            is_known[image.first : image.end] = image.known
        self.symbols[index] = -1
        self.symbols[index, : len(symbols)] = symbols.to(self.device)
        self.is_known[index] = is_known.to(self.device)
        self.fed[index] = row.num_fed
        self.log_probs[index] = 0

    def _image_symbols(self, image: ImageSpan) -> torch.LongTensor:
        codes = image.given.cpu()
        if self.vocabulary.row_end_id is not None:
            codes = torch.nn.functional.pad(codes, (0, 1), value=self.num_codes + self.vocabulary.row_end_id)
        return codes.flatten()[: image.num_places]

    def locate(self) -> None:
        """Work out where the images lie, after rows have been loaded."""
        images = [row.image for row in self.rows]
        self.images = [row for row in self.rows if row.in_image]
        self.texts = [row for row in self.rows if not row.in_image]
        self.text_index = self.upload([index for index, row in enumerate(self.rows) if not row.in_image])
        self.image_index = slice(None)
        if self.texts:
            self.image_index = self.upload([index for index, row in enumerate(self.rows) if row.in_image])
        self.first = self.upload([image.first if image else 0 for image in images])[:, None]
        self.stride = self.upload([image.stride if image else 1 for image in images])[:, None]
        self.stop = self.upload([image.stop if image else 0 for image in images])
        self.answer_start = self.upload([row.answer_start for row in self.rows])[:, None]
        self.keys = self.upload([row.request.key for row in self.rows])[:, None]
        self._noise = NoiseStrip(self.keys[self.image_index], self.num_codes)
        self.places = SamplingPlaces([row.settings for row in self.images], self.device)
        self.places.num_columns = self.stride[self.image_index] - self.vocabulary.row_end_length
        self.places.num_codes = self.upload([row.num_codes for row in self.images])[:, None]
        self.places.first = self.upload([row.num_given_codes for row in self.images])[:, None]

    def upload(self, values: Sequence[int]) -> torch.LongTensor:
        return torch.tensor(list(values), dtype=torch.long, device="cpu").to(self.device)

    def open(self, positions: torch.LongTensor) -> Window:
        """The places of the images at positions `(num_images, number)`, with their noise."""
        images = self.image_index
        place, stride = positions - self.first[images], self.stride[images]
        noise = None
        if self.places.any_random:
            noise = self._noise.read(positions - self.answer_start[images])
        index = place - place // stride * self.vocabulary.row_end_length
        return Window(place, stride, noise, self.places.at(index))

    def window_ids(self, window: int) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Token ids `(batch_size, window)` that a forward takes of each row, and their positions."""
        positions = self.fed[:, None] + torch.arange(window, device=self.device)
        return self._ids[self.symbols.gather(1, positions).clamp(min=0)], positions

    def final_ids(self, row: Row) -> list[int]:
        """Token ids of a row that are final, from its first position on."""
        index = self.rows.index(row)
        return self._ids[self.symbols[index, : int(self.fed[index]) + 1]].tolist()

    def codes(self, row: Row) -> torch.LongTensor:
        """Codes `(rows, columns)` of the image that a row is in, on the device; -1 where none is final yet."""
        index, image = self.rows.index(row), row.image
        span = slice(image.first, image.end)
        is_final = torch.arange(image.first, image.end, device=self.device) <= self.fed[index]
        codes = torch.where(self.is_known[index, span] | is_final, self.symbols[index, span], -1)
        return self._to_grid(codes, row)

    def image_log_probs(self, row: Row) -> torch.Tensor:
        """Log-probabilities `(rows, columns)` of the codes of the image that a row is in, 0 where none was sampled."""
        index, image = self.rows.index(row), row.image
        is_final = torch.arange(image.first, image.end, device=self.device) <= self.fed[index]
        return self._to_grid(self.log_probs[index, image.first : image.end].where(is_final, 0.0), row)

    def _to_grid(self, places: torch.Tensor, row: Row) -> torch.Tensor:
        image = row.image
        places = torch.nn.functional.pad(places, (0, image.row_end_length))
        return places.view(image.rows, image.stride)[:, : image.columns]
