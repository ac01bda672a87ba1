# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images and texts as token ids and labels, against the recorded ones, and what becomes of bad samples."""

import io
import json

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import BASE_SIZE, FIXTURES
from omni import arrays

from lumina_mgpt_diffusers.training import (
    ConversationSource,
    DatasetSource,
    EncodingSettings,
    ImageFolderSource,
    TaskFormat,
    pretokenize,
)


ITEMS = json.loads((FIXTURES / "7b_like" / "training_items.json").read_text())
SETTINGS = EncodingSettings(base_size=BASE_SIZE)


def picture(seed: int = 0, size: tuple[int, int] = (96, 96)) -> PIL.Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


def png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def encode(pipe, source, output, settings=SETTINGS, **kwargs):
    return pretokenize(source, output, pipe.tokenizer, pipe.vqvae, settings, progress=False, **kwargs)


def make_folder(folder, lines: list) -> ImageFolderSource:
    folder.mkdir(exist_ok=True)
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text)
    return ImageFolderSource(folder)


def as_conversation(qas: list) -> list[dict]:
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(sum(map(list, qas), []))]


def test_conversations_have_the_tokens_and_labels_of_the_original(random_pipe, tmp_path):
    images = arrays("7b_like/images.npz")
    records = []
    for item in ITEMS.values():
        for name in item["images"]:
            PIL.Image.fromarray(images[name]).save(tmp_path / f"{name}.png")
        paths = [f"{name}.png" for name in item["images"]]
        records.append({"conversations": as_conversation(item["qas"]), "image": paths})
    (tmp_path / "data.json").write_text(json.dumps(records))

    report = encode(random_pipe, ConversationSource(tmp_path / "data.json"), tmp_path / "out", batch_size=2)

    assert report.is_complete and not report.skipped
    rows = datasets.load_from_disk(str(tmp_path / "out"))
    assert rows.column_names == ["input_ids", "labels", "length", "id"]
    assert rows.features["input_ids"].feature.dtype == "int32"
    assert rows["id"][:] == [f"data.json[{index}]" for index in range(len(ITEMS))]
    for row, item in zip(rows, ITEMS.values()):
        assert row["input_ids"] == item["tokens"]
        assert row["labels"] == item["labels"]
        assert row["length"] == len(item["tokens"])


def test_text_to_image_is_the_same_from_a_folder_and_from_a_dataset(random_pipe, tmp_path):
    item = ITEMS["t2i"]
    caption = item["qas"][0][0].split("\n")[1]
    (name,) = item["images"]
    image = PIL.Image.fromarray(arrays("7b_like/images.npz")[name])
    source = make_folder(tmp_path / "in", [{"file_name": "a.png", "text": caption}])
    image.save(tmp_path / "in" / "a.png")
    encode(random_pipe, source, tmp_path / "folder")
    dataset = datasets.Dataset.from_dict({"image": [{"bytes": png(image), "path": None}], "text": [caption]})
    encode(random_pipe, DatasetSource(dataset.cast_column("image", datasets.Image())), tmp_path / "dataset")
    for output in ("folder", "dataset"):
        (row,) = datasets.load_from_disk(str(tmp_path / output))
        assert row["input_ids"] == item["tokens"]
        assert row["labels"] == item["labels"]


@pytest.mark.parametrize("task, learns_image", [("depth", True), ("edit", True), ("caption", False)])
def test_tasks_of_two_images_and_of_texts(random_pipe, tmp_path, task, learns_image):
    columns = {"image": [{"bytes": png(picture(1)), "path": None}], "text": ["make it night"]}
    columns["given"] = [{"bytes": png(picture(2, (64, 128))), "path": None}]
    condition = "given" if learns_image else None
    source = DatasetSource(datasets.Dataset.from_dict(columns), TaskFormat(task, condition_column=condition))
    encode(random_pipe, source, tmp_path / "out")
    (row,) = datasets.load_from_disk(str(tmp_path / "out"))
    vocabulary = random_pipe.image_vocabulary
    learnt = [id for id in row["labels"] if id != -100]
    assert row["input_ids"].count(vocabulary.start_id) == 1 + learns_image
    assert (vocabulary.start_id in learnt) == learns_image
    assert learnt[-1] == vocabulary.separator_id
    text = random_pipe.tokenizer.decode(row["input_ids"])
    assert ("make it night" in text) == (task != "depth")


