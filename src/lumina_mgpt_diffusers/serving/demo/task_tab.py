# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images from images, before and after side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
import PIL.Image
import torch

from ...lumina_mgpt import PanelTask
from ...lumina_mgpt.image_encoding import prepare_image
from ...lumina_mgpt.panels import lower_panel
from ..host import EngineHost
from .comparison import Comparison
from .controls import SamplerControls, seed_controls, seed_of
from .history import History
from .sampling import every_for, start


def add_task_tab(host: EngineHost, history: gr.State) -> Any:
    """Add the tab. Gives the event of its button."""
    base_size, scale = host.pipe.scheduler.config.resolution, host.pipe.vae_scale_factor
    family = host.pipe.family
    tasks = family.tasks
    with gr.Tab("Tasks", id="tasks"), gr.Row():
        with gr.Column(min_width=300, elem_classes="controls"):
            image = gr.Image(label="Image", type="pil", sources=["upload", "clipboard"], elem_id="input", height=280)
            task = gr.Dropdown(list(tasks), value=next(iter(tasks), None), label="Task", elem_id="task")
            prompt = gr.Textbox(label="Prompt", lines=2, placeholder="Make it night.", elem_id="task-prompt")
            with gr.Row():
                run = gr.Button("Run", variant="primary", elem_id="run", min_width=100)
                cancel = gr.Button("Cancel", variant="stop", elem_id="task-cancel", min_width=100)
            seed, is_random = seed_controls()
            sampler = SamplerControls.add(host)
        comparison = Comparison.add("task")

    async def run_task(
        image: PIL.Image.Image | None,
        name: str,
        prompt: str,
        seed: float | None,
        is_random: bool,
        history: History,
        *sampler_values: Any,
    ) -> AsyncIterator[tuple]:
        if image is None:
            raise gr.Error("Give it an image first.", print_exception=False)
        task, own, first = tasks[name], SamplerControls.read(sampler_values), seed_of(seed, is_random)
        said = prompt if task.needs_prompt else None
        before = await asyncio.to_thread(prepare_image, image, base_size, None, family.grid_size)
        job = start(
            host,
            "image_to_image",
            every=every_for(before.height, scale),
            prompt=said,
            image=image,
            task=name,
            generator=torch.Generator().manual_seed(first),
            **own,
        )
        settings = {"task": name, "prompt": said, "seed": first, **own}
        if isinstance(task, PanelTask):
            values = comparison.follow(host, job, before, {**settings, "result_only": True}, history, lower_panel)
        else:
            values = comparison.follow(host, job, before, settings, history)
        async for value in values:
            yield value

    def show_prompt(task: str) -> dict[str, Any]:
        return gr.update(visible=tasks[task].needs_prompt)

    task.change(show_prompt, task, prompt, show_progress="hidden", api_visibility="private")
    running = gr.on(
        [run.click, prompt.submit],
        run_task,
        [image, task, prompt, seed, is_random, history, *sampler.components],
        [*comparison.components, seed, history],
        concurrency_limit=None,
        show_progress="minimal",
        show_progress_on=[comparison.settings],
        api_name="run_task",
    )
    cancel.click(None, cancels=[running], api_visibility="private")
    return running
