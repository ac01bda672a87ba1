# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Results of a visit: files with their settings, the newest first."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import PIL.Image
from gradio.processing_utils import save_bytes_to_cache

from ...png import describe, png_info
from ..host import EngineHost


MOST = 60
"""Results that a visit keeps."""


@dataclass(frozen=True)
class Result:
    """
    An image that is finished.

    Args:
        path (`str`): Its file.
        settings (`dict`): How it was made.
    """

    path: str
    settings: dict[str, Any]

    @property
    def as_text(self) -> str:
        return json.dumps(self.settings, indent=2, ensure_ascii=False)


class History:
    """The results of a visit. It is no dataclass, of which gradio would make a dictionary."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def add(self, result: Result) -> None:
        self.results = [result, *self.results][:MOST]


def save_result(host: EngineHost, image: PIL.Image.Image, settings: dict[str, Any], folder: str) -> Result:
    """An image as a PNG with its settings, in the cache of a component, which may be downloaded."""
    settings = {name: value for name, value in settings.items() if value is not None}
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=png_info({**settings, **describe(host.pipe)}))
    name = f"lumina_mgpt_{settings.get('seed', 0)}.png"
    return Result(save_bytes_to_cache(file.getvalue(), name, folder), settings)


def add_history_tab(history: gr.State, finished: Sequence[Any]) -> None:
    """A tab with the results of the visit, renewed when one of the events has finished and when it is opened."""
    with gr.Tab("History", id="history") as tab:
        gallery = gr.Gallery(label="This visit", columns=4, object_fit="contain", elem_id="history", format="png")
        settings = gr.Code(label="Settings", language="json", interactive=False, elem_id="history-settings")

    def show(own: History) -> list[str]:
        return [result.path for result in own.results]

    def choose(own: History, event: gr.SelectData) -> str:
        return own.results[event.index].as_text if event.index < len(own.results) else ""

    for event in [tab.select, *(one.then for one in finished)]:
        event(show, history, gallery, show_progress="hidden", api_visibility="private")
    gallery.select(choose, history, settings, show_progress="hidden", api_visibility="private")
