# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images from images, before and after side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
import PIL.Image
import torch

from ...lumina_mgpt.image_encoding import prepare_image
from ..host import EngineHost
from .controls import SamplerControls, seed_controls, seed_of
from .history import History, save_result
from .sampling import every_for, growing_images, start


def add_task_tab(host: EngineHost, history: gr.State) -> Any:
    """Add the tab. Gives the event of its button."""
    base_size, scale = host.pipe.scheduler.config.resolution, host.pipe.vae_scale_factor
    family = host.pipe.family
    tasks = family.tasks
    with gr.Tab("Tasks", id="tasks"), gr.Row():
        with gr.Column(min_width=300):
            image = gr.Image(label="Image", type="pil", sources=["upload", "clipboard"], elem_id="input", height=280)
            task = gr.Dropdown(list(tasks), value=next(iter(tasks), None), label="Task", elem_id="task")
            prompt = gr.Textbox(label="Prompt", lines=2, placeholder="Make it night.", elem_id="task-prompt")
            with gr.Row():
                run = gr.Button("Run", variant="primary", elem_id="run", min_width=100)
                cancel = gr.Button("Cancel", variant="stop", elem_id="task-cancel", min_width=100)
            seed, is_random = seed_controls()
            sampler = SamplerControls.add(host)
        with gr.Column(min_width=300):
            slider = gr.ImageSlider(label="Before and after", type="pil", format="png", elem_id="slider")
            output = gr.Image(label="Result", format="png", interactive=False, elem_id="result", elem_classes="result")
            settings = gr.Code(label="Settings", language="json", interactive=False, elem_id="task-settings")

    async def run_task(
        image: PIL.Image.Image | None,
        task: str,
        prompt: str,
        seed: float | None,
        is_random: bool,
        history: History,
        *sampler_values: Any,
    ) -> AsyncIterator[tuple]:
        if image is None:
            raise gr.Error("Give it an image first.", print_exception=False)
        own = SamplerControls.read(sampler_values)
        first = seed_of(seed, is_random)
        before = await asyncio.to_thread(prepare_image, image, base_size, None, family.grid_size)
        job = start(
            host,
            "image_to_image",
            every=every_for(before.height, scale),
            prompt=prompt if tasks[task].needs_prompt else None,
            image=image,
            task=task,
            generator=torch.Generator().manual_seed(first),
            **own,
        )
        yield (before, before), None, "", first, history
        async for _, after, is_done in growing_images(host, job):
            if is_done:
                said = prompt if tasks[task].needs_prompt else None
                made = {
                    "task": task,
                    "prompt": said,
                    "height": after.height,
                    "width": after.width,
                    "seed": first,
                    **own,
                }
                result = save_result(host, after, made, output.GRADIO_CACHE)
                history.add(result)
                yield (before, after), result.path, result.as_text, gr.skip(), history
            else:
                yield (before, after), gr.skip(), gr.skip(), gr.skip(), gr.skip()

    def show_prompt(task: str) -> dict[str, Any]:
        return gr.update(visible=tasks[task].needs_prompt)

    task.change(show_prompt, task, prompt, show_progress="hidden", api_visibility="private")
    running = gr.on(
        [run.click, prompt.submit],
        run_task,
        [image, task, prompt, seed, is_random, history, *sampler.components],
        [slider, output, settings, seed, history],
        concurrency_limit=None,
        show_progress="minimal",
        show_progress_on=[settings],
        api_name="run_task",
    )
    cancel.click(None, cancels=[running], api_visibility="private")
    return running
