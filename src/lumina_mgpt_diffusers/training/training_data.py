# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What a model is trained on, epoch by epoch: which samples, in which order, in which batches, with or without context.

All of it follows from the seed, the epoch and the place in it. No generator is drawn from as training goes on, so that
a run that is resumed sees what it would have seen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from .data_collator import IGNORED
from .pretokenization import SETTINGS_NAME


GROUP_BATCHES = 50
"""Batches of samples in random order among which those of like length are put together."""


class PretokenizedData:
    """
    A folder that [`pretokenize`] wrote.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        weight (`float`, *optional*):
            Share of its samples in a mixture, in any unit, by default their number. If there are fewer, some are seen
            several times in an epoch; if more, the others come in later epochs.
    """

    def __init__(self, folder: str | os.PathLike, weight: float | None = None) -> None:
        path = Path(folder) / SETTINGS_NAME
        if not path.is_file():
            raise ValueError(f"{str(folder)!r} is no folder of pre-tokenised data: it has no {SETTINGS_NAME}.")
        self.folder = Path(folder)
        self.settings = json.loads(path.read_text())
        try:
            self.rows = datasets.load_from_disk(str(folder)).with_format("numpy")
        except FileNotFoundError:
            raise ValueError(f"The pre-tokenisation of {str(folder)!r} is not complete. Start it again.") from None
        self.lengths = np.asarray(self.rows["length"][:])
        self.weight = len(self.rows) if weight is None else weight
        if self.weight <= 0:
            raise ValueError(f"The weight of {str(folder)!r} has to be positive but is {weight}.")


