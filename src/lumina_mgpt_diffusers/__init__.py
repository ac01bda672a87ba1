# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Lumina-mGPT (https://huggingface.co/papers/2408.02657) as diffusers pipelines."""

from .lumina_mgpt import (
    CHAMELEON,
    LUMINA_MGPT,
    LUMINA_MGPT_2,
    LUMINA_MGPT_POCKET,
    TASKS,
    CodeTokens,
    ImagePart,
    LuminaMGPTChatPipeline,
    LuminaMGPTChatPipelineOutput,
    LuminaMGPTConversation,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTImg2ImgPipelineOutput,
    LuminaMGPTInpaintPipeline,
    LuminaMGPTPipeline,
    LuminaMGPTPipelineOutput,
    LuminaMGPTScheduler,
    LuminaMGPTStreamOutput,
    LuminaMGPTTransformer,
    ModelFamily,
    PanelTask,
    Task,
    TextPart,
    contact_sheet,
    find_palette,
    multiview_prompt,
    read_depth,
    read_labels,
    read_normals,
    register_family,
)
from .memory import MemoryEstimate, estimate_memory, largest_batch
from .modular import LuminaMGPTAutoBlocks, LuminaMGPTModularPipeline
from .registration import register
from .shipped import POCKET


__version__ = "0.1.0"

__all__ = [
    "CHAMELEON",
    "CodeTokens",
    "ImagePart",
    "LUMINA_MGPT",
    "LUMINA_MGPT_2",
    "LUMINA_MGPT_POCKET",
    "LuminaMGPTAutoBlocks",
    "LuminaMGPTChatPipeline",
    "LuminaMGPTChatPipelineOutput",
    "LuminaMGPTConversation",
    "LuminaMGPTImg2ImgPipeline",
    "LuminaMGPTImg2ImgPipelineOutput",
    "LuminaMGPTInpaintPipeline",
    "LuminaMGPTModularPipeline",
    "LuminaMGPTPipeline",
    "LuminaMGPTPipelineOutput",
    "LuminaMGPTScheduler",
    "LuminaMGPTStreamOutput",
    "LuminaMGPTTransformer",
    "MemoryEstimate",
    "ModelFamily",
    "POCKET",
    "PanelTask",
    "TASKS",
    "Task",
    "TextPart",
    "contact_sheet",
    "estimate_memory",
    "find_palette",
    "largest_batch",
    "multiview_prompt",
    "read_depth",
    "read_labels",
    "read_normals",
    "register_family",
]

register()
