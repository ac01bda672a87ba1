# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What there is to say of a family of models, and nothing that can be read from the files of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..tasks import Task
from ..unirep import GRID_SIZE


@dataclass(frozen=True)
class CodeTokens:
    """
    Where the VQ codes are in a vocabulary.

    Args:
        prefix (`str`, *optional*): What the names of the code tokens begin with.
        suffix (`str`, *optional*):
            What they end in, after the decimal code. By default all names with the prefix are codes, and the order of
            their ids is that of the codes.
        digits (`str`, defaults to `"0123456789"`): The digits of the code in its name.
        width (`int`, defaults to 0): Least number of digits, to which zeros are put in front.
        first_id (`int`, *optional*): Token id of code 0, instead of names, if the ids of the codes are consecutive.
    """

    prefix: str = ""
    suffix: str | None = None
    digits: str = "0123456789"
    width: int = 0
    first_id: int | None = None

    def __post_init__(self) -> None:
        if bool(self.prefix) == (self.first_id is not None):
            raise ValueError(
                f"Of `prefix` and `first_id` exactly one has to be given but they are {self.prefix!r} and"
                f" {self.first_id!r}."
            )
        if len(set(self.digits)) != 10:
            raise ValueError(f"`digits` has to hold ten different characters but is {self.digits!r}.")

    def name(self, code: int) -> str:
        """Name of the token of a code. Only where `suffix` tells it."""
        digits = str(code).zfill(self.width).translate(str.maketrans("0123456789", self.digits))
        return f"{self.prefix}{digits}{self.suffix}"

    def is_code(self, name: str) -> bool:
        """Whether a token of that name is one of a code."""
        if self.first_id is not None or not name.startswith(self.prefix):
            return False
        if self.suffix is None:
            return True
        digits = name[len(self.prefix) : len(name) - len(self.suffix)]
        return name.endswith(self.suffix) and re.fullmatch(f"[{re.escape(self.digits)}]+", digits) is not None

    def is_in(self, names: Container[str]) -> bool:
        """Whether the names are those of a vocabulary with such codes."""
        if self.first_id is not None:
            return True
        return any(map(self.is_code, names)) if self.suffix is None else self.name(0) in names

    def ids(self, names: Mapping[str, int], num_codes: int, source: str) -> list[int]:
        """
        Token id of each code.

        Args:
            names (`Mapping[str, int]`): Ids by name.
            num_codes (`int`): Number of codes.
            source (`str`): Where the names are from, for the error message.

        Raises:
            `ValueError`: If there are not so many.
        """
        if self.first_id is not None:
            return list(range(self.first_id, self.first_id + num_codes))
        if self.suffix is None:
            ids = sorted(id for name, id in names.items() if self.is_code(name))
            if len(ids) != num_codes:
                raise ValueError(
                    f"The {source} names {len(ids)} codes, by {self.prefix!r} and what follows, but the VQ model has"
                    f" {num_codes} (`num_vq_embeddings`)."
                )
            return ids
        wanted = [self.name(code) for code in range(num_codes)]
        missing = [name for name in wanted if name not in names]
        if missing:
            raise ValueError(
                f"The {source} lacks {len(missing)} of the {num_codes} tokens of codes, the first of them"
                f" {missing[0]!r}."
            )
        if self.name(num_codes) in names:
            raise ValueError(
                f"The {source} has tokens of more codes than the {num_codes} (`num_vq_embeddings`) of the `vqvae`."
            )
        return [names[name] for name in wanted]


