# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Four nodes, in the V3 schema of ComfyUI: load a model, images from text, images from images, conversations."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import comfy.model_management
import folder_paths
import numpy as np
import PIL.Image
import torch
from comfy_api.latest import ComfyAPISync, ComfyExtension, io
from comfy_execution.graph import ExecutionBlocker
from diffusers import DiffusionPipeline

from lumina_mgpt_diffusers import (
    LuminaMGPTChatPipeline,
    LuminaMGPTConversation,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTPipeline,
    LuminaMGPTStreamOutput,
)
from lumina_mgpt_diffusers.lumina_mgpt.families import families


CATEGORY = "Lumina-mGPT"

# Nodes are described before there is a model.
TASKS = list(dict.fromkeys(name for family in families().values() for name in family.tasks))

ModelType = io.Custom("LUMINA_MGPT")
ConversationType = io.Custom("LUMINA_MGPT_CONVERSATION")


@dataclass(frozen=True)
class LoadedModel:
    """A model as nodes hand it on."""

    pipe: LuminaMGPTPipeline
    is_offloaded: bool

    def as_pipeline(self, kind: type[DiffusionPipeline]) -> DiffusionPipeline:
        """A pipeline of the model, in which the components stay where they are."""
        pipe = kind.from_pipe(self.pipe)
        if self.is_offloaded:
            pipe.enable_model_cpu_offload(device=comfy.model_management.get_torch_device())
        return pipe


def seed_input() -> io.Input:
    return io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True)


def sampler_inputs(guidance_scale: float, temperature: float, top_k: int) -> list[io.Input]:
    return [
        io.Float.Input(
            "guidance_scale",
            default=guidance_scale,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Scale of classifier-free guidance; 1 and less turn it off.",
        ),
        io.Float.Input(
            "temperature",
            default=temperature,
            min=0.0,
            max=10.0,
            step=0.01,
            tooltip="Divides the logits; 0 takes the most likely code.",
        ),
        io.Int.Input(
            "top_k", default=top_k, min=0, max=1 << 16, tooltip="Number of codes that may be drawn, 0 for all."
        ),
    ]


def preview_input() -> io.Input:
    return io.Int.Input(
        "preview_rows",
        default=4,
        min=0,
        max=256,
        tooltip="A preview after so many rows of codes, 0 for none. Each one decodes the whole image.",
    )


class LoadLuminaMGPT(io.ComfyNode):
    """Loads a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LuminaMGPTLoad",
            display_name="Load Lumina-mGPT",
            category=CATEGORY,
            description="Loads a pipeline in diffusers' format, or an original checkpoint with its VQ model.",
            inputs=[
                io.String.Input(
                    "model",
                    default="Alpha-VLLM/Lumina-mGPT-7B-768",
                    tooltip="A folder in models/diffusers, another folder, the id of a repository on the Hub,"
                    " or pocket for the small model of the package.",
                ),
                io.String.Input(
                    "original_vqgan",
                    default="",
                    optional=True,
                    tooltip="Of an original checkpoint: where its VQ model is, a folder, a vqgan.ckpt or a Hub id.",
                ),
                io.Combo.Input("dtype", options=["bfloat16", "float16", "float32"], default="bfloat16"),
                io.Boolean.Input(
                    "offload", default=False, tooltip="Keep each component on the CPU until it is needed: less memory."
                ),
            ],
            outputs=[ModelType.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: str, dtype: str, offload: bool, original_vqgan: str = "") -> io.NodeOutput:
        folders = [os.path.join(path, model) for path in folder_paths.get_folder_paths("diffusers")]
        source = next(filter(os.path.isdir, folders), model)
        pipe = LuminaMGPTPipeline.from_pretrained(
            source, dtype=getattr(torch, dtype), original_vqgan=original_vqgan or None
        )
        # ComfyUI does not know what this takes, so it makes room for all of it.
        comfy.model_management.unload_all_models()
        if not offload:
            pipe.to(comfy.model_management.get_torch_device())
        return io.NodeOutput(LoadedModel(pipe, offload))


class LuminaMGPTTextToImage(io.ComfyNode):
    """Generates images from text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LuminaMGPTTextToImage",
            display_name="Lumina-mGPT Text to Image",
            category=CATEGORY,
            description="Generates images from text. Rows appear in the preview as they are sampled.",
            inputs=[
                ModelType.Input("model"),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Empty: the unconditional branch sees the image alone, as in training.",
                ),
                io.Int.Input("width", default=768, min=32, max=4096, step=32),
                io.Int.Input("height", default=768, min=32, max=4096, step=32),
                io.Int.Input("batch_size", default=1, min=1, max=64),
                seed_input(),
                *sampler_inputs(4.0, 1.0, 2000),
                preview_input(),
            ],
            outputs=[io.Image.Output(display_name="images")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: LoadedModel,
        prompt: str,
        width: int,
        height: int,
        batch_size: int,
        seed: int,
        guidance_scale: float,
        temperature: float,
        top_k: int,
        preview_rows: int,
        negative_prompt: str = "",
    ) -> io.NodeOutput:
        steps = model.as_pipeline(LuminaMGPTPipeline).stream(
            prompt,
            negative_prompt or None,
            height=height,
            width=width,
            num_images_per_prompt=batch_size,
            generator=torch.Generator().manual_seed(seed),
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            every=preview_rows or 1,
        )
        return io.NodeOutput(watch(steps, cls.hidden.unique_id, preview_rows > 0))


