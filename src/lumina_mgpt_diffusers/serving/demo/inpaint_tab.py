# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Inpainting: what is painted over in an image is made anew."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Sequence
from typing import Any

import gradio as gr
import PIL.Image
import PIL.ImageChops
import torch

from ...lumina_mgpt.image_encoding import prepare_image
from ..host import EngineHost
from .comparison import Comparison
from .controls import SamplerControls, seed_controls, seed_of
from .history import History
from .sampling import every_for, start


# From here on a mask is white to the pipeline.
WHITE = 128


def add_inpaint_tab(host: EngineHost, history: gr.State) -> Any:
    """Add the tab. Gives the event of its button."""
    base_size, scale = host.pipe.scheduler.config.resolution, host.pipe.vae_scale_factor
    grid_size = host.pipe.family.grid_size
    with gr.Tab("Inpaint", id="inpaint"), gr.Row():
        with gr.Column(min_width=300, elem_classes="controls"):
            gr.Markdown("Paint over what is to be made anew.")
            editor = gr.ImageMask(
                label="Image",
                type="pil",
                format="png",
                sources=["upload", "clipboard"],
                brush=gr.Brush(colors=["#ffffff"], default_color="#ffffff", color_mode="fixed"),
                transforms=(),
                height=360,
                elem_id="canvas",
            )
            prompt = gr.Textbox(
                label="Prompt", lines=2, placeholder="What the whole image shows", elem_id="inpaint-prompt"
            )
            with gr.Row():
                run = gr.Button("Run", variant="primary", elem_id="inpaint-run", min_width=100)
                cancel = gr.Button("Cancel", variant="stop", elem_id="inpaint-cancel", min_width=100)
            seed, is_random = seed_controls()
            sampler = SamplerControls.add(host)
        comparison = Comparison.add("inpaint")

    async def inpaint(
        painted: dict[str, Any] | None,
        prompt: str,
        seed: float | None,
        is_random: bool,
        history: History,
        *sampler_values: Any,
    ) -> AsyncIterator[tuple]:
        if painted is None or painted["background"] is None:
            raise gr.Error("Give it an image first.", print_exception=False)
        image, mask = painted["background"], mask_of(painted["layers"])
        if mask is None or mask.getextrema()[1] < WHITE:
            raise gr.Error("Paint over what is to be made anew first.", print_exception=False)
        own, first = SamplerControls.read(sampler_values), seed_of(seed, is_random)
        before = await asyncio.to_thread(prepare_image, image, base_size, None, grid_size)
        job = start(
            host,
            "inpaint",
            every=every_for(before.height, scale),
            prompt=prompt,
            image=image,
            mask_image=mask,
            generator=torch.Generator().manual_seed(first),
            **own,
        )
        settings = {"task": "inpaint", "prompt": prompt, "seed": first, **own}
        async for value in comparison.follow(host, job, before, settings, history):
            yield value

    running = gr.on(
        [run.click, prompt.submit],
        inpaint,
        [editor, prompt, seed, is_random, history, *sampler.components],
        [*comparison.components, seed, history],
        concurrency_limit=None,
        show_progress="minimal",
        show_progress_on=[comparison.settings],
        api_name="inpaint",
    )
    cancel.click(None, cancels=[running], api_visibility="private")
    return running


def mask_of(layers: Sequence[PIL.Image.Image]) -> PIL.Image.Image | None:
    """What is painted over on any of the layers, in white; None without layers."""
    covers = [layer.getchannel("A") for layer in layers]
    return functools.reduce(PIL.ImageChops.lighter, covers) if covers else None
