# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
From prompts and images to images in blocks, which a [`~diffusers.ModularPipeline`] runs.

Each block does one step of the pipelines, by the same functions: encode the prompts, prepare the call, sample its
codes, decode them. What they hand on are token ids, an [`ImageCall`] with a [`Request`] for each image, and codes, so
that a block between two of them can change any of it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ModularPipeline, VQModel
from diffusers.modular_pipelines import (
    ComponentSpec,
    ConditionalPipelineBlocks,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)
from transformers import PreTrainedTokenizerFast

from ..lumina_mgpt.calls import ImageCall
from ..lumina_mgpt.loading import COMPONENTS
from ..lumina_mgpt.pipeline_images import LuminaMGPTImagePipeline
from ..lumina_mgpt.pipeline_lumina_mgpt import LuminaMGPTPipeline
from ..lumina_mgpt.pipeline_lumina_mgpt_img2img import LuminaMGPTImg2ImgPipeline
from ..lumina_mgpt.scheduling_lumina_mgpt import LuminaMGPTScheduler
from ..lumina_mgpt.tasks import Task
from ..lumina_mgpt.transformer_lumina_mgpt import LuminaMGPTTransformer
from ..lumina_mgpt.validation import check_prompts
from ..repository import MODEL_NAME, write_shim
from .inputs import inputs_of


TYPES = {
    "tokenizer": PreTrainedTokenizerFast,
    "transformer": LuminaMGPTTransformer,
    "vqvae": VQModel,
    "scheduler": LuminaMGPTScheduler,
}

SAMPLER_INPUTS = (
    "guidance_scale",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "num_draft_tokens",
    "draft_init",
    "num_images_per_prompt",
    "generator",
    "output_type",
    "return_log_probs",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "num_inference_steps",
)

IMAGES = OutputParam("images", description="The images, in the form that `output_type` says.")


class LuminaMGPTStep(ModularPipelineBlocks):
    """
    One step of a pipeline.

    A subclass names the class of the pipeline whose step it is, and does it in `run`. Every step has all components:
    which family the model is of, the transformer's configuration alone may tell.
    """

    model_name = MODEL_NAME
    pipeline_class: type[LuminaMGPTImagePipeline] = LuminaMGPTPipeline

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec(name, TYPES[name]) for name in COMPONENTS]

    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        pipe = self.pipeline_class(**{name: getattr(components, name) for name in COMPONENTS})
        inputs = {name: getattr(block_state, name) for name in self.input_names}
        for output, value in self.run(pipe, **inputs).items():
            setattr(block_state, output, value)
        self.set_block_state(state, block_state)
        return components, state

    def run(self, pipe: LuminaMGPTImagePipeline, **inputs: Any) -> dict[str, Any]:
        """
        Do the step.

        Args:
            pipe ([`LuminaMGPTImagePipeline`]): A pipeline of the components.
            inputs: The inputs of the block.

        Returns:
            `dict[str, Any]`: Its outputs.
        """
        raise NotImplementedError


class LuminaMGPTEncodePromptStep(LuminaMGPTStep):
    """Encodes prompts as the conversations that the model was trained on."""

    @property
    def description(self) -> str:
        return "Encodes prompts as the conversations that the model was trained on, of which the size is a part."

    @property
    def inputs(self) -> list[InputParam]:
        names = ("prompt", "negative_prompt", "height", "width", "latents", "max_sequence_length")
        return inputs_of(self.pipeline_class, *names, required=("prompt",))

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        ids, mask = "Token ids of the {}s, padded on the right.", "1 where there is a token of the {}s."
        return [
            OutputParam("prompt_token_ids", torch.LongTensor, ids.format("prompt")),
            OutputParam("prompt_attention_mask", torch.LongTensor, mask.format("prompt")),
            OutputParam("negative_prompt_token_ids", torch.LongTensor, ids.format("negative prompt")),
            OutputParam("negative_prompt_attention_mask", torch.LongTensor, mask.format("negative prompt")),
            OutputParam("height", int, "Height of the images in pixels."),
            OutputParam("width", int, "Width of the images in pixels."),
        ]

    def run(
        self,
        pipe: LuminaMGPTPipeline,
        prompt: object,
        negative_prompt: object,
        height: object,
        width: object,
        latents: object,
        max_sequence_length: int,
    ) -> dict[str, Any]:
        check_prompts("prompt", prompt, None, None)
        if negative_prompt is not None:
            check_prompts("negative_prompt", negative_prompt, None, None)
        height, width = pipe.default_size(height, width, latents)
        encoded = pipe.encode_prompt(prompt, negative_prompt, height, width, max_sequence_length)
        return dict(zip(self.intermediate_output_names, encoded))


