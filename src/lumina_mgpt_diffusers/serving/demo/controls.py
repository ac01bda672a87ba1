# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Controls that tabs share: sizes to choose from, the sampler, the seed."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import gradio as gr
import PIL.Image
import PIL.ImageDraw

from ...lumina_mgpt.unirep import trained_sizes
from ..host import EngineHost


MAX_SEED = (1 << 48) - 1

# Side of the picture of a size.
SIDE = 96


def size_gallery(base_size: int, grid_size: int) -> gr.State:
    """Pictures of the trained sizes to choose from, and a line that says the choice. Gives its `(height, width)`."""
    sizes = trained_sizes(base_size, grid_size)
    sizes = sorted(sizes, key=lambda size: (abs(size[0] - size[1]), size))
    chosen = gr.State((base_size, base_size))
    line = gr.Markdown(_line(base_size, base_size), elem_id="size")
    gallery = gr.Gallery(
        [(picture_of_size(*size), f"{size[1]}×{size[0]}") for size in sizes],
        label="Size",
        show_label=False,
        columns=6,
        allow_preview=False,
        selected_index=sizes.index((base_size, base_size)),
        interactive=False,
        buttons=[],
        object_fit="contain",
        elem_id="sizes",
        format="png",
    )

    def choose(event: gr.SelectData) -> tuple[tuple[int, int], str]:
        return sizes[event.index], _line(*sizes[event.index])

    gallery.select(choose, None, [chosen, line], show_progress="hidden", api_visibility="private")
    return chosen


def _line(height: int, width: int) -> str:
    return f"Size: **{width} × {height}** (width × height)"


def picture_of_size(height: int, width: int) -> PIL.Image.Image:
    """A small picture of the shape of an image."""
    picture = PIL.Image.new("RGB", (SIDE, SIDE), "#eef0fb")
    scale = 0.85 * SIDE / max(height, width)
    left, top = (SIDE - width * scale) / 2, (SIDE - height * scale) / 2
    box = (left, top, SIDE - left, SIDE - top)
    PIL.ImageDraw.Draw(picture).rectangle(box, fill="#6366f1", outline="#4338ca", width=2)
    return picture


@dataclass
class SamplerControls:
    """Settings of the sampler; what is left empty is the model's or the task's."""

    components: list[Any]

    NAMES = ("guidance_scale", "temperature", "top_k", "top_p", "min_p")

    @classmethod
    def add(cls, host: EngineHost) -> SamplerControls:
        config = host.pipe.scheduler.config
        with gr.Accordion("Sampler", open=False):
            gr.Markdown("What is left empty is the model's, or what the task needs.")
            with gr.Row():
                components = [
                    gr.Number(None, label=f"{name} ({config[name]})", elem_id=f"sampler-{name}", min_width=120)
                    for name in cls.NAMES
                ]
        return cls(components)

    @classmethod
    def read(cls, values: tuple[Any, ...]) -> dict[str, float | int]:
        """The settings that are given. A control that is emptied gives None or 0, of which top-k alone knows 0."""
        given = {name: value for name, value in zip(cls.NAMES, values) if value is not None}
        if "top_k" in given:
            given["top_k"] = int(given["top_k"])
        return given


def seed_controls() -> tuple[gr.Number, gr.Checkbox]:
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=120, elem_id="seed")
        is_random = gr.Checkbox(True, label="Another seed every time", min_width=120)
    return seed, is_random


def seed_of(seed: float | None, is_random: bool) -> int:
    return secrets.randbits(32) if is_random or seed is None else int(seed)