@dataclass(frozen=True)
class ModelFamily:
    r"""
    A family of models that write images in UniRep: checkpoints that share a vocabulary, prompts and a VQ model.

    Args:
        name (`str`): What configurations call it.
        title (`str`): What people call it.
        codes ([`CodeTokens`]): Where the VQ codes are in the vocabulary.
        start_token, end_token, row_end_token, separator_token (`str`):
            Names of the tokens that open and close an image, close a row of codes, and close a turn. `row_end_token`
            is None where rows of codes follow one another without a token between them.
        size_tag_token (`str`, *optional*): Name of the token that says the length of a side, with `{number}` for
            `first_size_tag` plus the number of grids, such as `"<reserved{number:05d}>"`. None where all images are
            squares of one grid, without tags: such a family is not told by the names of a vocabulary, a checkpoint of
            it has to be stated to be one or to have a released name.
        first_size_tag (`int`, defaults to 0): The number in the name of the tag of no grid.
        grid_size (`int`, defaults to 32): Pixels that one step of a size tag stands for.
        first_token (`str`, *optional*):
            Token that every sequence begins with; by default the `bos_token` of the tokenizer's files or, where that
            is none, their `eos_token`.
        pad_token (`str`, *optional*): By default that of the tokenizer's files, or else the first token.
        eos_token (`str`, *optional*): Token at which `generate` of transformers stops, by default the separator.
        original_eos_token (`str`, *optional*): The `eos_token` of the original's tokenizer files, if they do not make
            it the first token.
        text_to_image (`str`): The human turn of text to image, with `{width}`, `{height}` and `{prompt}`.
        guides_from_first_token (`bool`, defaults to `False`):
            Whether the unconditional branch of guidance sees the first token of sequences before the image.
        multiview (`str`, *optional*): That of views of an object, with `{num_views}` too.
        caption (`str`, *optional*): The human turn that asks for a description, with `<|image|>`.
        tasks (`dict[str, Task]`): What can be made of images, by name.
        sampler (`Mapping[str, Any]`): Values of [`LuminaMGPTScheduler`] that differ from its defaults.
        base_size (`int`, defaults to 768): The base size in pixels where nothing states another.
        released_names (`Mapping[str, int | None]`):
            Patterns of the names of released checkpoints, with their base size; None where the name states it, as the
            first group of the pattern, or where there is no such group.
        num_codes (`int`), stride (`int`), vq_parameters (`int`), vq_values_per_pixel (`int`):
            Of the VQ model as released, for what is asked before there is one: number of codes, pixels per code,
            number of parameters, and values in memory for each pixel while an image is decoded.
        vq_file (`str`): Where the VQ model lies in a checkpoint in the original's form.
        tokenizer_repository (`str`, *optional*): Repository whose tokenizer checkpoints without one use.
        card (`Mapping[str, str]`): Front matter of model cards: the licence.
        description (`str`), licence (`str`): What model cards say.
        image_to_image_example (`str`): The call of image to image that model cards show.
    """

    name: str
    title: str
    codes: CodeTokens
    start_token: str
    end_token: str
    row_end_token: str | None
    separator_token: str
    size_tag_token: str | None
    text_to_image: str
    first_size_tag: int = 0
    grid_size: int = GRID_SIZE
    first_token: str | None = None
    pad_token: str | None = None
    eos_token: str | None = None
    original_eos_token: str | None = None
    guides_from_first_token: bool = False
    multiview: str | None = None
    caption: str | None = None
    tasks: dict[str, Task] = field(default_factory=dict)
    sampler: Mapping[str, Any] = field(default_factory=dict)
    base_size: int = 768
    released_names: Mapping[str, int | None] = field(default_factory=dict)
    num_codes: int = 8192
    stride: int = 16
    vq_parameters: int = 68_718_467
    vq_values_per_pixel: int = 642
    vq_file: str = "original_tokenizers/vqgan.ckpt"
    tokenizer_repository: str | None = None
    card: Mapping[str, str] = field(default_factory=lambda: {"license": "other"})
    description: str = "An autoregressive model of text and images."
    licence: str = "See the checkpoint that this was made from."
    image_to_image_example: str = 'image = pipe("Make it night.", image="fox.png", generator=generator).images[0]'

    def __post_init__(self) -> None:
        if self.grid_size % self.stride:
            raise ValueError(
                f"`grid_size` has to be a multiple of the `stride` {self.stride} of the VQ model but is"
                f" {self.grid_size}."
            )
        if self.size_tag_token is None and self.base_size != self.grid_size:
            raise ValueError(
                f"Without a `size_tag_token` all images are of the `grid_size` {self.grid_size}, which `base_size` has"
                f" to be too but is {self.base_size}."
            )
        if self.size_tag_token is not None and self.size_tag(1) == self.size_tag(2):
            raise ValueError(f"`size_tag_token` has to hold {{number}} but is {self.size_tag_token!r}.")
        if self.base_size % self.grid_size:
            raise ValueError(f"`base_size` has to be a multiple of {self.grid_size} but is {self.base_size}.")

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Names of the tokens of start, end, row end, if there is one, and separator."""
        names = (self.start_token, self.end_token, self.row_end_token, self.separator_token)
        return tuple(name for name in names if name is not None)

    @property
    def fixed_side(self) -> int | None:
        """Side of all images in pixels, None where size tags say it."""
        return self.grid_size if self.size_tag_token is None else None

    def size_tags(self, numbers: Iterable[int]) -> Iterable[str]:
        """Names of the tokens that say that a side is so many grids long, none if there are no such tokens."""
        return () if self.size_tag_token is None else map(self.size_tag, numbers)

    def size_tag(self, num_grids: int) -> str:
        """Name of the token that says that a side of an image is so many grids long."""
        return self.size_tag_token.format(number=self.first_size_tag + num_grids)

    def is_in(self, names: Container[str]) -> bool:
        """Whether the names are those of a vocabulary of this family."""
        if self.size_tag_token is None:
            return False
        return all(name in names for name in (*self.control_tokens, self.size_tag(1))) and self.codes.is_in(names)

    def text_to_image_prompt(self, prompt: str, height: int, width: int) -> str:
        """The human turn of text to image. Its size is width first, unlike the size tags."""
        return self.text_to_image.format(width=width, height=height, prompt=prompt)

    def has_released(self, name: str) -> bool:
        """Whether a name is that of a released checkpoint."""
        return any(re.fullmatch(pattern, name) for pattern in self.released_names)

    def base_size_of(self, name: str) -> int | None:
        """The base size in pixels that the name of a released checkpoint states, None if it states none."""
        for pattern, base_size in self.released_names.items():
            if stated := re.fullmatch(pattern, name):
                return int(stated[1]) if base_size is None and stated.groups() else base_size
        return None
