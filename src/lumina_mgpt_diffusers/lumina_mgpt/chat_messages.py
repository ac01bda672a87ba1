# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Messages in the format of transformers' chat templates, with images, as turns of text and images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from .conversation import ImagePart, TextPart
from .families import ModelFamily
from .image_encoding import SOURCES, LoadedImage, load_images
from .prompts import encode_conversation
from .tasks import IMAGE_PLACEHOLDER, split_at_images
from .validation import check_text, shown


ROLES = ("user", "assistant")

IMAGE_KEYS = ("image", "url", "path", "base64")


@dataclass
class Turns:
    """
    A conversation, or the part of it that is new.

    Args:
        messages (`list[dict]`): For each turn the role and its content, a list of text and image parts.
        images (`list[PIL.Image.Image | torch.LongTensor]`): The images, or their VQ codes, in the order of the parts.
    """

    messages: list[dict]
    images: list[LoadedImage]

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, images: Sequence[Sequence[int]], family: ModelFamily
    ) -> list[int]:
        """Token ids from the first of every sequence to the last separator; `images` are the tokens of each image."""
        return encode_conversation(tokenizer, self.messages, images, family)


def read_messages(
    messages: object, images: object = None, name: str = "messages", load_from: Collection[str] = ()
) -> Turns:
    """
    Check messages and load their images.

    Messages may come from strangers, so nothing that they name is read unless `load_from` allows it. What `images`
    names is read as always.

    Args:
        messages (`str` or `list[dict]`): See [`LuminaMGPTChatPipeline.__call__`].
        images (`ImageInput` or a list of them, *optional*): The images that the messages leave open.
        name (`str`, defaults to `"messages"`): Name of the argument, for errors.
        load_from (`Collection[str]`, defaults to `()`):
            What may be read for images that the messages name: `"files"`, `"urls"`.

    Raises:
        `ValueError`: If the messages are not a conversation that ends in a turn of the user, or the images do not fit.
    """
    if (
        isinstance(load_from, str)
        or not isinstance(load_from, Collection)
        or not all(isinstance(one, str) and one in SOURCES for one in load_from)
    ):
        raise ValueError(f"`load_from` has to be a tuple of some of {list(SOURCES)} but is {shown(load_from)}.")
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"`{name}` has to be a string or a non-empty list of messages but is {shown(messages)}.")
    loose = [] if images is None else load_images(images, f"images of {name}" if name != "messages" else "images")

    contents = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise ValueError(f"`{name}[{index}]` has to be a dict of `role` and `content` but is {shown(message)}.")
        expected = ROLES[index % 2]
        if not isinstance(message["role"], str) or message["role"] != expected:
            raise ValueError(
                f"`{name}[{index}]['role']` has to be {expected!r}, since turns alternate and the user's comes first,"
                f" but is {shown(message['role'])}. The model knows no other roles: what a system prompt says belongs"
                " into the first turn of the user."
            )
        contents.append(_read_content(message["content"], f"{name}[{index}]['content']", load_from))
    if len(contents) % 2 == 0:
        raise ValueError(f"`{name}` has to end in a turn of the user, which is to be answered, but ends in an answer.")

    is_open = any(part is None for content in contents for part in content)
    if loose and not is_open:
        contents = _mark_images(contents, len(loose), name)
    num_open = sum(part is None for content in contents for part in content)
    if num_open != len(loose):
        raise ValueError(f"`{name}` mark {num_open} images without saying which but `images` holds {len(loose)}.")

    remaining = iter(loose)
    turns = Turns([], [])
    for index, content in enumerate(contents):
        parts = []
        for part in content:
            if isinstance(part, str) and parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += part  # text is tokenized as a whole
            elif isinstance(part, str):
                parts.append({"type": "text", "text": part})
            else:
                parts.append({"type": "image"})
                turns.images.append(next(remaining) if part is None else part)
        turns.messages.append({"role": ROLES[index % 2], "content": parts})
    return turns


def _read_content(content: object, name: str, load_from: Collection[str]) -> list[str | LoadedImage | None]:
    """Text, images, and None for each image that is still to be said."""
    if isinstance(content, str):
        return [check_text(name, content)]
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"`{name}` has to be a string or a list of text and image parts but is {shown(content)}.")
    return [_read_part(part, f"{name}[{index}]", load_from) for index, part in enumerate(content)]


def _read_part(part: object, name: str, load_from: Collection[str]) -> str | LoadedImage | None:
    if isinstance(part, TextPart) and isinstance(part.text, str):
        return check_text(name, part.text)
    if isinstance(part, ImagePart):
        is_codes = isinstance(part.codes, torch.Tensor) and part.codes.dtype == torch.long and part.codes.ndim == 2
        if not is_codes or not part.is_complete:
            raise ValueError(
                f"`{name}` is an image that was cut off, or one without codes. Pass its `image` or leave it out."
            )
        return load_images(part.codes, name)[0]
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(kind, str) and kind == "text" and isinstance(part.get("text"), str):
        return check_text(name, part["text"])
    if isinstance(kind, str) and kind == "image":
        given = [key for key in IMAGE_KEYS if part.get(key) is not None]
        if not given:
            return None
        image = part[given[0]]
        if given == ["base64"] and isinstance(image, str) and not image.startswith("data:"):
            image = f"data:;base64,{image}"
        if len(given) == 1 and not isinstance(image, (list, tuple)):
            loaded = load_images(image, name, load_from)
            if len(loaded) == 1:
                return loaded[0]
    raise ValueError(
        f"`{name}` has to be {{'type': 'text', 'text': …}} or {{'type': 'image', 'image': …}} with one image, or with"
        " `url`, `path` or `base64` instead of `image`, or without any for one of `images`, but is"
        f" {shown(part)}."
    )


def _mark_images(contents: list[list], num_images: int, name: str) -> list[list]:
    """Put the images where the text marks them or, if it marks none, before the first turn."""
    marked = [
        [piece for part in content for piece in (split_at_images(part) if isinstance(part, str) else [part])]
        for content in contents
    ]
    num_marks = sum(part is None for content in marked for part in content)
    if num_marks == 0:
        first, *others = contents
        return [[piece for _ in range(num_images) for piece in (None, " ")] + first, *others]
    if num_marks != num_images:
        raise ValueError(
            f"`{name}` mark {num_marks} images by {IMAGE_PLACEHOLDER} but `images` holds {num_images}. Text that may"
            " contain this mark by chance has to come with its images in parts, as a list of"
            " {'type': 'image', 'image': …} and {'type': 'text', 'text': …}."
        )
    return marked


def split_batch(messages: object, images: object, conversation: object) -> tuple[list, list, list, bool]:
    """
    The messages, images and conversations of a call as lists with one element for each conversation.

    Returns:
        `tuple[list, list, list, bool]`: These lists, and whether the call was for a batch.
    """
    is_batch = isinstance(messages, (list, tuple)) and bool(messages) and not isinstance(messages[0], Mapping)
    if not is_batch:
        return [messages], [images], [conversation], False
    for name, value in (("images", images), ("conversation", conversation)):
        if value is not None and (not isinstance(value, (list, tuple)) or len(value) != len(messages)):
            found = f"{len(value)} elements" if isinstance(value, (list, tuple)) else type(value)
            raise ValueError(
                f"`{name}` has to be a list with one element for each of the {len(messages)} conversations of"
                f" `messages`, None where there is none, but is {found}."
            )
    num = len(messages)
    return list(messages), list(images or [None] * num), list(conversation or [None] * num), True
