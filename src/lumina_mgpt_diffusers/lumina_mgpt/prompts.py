# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Conversations as token ids.

A conversation is `<s>`, then each turn followed by the separator; there are no role names and no system prompt. The
text of users can never become a control token: in this module it is always encoded as the characters it is made of.
(In the original, `<eoss>` or `IMGIMGBZ` in a prompt becomes the token of that name.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .unirep import SEPARATOR_TOKEN
from .validation import check_text, shown
from .visual_results import read_depth, read_labels, read_normals


IMAGE_PLACEHOLDER = "<|image|>"

TEXT_TO_IMAGE_TEMPLATE = "Generate an image of {width}x{height} according to the following prompt:\n{prompt}"

MULTIVIEW_TEMPLATE = (
    "Generate {num_views} object views of {width}x{height} according to the following prompt: {prompt}"
)


@dataclass(frozen=True)
class Task:
    """
    What a model of the Omni kind is asked to make of an image.

    Args:
        template (`str`):
            The human turn, with `<|image|>` where the image goes and, if the task needs a text, `{prompt}` for it.
        guidance_scale (`float`, *optional*), temperature (`float`, *optional*), top_k (`int`, *optional*):
            Sampler settings of the task. Those that are None are the scheduler's.
        to_array (`Callable[[np.ndarray], np.ndarray]`, *optional*):
            What the image means as numbers, from its pixels `(height, width, 3)`, uint8.
    """

    template: str
    guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    to_array: Callable[[np.ndarray], np.ndarray] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.template, str):
            raise ValueError(f"`template` has to be a string but is {shown(self.template)}.")
        check_text("template", self.template)
        if self.to_array is not None and not callable(self.to_array):
            raise ValueError(f"`to_array` has to be callable, or None, but is {shown(self.to_array)}.")

    @property
    def needs_prompt(self) -> bool:
        return "{prompt}" in self.template

    def content(self, prompt: str | None, num_images: int) -> list[dict]:
        """
        The content of the human turn, text and image parts.

        Args:
            prompt (`str`, *optional*):
                The text. If there are more images than the template marks, it has to mark each of them by `<|image|>`,
                and the mark of the template is left out; otherwise that is a text like any other.
            num_images (`int`): Number of images.

        Raises:
            `ValueError`: If the images or the text do not fit the task.
        """
        if self.needs_prompt and prompt is None:
            raise ValueError(f"`prompt` has to be given, for the task {self.template!r}.")
        if not self.needs_prompt and prompt is not None:
            raise ValueError(f"`prompt` has no place in the task {self.template!r} but is {shown(prompt)}.")
        pieces = split_at_images(self.template)
        if pieces.count(None) != num_images:
            marked = split_at_images(prompt or "")
            if marked.count(None) != num_images:
                raise ValueError(
                    f"`image` holds {num_images} images for one prompt, but the task {self.template!r} takes"
                    f" {pieces.count(None)} and the prompt marks {marked.count(None)} by {IMAGE_PLACEHOLDER}."
                )
            before, _, after = "".join(piece for piece in pieces if piece).rstrip().partition("{prompt}")
            pieces = [before, *marked, after]
        else:
            pieces = [piece and piece.replace("{prompt}", prompt or "") for piece in pieces]
        content: list[dict] = []
        for piece in pieces:
            if piece is None:
                content.append({"type": "image"})
            elif content and content[-1]["type"] == "text":
                content[-1]["text"] += piece
            elif piece:
                content.append({"type": "text", "text": piece})
        return content


TASKS: dict[str, Task] = {
    "edit": Task("{prompt} <|image|>", guidance_scale=4.0, temperature=1.0, top_k=2000),
    "depth": Task("Depth estimation. <|image|>", 1.0, 1.0, 200, read_depth),
    "normal": Task("Surface normal estimation. <|image|>", 1.0, 1.0, 200, read_normals),
    "segmentation": Task("Semantic segmentation. <|image|>", 1.0, 1.0, 200, read_labels),
    "pose": Task("Human pose estimation. <|image|>", 1.0, 1.0, 200),
    "detection": Task("Detect: {prompt} <|image|>", 1.0, 1.0, 200),
    "control": Task(
        "Generate an image according to the provided image, and according to the following caption:\n"
        "{prompt} <|image|>",
        guidance_scale=1.0,
        temperature=1.0,
        top_k=2000,
    ),
}
"""What [`LuminaMGPTImg2ImgPipeline`] can be asked for by name. Add to it what a checkpoint of yours was trained on."""


def find_task(task: object) -> Task:
    """The task of a name in [`TASKS`], of a template, or as it is. Raises `ValueError` if it is none of these."""
    if isinstance(task, Task):
        return task
    if isinstance(task, str) and task in TASKS:
        return TASKS[task]
    if isinstance(task, str) and (IMAGE_PLACEHOLDER in task or "{prompt}" in task):
        return Task(task)
    raise ValueError(
        f"`task` has to be one of {list(TASKS)}, or a template with {IMAGE_PLACEHOLDER} and {{prompt}} in it, or a"
        f" `Task`, but is {shown(task)}."
    )