class LuminaMGPTTask(io.ComfyNode):
    """Makes images of images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LuminaMGPTTask",
            display_name="Lumina-mGPT Image to Image",
            category=CATEGORY,
            description="Edits an image, estimates depth, normals or poses, segments, or draws from such an image.",
            inputs=[
                ModelType.Input("model"),
                io.Image.Input("image"),
                io.Combo.Input("task", options=TASKS, tooltip="Models of other families have other tasks."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The instruction, the object to detect or the caption, for the tasks that take one.",
                ),
                seed_input(),
                preview_input(),
            ],
            outputs=[io.Image.Output(display_name="images")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: LoadedModel, image: torch.Tensor, task: str, prompt: str, seed: int, preview_rows: int
    ) -> io.NodeOutput:
        images = to_pil(image)
        steps = model.as_pipeline(LuminaMGPTImg2ImgPipeline).stream(
            [prompt or None] * len(images),
            images,
            task=task,
            generator=torch.Generator().manual_seed(seed),
            every=preview_rows or 1,
        )
        return io.NodeOutput(watch(steps, cls.hidden.unique_id, preview_rows > 0))


class LuminaMGPTChat(io.ComfyNode):
    """Answers in a conversation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LuminaMGPTChat",
            display_name="Lumina-mGPT Chat",
            category=CATEGORY,
            description="Answers a message with text and images. Another such node goes on with the conversation.",
            inputs=[
                ModelType.Input("model"),
                io.String.Input("message", multiline=True, dynamic_prompts=True),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="In the place of each <|image|> of the message, or before it if it has none.",
                ),
                ConversationType.Input("conversation", optional=True),
                io.Int.Input("max_new_tokens", default=4096, min=1, max=65536, tooltip="An image of 768 px has 2356."),
                seed_input(),
            ],
            outputs=[
                io.String.Output(display_name="text"),
                io.Image.Output(display_name="images", is_output_list=True),
                ConversationType.Output(display_name="conversation"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: LoadedModel,
        message: str,
        max_new_tokens: int,
        seed: int,
        images: torch.Tensor | None = None,
        conversation: LuminaMGPTConversation | None = None,
    ) -> io.NodeOutput:
        # The one that came in is kept by ComfyUI, for another run to go on from there.
        conversation = LuminaMGPTConversation() if conversation is None else copy.deepcopy(conversation)
        answer = model.as_pipeline(LuminaMGPTChatPipeline)(
            message,
            images=None if images is None else to_pil(images),
            conversation=conversation,
            max_new_tokens=max_new_tokens,
            generator=torch.Generator().manual_seed(seed),
        )
        made = [to_comfy([one]) for one in answer.images]
        return io.NodeOutput(answer.text, made or ExecutionBlocker(None), conversation)


class LuminaMGPTExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadLuminaMGPT, LuminaMGPTTextToImage, LuminaMGPTTask, LuminaMGPTChat]


async def comfy_entrypoint() -> LuminaMGPTExtension:
    """What ComfyUI asks for the nodes."""
    return LuminaMGPTExtension()


def watch(steps: Iterator[LuminaMGPTStreamOutput], node_id: str, with_previews: bool) -> torch.Tensor:
    """
    Sample images while the node shows how far they are.

    Args:
        steps (`Iterator[LuminaMGPTStreamOutput]`): The images so far, at the end the whole.
        node_id (`str`): The node.
        with_previews (`bool`): Whether it shows the first image too.

    Returns:
        `torch.Tensor` of shape `(num_images, height, width, 3)`: The images.
    """
    api = ComfyAPISync()
    with closing(steps):
        for step in steps:
            comfy.model_management.throw_exception_if_processing_interrupted()
            num_rows = max(len(codes) for codes in step.codes)
            is_last = step.num_rows == num_rows
            preview = step.preview("pil")[0] if with_previews and not is_last else None
            api.execution.set_progress(step.num_rows, num_rows, node_id=node_id, preview_image=preview)
    return to_comfy(step.preview("pil"))


def to_pil(images: torch.Tensor) -> list[PIL.Image.Image]:
    """Images of ComfyUI, `(num_images, height, width, channels)` with values in [0, 1]."""
    return [PIL.Image.fromarray(image) for image in (images * 255).round().clamp(0, 255).byte().cpu().numpy()]


def to_comfy(images: Sequence[PIL.Image.Image]) -> torch.Tensor:
    """Images of one size as ComfyUI has them."""
    return torch.from_numpy(np.stack(images)).float() / 255
