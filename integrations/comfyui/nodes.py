# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Four nodes, in the V3 schema of ComfyUI: load a model, images from text, images from images, conversations."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
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
    LuminaMGPTScheduler,
)
from lumina_mgpt_diffusers.lumina_mgpt.calls import ImageCall
from lumina_mgpt_diffusers.lumina_mgpt.families import families


CATEGORY = "Lumina-mGPT"

# What the loader shows where the files of a checkpoint tell its family.
BY_FILES = "as its files tell"

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


def sampler_inputs() -> list[io.Input]:
    """Settings that are the model's own unless they are set. A widget always has a value: -1 stands for None."""

    def own(kind: type, name: str, tooltip: str, **bounds: float) -> io.Input:
        none = -1.0 if kind is io.Float else -1
        tooltip += " -1: the model's default."
        return kind.Input(name, optional=True, default=none, min=none, tooltip=tooltip, **bounds)

    return [
        own(io.Float, "guidance_scale", "Scale of classifier-free guidance; 0 to 1 turn it off.", max=100.0, step=0.1),
        own(io.Float, "temperature", "Divides the logits; 0 takes the most likely code.", max=10.0, step=0.01),
        own(io.Int, "top_k", "Number of codes that may be drawn, 0 for all.", max=1 << 16),
        own(
            io.Float,
            "top_p",
            "Only the most likely codes whose probabilities add up to this may be drawn.",
            max=1.0,
            step=0.01,
        ),
    ]


def size_inputs(default: str) -> list[io.Input]:
    return [
        io.Int.Input(name, optional=True, default=0, min=0, max=4096, step=32, tooltip=f"In pixels. 0: {default}.")
        for name in ("width", "height")
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
                io.String.Input(
                    "original_tokenizer",
                    default="",
                    optional=True,
                    tooltip="Of an original checkpoint: where its tokenizer is, if it is not its family's.",
                ),
                io.Combo.Input(
                    "family",
                    options=[BY_FILES, *families()],
                    default=BY_FILES,
                    optional=True,
                    tooltip="Of an original checkpoint whose files do not tell it, such as Anole's.",
                ),
                io.Int.Input(
                    "base_size",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="Of an original checkpoint that does not state it, in pixels. 0: what it states.",
                ),
            ],
            outputs=[ModelType.Output(display_name="model")],
        )

    @classmethod
    def execute(
        cls,
        model: str,
        dtype: str,
        offload: bool,
        original_vqgan: str = "",
        original_tokenizer: str = "",
        family: str = BY_FILES,
        base_size: int = 0,
    ) -> io.NodeOutput:
        folders = [os.path.join(path, model) for path in folder_paths.get_folder_paths("diffusers")]
        source = next(filter(os.path.isdir, folders), model)
        pipe = LuminaMGPTPipeline.from_pretrained(
            source,
            dtype=getattr(torch, dtype),
            original_vqgan=original_vqgan or None,
            original_tokenizer=original_tokenizer or None,
            family=None if family == BY_FILES else family,
            **({"scheduler": LuminaMGPTScheduler(resolution=base_size)} if base_size else {}),
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
                *size_inputs("the model's base size"),
                io.Int.Input("batch_size", default=1, min=1, max=64),
                seed_input(),
                *sampler_inputs(),
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
        batch_size: int,
        seed: int,
        preview_rows: int,
        negative_prompt: str = "",
        width: int = 0,
        height: int = 0,
        guidance_scale: float = -1.0,
        temperature: float = -1.0,
        top_k: int = -1,
        top_p: float = -1.0,
    ) -> io.NodeOutput:
        pipe = model.as_pipeline(LuminaMGPTPipeline)
        call = pipe.prepare(
            prompt,
            negative_prompt or None,
            height=height or None,
            width=width or None,
            num_images_per_prompt=batch_size,
            generator=torch.Generator().manual_seed(seed),
            guidance_scale=given(guidance_scale),
            temperature=given(temperature),
            top_k=given(top_k),
            top_p=given(top_p),
            every=preview_rows or 1,
        )
        return io.NodeOutput(watch(pipe, call, cls.hidden.unique_id, preview_rows > 0))


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
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Without one, a task of two panels makes both, an image and its map.",
                ),
                io.Combo.Input("task", options=TASKS, tooltip="Models of other families have other tasks."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The instruction, the object to detect or the caption, for the tasks that take one.",
                ),
                *size_inputs("that of the image. With two panels it is that of both, one above the other"),
                io.Boolean.Input(
                    "result_only",
                    default=False,
                    optional=True,
                    tooltip="Of a task of two panels give the lower one, the result, alone.",
                ),
                seed_input(),
                preview_input(),
            ],
            outputs=[io.Image.Output(display_name="images")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: LoadedModel,
        task: str,
        prompt: str,
        seed: int,
        preview_rows: int,
        image: torch.Tensor | None = None,
        width: int = 0,
        height: int = 0,
        result_only: bool = False,
    ) -> io.NodeOutput:
        images = None if image is None else to_pil(image)
        pipe = model.as_pipeline(LuminaMGPTImg2ImgPipeline)
        call = pipe.prepare(
            prompt or None,
            images,
            task=task,
            height=height or None,
            width=width or None,
            result_only=result_only,
            generator=torch.Generator().manual_seed(seed),
            every=preview_rows or 1,
        )
        return io.NodeOutput(watch(pipe, call, cls.hidden.unique_id, preview_rows > 0))


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


def watch(pipe: DiffusionPipeline, call: ImageCall, node_id: str, with_previews: bool) -> torch.Tensor:
    """
    Sample images while the node shows how far they are.

    Args:
        pipe ([`LuminaMGPTPipeline`] or [`LuminaMGPTImg2ImgPipeline`]): The pipeline.
        call ([`ImageCall`]): What it has prepared.
        node_id (`str`): The node.
        with_previews (`bool`): Whether it shows the first image too.

    Returns:
        `torch.Tensor` of shape `(num_images, height, width, 3)`: The images.
    """
    api = ComfyAPISync()
    with closing(pipe.sample(call)) as steps:
        for step in steps:
            comfy.model_management.throw_exception_if_processing_interrupted()
            num_rows = max(len(codes) for codes in step.codes)
            is_last = step.num_rows == num_rows
            preview = step.preview("pil")[0] if with_previews and not is_last else None
            api.execution.set_progress(step.num_rows, num_rows, node_id=node_id, preview_image=preview)
    return to_comfy(pipe.finish(call, step.codes).images)


def given(setting: float) -> float | None:
    """A setting of a widget, None where it is left to the model."""
    return None if setting < 0 else setting


def to_pil(images: torch.Tensor) -> list[PIL.Image.Image]:
    """Images of ComfyUI, `(num_images, height, width, channels)` with values in [0, 1]."""
    return [PIL.Image.fromarray(image) for image in (images * 255).round().clamp(0, 255).byte().cpu().numpy()]


def to_comfy(images: Sequence[PIL.Image.Image]) -> torch.Tensor:
    """Images of one size as ComfyUI has them."""
    return torch.from_numpy(np.stack(images)).float() / 255
