# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Training samples from a folder of images, a `datasets` dataset, or the original's JSON conversations.

Whatever they come from, samples have one form: a conversation in which images are marked, and the images.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import datasets

from ..lumina_mgpt.families import LUMINA_MGPT, ModelFamily
from ..lumina_mgpt.prompts import find_task
from ..lumina_mgpt.tasks import IMAGE_PLACEHOLDER, PanelTask, Task, split_at_images


METADATA_NAME = "metadata.jsonl"

TEXT_TO_IMAGE = "text-to-image"
CAPTION = "caption"

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class BadSampleError(ValueError):
    """A sample that cannot be trained on. The message says why."""


@dataclass
class Sample:
    """
    One conversation.

    Args:
        id (`str`): Where it comes from.
        messages (`list[dict]`):
            Messages of the roles `user` and `assistant` in turn, each with a list of parts: `{"type": "text", "text":
            …}`, `{"type": "image"}`, and `{"type": "text-to-image", "prompt": …}` for the request for the first image
            of the answer, whose size is not known yet.
        images (`list[str | bytes]`): Files, or their content, in the order of the image parts.
    """

    id: str
    messages: list[dict]
    images: list[str | bytes] = field(default_factory=list)


class SampleSource(Protocol):
    """A sequence of samples of which each can be read by itself, in any process."""

    def __len__(self) -> int: ...

    def name_of(self, index: int) -> str:
        """What the sample is called in messages."""

    def __getitem__(self, index: int) -> Sample:
        """Read a sample. Raises [`BadSampleError`] if it is none."""

    @property
    def fingerprint(self) -> str:
        """Changes when the samples do; not if only the content of an image file does."""


def _check_columns(columns: Mapping[str, str | None], available: Sequence[str], where: str) -> None:
    for argument, name in columns.items():
        if name is not None and name not in available:
            raise ValueError(f"`{argument}` is {name!r}, which {where} does not have. It has {sorted(available)}.")


@dataclass(frozen=True)
class TaskFormat:
    """
    How the columns of a dataset become a conversation.

    Args:
        task (`str`, defaults to `"text-to-image"`):
            `"text-to-image"`, `"caption"`, one of the tasks of the family or a template with `<|image|>` in it, which
            ask for an image given another.
        image_column (`str`, defaults to `"image"`): The image that is learnt; for captions the one described.
        caption_column (`str`, *optional*): The text. Not for tasks that take none.
        condition_column (`str`, *optional*): The image that is given, for tasks that take one.
        family ([`ModelFamily`], *optional*): Has the tasks, by default those of Lumina-mGPT.
    """

    task: str = TEXT_TO_IMAGE
    image_column: str = "image"
    caption_column: str | None = "text"
    condition_column: str | None = None
    family: ModelFamily = LUMINA_MGPT

    def __post_init__(self) -> None:
        if self.task == CAPTION and self.family.caption is None:
            raise ValueError(f"`task` is {CAPTION!r} but {self.family.title} describes no images.")
        if self.task in (TEXT_TO_IMAGE, CAPTION):
            needs_text, needs_condition = True, False
        else:
            try:
                needs_text, needs_condition = self._task.needs_prompt, True
            except ValueError:
                raise ValueError(
                    f"`task` has to be {TEXT_TO_IMAGE!r}, {CAPTION!r}, one of {list(self.family.tasks)} or a template"
                    f" with {IMAGE_PLACEHOLDER} in it, but is {self.task!r}."
                ) from None
            if isinstance(self._task, PanelTask):
                raise ValueError(
                    f"`task` {self.task!r} is one image of two panels, which columns do not make. Write such samples"
                    " as conversations whose answer is that image."
                )
        if needs_text and self.caption_column is None:
            raise ValueError(f"`caption_column` has to be given for the task {self.task!r}.")
        if needs_condition != (self.condition_column is not None):
            needed = "has to be given" if needs_condition else f"has no place but is {self.condition_column!r}"
            raise ValueError(f"`condition_column` {needed} for the task {self.task!r}.")

    @property
    def _task(self) -> Task:
        return find_task(self.task, self.family)

    @property
    def columns(self) -> dict[str, str | None]:
        """The columns that are read, by the name of their argument."""
        needs_text = self.task in (TEXT_TO_IMAGE, CAPTION) or self._task.needs_prompt
        return {
            "image_column": self.image_column,
            "caption_column": self.caption_column if needs_text else None,
            "condition_column": self.condition_column,
        }

    def make(self, id: str, row: Mapping[str, Any], read_image: Any) -> Sample:
        """The sample of a row; `read_image` turns a value of an image column into a file or its content."""
        caption_column = self.columns["caption_column"]
        caption = None if caption_column is None else row.get(caption_column)
        if caption_column is not None and (not isinstance(caption, str) or not caption.strip()):
            raise BadSampleError(f"`{caption_column}` has to be a text but is {caption!r}")
        image = read_image(row.get(self.image_column))
        answer: list[dict] = [{"type": "image"}]
        if self.task == TEXT_TO_IMAGE:
            request, images = [{"type": TEXT_TO_IMAGE, "prompt": caption}], [image]
        elif self.task == CAPTION:
            request, images = _parts(self.family.caption), [image]
            answer = [{"type": "text", "text": caption}]
        else:
            request = self._task.content(caption, 1)
            images = [read_image(row.get(self.condition_column)), image]
        messages = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
        return Sample(id, messages, images)


