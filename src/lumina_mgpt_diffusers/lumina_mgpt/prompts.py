# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Conversations as token ids.

A conversation is its first token, then each turn followed by the separator; there are no role names and no system
prompt. The text of users can never become a control token: in this module it is always encoded as the characters it is
made of. (In the original, `<eoss>` or `IMGIMGBZ` in a prompt becomes the token of that name.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from .families import LUMINA_MGPT, ModelFamily
from .tasks import IMAGE_PLACEHOLDER, Task
from .validation import check_text, shown
from .vocabulary import added_tokens, family_of


TASKS = LUMINA_MGPT.tasks
"""
What [`LuminaMGPTImg2ImgPipeline`] can be asked for by name with Lumina-mGPT; other families have tasks of their own.
Add to it what a checkpoint of yours was trained on.
"""


def find_task(task: object, family: ModelFamily = LUMINA_MGPT) -> Task:
    """The task of a name that a family has, of a template, or as it is. Raises `ValueError` if it is none of these."""
    if isinstance(task, Task):
        return task
    if isinstance(task, str) and task in family.tasks:
        return family.tasks[task]
    if isinstance(task, str) and (IMAGE_PLACEHOLDER in task or "{prompt}" in task):
        return Task(task)
    raise ValueError(
        f"`task` has to be one of {list(family.tasks)}, or a template with {IMAGE_PLACEHOLDER} and {{prompt}} in it,"
        f" or a `Task`, but is {shown(task)}."
    )


def multiview_prompt(prompt: str, height: int = 384, width: int = 384, num_views: int = 16) -> str:
    """
    The human turn that asks for views of an object, to be passed to [`LuminaMGPTChatPipeline`].

    Args:
        prompt (`str`): The object.
        height (`int`, defaults to 384), width (`int`, defaults to 384): Size of each view in pixels.
        num_views (`int`, defaults to 16): Number of views. The model was trained on 16.
    """
    return LUMINA_MGPT.multiview.format(num_views=num_views, width=width, height=height, prompt=prompt)


# A template can only produce a string, in which a control token is indistinguishable from text that spells its name.
# So where `encode_conversation` encodes such text as characters, the template has to refuse it.
_CHAT_TEMPLATE = """\
{%- set control = CONTROL -%}
{%- macro checked(text) -%}
    {%- for name in control -%}
        {%- if name in text -%}
            {{- raise_exception("The text of a message must not contain the control token " ~ name) -}}
        {%- endif -%}
    {%- endfor -%}
    {{- text -}}
{%- endmacro -%}
{{- FIRST -}}
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
    {{- SEPARATOR -}}
{%- endfor -%}
"""


def chat_template(tokenizer: PreTrainedTokenizerBase, family: ModelFamily) -> str:
    """
    The chat template of a tokenizer, which says the same as [`encode_conversation`] but for text that it refuses.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer, with its first token as `bos_token`.
        family ([`ModelFamily`]): What its names are.
    """
    # Those of codes and size tags are too many to list.
    tag = re.split(r"[{\d]", family.size_tag_token or family.separator_token)[0]
    many = [prefix for prefix in (tag, family.codes.prefix) if prefix]
    single = [name for name in tokenizer.added_tokens_encoder if not name.startswith(tuple(many))]
    control = dict.fromkeys([*single, *family.control_tokens, IMAGE_PLACEHOLDER, *many])
    control = [name for name in control if name in many or not name.startswith(tuple(many))]
    values = {"CONTROL": control, "FIRST": tokenizer.bos_token, "SEPARATOR": family.separator_token}
    template = _CHAT_TEMPLATE
    for name, value in values.items():
        template = template.replace(name, json.dumps(value, ensure_ascii=False))
    return template


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
    ids = _plain_ids(tokenizer, check_text("text", text))
    if control := _control_tokens(tokenizer, ids):
        # Tokenizers match those that are not marked as special all the same, unless their name is interrupted.
        pieces = [text]
        for name in control:
            pieces = [piece for whole in pieces for piece in _interrupted(whole, name)]
        ids = [id for piece in pieces for id in _plain_ids(tokenizer, piece)]
        control = _control_tokens(tokenizer, ids)
    if control:
        raise ValueError(f"The text contains the control token {control[0]!r}, which this tokenizer cannot spell out.")
    return ids


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _control_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    added = added_tokens(tokenizer)
    return [token for token in dict.fromkeys(tokenizer.convert_ids_to_tokens(ids)) if token in added]


def _interrupted(text: str, name: str) -> list[str]:
    """The pieces of a text, cut after the first character of a name wherever it stands."""
    first, *others = text.split(name)
    pieces = [first]
    for other in others:
        pieces[-1] += name[0]
        pieces.append(name[1:] + other)
    return pieces


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping],
    images: Sequence[Sequence[int]] = (),
    family: ModelFamily | None = None,
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
        family ([`ModelFamily`], *optional*): What the names of the tokenizer are; by default it is found out.

    Returns:
        `list[int]`: Token ids from the first of every sequence to the last separator.

    Raises:
        `ValueError`: If the number of images is not that of the image parts.
    """
    separator = tokenizer.convert_tokens_to_ids((family or family_of(tokenizer)).separator_token)
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
