# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Before and after: what is shown of an image that is made from another one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
import PIL.Image

from ..host import EngineHost
from ..job import Job
from .history import History, save_result
from .sampling import growing_images


@dataclass
class Comparison:
    """The components: both images with a slider between them, the result as a file, and its settings."""

    slider: gr.ImageSlider
    output: gr.Image
    settings: gr.Code

    @classmethod
    def add(cls, tab: str) -> Comparison:
        """Add the column. The ids of its elements begin with the name of the tab."""
        with gr.Column(min_width=300, elem_classes="results"):
            return cls(
                gr.ImageSlider(
                    label="Before and after",
                    type="pil",
                    format="png",
                    elem_id=f"{tab}-slider",
                    elem_classes="slider",
                ),
                gr.Image(
                    label="Result", format="png", interactive=False, elem_id=f"{tab}-result", elem_classes="result"
                ),
                gr.Code(label="Settings", language="json", interactive=False, elem_id=f"{tab}-settings"),
            )

    @property
    def components(self) -> list[Any]:
        return [self.slider, self.output, self.settings]

    async def follow(
        self,
        host: EngineHost,
        job: Job,
        before: PIL.Image.Image,
        settings: dict[str, Any],
        history: History,
        result_of: Callable[[PIL.Image.Image], PIL.Image.Image] = lambda image: image,
    ) -> AsyncIterator[tuple]:
        """
        Values of the components, of the control of the seed and of the history, as the image of a job grows.

        Args:
            host ([`EngineHost`]): Runs the model.
            job ([`Job`]): The job.
            before (`PIL.Image.Image`): What the model sees of the image that went in.
            settings (`dict`): How the image is made, without its size.
            history ([`History`]): Takes the result.
            result_of (`Callable`, *optional*): What of an image of the job is the result, by default all of it.
        """
        yield (before, before), None, "", settings["seed"], history
        async for _, image, is_done in growing_images(host, job):
            after = result_of(image)
            if not is_done:
                yield (before, after), gr.skip(), gr.skip(), gr.skip(), gr.skip()
                continue
            made = {**settings, "height": image.height, "width": image.width}
            result = save_result(host, after, made, self.output.GRADIO_CACHE)
            history.add(result)
            yield (before, after), result.path, result.as_text, gr.skip(), history