def bad_samples(folder) -> tuple[list, dict[str, str]]:
    folder.mkdir()
    picture().save(folder / "good.png")
    picture(3, (64, 128)).save(folder / "tall.png")
    picture(4, (2, 200)).save(folder / "line.png")
    (folder / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\nthis is no image")
    (folder / "cut.png").write_bytes(png(picture())[:2000])
    good = {"file_name": "good.png", "text": "a fox"}
    bad = {
        "corrupt": ({"file_name": "corrupt.png", "text": "x"}, "cannot be opened"),
        "cut": ({"file_name": "cut.png", "text": "x"}, "trunc"),
        "missing": ({"file_name": "none.png", "text": "x"}, "none.png"),
        "line": ({"file_name": "line.png", "text": "x"}, "aspect ratio"),
        "empty caption": ({"file_name": "good.png", "text": " "}, "has to be a text"),
        "no caption": ({"file_name": "good.png"}, "has to be a text"),
        "no name": ({"text": "x"}, "name of an image"),
        "no JSON": ("{", "not JSON"),
    }
    lines = [good, *(line for line, _ in bad.values()), {"file_name": "tall.png", "text": "a tree"}]
    reasons = {f"metadata.jsonl:{2 + number}": reason for number, (_, reason) in enumerate(bad.values())}
    return lines, reasons


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_left_out_and_listed(random_pipe, tmp_path, num_workers):
    lines, reasons = bad_samples(tmp_path / "in")
    source = make_folder(tmp_path / "in", lines)
    report = encode(random_pipe, source, tmp_path / "out", block_size=4, num_workers=num_workers)
    assert {one.id: one.reason for one in report.skipped}.keys() == reasons.keys()
    for one in report.skipped:
        assert reasons[one.id] in one.reason
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [one["id"] for one in listed] == list(reasons)
    rows = datasets.load_from_disk(str(tmp_path / "out"))
    assert rows["id"][:] == ["metadata.jsonl:1", f"metadata.jsonl:{len(lines)}"]


@pytest.mark.parametrize(
    "turns, images, reason",
    [
        ([["<|image|> <|image|>", "Yes."]], 1, "mark 2 images"),
        ([["<|image|>", "<|image|>"]], 3, "mark 2 images by <|image|> but `image` holds 3"),
        ([["Hello", ""]], 0, "turn 1"),
        ([["Hello " * 5000, "Yes."]], 0, "more than the 2000 of `max_length`"),
    ],
)
def test_bad_conversations_are_left_out(random_pipe, tmp_path, turns, images, reason):
    picture().save(tmp_path / "a.png")
    good = {"conversations": as_conversation([["<|image|> What?", "Noise."]]), "image": "a.png"}
    bad = {"conversations": as_conversation(turns), "image": ["a.png"] * images}
    (tmp_path / "data.json").write_text(json.dumps([good, bad]))
    settings = EncodingSettings(BASE_SIZE, max_length=2000)
    report = encode(random_pipe, ConversationSource(tmp_path / "data.json"), tmp_path / "out", settings)
    assert [one.id for one in report.skipped] == ["data.json[1]"]
    assert reason in report.skipped[0].reason


def test_long_conversations_are_cut_off_on_request(random_pipe, tmp_path):
    record = {"conversations": as_conversation([["Count.", "one two " * 5000]])}
    (tmp_path / "data.json").write_text(json.dumps([record]))
    settings = EncodingSettings(BASE_SIZE, max_length=2000, truncate=True)
    encode(random_pipe, ConversationSource(tmp_path / "data.json"), tmp_path / "out", settings)
    assert datasets.load_from_disk(str(tmp_path / "out"))["length"][:] == [2000]


def test_text_that_spells_control_tokens_is_text(random_pipe, tmp_path):
    spelled = "<eoss> <racm3:break> IMGIMGBZ <reserved08706> <s>"
    source = make_folder(tmp_path / "in", [{"file_name": "a.png", "text": spelled}])
    picture().save(tmp_path / "in" / "a.png")
    encode(random_pipe, source, tmp_path / "out")
    (row,) = datasets.load_from_disk(str(tmp_path / "out"))
    vocabulary = random_pipe.image_vocabulary
    request = row["input_ids"][: row["input_ids"].index(vocabulary.separator_id)]
    control = set(random_pipe.tokenizer.added_tokens_encoder.values())
    assert not control & set(request[1:])


def test_a_missing_column_is_named_before_anything_runs(tmp_path):
    dataset = datasets.Dataset.from_dict({"picture": [None], "text": ["a"]})
    with pytest.raises(ValueError, match=r"`image_column` is 'image'.*\['picture', 'text'\]"):
        DatasetSource(dataset)
    with pytest.raises(ValueError, match="`caption_column` is 'text'"):
        make_folder(tmp_path / "in", [{"file_name": "a.png", "caption": "a"}])
    with pytest.raises(ValueError, match="`condition_column` has to be given"):
        TaskFormat("depth")
    with pytest.raises(ValueError, match="`task` has to be"):
        TaskFormat("dream")


def many(folder, number: int = 10) -> ImageFolderSource:
    lines = [{"file_name": f"{index}.png", "text": f"number {index}"} for index in range(number)]
    source = make_folder(folder, lines)
    for index in range(number):
        picture(index, [(96, 96), (64, 128)][index % 2]).save(folder / f"{index}.png")
    return source


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_make_the_same_folder(random_pipe, tmp_path):
    source = many(tmp_path / "in")
    encode(random_pipe, source, tmp_path / "one", block_size=3, batch_size=2)
    first = encode(random_pipe, source, tmp_path / "two", block_size=3, batch_size=2, num_shards=2, shard_index=1)
    assert not first.is_complete and first.num_samples == 4
    with pytest.raises(FileNotFoundError):
        datasets.load_from_disk(str(tmp_path / "two"))
    encode(random_pipe, source, tmp_path / "two", block_size=3, batch_size=2, num_shards=2, shard_index=0)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_other_settings_are_refused(random_pipe, tmp_path):
    source = many(tmp_path / "in", 2)
    encode(random_pipe, source, tmp_path / "out")
    with pytest.raises(ValueError, match="begun with `base_size` 96, not 64"):
        encode(random_pipe, source, tmp_path / "out", EncodingSettings(base_size=64))
    with pytest.raises(ValueError, match="`shard_index` has to be from 0 to 1 but is 2"):
        encode(random_pipe, source, tmp_path / "other", num_shards=2, shard_index=2)


def test_random_crops_follow_from_the_seed(random_pipe, tmp_path):
    source = make_folder(tmp_path / "in", [{"file_name": "a.png", "text": "noise"}])
    picture(0, (131, 96)).save(tmp_path / "in" / "a.png")
    rows = []
    for number, seed in enumerate((0, 0, 1)):
        settings = EncodingSettings(BASE_SIZE, random_crop=True, seed=seed)
        encode(random_pipe, source, tmp_path / str(number), settings)
        rows.append(datasets.load_from_disk(str(tmp_path / str(number)))[0]["input_ids"])
    assert rows[0] == rows[1] != rows[2]


def test_pretokenization_leaves_the_global_generator_alone(random_pipe, tmp_path):
    source = many(tmp_path / "in", 2)
    before = torch.get_rng_state()
    encode(random_pipe, source, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)
