# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Lumina-mGPT (https://huggingface.co/papers/2408.02657) as diffusers pipelines."""

from .lumina_mgpt import (
    ImagePart,
    LuminaMGPTChatPipeline,
    LuminaMGPTChatPipelineOutput,
    LuminaMGPTConversation,
    LuminaMGPTPipeline,
    LuminaMGPTPipelineOutput,
    LuminaMGPTScheduler,
    LuminaMGPTTransformer,
    TextPart,
)
from .registration import register


__version__ = "0.1.0"

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

register()
