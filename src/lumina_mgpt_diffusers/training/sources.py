# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the flags name: the pipeline that training starts from, and the samples."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import torch
from diffusers.quantizers import PipelineQuantizationConfig
from transformers import BitsAndBytesConfig, ChameleonConfig

from ..lumina_mgpt.families import LUMINA_MGPT, ModelFamily
from ..lumina_mgpt.loading import is_original, model_files
from ..lumina_mgpt.pipeline_lumina_mgpt import LuminaMGPTPipeline
from ..lumina_mgpt.scheduling_lumina_mgpt import LuminaMGPTScheduler
from ..shipped import model_source
from .arguments import DataArguments, ModelArguments
from .encoding import EncodingSettings
from .pretokenization import PretokenizationReport, pretokenize
from .samples import ConversationSource, DatasetSource, ImageFolderSource, SampleSource, Subset, TaskFormat


def load_pipeline(
    arguments: ModelArguments, dtype: torch.dtype, quantization: str = "none", **components
) -> LuminaMGPTPipeline:
    """
    The pipeline that training starts from, on the CPU.

    Args:
        arguments ([`ModelArguments`]): The flags.
        dtype (`torch.dtype`): Type of the weights that are not quantised.
        quantization (`str`, defaults to `"none"`): `"nf4"` or `"int8"` for the layers of the transformer.
        components: Components to use instead of those of the pipeline.
    """
    kwargs = {"dtype": {"transformer": dtype, "default": torch.float32}, **components}
    for name in ("revision", "variant", "original_vqgan", "original_tokenizer", "family"):
        if getattr(arguments, name) is not None:
            kwargs[name] = getattr(arguments, name)
    if quantization != "none":
        config = BitsAndBytesConfig(load_in_8bit=True)
        if quantization == "nf4":
            config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
                bnb_4bit_quant_storage=dtype,
            )
        kwargs["quantization_config"] = PipelineQuantizationConfig(quant_mapping={"transformer": config})
    name = model_source(arguments.pretrained_model_name_or_path)
    resolution = getattr(arguments, "resolution", None)
    if resolution is not None and is_original(model_files(name)):
        kwargs["scheduler"] = LuminaMGPTScheduler(resolution=resolution)
    return LuminaMGPTPipeline.from_pretrained(name, **kwargs)


def dtype_on_disk(arguments: ModelArguments) -> str:
    """
    The type of the weights of the transformer that training starts from, before they are cast.

    Args:
        arguments ([`ModelArguments`]): The flags.
    """
    name = model_source(arguments.pretrained_model_name_or_path)
    subfolder = "" if is_original(model_files(name)) else "transformer"
    config, _ = ChameleonConfig.get_config_dict(name, subfolder=subfolder, revision=arguments.revision)
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def sample_source(arguments: DataArguments, family: ModelFamily = LUMINA_MGPT) -> SampleSource:
    """
    The samples that the flags name.

    Args:
        arguments ([`DataArguments`]): The flags.
        family ([`ModelFamily`], *optional*): Has the tasks, by default those of Lumina-mGPT.

    Raises:
        `ValueError`: If there are no such files or columns.
    """
    if arguments.conversations is not None:
        source: SampleSource = ConversationSource(arguments.conversations)
    else:
        of_folder = arguments.train_data_dir is not None
        format = TaskFormat(
            arguments.task,
            arguments.image_column or ("file_name" if of_folder else "image"),
            arguments.caption_column,
            arguments.condition_column,
            family,
        )
        if of_folder:
            source = ImageFolderSource(arguments.train_data_dir, format)
        elif os.path.isdir(arguments.dataset_name) and (Path(arguments.dataset_name) / "state.json").exists():
            source = DatasetSource(datasets.load_from_disk(arguments.dataset_name), format)
        else:
            loaded = datasets.load_dataset(
                arguments.dataset_name, arguments.dataset_config_name, split=arguments.dataset_split
            )
            source = DatasetSource(loaded, format)
    return source if arguments.max_train_samples is None else Subset(source, arguments.max_train_samples)


def encode_source(
    arguments: DataArguments,
    pipeline: LuminaMGPTPipeline,
    output: str | os.PathLike,
    num_shards: int = 1,
    shard_index: int = 0,
) -> PretokenizationReport:
    """
    Pre-tokenise the samples that the flags name, with the VQ model where and in the type that it is.

    Args:
        arguments ([`DataArguments`]): The flags.
        pipeline ([`LuminaMGPTPipeline`]): Its tokenizer and VQ model.
        output (`str` or `os.PathLike`): Folder to write to.
        num_shards (`int`, defaults to 1), shard_index (`int`, defaults to 0): Of how many processes this is which.
    """
    settings = EncodingSettings(
        base_size=arguments.resolution or pipeline.scheduler.config.resolution,
        max_length=arguments.max_length,
        truncate=arguments.truncate,
        random_crop=arguments.random_crop,
        seed=arguments.seed,
    )
    return pretokenize(
        sample_source(arguments, pipeline.family),
        output,
        pipeline.tokenizer,
        pipeline.vqvae,
        settings,
        family=pipeline.family,
        config=pipeline.transformer.config,
        batch_size=arguments.encoding_batch_size,
        block_size=arguments.block_size,
        num_workers=arguments.preprocessing_num_workers,
        num_shards=num_shards,
        shard_index=shard_index,
    )