class LuminaMGPTPrepareStep(LuminaMGPTStep):
    """Checks the arguments and makes the requests for the images of encoded prompts."""

    @property
    def description(self) -> str:
        return "Checks the arguments of a call, fills in the scheduler's defaults and makes a request for each image."

    @property
    def inputs(self) -> list[InputParam]:
        names = (
            "prompt_token_ids",
            "prompt_attention_mask",
            "negative_prompt_token_ids",
            "negative_prompt_attention_mask",
            "height",
            "width",
            "latents",
            *SAMPLER_INPUTS,
        )
        return inputs_of(self.pipeline_class, *names, required=("prompt_token_ids",))

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("call", ImageCall, "What is to be sampled: a request for each image, and how.")]

    def run(self, pipe: LuminaMGPTImagePipeline, **inputs: Any) -> dict[str, Any]:
        return {"call": pipe.prepare(every=None, **inputs)}


class LuminaMGPTImg2ImgPrepareStep(LuminaMGPTPrepareStep):
    """Checks the arguments, encodes images with their prompts, and makes the requests for new images."""

    pipeline_class = LuminaMGPTImg2ImgPipeline

    @property
    def description(self) -> str:
        return "Encodes images and prompts as the conversations of a task, and makes a request for each new image."

    @property
    def inputs(self) -> list[InputParam]:
        names = ("prompt", "image", "task", "height", "width", "size", "negative_prompt", "crop_generator")
        inputs = inputs_of(self.pipeline_class, *names, "result_only", "strength", *SAMPLER_INPUTS)
        # A task that is given chooses this step, so that none is the default.
        return [replace(one, default=None) if one.name == "task" else one for one in inputs]

    def run(self, pipe: LuminaMGPTImg2ImgPipeline, task: str | Task | None, **inputs: Any) -> dict[str, Any]:
        return super().run(pipe, **inputs, **({} if task is None else {"task": task}))


class LuminaMGPTSampleStep(LuminaMGPTStep):
    """Samples the codes of a prepared call."""

    def __init__(self) -> None:
        super().__init__()
        self._progress_bar_config: dict[str, Any] = {}

    @property
    def description(self) -> str:
        return "Samples the VQ codes that are asked for."

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("call", ImageCall, required=True, description="What is to be sampled.")]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("latents", torch.LongTensor, "The VQ codes, `(num_images, rows, columns)`."),
            OutputParam("log_probs", torch.Tensor, "With `return_log_probs`, those of the sampled codes."),
        ]

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        self._progress_bar_config = kwargs

    def run(self, pipe: LuminaMGPTImagePipeline, call: ImageCall) -> dict[str, Any]:
        pipe.set_progress_bar_config(**self._progress_bar_config)
        *_, result = pipe.sample(call)
        return {"latents": result.codes, "log_probs": result.log_probs}


