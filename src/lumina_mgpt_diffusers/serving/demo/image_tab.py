# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Text to image: rows appear as they are sampled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
import PIL.Image
import torch

from ..host import EngineHost
from .controls import SamplerControls, seed_controls, seed_of, size_gallery
from .history import History, Result, save_result
from .sampling import every_for, growing_images, start


MAX_IMAGES = 4


def add_image_tab(host: EngineHost, history: gr.State) -> Any:
    """Add the tab. Gives the event of its button."""
    scale = host.pipe.vae_scale_factor
    # Within the tab: tabs are counted by the children of what holds them.
    with gr.Tab("Image", id="image"), gr.Row():
        results = gr.State(list)
        with gr.Column(min_width=300, elem_classes="controls"):
            prompt = gr.Textbox(label="Prompt", lines=3, placeholder="a red fox in the snow", elem_id="prompt")
            with gr.Row():
                run = gr.Button("Generate", variant="primary", elem_id="generate", min_width=100)
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", min_width=100)
            size = size_gallery(host.pipe.scheduler.config.resolution, host.pipe.family.grid_size)
            number = gr.Slider(1, MAX_IMAGES, 1, step=1, label="Images", elem_id="number")
            seed, is_random = seed_controls()
            negative = gr.Textbox(label="Negative prompt", lines=1, elem_id="negative")
            sampler = SamplerControls.add(host)
        with gr.Column(min_width=300, elem_classes="results"):
            images = gr.Gallery(
                label="Images",
                columns=2,
                preview=False,
                object_fit="contain",
                height="auto",
                format="png",
                elem_id="images",
                elem_classes="result",
                interactive=False,
            )
            settings = gr.Code(label="Settings", language="json", interactive=False, elem_id="settings")

    async def generate(
        prompt: str,
        size: tuple[int, int],
        number: int,
        seed: float | None,
        is_random: bool,
        negative: str,
        history: History,
        *sampler_values: Any,
    ) -> AsyncIterator[tuple]:
        first = seed_of(seed, is_random)
        own = SamplerControls.read(sampler_values)
        if negative:
            own["negative_prompt"] = negative
        job = start(
            host,
            "text_to_image",
            num_answers=number,
            every=every_for(size[0], scale),
            prompt=prompt,
            height=size[0],
            width=size[1],
            num_images_per_prompt=number,
            generator=[torch.Generator().manual_seed(first + index) for index in range(number)],
            **own,
        )
        shown: dict[int, PIL.Image.Image | str] = {}
        done: dict[int, Result] = {}
        yield [], "", [], first, history
        async for index, image, is_done in growing_images(host, job):
            shown[index] = image
            if is_done:
                made = {"prompt": prompt, "height": size[0], "width": size[1], "seed": first + index, **own}
                done[index] = save_result(host, image, made, images.GRADIO_CACHE)
                shown[index] = done[index].path
                history.add(done[index])
            finished = [done[one] for one in sorted(done)]
            text = finished[0].as_text if finished else gr.skip()
            yield [shown[one] for one in sorted(shown)], text, finished, gr.skip(), history

    def choose(results: list[Result], event: gr.SelectData) -> str:
        return results[event.index].as_text if event.index < len(results) else ""

    inputs = [prompt, size, number, seed, is_random, negative, history, *sampler.components]
    running = gr.on(
        [run.click, prompt.submit],
        generate,
        inputs,
        [images, settings, results, seed, history],
        concurrency_limit=None,
        show_progress="minimal",
        show_progress_on=[settings],
        api_name="generate",
    )
    cancel.click(None, cancels=[running], api_visibility="private")
    images.select(choose, results, settings, show_progress="hidden", api_visibility="private")
    return running