class TrainingData(Dataset):
    """
    Samples, or rows of samples that are packed, in the order in which they are trained on.

    Args:
        parts (`list[PretokenizedData]`): The data. Several are mixed by their weights.
        batch_size (`int`, defaults to 1): Samples of a batch.
        tokens_per_row (`int`, *optional*):
            If given, each item is a row of samples of about this many tokens, to be packed: on average at most as
            many, and never as many more as the longest sample has.
        group_by_length (`bool`, defaults to `True`): Whether samples of like length share a batch if not packed.
        context_dropout (`float`, defaults to 0.0):
            Probability that a sample with an image in an answer is cut down to that image: the unconditional branch of
            classifier-free guidance.
        epoch_size (`int`, *optional*): Samples of an epoch, by default as many as there are.
        seed (`int`, defaults to 0): Decides order and dropout.
    """

    def __init__(
        self,
        parts: Sequence[PretokenizedData],
        *,
        batch_size: int = 1,
        tokens_per_row: int | None = None,
        group_by_length: bool = True,
        context_dropout: float = 0.0,
        epoch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if not parts:
            raise ValueError("`parts` has to hold at least one folder of pre-tokenised data.")
        if not 0 <= context_dropout <= 1:
            raise ValueError(f"`context_dropout` has to be in [0, 1] but is {context_dropout}.")
        self.parts = list(parts)
        self.batch_size = batch_size
        self.group_by_length = group_by_length
        self.context_dropout = context_dropout
        self.seed = seed
        size = sum(len(part.rows) for part in parts) if epoch_size is None else epoch_size
        self.counts = _shares(size, [part.weight for part in parts])
        self.tokens_per_row = tokens_per_row
        self.num_rows = None
        if tokens_per_row is not None:
            # The number of rows must not change from epoch to epoch, in which other samples may be drawn.
            expected = sum(count * float(part.lengths.mean()) for count, part in zip(self.counts, self.parts))
            longest = max(int(part.lengths.max()) for part in self.parts)
            if tokens_per_row < longest:
                raise ValueError(f"`tokens_per_row` is {tokens_per_row}, but the longest sample has {longest} tokens.")
            self.num_rows = max(1, min(-(-int(expected) // tokens_per_row), sum(self.counts)))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, counted from 0."""
        self.epoch = epoch
        order = self._order(epoch)
        if self.num_rows is not None:
            self.items = self._pack(order)
        elif self.group_by_length:
            self.items = self._group(order)
        else:
            self.items = order

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        if self.num_rows is not None:
            return [self._sample(*key) for key in self.items[place]]
        return self._sample(*self.items[place])

    @property
    def mean_length(self) -> float:
        """Mean number of tokens of a sample, as they are mixed."""
        return sum(count * float(part.lengths.mean()) for count, part in zip(self.counts, self.parts)) / sum(
            self.counts
        )

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])

    def _order(self, epoch: int) -> np.ndarray:
        """Part and index of each sample of an epoch and how often it was drawn before, `(samples, 3)`."""
        keys = []
        for number, (part, count) in enumerate(zip(self.parts, self.counts)):
            # Each part is an endless sequence of its permutations, of which every epoch takes the next piece.
            drawn = np.arange(epoch * count, (epoch + 1) * count)
            rounds = drawn // len(part.rows)
            indices = np.empty_like(drawn)
            for round in np.unique(rounds):
                permutation = self._rng(1, number, int(round)).permutation(len(part.rows))
                indices[rounds == round] = permutation[drawn[rounds == round] % len(part.rows)]
            keys.append(np.stack([np.full(count, number), indices, rounds], axis=1))
        order = np.concatenate(keys)
        return order[self._rng(2, epoch).permutation(len(order))]

    def _lengths(self, order: np.ndarray) -> np.ndarray:
        lengths = np.empty(len(order), dtype=np.int64)
        for number, part in enumerate(self.parts):
            of_part = order[:, 0] == number
            lengths[of_part] = part.lengths[order[of_part, 1]]
        return lengths

    def _pack(self, order: np.ndarray) -> list[np.ndarray]:
        # Cut where the tokens are shared out evenly. A sample belongs to the row in which its middle lies.
        lengths = self._lengths(order)
        middles = lengths.cumsum() - lengths / 2
        rows = (middles * self.num_rows / lengths.sum()).astype(np.int64)
        starts = np.searchsorted(rows, np.arange(1, self.num_rows))
        if len(np.unique(rows)) < self.num_rows:
            # Hardly any samples, and of very different lengths.
            starts = np.arange(1, self.num_rows) * len(order) // self.num_rows
        return np.split(order, starts)

    def _group(self, order: np.ndarray) -> np.ndarray:
        lengths = self._lengths(order)
        size = self.batch_size
        groups = np.split(np.arange(len(order)), range(GROUP_BATCHES * size, len(order), GROUP_BATCHES * size))
        by_length = np.concatenate([group[np.argsort(-lengths[group], kind="stable")] for group in groups])
        num_whole = len(order) // size
        batches = by_length[: num_whole * size].reshape(num_whole, size)
        batches = batches[self._rng(3, self.epoch).permutation(num_whole)]
        return order[np.concatenate([batches.flatten(), by_length[num_whole * size :]])]

    def _sample(self, part: int, index: int, round: int) -> dict[str, torch.Tensor]:
        row = self.parts[part].rows[int(index)]
        sample = {name: torch.from_numpy(row[name].astype(np.int64)) for name in ("input_ids", "labels")}
        rng = self._rng(4, int(part), int(index), int(round))
        if rng.random() < self.context_dropout:
            sample = drop_context(sample, rng, self.parts[part].settings)
        sample["labels"][0] = IGNORED  # nothing comes before it
        return sample


def drop_context(
    sample: Mapping[str, torch.Tensor], rng: np.random.Generator, settings: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """
    Cut a sample down to one image of its answers, up to the end of that answer.

    Args:
        sample (`Mapping[str, torch.Tensor]`): `input_ids` and `labels`.
        rng (`np.random.Generator`): Chooses the image if there are several.
        settings (`Mapping[str, int]`): `start_id` and `separator_id`.

    Returns:
        `dict[str, torch.Tensor]`: The sample as it is if no answer has an image.
    """
    labels = sample["labels"]
    starts = (labels == settings["start_id"]).nonzero().flatten()
    if not len(starts):
        return dict(sample)
    start = int(starts[rng.integers(len(starts))])
    ends = (labels[start:] == settings["separator_id"]).nonzero().flatten()
    stop = start + int(ends[0]) + 1 if len(ends) else len(labels)
    return {name: tensor[start:stop].clone() for name, tensor in sample.items()}


def _shares(size: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in the ratio of weights, whose sum is `size`; none is zero."""
    exact = np.array(weights) / sum(weights) * size
    shares = np.floor(exact).astype(int)
    for index in np.argsort(-(exact - shares), kind="stable")[: size - shares.sum()]:
        shares[index] += 1
    if not shares.all():
        raise ValueError(f"An epoch of {size} samples is too small for the weights {list(weights)}.")
    return shares.tolist()
