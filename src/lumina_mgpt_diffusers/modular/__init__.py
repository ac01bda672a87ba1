# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Lumina-mGPT as blocks of diffusers' modular pipelines."""

from .blocks import (
    LuminaMGPTAutoBlocks,
    LuminaMGPTAutoDecodeStep,
    LuminaMGPTAutoPrepareStep,
    LuminaMGPTDecodeStep,
    LuminaMGPTEncodePromptStep,
    LuminaMGPTImg2ImgDecodeStep,
    LuminaMGPTImg2ImgPrepareStep,
    LuminaMGPTPrepareStep,
    LuminaMGPTSampleStep,
    LuminaMGPTTextToImagePrepareStep,
)
from .pipeline import LuminaMGPTModularPipeline


__all__ = [
    "LuminaMGPTAutoBlocks",
    "LuminaMGPTAutoDecodeStep",
    "LuminaMGPTAutoPrepareStep",
    "LuminaMGPTDecodeStep",
    "LuminaMGPTEncodePromptStep",
    "LuminaMGPTImg2ImgDecodeStep",
    "LuminaMGPTImg2ImgPrepareStep",
    "LuminaMGPTModularPipeline",
    "LuminaMGPTPrepareStep",
    "LuminaMGPTSampleStep",
    "LuminaMGPTTextToImagePrepareStep",
]
