# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Makes diffusers know the pipelines of this package, as if they were its own.

A saved pipeline then names its components `["lumina_mgpt", "LuminaMGPTScheduler"]`, and `DiffusionPipeline`,
`AutoPipelineForText2Image`, `…Image2Image`, `…Inpainting` and `ModularPipeline` find its class.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import diffusers
from diffusers.modular_pipelines.modular_pipeline import MODULAR_PIPELINE_MAPPING

from . import lumina_mgpt, modular
from .repository import MODEL_NAME


AUTO_PIPELINE_MODULE = "diffusers.pipelines.auto_pipeline"


def register() -> None:
    """Register with diffusers. Doing so again changes nothing."""
    diffusers.pipelines.lumina_mgpt = lumina_mgpt
    for name in lumina_mgpt.__all__:
        if name.endswith("Pipeline"):
            for module in (diffusers, diffusers.pipelines):
                setattr(module, name, getattr(lumina_mgpt, name))
    for one in (modular.LuminaMGPTModularPipeline, modular.LuminaMGPTAutoBlocks):
        setattr(diffusers, one.__name__, one)
    MODULAR_PIPELINE_MAPPING[MODEL_NAME] = lambda config=None: modular.LuminaMGPTModularPipeline.__name__
    if AUTO_PIPELINE_MODULE in sys.modules:
        register_auto_pipelines(sys.modules[AUTO_PIPELINE_MODULE])
    else:
        sys.meta_path.insert(0, _AfterImport())


def register_auto_pipelines(module: ModuleType) -> None:
    module.AUTO_TEXT2IMAGE_PIPELINES_MAPPING[MODEL_NAME] = lumina_mgpt.LuminaMGPTPipeline
    module.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING[MODEL_NAME] = lumina_mgpt.LuminaMGPTImg2ImgPipeline
    module.AUTO_INPAINT_PIPELINES_MAPPING[MODEL_NAME] = lumina_mgpt.LuminaMGPTInpaintPipeline


class _AfterImport(MetaPathFinder):
    """
    Registers the auto pipelines when their module is first imported.

    That module imports every pipeline of diffusers, which takes seconds that only its users should wait.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != AUTO_PIPELINE_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register_auto_pipelines(module)

        spec.loader.exec_module = execute_and_register
        return spec
