# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A Space: text to image on ZeroGPU, within the time that a call may take, or the demo on a GPU of its own."""

import os
import secrets
import time
from collections.abc import Iterator

import gradio as gr
import PIL.Image
import torch

from lumina_mgpt_diffusers import LuminaMGPTPipeline


try:
    import spaces  # before CUDA is touched; of Spaces alone
except ImportError:
    spaces = None

MODEL = os.environ.get("MODEL", "Alpha-VLLM/Lumina-mGPT-7B-768")
DEDICATED = os.environ.get("DEDICATED") == "1"

# A call may not take longer, and is not given more by ZeroGPU.
MAX_SECONDS = float(os.environ.get("MAX_SECONDS", 60))
SECONDS_PER_CODE = float(os.environ.get("SECONDS_PER_CODE", 0.02))

# What is left for the last decoding and the way back.
RESERVE_SECONDS = 6.0

RATIOS = {"1:1": (1, 1), "4:3": (3, 4), "3:4": (4, 3), "16:9": (9, 16), "9:16": (16, 9)}
"""Height and width to one another."""


def load() -> LuminaMGPTPipeline:
    device = "cuda" if spaces or torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return LuminaMGPTPipeline.from_pretrained(MODEL, original_vqgan=os.environ.get("VQGAN"), dtype=dtype).to(device)


def size_of(ratio: str, resolution: int, scale: int) -> tuple[int, int]:
    """The largest `(height, width)` of a ratio that is within the base size's area and can be sampled in time."""
    rows, columns = RATIOS[ratio]
    codes = min((resolution / scale) ** 2, (MAX_SECONDS - RESERVE_SECONDS) / SECONDS_PER_CODE)
    unit = (codes / (rows * columns)) ** 0.5
    cell = 32 // scale
    return tuple(max(int(side * unit / cell), 1) * 32 for side in (rows, columns))


def seconds_for(prompt: str, ratio: str, seed: float, is_random: bool) -> int:
    """What ZeroGPU is asked for: no more than is needed, since that comes first."""
    height, width = size_of(ratio, pipe.scheduler.config.resolution, pipe.vae_scale_factor)
    codes = height * width / pipe.vae_scale_factor**2
    return int(min(codes * SECONDS_PER_CODE * 1.5 + RESERVE_SECONDS, MAX_SECONDS))


def generate(prompt: str, ratio: str, seed: float, is_random: bool) -> Iterator[tuple[PIL.Image.Image, int]]:
    """The image as it grows, and its seed."""
    deadline = time.monotonic() + seconds_for(prompt, ratio, seed, is_random) - RESERVE_SECONDS
    seed = secrets.randbits(32) if is_random else int(seed)
    height, width = size_of(ratio, pipe.scheduler.config.resolution, pipe.vae_scale_factor)
    generator = torch.Generator().manual_seed(seed)
    try:
        for step in pipe.stream(prompt, height=height, width=width, generator=generator, every=6):
            yield step.preview()[0], seed
            if time.monotonic() > deadline:
                gr.Warning("The time is over: the image was finished from the rows that there are.")
                return
    except ValueError as error:
        raise gr.Error(str(error)) from error


def build() -> gr.Blocks:
    run = spaces.GPU(duration=seconds_for)(generate) if spaces else generate
    with gr.Blocks(title="Lumina-mGPT") as demo:
        gr.Markdown("# Lumina-mGPT\nText to image, row by row.")
        prompt = gr.Textbox(label="Prompt", lines=2, placeholder="a red fox in the snow")
        with gr.Row():
            ratio = gr.Radio(list(RATIOS), value="1:1", label="Width to height")
            seed = gr.Number(0, label="Seed", precision=0, min_width=120)
            is_random = gr.Checkbox(True, label="Another seed every time", min_width=120)
        with gr.Row():
            button, cancel = gr.Button("Generate", variant="primary"), gr.Button("Cancel", variant="stop")
        image = gr.Image(label="Image", format="png", interactive=False)
        running = gr.on([button.click, prompt.submit], run, [prompt, ratio, seed, is_random], [image, seed])
        cancel.click(None, cancels=[running])
    return demo


pipe = load()
if DEDICATED:
    from lumina_mgpt_diffusers.serving import EngineHost
    from lumina_mgpt_diffusers.serving.demo import build_demo, launch

    demo = build_demo(EngineHost(pipe))
else:
    demo = build()

if __name__ == "__main__":
    if DEDICATED:
        launch(demo, "0.0.0.0")
    else:
        demo.queue().launch()
