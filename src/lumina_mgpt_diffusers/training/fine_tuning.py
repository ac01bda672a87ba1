# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
A run from a pipeline and samples to a trained pipeline or adapter.

A run has one folder. Its result appears there at once, when all is done, and a run whose result is there is over; one
that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.utils import logging
from huggingface_hub import create_repo, upload_folder
from transformers.integrations import unset_hf_deepspeed_config
from transformers.utils import is_torch_bf16_gpu_available

from ..lumina_mgpt.pipeline_lumina_mgpt import LuminaMGPTPipeline
from ..lumina_mgpt.scheduling_lumina_mgpt import LuminaMGPTScheduler
from ..repository import CARD_NAME
from .adapters import add_adapter, save_adapter
from .arguments import DTYPES, FineTuningArguments, LoraArguments, training_arguments
from .cards import adapter_card, training_section
from .data_collator import PackedCollator, PaddedCollator
from .optimizers import MUON
from .packed_attention import PACKED_SDPA
from .sources import dtype_on_disk, encode_source, load_pipeline
from .trainer import LuminaMGPTTrainer, last_complete_checkpoint, remove_incomplete_checkpoints
from .training_data import PretokenizedData, TrainingData
from .transformer import make_trainable, plain_transformer
from .validation_images import ValidationImages


logger = logging.get_logger(__name__)

PIPELINE_NAME = "pipeline"
DATA_NAME = "data"
ARGUMENTS_NAME = "training.json"


