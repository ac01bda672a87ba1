# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The model that is part of this package: small, trained, and there without a download."""

from __future__ import annotations

import os
from pathlib import Path

from diffusers.utils import logging


logger = logging.get_logger(__name__)

POCKET_NAME = "pocket"

POCKET = os.fspath(Path(__file__).with_name(POCKET_NAME))
"""
Folder of the pocket model, a Lumina-mGPT of a few megabytes that knows a small world of toys. It is a pipeline in
diffusers' format like any other: `DiffusionPipeline.from_pretrained(POCKET)` and `AutoPipelineForText2Image` load it
too. Where this package takes a model, its name `"pocket"` does as well.
"""


def model_source(name_or_path: str | os.PathLike) -> str | os.PathLike:
    """
    What to load for the name of a model.

    Args:
        name_or_path (`str` or `os.PathLike`): A folder, a Hub id, or `"pocket"`.

    Returns:
        `str` or `os.PathLike`: [`POCKET`] for `"pocket"`, unless the current folder has one of that name that holds a
        model, which is said in the log. All else as it is.
    """
    if name_or_path != POCKET_NAME:
        return name_or_path
    if any(os.path.isfile(os.path.join(POCKET_NAME, name)) for name in ("model_index.json", "config.json")):
        logger.warning(
            f"'{POCKET_NAME}' is the folder {os.path.abspath(POCKET_NAME)!r}, not the model of this package, which"
            f" {POCKET!r} is."
        )
        return name_or_path
    return POCKET