def multiview_prompt(prompt: str, height: int = 384, width: int = 384, num_views: int = 16) -> str:
    """
    The human turn that asks for views of an object, to be passed to [`LuminaMGPTChatPipeline`].

    Args:
        prompt (`str`): The object.
        height (`int`, defaults to 384), width (`int`, defaults to 384): Size of each view in pixels.
        num_views (`int`, defaults to 16): Number of views. The model was trained on 16.
    """
    return MULTIVIEW_TEMPLATE.format(num_views=num_views, width=width, height=height, prompt=prompt)


# A template can only produce a string, in which a control token is indistinguishable from text that spells its name.
# So where `encode_conversation` encodes such text as characters, the template has to refuse it.
CHAT_TEMPLATE = """\
{%- set control = ["<s>", "<pad>", "</s>", "<unk>", "<eoss>", "<racm3:break>", "<image>", "<|image|>", "<reserved", \
"IMGIMG"] -%}
{%- macro checked(text) -%}
    {%- for name in control -%}
        {%- if name in text -%}
            {{- raise_exception("The text of a message must not contain the control token " ~ name) -}}
        {%- endif -%}
    {%- endfor -%}
    {{- text -}}
{%- endmacro -%}
{{- "<s>" -}}
{%- for message in messages -%}
    {%- if message["content"] is string -%}
        {{- checked(message["content"]) -}}
    {%- else -%}
        {%- for part in message["content"] -%}
            {%- if part["type"] == "text" -%}
                {{- checked(part["text"]) -}}
            {%- else -%}
                {{- "<|image|>" -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- "<reserved08706>" -}}
{%- endfor -%}
"""


def text_to_image_prompt(prompt: str, height: int, width: int) -> str:
    """The human turn of text to image. Its size is width first, unlike the size tags."""
    return TEXT_TO_IMAGE_TEMPLATE.format(width=width, height=height, prompt=prompt)


def split_at_images(text: str) -> list[str | None]:
    """The pieces of a text between the marks of images, with None for each mark."""
    first, *others = text.split(IMAGE_PLACEHOLDER)
    pieces = [first]
    for piece in others:
        pieces += [None, piece]
    return [piece for piece in pieces if piece != ""]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """
    Encode text as the characters it is made of.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): The tokenizer.
        text (`str`): Any text.

    Returns:
        `list[int]`: Token ids, none of them that of a control token.

    Raises:
        `ValueError`: If the text is not Unicode, or the tokenizer would turn a part of it into a control token all the
            same.
    """
    ids = tokenizer(check_text("text", text), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    added = tokenizer.added_tokens_encoder
    control = [token for token in tokenizer.convert_ids_to_tokens(ids) if token in added]
    if control:
        raise ValueError(f"The text contains the control token {control[0]!r}, which this tokenizer cannot spell out.")
    return ids


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping],
    images: Sequence[Sequence[int]] = (),
) -> list[int]:
    """
    Encode a conversation that ends in a turn to be answered.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): The tokenizer.
        messages (`list[dict]`):
            Messages as transformers' chat templates take them: `{"role": …, "content": …}` with the content a string
            or a list of `{"type": "text", "text": …}` and `{"type": "image"}` parts. Roles are not encoded.
        images (`list[list[int]]`, *optional*):
            Token ids of the images, in the order of the image parts.

    Returns:
        `list[int]`: Token ids from `<s>` to the last separator.

    Raises:
        `ValueError`: If the number of images is not that of the image parts.
    """
    separator = tokenizer.convert_tokens_to_ids(SEPARATOR_TOKEN)
    remaining = list(images)
    ids = [tokenizer.bos_token_id]
    for message in messages:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                ids += encode_text(tokenizer, part["text"])
            elif remaining:
                ids += remaining.pop(0)
            else:
                raise ValueError(f"The messages mark more images than the {len(images)} that were given.")
        ids.append(separator)
    if remaining:
        raise ValueError(f"{len(images)} images were given but the messages mark only {len(images) - len(remaining)}.")
    return ids


def unpad(token_ids: torch.LongTensor, attention_mask: torch.Tensor | None, repeats: int = 1) -> list[list[int]]:
    """
    The token ids of a padded batch as lists, each repeated `repeats` times in a row.

    Args:
        token_ids (`torch.LongTensor` of shape `(batch_size, length)`): Token ids.
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 1 for tokens, 0 for padding.
        repeats (`int`, defaults to 1): How often to repeat each row.
    """
    token_ids = token_ids.cpu()
    mask = torch.ones_like(token_ids) if attention_mask is None else attention_mask.cpu()
    rows = [ids[is_token].tolist() for ids, is_token in zip(token_ids, mask.bool())]
    return [row for row in rows for _ in range(repeats)]