class ImageFolderSource:
    """
    A folder with a `metadata.jsonl`, as `datasets` knows it: each line is a JSON object with the path of an image
    relative to the folder, by default under `file_name`, and its text, by default under `text`.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        format ([`TaskFormat`], *optional*): The task and the keys of the lines.
    """

    def __init__(self, folder: str | os.PathLike, format: TaskFormat | None = None) -> None:
        self.folder = Path(folder)
        self.format = format or TaskFormat(image_column="file_name")
        path = self.folder / METADATA_NAME
        if not path.is_file():
            raise ValueError(
                f"The folder {str(folder)!r} has no {METADATA_NAME}. Each of its lines has to be a JSON object such as"
                ' {"file_name": "fox.png", "text": "a red fox in the snow"}.'
            )
        content = path.read_bytes()
        self.lines = [line for line in content.decode().splitlines() if line.strip()]
        if not self.lines:
            raise ValueError(f"{str(path)!r} is empty.")
        first = _read_json_line(self.lines[0])
        _check_columns(self.format.columns, list(first), f"the first line of {str(path)!r}")
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def __len__(self) -> int:
        return len(self.lines)

    def name_of(self, index: int) -> str:
        return f"{METADATA_NAME}:{index + 1}"

    def __getitem__(self, index: int) -> Sample:
        row = _read_json_line(self.lines[index])
        return self.format.make(self.name_of(index), row, self._path_of)

    def _path_of(self, name: object) -> str:
        if not isinstance(name, str):
            raise BadSampleError(f"the name of an image has to be a text but is {name!r}")
        return str(self.folder / name)


