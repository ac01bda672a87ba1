# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The modular pipeline that the blocks make."""

from __future__ import annotations

from typing import Any

from diffusers.modular_pipelines import ModularPipeline

from ..lumina_mgpt.loading import with_dtype
from ..lumina_mgpt.lora import LuminaMGPTLoraLoaderMixin


class LuminaMGPTModularPipeline(ModularPipeline, LuminaMGPTLoraLoaderMixin):
    """A [`~diffusers.ModularPipeline`] of the blocks of Lumina-mGPT, with LoRA adapters of its transformer."""

    default_blocks_name = "LuminaMGPTAutoBlocks"

    def load_components(self, *args: Any, **kwargs: Any) -> None:
        """Load components; see [`~diffusers.ModularPipeline.load_components`]."""
        super().load_components(*args, **with_dtype(kwargs))