def fine_tune(arguments: FineTuningArguments) -> Path:
    """
    Train, or go on training.

    Args:
        arguments ([`FineTuningArguments`] or [`LoraArguments`]): The flags.

    Returns:
        `Path`: The folder `pipeline` in `output_dir`, for [`LuminaMGPTPipeline.from_pretrained`]; of an adapter
        `output_dir`, for [`LuminaMGPTPipeline.load_lora_weights`].
    """
    run = Path(arguments.output_dir)
    of_adapter = isinstance(arguments, LoraArguments)
    result = run if of_adapter else run / PIPELINE_NAME
    state = PartialState(cpu=arguments.use_cpu)
    if (result / LORA_WEIGHT_NAME_SAFE if of_adapter else result).exists():
        logger.warning(f"{str(result)!r} is trained already.")
        _upload(result, arguments, state)
        return result
    run.mkdir(parents=True, exist_ok=True)
    dtype = torch.float32
    if of_adapter and (arguments.mixed_precision != "no"):
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[arguments.mixed_precision]
    if arguments.mixed_precision == "bf16" and state.device.type == "cuda" and not is_torch_bf16_gpu_available():
        raise ValueError("`mixed_precision` is 'bf16', which this GPU does not have. Use 'fp16' or 'no'.")
    pipeline = load_pipeline(arguments, dtype, getattr(arguments, "quantization", "none"))
    pipeline.set_progress_bar_config(disable=True)
    data = _load_data(arguments, pipeline, state)

    set_seed(arguments.seed)
    transformer = pipeline.transformer
    if arguments.zero_image_head:
        zero_image_head(pipeline)
    make_trainable(transformer, arguments.z_loss_weight, arguments.dropout)
    default_attention = PACKED_SDPA if arguments.packing else "sdpa"
    transformer.set_attn_implementation(arguments.attn_implementation or default_attention)
    model = add_adapter(transformer, arguments) if of_adapter else transformer
    if arguments.compile:
        for layer in transformer.model.layers:
            layer.compile(dynamic=True)

    batches = len(data) if arguments.packing else -(-len(data) // arguments.train_batch_size)
    steps = -(-batches // (state.num_processes * arguments.gradient_accumulation_steps))
    callbacks = []
    if arguments.validation_prompts:
        prompts = arguments.validation_prompts
        steps_between, number = arguments.validation_steps, arguments.num_validation_images
        callbacks.append(ValidationImages(pipeline, prompts, steps_between, number, arguments.seed))
    pad_id = pipeline.tokenizer.pad_token_id
    trainer = LuminaMGPTTrainer(
        model,
        training_arguments(arguments, steps),
        PackedCollator() if arguments.packing else PaddedCollator(0 if pad_id is None else pad_id),
        data,
        callbacks=callbacks,
        muon=arguments.optim == MUON,
    )
    for callback in callbacks:
        callback.trainer = trainer
    with _flushed_denormals():
        trainer.train(resume_from_checkpoint=_checkpoint(arguments, state))

    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    unset_hf_deepspeed_config()  # else models, which one process builds here, would still be spread over all
    if state.is_main_process:
        record = {
            "steps": trainer.state.global_step,
            "samples_per_epoch": sum(data.counts),
            "num_processes": state.num_processes,
            **asdict(arguments),
        }
        if of_adapter:
            (run / CARD_NAME).write_text(adapter_card(record), encoding="utf-8")
            (run / ARGUMENTS_NAME).write_text(json.dumps(record, indent=2))
            save_adapter(run, trainer.accelerator.unwrap_model(trainer.model), weights)
        else:
            unwrapped = trainer.accelerator.unwrap_model(trainer.model)
            pipeline.register_modules(
                transformer=plain_transformer(
                    unwrapped, weights, DTYPES[arguments.save_dtype or dtype_on_disk(arguments)]
                ),
                scheduler=LuminaMGPTScheduler.from_config(pipeline.scheduler.config, resolution=_base_size(data)),
            )
            _save_pipeline(pipeline, result, record)
    _upload(result, arguments, state)
    state.wait_for_everyone()
    return result


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """
    Numbers below the normal ones as 0. Once attention is sharp it is full of them, and CPUs take so long over each
    that a step of a small model took 2.5 times as long.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def zero_image_head(pipeline: LuminaMGPTPipeline) -> None:
    """
    Set the rows of the output layer that score image codes to zero, as the original does with a Chameleon, in which
    they were never trained.

    Args:
        pipeline ([`LuminaMGPTPipeline`]): The pipeline.
    """
    pipeline.transformer.config.mask_image_logits = False
    with torch.no_grad():
        pipeline.transformer.lm_head.weight[pipeline.image_vocabulary.code_ids] = 0


def _load_data(arguments: FineTuningArguments, pipeline: LuminaMGPTPipeline, state: PartialState) -> TrainingData:
    folders = arguments.data
    if not folders:
        folder = Path(arguments.output_dir) / DATA_NAME
        pipeline.vqvae.to(state.device)
        report = encode_source(arguments, pipeline, folder, state.num_processes, state.process_index)
        pipeline.vqvae.to("cpu")
        state.wait_for_everyone()
        if state.is_main_process and report.skipped:
            logger.warning(f"{len(report.skipped)} samples were left out, see {folder / 'skipped.jsonl'}.")
        folders = [str(folder)]
    parts = [_weighted(folder) for folder in folders]
    sizes = {part.settings["base_size"] for part in parts}
    if len(sizes) > 1:
        raise ValueError(f"`data` was encoded at several base sizes: {sorted(sizes)}.")
    if arguments.resolution not in (None, *sizes):
        raise ValueError(f"`resolution` is {arguments.resolution}, but `data` was encoded at {sizes.pop()}.")
    tokens_per_row = None
    if arguments.packing:
        tokens_per_row = arguments.tokens_per_batch or max(
            int(arguments.train_batch_size * TrainingData(parts, epoch_size=arguments.epoch_size).mean_length),
            *(int(part.lengths.max()) for part in parts),
        )
    return TrainingData(
        parts,
        batch_size=arguments.train_batch_size * state.num_processes * arguments.gradient_accumulation_steps,
        tokens_per_row=tokens_per_row,
        group_by_length=arguments.group_by_length,
        context_dropout=arguments.context_dropout,
        epoch_size=arguments.epoch_size,
        seed=arguments.seed,
    )


def _weighted(folder: str) -> PretokenizedData:
    path, equals, weight = folder.rpartition("=")
    if not equals or Path(folder).is_dir():
        return PretokenizedData(folder)
    try:
        return PretokenizedData(path, float(weight))
    except ValueError as error:
        raise ValueError(f"`data` holds {folder!r}: {error}") from error


def _base_size(data: TrainingData) -> int:
    return data.parts[0].settings["base_size"]


def _checkpoint(arguments: FineTuningArguments, state: PartialState) -> str | None:
    wanted = arguments.resume_from_checkpoint
    if wanted == "none":
        return None
    if wanted != "latest":
        return wanted
    with state.main_process_first():
        if state.is_main_process:
            remove_incomplete_checkpoints(arguments.output_dir)
    return last_complete_checkpoint(arguments.output_dir)


def _save_pipeline(pipeline: LuminaMGPTPipeline, folder: Path, record: dict) -> None:
    unfinished = folder.with_name(f".{folder.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    pipeline.save_pretrained(unfinished)
    (unfinished / ARGUMENTS_NAME).write_text(json.dumps(record, indent=2))
    with open(unfinished / CARD_NAME, "a", encoding="utf-8") as card:
        card.write(training_section(record))
    os.replace(unfinished, folder)


def _upload(result: Path, arguments: FineTuningArguments, state: PartialState) -> None:
    if not arguments.push_to_hub or not state.is_main_process:
        return
    name = arguments.hub_model_id or Path(arguments.output_dir).resolve().name
    repository = create_repo(name, exist_ok=True).repo_id
    patterns = [LORA_WEIGHT_NAME_SAFE, ARGUMENTS_NAME, CARD_NAME] if isinstance(arguments, LoraArguments) else None
    upload_folder(repo_id=repository, folder_path=result, allow_patterns=patterns, commit_message="End of training")
