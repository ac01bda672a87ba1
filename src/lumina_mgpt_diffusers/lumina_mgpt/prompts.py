# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Conversations as token ids.

A conversation is `<s>`, then each turn followed by the separator; there are no role names and no system prompt. The
text of users can never become a control token: in this module it is always encoded as the characters it is made of.
(In the original, `<eoss>` or `IMGIMGBZ` in a prompt becomes the token of that name.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from .unirep import SEPARATOR_TOKEN


IMAGE_PLACEHOLDER = "<|image|>"

TEXT_TO_IMAGE_TEMPLATE = "Generate an image of {width}x{height} according to the following prompt:\n{prompt}"

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
        `ValueError`: If the tokenizer would turn a part of the text into a control token all the same.
    """
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
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
    if attention_mask is None:
        attention_mask = torch.ones_like(token_ids)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(token_ids, attention_mask)]
    return [row for row in rows for _ in range(repeats)]