class LuminaMGPTDecodeStep(LuminaMGPTStep):
    """Decodes sampled codes to images."""

    @property
    def description(self) -> str:
        return "Decodes VQ codes to images."

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("call", ImageCall, required=True, description="What was sampled."),
            InputParam("latents", torch.LongTensor, required=True, description="The VQ codes."),
            InputParam("log_probs", torch.Tensor, description="Those of the codes."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [IMAGES, OutputParam("log_probs", torch.Tensor, "Those of the codes of the images.")]

    def run(
        self,
        pipe: LuminaMGPTImagePipeline,
        call: ImageCall,
        latents: torch.LongTensor,
        log_probs: torch.Tensor | None,
    ) -> dict[str, Any]:
        output = pipe.finish(call, latents, log_probs)
        return {name: getattr(output, name) for name in self.intermediate_output_names}


class LuminaMGPTImg2ImgDecodeStep(LuminaMGPTDecodeStep):
    """Decodes sampled codes to images, and reads what they mean."""

    pipeline_class = LuminaMGPTImg2ImgPipeline

    @property
    def description(self) -> str:
        return "Decodes VQ codes to images, and reads what the pictures of a task mean as arrays."

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        arrays = OutputParam("arrays", description="What the images mean, of the tasks that define it.")
        return [*super().intermediate_outputs, arrays]


class LuminaMGPTTextToImagePrepareStep(SequentialPipelineBlocks):
    """From prompts to a prepared call."""

    model_name = MODEL_NAME
    block_classes = [LuminaMGPTEncodePromptStep, LuminaMGPTPrepareStep]
    block_names = ["encode_prompt", "prepare"]

    @property
    def description(self) -> str:
        return "From prompts to a request for each image."


class LuminaMGPTAutoStep(ConditionalPipelineBlocks):
    """A step of image to image where there is an `image` or a `task`, or else of text to image."""

    model_name = MODEL_NAME
    block_names = ["image2image", "text2image"]
    block_trigger_inputs = ["image", "task"]
    default_block_name = "text2image"

    def select_block(self, image: object = None, task: object = None) -> str | None:
        return None if image is None and task is None else "image2image"


class LuminaMGPTAutoPrepareStep(LuminaMGPTAutoStep):
    """From prompts, or from images with their prompts, to a prepared call."""

    block_classes = [LuminaMGPTImg2ImgPrepareStep, LuminaMGPTTextToImagePrepareStep]

    @property
    def description(self) -> str:
        return "By a task, if there is an `image` or a `task`, or else from prompts to requests for images."


class LuminaMGPTAutoDecodeStep(LuminaMGPTAutoStep):
    """From codes to images and, of the tasks that define it, what they mean."""

    block_classes = [LuminaMGPTImg2ImgDecodeStep, LuminaMGPTDecodeStep]

    @property
    def description(self) -> str:
        return "From VQ codes to images."


class LuminaMGPTAutoBlocks(SequentialPipelineBlocks):
    """
    Text to image and, where an `image` or a `task` is given, image to image by any task.

    Example:

    ```py
    >>> from lumina_mgpt_diffusers.modular import LuminaMGPTAutoBlocks

    >>> pipe = LuminaMGPTAutoBlocks().init_pipeline("path/to/Lumina-mGPT-7B-768")
    >>> pipe.load_components(dtype=torch.bfloat16)
    >>> image = pipe(prompt="a red fox in the snow", output="images")[0]
    ```
    """

    model_name = MODEL_NAME
    block_classes = [LuminaMGPTAutoPrepareStep, LuminaMGPTSampleStep, LuminaMGPTAutoDecodeStep]
    block_names = ["prepare", "sample", "decode"]
    _workflow_map = {"text2image": {"prompt": True}, "image2image": {"image": True}}

    @property
    def description(self) -> str:
        return "Text to image, or image to image by a task, with Lumina-mGPT."

    @property
    def outputs(self) -> list[OutputParam]:
        return [IMAGES]

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        r"""
        Save which blocks these are, with a file that leads diffusers to them where this package is not imported.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to save to, such as that of a saved pipeline.
            push_to_hub (`bool`, defaults to `False`): Whether to upload the folder to the Hub then.
            kwargs: See [`~diffusers.ConfigMixin.save_config`].
        """
        if type(self) is LuminaMGPTAutoBlocks:
            write_shim(Path(save_directory) / f"{Path(__file__).stem}.py", type(self).__name__)
        super().save_config(save_directory, push_to_hub, **kwargs)
