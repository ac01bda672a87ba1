# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a saved Lumina-mGPT pipeline names. Registered as `diffusers.pipelines.lumina_mgpt`."""

from .conversation import ImagePart, LuminaMGPTConversation, TextPart
from .pipeline_lumina_mgpt import LuminaMGPTPipeline
from .pipeline_lumina_mgpt_chat import LuminaMGPTChatPipeline
from .pipeline_output import LuminaMGPTChatPipelineOutput, LuminaMGPTPipelineOutput
from .scheduling_lumina_mgpt import LuminaMGPTScheduler
from .transformer_lumina_mgpt import LuminaMGPTTransformer


__all__ = [
    "ImagePart",
    "LuminaMGPTChatPipeline",
    "LuminaMGPTChatPipelineOutput",
    "LuminaMGPTConversation",
    "LuminaMGPTPipeline",
    "LuminaMGPTPipelineOutput",
    "LuminaMGPTScheduler",
    "LuminaMGPTTransformer",
    "TextPart",
]
