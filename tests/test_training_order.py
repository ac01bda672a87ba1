# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which samples are trained on when: order, mixture, packing, and the context that is dropped."""

import json

import datasets
import numpy as np
import pytest
import torch

from lumina_mgpt_diffusers.training import PretokenizedData, TrainingData
from lumina_mgpt_diffusers.training.training_data import drop_context


START, SEPARATOR = 100, 101
IDS = {"start_id": START, "separator_id": SEPARATOR, "pad_id": 1}


def make_data(folder, lengths: list[int], first_id: int = 1000, weight: float | None = None) -> PretokenizedData:
    """Samples whose tokens are all the id of the sample."""
    rows = {
        "input_ids": [[first_id + index] * length for index, length in enumerate(lengths)],
        "labels": [[first_id + index] * length for index, length in enumerate(lengths)],
        "length": lengths,
    }
    datasets.Dataset.from_dict(rows).save_to_disk(str(folder))
    (folder / "settings.json").write_text(json.dumps(IDS))
    return PretokenizedData(folder, weight)


def ids(data: TrainingData) -> list[int]:
    items = [data[place] for place in range(len(data))]
    samples = sum(items, []) if data.num_rows else items
    return [int(sample["input_ids"][0]) for sample in samples]


def test_every_sample_once_in_each_epoch_in_another_order(tmp_path):
    part = make_data(tmp_path / "a", [5] * 20)
    data = TrainingData([part], batch_size=4)
    first = ids(data)
    data.set_epoch(1)
    second = ids(data)
    assert sorted(first) == sorted(second) == list(range(1000, 1020))
    assert first != second
    data.set_epoch(0)
    assert ids(data) == first
    assert ids(TrainingData([part], batch_size=4, seed=1)) != first


def test_a_mixture_follows_its_weights_and_loses_nothing(tmp_path):
    parts = [make_data(tmp_path / "a", [5] * 30, 1000, 1.0), make_data(tmp_path / "b", [5] * 4, 2000, 3.0)]
    data = TrainingData(parts, epoch_size=20)
    seen, repeated = [], []
    for epoch in range(6):
        data.set_epoch(epoch)
        of_epoch = ids(data)
        assert sum(id < 2000 for id in of_epoch) == 5
        repeated += [id for id in of_epoch if id >= 2000]
        seen += [id for id in of_epoch if id < 2000]
    assert sorted(seen) == list(range(1000, 1030))
    assert {repeated.count(id) for id in range(2000, 2004)} == {22, 23}


def test_packed_rows_are_even_and_never_empty(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 100, 200).tolist()
    data = TrainingData([make_data(tmp_path / "a", lengths)], tokens_per_row=400)
    sizes = set()
    for epoch in range(3):
        data.set_epoch(epoch)
        assert sorted(ids(data)) == list(range(1000, 1200))
        tokens = [sum(len(sample["input_ids"]) for sample in data[place]) for place in range(len(data))]
        assert 0 < min(tokens) and max(tokens) < 400 + 100
        assert np.mean(tokens) == pytest.approx(400, rel=0.05)
        sizes.add(len(data))
    assert len(sizes) == 1
    with pytest.raises(ValueError, match="`tokens_per_row` is 50, but the longest sample has"):
        TrainingData([make_data(tmp_path / "b", lengths)], tokens_per_row=50)


def test_batches_hold_samples_of_like_length(tmp_path):
    lengths = np.random.default_rng(0).integers(5, 100, 400).tolist()
    part = make_data(tmp_path / "a", lengths)

    def padding(data: TrainingData) -> int:
        of_items = np.array([len(data[place]["input_ids"]) for place in range(400)]).reshape(100, 4)
        return int((of_items.max(axis=1, keepdims=True) - of_items).sum())

    grouped = TrainingData([part], batch_size=4)
    assert sorted(ids(grouped)) == list(range(1000, 1400))
    assert padding(grouped) < 0.1 * padding(TrainingData([part], batch_size=4, group_by_length=False))


def conversation() -> dict[str, torch.Tensor]:
    """A question with an image, an answer with one between words, and a second answer with another."""
    question, answer = [7, START, 11, 12, 8, SEPARATOR], [20, START, 13, 14, 21, SEPARATOR]
    second = [9, SEPARATOR], [START, 15, 16, SEPARATOR]
    ids = [0, *question, *answer, *second[0], *second[1]]
    learnt = [False] * 7 + [True] * 6 + [False] * 2 + [True] * 4
    labels = [id if flag else -100 for id, flag in zip(ids, learnt)]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


def test_without_context_only_an_answered_image_is_left():
    cut = {
        tuple(drop_context(conversation(), np.random.default_rng(seed), IDS)["input_ids"].tolist())
        for seed in range(20)
    }
    assert cut == {(START, 13, 14, 21, SEPARATOR), (START, 15, 16, SEPARATOR)}
    text = {"input_ids": torch.tensor([0, 7, 8]), "labels": torch.tensor([-100, 7, 8])}
    assert torch.equal(drop_context(text, np.random.default_rng(0), IDS)["input_ids"], text["input_ids"])


def test_context_is_dropped_as_often_as_asked_and_differently_in_each_epoch(tmp_path):
    sample = {name: tensor.tolist() for name, tensor in conversation().items()}
    rows = {name: [sample[name]] * 1000 for name in sample} | {"length": [len(sample["labels"])] * 1000}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "a"))
    (tmp_path / "a" / "settings.json").write_text(json.dumps(IDS))
    data = TrainingData([PretokenizedData(tmp_path / "a")], context_dropout=0.1, group_by_length=False)

    def dropped(data: TrainingData) -> list[bool]:
        return [len(data[place]["input_ids"]) < len(sample["labels"]) for place in range(1000)]

    first = dropped(data)
    assert 60 < sum(first) < 140
    assert dropped(data) == first
    data.set_epoch(1)
    assert dropped(data) != first
    assert all(data[place]["labels"][0] == -100 for place in range(1000))


def test_folders_that_are_none_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"it has no settings\.json"):
        PretokenizedData(tmp_path)
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="is not complete"):
        PretokenizedData(tmp_path)
    with pytest.raises(ValueError, match="weight of .* has to be positive"):
        make_data(tmp_path / "a", [3], weight=-1.0)
