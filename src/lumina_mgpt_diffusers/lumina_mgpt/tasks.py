# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a model can be asked to make of an image: in a turn that holds the image, or as the second half of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .validation import check_text, shown


IMAGE_PLACEHOLDER = "<|image|>"


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

    def check_prompt(self, prompt: str | None) -> None:
        """Raise a `ValueError` if a text is missing, or if there is one that has no place."""
        if self.needs_prompt and prompt is None:
            raise ValueError(f"`prompt` has to be given, for the task {self.template!r}.")
        if not self.needs_prompt and prompt is not None:
            raise ValueError(f"`prompt` has no place in the task {self.template!r} but is {shown(prompt)}.")

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
        self.check_prompt(prompt)
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


@dataclass(frozen=True)
class PanelTask(Task):
    """
    A task that is one image of two panels: the upper half is given, or sampled too, and the lower half is the result.

    Args:
        template (`str`):
            The human turn, with `{width}` and `{height}` for the size of the whole image in pixels and, if the task
            needs a text, `{prompt}` for it.
        guidance_scale, temperature, top_k, to_array (*optional*):
            As for [`Task`]; `to_array` sees the pixels of the lower half.
    """

    def panel_content(self, prompt: str | None, height: int, width: int) -> list[dict]:
        """
        The content of the human turn.

        Args:
            prompt (`str`, *optional*): The text.
            height (`int`), width (`int`): Size of the whole image in pixels.

        Raises:
            `ValueError`: If the text does not fit the task.
        """
        self.check_prompt(prompt)
        text = self.template.replace("{width}", str(width)).replace("{height}", str(height))
        return [{"type": "text", "text": text.replace("{prompt}", prompt or "")}]


def split_at_images(text: str) -> list[str | None]:
    """The pieces of a text between the marks of images, with None for each mark."""
    first, *others = text.split(IMAGE_PLACEHOLDER)
    pieces = [first]
    for piece in others:
        pieces += [None, piece]
    return [piece for piece in pieces if piece != ""]
