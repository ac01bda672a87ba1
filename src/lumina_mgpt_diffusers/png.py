# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""PNG files that say how they were made."""

import json
import os
from pathlib import Path
from typing import Any

import diffusers
import PIL.Image
import torch
import transformers
from PIL.PngImagePlugin import PngInfo

from . import __version__
from .lumina_mgpt.pipeline_base import LuminaMGPTBasePipeline


def describe(pipe: LuminaMGPTBasePipeline) -> dict[str, Any]:
    """What of a pipeline and its surroundings an image can depend on."""
    return {
        "pipeline": type(pipe).__name__,
        "sampler": {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")},
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "device": pipe.device.type,
        "versions": {
            "lumina-mgpt-diffusers": __version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }


def save_png(image: PIL.Image.Image, path: str | os.PathLike, settings: dict[str, Any]) -> None:
    """
    Save an image with its settings as JSON under `parameters` in its metadata.

    Args:
        image (`PIL.Image.Image`): The image.
        path (`str` or `os.PathLike`): Where to; folders are made.
        settings (`dict[str, Any]`): The settings; those that are None are left out.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first, so that an interruption leaves no half of a file.
    partial = path.with_name(path.name + ".partial")
    image.save(partial, format="PNG", pnginfo=png_info(settings))
    os.replace(partial, path)


def png_info(settings: dict[str, Any]) -> PngInfo:
    """Metadata with settings as JSON under `parameters`; those that are None are left out."""
    info = PngInfo()
    info.add_text("parameters", json.dumps({name: value for name, value in settings.items() if value is not None}))
    return info
