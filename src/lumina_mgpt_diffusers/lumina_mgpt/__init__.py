# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a saved Lumina-mGPT pipeline names. Registered as `diffusers.pipelines.lumina_mgpt`."""

from .calls import LuminaMGPTStreamOutput
from .conversation import ImagePart, LuminaMGPTConversation, TextPart
from .families import (
    CHAMELEON,
    LUMINA_MGPT,
    LUMINA_MGPT_2,
    LUMINA_MGPT_POCKET,
    CodeTokens,
    ModelFamily,
    register_family,
)
from .pipeline_lumina_mgpt import LuminaMGPTPipeline
from .pipeline_lumina_mgpt_chat import LuminaMGPTChatPipeline
from .pipeline_lumina_mgpt_img2img import LuminaMGPTImg2ImgPipeline
from .pipeline_lumina_mgpt_inpaint import LuminaMGPTInpaintPipeline
from .pipeline_output import (
    LuminaMGPTChatPipelineOutput,
    LuminaMGPTImg2ImgPipelineOutput,
    LuminaMGPTPipelineOutput,
)
from .prompts import TASKS, multiview_prompt
from .scheduling_lumina_mgpt import LuminaMGPTScheduler
from .tasks import PanelTask, Task
from .transformer_lumina_mgpt import LuminaMGPTTransformer
from .visual_results import contact_sheet, find_palette, read_depth, read_labels, read_normals


__all__ = [
    "CHAMELEON",
    "CodeTokens",
    "ImagePart",
    "LUMINA_MGPT",
    "LUMINA_MGPT_2",
    "LUMINA_MGPT_POCKET",
    "LuminaMGPTChatPipeline",
    "LuminaMGPTChatPipelineOutput",
    "LuminaMGPTConversation",
    "LuminaMGPTImg2ImgPipeline",
    "LuminaMGPTImg2ImgPipelineOutput",
    "LuminaMGPTInpaintPipeline",
    "LuminaMGPTPipeline",
    "LuminaMGPTPipelineOutput",
    "LuminaMGPTScheduler",
    "LuminaMGPTStreamOutput",
    "LuminaMGPTTransformer",
    "ModelFamily",
    "PanelTask",
    "TASKS",
    "Task",
    "TextPart",
    "contact_sheet",
    "find_palette",
    "multiview_prompt",
    "read_depth",
    "read_labels",
    "read_normals",
    "register_family",
]
