# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images that the model draws while it is trained, as pictures in the log."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from diffusers.utils import logging
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..lumina_mgpt.pipeline_lumina_mgpt import LuminaMGPTPipeline
from .transformer import TrainableTransformer


logger = logging.get_logger(__name__)


class ValidationImages(TrainerCallback):
    """
    Draws images every few steps, with generators of its own: training goes on as if nothing had been drawn.

    Args:
        pipeline ([`LuminaMGPTPipeline`]): Its transformer is replaced by the one that is trained.
        prompts (`list[str]`): What to draw.
        steps (`int`): Steps between drawings.
        num_images (`int`, defaults to 1): Images of each prompt.
        seed (`int`, defaults to 0): Seed of the first image of each prompt.
    """

    def __init__(
        self, pipeline: LuminaMGPTPipeline, prompts: Sequence[str], steps: int, num_images: int = 1, seed: int = 0
    ) -> None:
        self.pipeline = pipeline
        self.prompts = list(prompts)
        self.steps = steps
        self.num_images = num_images
        self.seed = seed
        self.trainer: Trainer | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """See [`~transformers.TrainerCallback`]."""
        if state.global_step % self.steps == 0 or state.global_step == state.max_steps:
            # All processes draw: the weights may be spread over them.
            images = draw(self.pipeline, kwargs["model"], self.prompts, self.num_images, self.seed)
            if state.is_world_process_zero:
                self._log(images, state.global_step)

    def _log(self, images: dict[str, list[PIL.Image.Image]], step: int) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            kind = type(callback).__name__
            if kind == "TensorBoardCallback" and callback.tb_writer is not None:
                for prompt, of_prompt in images.items():
                    arrays = np.stack([np.asarray(image) for image in of_prompt])
                    callback.tb_writer.add_images(prompt[:100], arrays, step, dataformats="NHWC")
            elif kind == "WandbCallback":
                pictures = {
                    prompt: [callback._wandb.Image(image, caption=prompt) for image in of_prompt]
                    for prompt, of_prompt in images.items()
                }
                callback._wandb.log({**pictures, "train/global_step": step})


@torch.no_grad()
def draw(
    pipeline: LuminaMGPTPipeline, model: torch.nn.Module, prompts: Sequence[str], num_images: int, seed: int
) -> dict[str, list[PIL.Image.Image]]:
    """
    Draw images with a model that is being trained, and leave it as it was.

    Args:
        pipeline ([`LuminaMGPTPipeline`]): The other components.
        model (`nn.Module`): A [`TrainableTransformer`], or what wraps one.
        prompts (`list[str]`): What to draw.
        num_images (`int`): Images of each prompt.
        seed (`int`): Seed of the first of them.
    """
    transformer = next(module for module in model.modules() if isinstance(module, TrainableTransformer))
    modes = {module: module.training for module in model.modules()}
    implementation = transformer.config._attn_implementation
    placed = pipeline.vqvae.device
    model.eval()
    transformer.set_attn_implementation("sdpa")
    pipeline.register_modules(transformer=transformer)
    pipeline.vqvae.to(transformer.device)
    try:
        return {
            prompt: pipeline(
                [prompt] * num_images,
                generator=[torch.Generator().manual_seed(seed + number) for number in range(num_images)],
            ).images
            for prompt in prompts
            if pipeline.can_draw  # not as long as a zeroed image head has learnt nothing
        }
    finally:
        pipeline.vqvae.to(placed)
        transformer.set_attn_implementation(implementation)
        for module, mode in modes.items():
            module.training = mode