def _read_json_line(line: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadSampleError(f"the line is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadSampleError(f"the line has to be a JSON object but is {row!r}")
    return row


class DatasetSource:
    """
    A dataset of the `datasets` library with columns of images and texts.

    Args:
        dataset ([`~datasets.Dataset`]): The dataset.
        format ([`TaskFormat`], *optional*): The task and the columns.
    """

    def __init__(self, dataset: datasets.Dataset, format: TaskFormat | None = None) -> None:
        self.format = format or TaskFormat()
        _check_columns(self.format.columns, dataset.column_names, "the dataset")
        for name in (self.format.image_column, self.format.condition_column):
            if name is not None:
                # As files and bytes: one that is corrupt can then be skipped.
                dataset = dataset.cast_column(name, datasets.Image(decode=False))
        self.dataset = dataset.select_columns([name for name in self.format.columns.values() if name is not None])
        self.fingerprint = self.dataset._fingerprint

    def __len__(self) -> int:
        return len(self.dataset)

    def name_of(self, index: int) -> str:
        return f"row {index}"

    def __getitem__(self, index: int) -> Sample:
        return self.format.make(self.name_of(index), self.dataset[index], _content_of)


def _content_of(image: Mapping | None) -> str | bytes:
    if image is None:
        raise BadSampleError("the image is missing")
    return image["path"] if image["bytes"] is None else image["bytes"]


class ConversationSource:
    """
    Conversations in the original's form: a JSON list, or a JSON object in each line, of `{"conversations": [{"from":
    "human", "value": …}, {"from": "gpt", "value": …}, …], "image": …}`. `image` is a path or a list of them, relative
    to the file; `<|image|>` in the texts marks where each goes, and images that no text marks go before the first.

    Args:
        path (`str` or `os.PathLike`): The file, `.json` or `.jsonl`.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        content = self.path.read_bytes()
        if self.path.suffix == ".jsonl":
            self.records: list = [line for line in content.decode().splitlines() if line.strip()]
        else:
            self.records = json.loads(content)
        if not isinstance(self.records, list) or not self.records:
            raise ValueError(f"{str(path)!r} has to be a list of conversations and not be empty.")
        first = _read_json_line(self.records[0]) if isinstance(self.records[0], str) else self.records[0]
        if not isinstance(first, dict) or "conversations" not in first:
            keys = sorted(first) if isinstance(first, dict) else first
            raise ValueError(f"The first record of {str(path)!r} has no `conversations` but {keys!r}.")
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def __len__(self) -> int:
        return len(self.records)

    def name_of(self, index: int) -> str:
        return f"{self.path.name}[{index}]"

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        if isinstance(record, str):
            record = _read_json_line(record)
        images = record.get("image") or record.get("images") or []
        images = [images] if isinstance(images, str) else images
        messages = read_conversation(record.get("conversations"), len(images))
        return Sample(self.name_of(index), messages, [str(self.path.parent / image) for image in images])


def read_conversation(turns: object, num_images: int) -> list[dict]:
    """
    Messages of a conversation in the original's form.

    Args:
        turns (`list[dict]`): `{"from": "human" or "gpt", "value": …}` in turn, the last an answer.
        num_images (`int`): Number of its images.

    Raises:
        [`BadSampleError`]: If it is none, or if it marks another number of images.
    """
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        raise BadSampleError("`conversations` has to be a list of questions, each followed by its answer")
    messages = []
    for index, turn in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if not isinstance(turn, dict) or ROLES.get(turn.get("from")) != expected:
            raise BadSampleError(f"turn {index} has to be `from` the {expected} but is {turn!r}")
        if not isinstance(turn.get("value"), str) or not turn["value"].strip():
            raise BadSampleError(f"the `value` of turn {index} has to be a text but is {turn.get('value')!r}")
        messages.append({"role": expected, "content": _parts(turn["value"])})
    marks = sum(part["type"] == "image" for message in messages for part in message["content"])
    if marks == 0 and num_images:
        messages[0]["content"] = _parts(f"{IMAGE_PLACEHOLDER} " * num_images + turns[0]["value"])
    elif marks != num_images:
        raise BadSampleError(f"the texts mark {marks} images by {IMAGE_PLACEHOLDER} but `image` holds {num_images}")
    return messages


def _parts(text: str) -> list[dict]:
    return [{"type": "image"} if piece is None else {"type": "text", "text": piece} for piece in split_at_images(text)]


@dataclass(frozen=True)
class Subset:
    """The first samples of a source."""

    source: SampleSource
    length: int

    def __len__(self) -> int:
        return min(self.length, len(self.source))

    def name_of(self, index: int) -> str:
        return self.source.name_of(index)

    def __getitem__(self, index: int) -> Sample:
        return self.source[index]

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint}[:{self.length}]"
