# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Flexible Progressive Supervised Fine-tuning (FP-SFT) of https://huggingface.co/papers/2408.02657, section 3.2."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .arguments import FineTuningArguments
from .fine_tuning import fine_tune


def fine_tune_progressively(stages: Sequence[FineTuningArguments]) -> Path:
    """
    Train in stages, or go on with the one that was not finished.

    Args:
        stages (`list[FineTuningArguments]`):
            The stages. The first starts from its `pretrained_model_name_or_path`, each other from what the last one
            made; each has a folder of its `resolution` in its `output_dir`.

    Returns:
        `Path`: The pipeline of the last stage.

    Raises:
        `ValueError`: If a stage has no resolution of its own.
    """
    resolutions = [stage.resolution for stage in stages]
    if None in resolutions or len(set(resolutions)) < len(resolutions):
        raise ValueError(f"Each stage needs a `resolution` of its own, but they are {resolutions}.")
    result = None
    for stage in stages:
        folder = Path(stage.output_dir) / str(stage.resolution)
        stage = replace(stage, output_dir=str(folder))
        if result is not None:
            # The head of a Chameleon is trained by then, and the pipeline is in diffusers' format.
            stage = replace(
                stage,
                pretrained_model_name_or_path=str(result),
                zero_image_head=False,
                revision=None,
                variant=None,
                original_vqgan=None,
                original_tokenizer=None,
                family=None,
            )
        result = fine_tune(stage)
        gc.collect()  # the model of this stage, before that of the next is loaded
    return result
