# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""LoRA adapters as they are trained, and as the pipelines load them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from ..lumina_mgpt.pipeline_lumina_mgpt import LuminaMGPTPipeline
from .arguments import LoraArguments
from .transformer import TrainableTransformer


def add_adapter(transformer: TrainableTransformer, arguments: LoraArguments) -> PeftModel:
    """
    Freeze a transformer and give it a new adapter.

    Args:
        transformer ([`TrainableTransformer`]): The model.
        arguments ([`LoraArguments`]): Rank, scale, layers.

    Raises:
        `ValueError`: If the model has no layers of these names.
    """
    config = LoraConfig(
        r=arguments.rank,
        lora_alpha=arguments.rank if arguments.lora_alpha is None else arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=list(arguments.lora_layers),
    )
    torch.manual_seed(arguments.seed)  # of the first matrices, in every process
    return get_peft_model(transformer, config)


def save_adapter(folder: str | os.PathLike, model: PeftModel, state_dict: dict[str, torch.Tensor]) -> None:
    """
    Save an adapter for [`LuminaMGPTPipeline.load_lora_weights`].

    Args:
        folder (`str` or `os.PathLike`): Folder to save to.
        model ([`~peft.PeftModel`]): The model.
        state_dict (`dict[str, torch.Tensor]`): All its weights.
    """
    config = model.peft_config["default"]
    # peft holds the names as a set, whose order changes from run to run.
    metadata = config.to_dict() | {"base_model_name_or_path": None, "target_modules": sorted(config.target_modules)}
    unfinished = f"unfinished_{LORA_WEIGHT_NAME_SAFE}"
    LuminaMGPTPipeline.save_lora_weights(
        folder,
        get_peft_model_state_dict(model, state_dict, save_embedding_layers=False),
        weight_name=unfinished,
        transformer_lora_adapter_metadata=metadata,
    )
    os.replace(Path(folder) / unfinished, Path(folder) / LORA_WEIGHT_NAME_SAFE)
