# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a saved Lumina-mGPT pipeline names. Registered as `diffusers.pipelines.lumina_mgpt`."""

from .pipeline_lumina_mgpt import LuminaMGPTPipeline
from .pipeline_output import LuminaMGPTPipelineOutput
from .scheduling_lumina_mgpt import LuminaMGPTScheduler
from .transformer_lumina_mgpt import LuminaMGPTTransformer


__all__ = ["LuminaMGPTPipeline", "LuminaMGPTPipelineOutput", "LuminaMGPTScheduler", "LuminaMGPTTransformer"]
