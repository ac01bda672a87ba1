# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Settings of the training commands: a dataclass whose fields are the flags, named as in diffusers' training scripts.

A YAML file holds the same names (`--config recipe.yaml`); what stands on the command line wins.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from .optimizers import MUON


MIXED_PRECISION = ("no", "bf16", "fp16")
QUANTIZATION = ("none", "nf4", "int8")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _flag(help: str, default: Any = None) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class DataArguments:
    """What is trained on, and how it is encoded."""

    train_data_dir: str | None = _flag("Folder of images with a metadata.jsonl of `file_name` and `text`.")
    dataset_name: str | None = _flag("Dataset of the Hub, or a folder that `datasets.load_from_disk` loads.")
    dataset_config_name: str | None = _flag("Configuration of the dataset.")
    dataset_split: str = _flag("Split of the dataset.", "train")
    conversations: str | None = _flag("JSON or JSONL file of conversations in the original's form.")
    task: str = _flag("text-to-image, caption, a task of image to image, or a template of one.", "text-to-image")
    image_column: str | None = _flag("Column of images: by default `image`, of a folder `file_name`.")
    caption_column: str = _flag("Column of texts.", "text")
    condition_column: str | None = _flag("Column of the images that are given, for tasks that take one.")
    max_train_samples: int | None = _flag("Only the first samples.")
    resolution: int | None = _flag("Base size in pixels; by default that of the pipeline.")
    random_crop: bool = _flag("Crop at random places, not at the centre.", False)
    max_length: int | None = _flag("Longest sample in tokens. Longer ones are left out.")
    truncate: bool = _flag("Cut samples off at max_length instead.", False)
    encoding_batch_size: int = _flag("Images of one size that the VQ model encodes at once.", 16)
    block_size: int = _flag("Samples of a file: what is lost at most when pre-tokenisation is killed.", 1024)
    preprocessing_num_workers: int = _flag("Processes that load and crop images.", 0)


@dataclass
class ModelArguments:
    """The pipeline that training starts from."""

    pretrained_model_name_or_path: str = _flag(
        "Folder or Hub id of a pipeline or an original checkpoint, or `pocket`, the small model of the package.", ""
    )
    revision: str | None = _flag("Revision on the Hub.")
    variant: str | None = _flag("Variant of the files, such as bf16.")
    original_vqgan: str | None = _flag("VQ model for an original checkpoint.")
    original_tokenizer: str | None = _flag("Tokenizer for an original checkpoint.")
    family: str | None = _flag("What an original checkpoint is trained as; by default the family that it is of.")
    seed: int = _flag("Decides crops, order, dropout.", 0)


@dataclass
class PretokenizeArguments(DataArguments, ModelArguments):
    """Flags of `pretokenize.py`."""

    output_dir: str = _flag("Folder to write the data to.", "")
    num_shards: int = _flag("Machines that share the work, and the folder.", 1)
    shard_index: int = _flag("Which of them this is, from 0.", 0)
    device: str | None = _flag("Where the VQ model runs; by default a GPU if there is one.")
    vqvae_dtype: str = _flag("Type of the VQ model: float32 or bfloat16.", "float32")


@dataclass
class FineTuningArguments(DataArguments, ModelArguments):
    """Flags of the training commands. The defaults are the paper's recipe where it says one."""

    output_dir: str = _flag("Folder for checkpoints, logs and the result.", "")
    data: list[str] = _flag("Folders from pretokenize.py, each with `=weight` behind it if they are mixed.", [])
    epoch_size: int | None = _flag("Samples of an epoch of a mixture, by default as many as there are.")
    zero_image_head: bool = _flag("Set the image rows of the output layer to zero first, for a Chameleon.", False)

    train_batch_size: int = _flag("Samples of a batch on each device.", 4)
    packing: bool = _flag("Pack samples into one row without padding.", False)
    tokens_per_batch: int | None = _flag("Tokens of a packed row; by default train_batch_size samples.")
    group_by_length: bool = _flag("Samples of like length share a batch, if not packed.", True)
    num_train_epochs: float = _flag("Epochs.", 1.0)
    max_train_steps: int | None = _flag("Optimizer steps; replaces num_train_epochs.")
    gradient_accumulation_steps: int = _flag("Batches of an optimizer step.", 1)
    gradient_checkpointing: bool = _flag("Compute activations again on the way back, to save memory.", False)
    mixed_precision: str = _flag("no, bf16 or fp16: with float32 master weights.", "no")

    learning_rate: float = _flag("Learning rate.", 2e-5)
    lr_scheduler: str = _flag("Its schedule, as transformers names them.", "constant_with_warmup")
    lr_warmup_steps: float | None = _flag("Steps of warm-up, below 1 a share of all; by default 0.01 epoch.")
    optim: str = _flag("`muon` (AdamW for embeddings and norms), or as transformers names them.", "adamw_torch_fused")
    adam_beta1: float = _flag("Beta 1 of AdamW.", 0.9)
    adam_beta2: float = _flag("Beta 2 of AdamW.", 0.95)
    adam_weight_decay: float = _flag("Weight decay.", 0.1)
    adam_epsilon: float = _flag("Epsilon of AdamW.", 1e-8)
    max_grad_norm: float = _flag("Gradients are clipped to this norm.", 4.0)
    z_loss_weight: float = _flag("Weight of the z-loss.", 1e-5)
    dropout: float = _flag("Residual dropout.", 0.05)
    context_dropout: float = _flag("Probability that an image is learnt without its context.", 0.1)

    dataloader_num_workers: int = _flag("Processes that read batches.", 0)
    checkpointing_steps: int = _flag("Steps between checkpoints.", 500)
    checkpoints_total_limit: int | None = _flag("Checkpoints that are kept.", 2)
    resume_from_checkpoint: str = _flag("`latest`, the folder of a checkpoint, or `none` to begin anew.", "latest")
    logging_steps: int = _flag("Steps between log lines.", 10)
    report_to: list[str] = _flag("tensorboard, wandb, … or none.", ["tensorboard"])
    validation_prompts: list[str] = _flag("Prompts of images that are drawn during training.", [])
    validation_steps: int = _flag("Steps between them.", 500)
    num_validation_images: int = _flag("Images of each prompt.", 1)
    save_dtype: str | None = _flag("Type of the saved weights: float32, bfloat16, float16; default as loaded.")

    use_cpu: bool = _flag("Train on the CPU even if there is a GPU.", False)
    attn_implementation: str | None = _flag("By default sdpa, packed_sdpa with packing.")
    compile: bool = _flag("Compile the layers: about a minute at the start, then small models are much faster.", False)
    fsdp_config: str | None = _flag("JSON file of FSDP settings, which turns FSDP2 on.")
    deepspeed: str | None = _flag("JSON file of DeepSpeed settings.")
    trainer_arguments: str | None = _flag("JSON object of further transformers.TrainingArguments.")
    push_to_hub: bool = _flag("Upload the result.", False)
    hub_model_id: str | None = _flag("Repository to upload to.")


@dataclass
class LoraArguments(FineTuningArguments):
    """Flags of `train_lora.py`. What is learnt is small, so the learning rate is higher and nothing is dropped."""

    learning_rate: float = _flag("Learning rate.", 1e-4)
    dropout: float = _flag("Residual dropout.", 0.0)
    adam_weight_decay: float = _flag("Weight decay.", 0.0)
    rank: int = _flag("Rank of the adapter.", 16)
    lora_alpha: float | None = _flag("Scale of the adapter times its rank, by default the rank.")
    lora_dropout: float = _flag("Dropout before the adapter.", 0.0)
    lora_layers: list[str] = _flag(
        "Names of the layers that get one.",
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
    quantization: str = _flag("Frozen weights in nf4 or int8 through bitsandbytes, or none.", "none")


Arguments = TypeVar("Arguments", bound=ModelArguments)


def parse_arguments(
    kind: type[Arguments], argv: Sequence[str], lists: Sequence[str] = ()
) -> tuple[list[Arguments], dict[str, list]]:
    """
    Read a command line, with `--config` naming a YAML file of the same names.

    Args:
        kind (`type`): The dataclass of the flags.
        argv (`list[str]`): The command line, without the program.
        lists (`list[str]`, *optional*):
            Name of a list of mappings that the YAML file may hold, at most one: each mapping replaces values of the
            file, which gives one set of arguments each.

    Returns:
        `tuple[list[Arguments], dict[str, list]]`: The arguments, one without such a list, and the list by its name.

    Raises:
        `ValueError`: If the file has a name that is no flag, or a value is not one.
    """
    parser = HfArgumentParser(kind, allow_abbrev=False, description=kind.__doc__)
    parser.add_argument("--config", help="YAML file of these flags. The command line wins.")
    config = None
    for index, token in enumerate(argv):
        if token == "--config" or token.startswith("--config="):
            config = token.partition("=")[2] or "".join(argv[index + 1 : index + 2])
    recipe = _read_yaml(config) if config else {}
    stages = {name: recipe.pop(name) for name in lists if name in recipe}
    variants = next(iter(stages.values()), [{}])
    if not isinstance(variants, list) or not all(isinstance(one, Mapping) for one in variants):
        raise ValueError(f"`{next(iter(stages))}` in {config!r} has to be a list of mappings but is {variants!r}.")
    names = {flag.name for flag in dataclasses.fields(kind)}
    parsed = []
    for variant in variants:
        values = {**recipe, **variant}
        for name in values:
            if name not in names:
                close = difflib.get_close_matches(name, names, 1)
                hint = f" Did you mean `{close[0]}`?" if close else ""
                raise ValueError(f"`{name}` in {config!r} is no flag.{hint}")
        arguments, _ = parser.parse_args_into_dataclasses([*_as_argv(values), *argv], look_for_args_file=False)
        _check(arguments)
        parsed.append(arguments)
    return parsed, stages


def _read_yaml(path: str) -> dict:
    recipe = yaml.safe_load(Path(path).read_text())
    if not isinstance(recipe, dict):
        raise ValueError(f"`--config` is {path!r}, which has to hold names and values.")
    return recipe


def _as_argv(values: Mapping[str, Any]) -> list[str]:
    argv = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            # `data: {folder: weight}` and the like; what is nested is JSON.
            is_flat = not any(isinstance(one, (Mapping, list)) for one in value.values()) and name == "data"
            value = [f"{key}={one}" for key, one in value.items()] if is_flat else json.dumps(value)
        argv += [f"--{name}", *(str(one) for one in (value if isinstance(value, list) else [value]))]
    return argv


def _check(arguments: ModelArguments) -> None:
    if not arguments.pretrained_model_name_or_path:
        raise ValueError("`pretrained_model_name_or_path` has to be given.")
    if not arguments.output_dir:
        raise ValueError("`output_dir` has to be given.")
    for name, accepted in (
        ("mixed_precision", MIXED_PRECISION),
        ("quantization", QUANTIZATION),
        ("save_dtype", tuple(DTYPES)),
        ("vqvae_dtype", tuple(DTYPES)),
    ):
        value = getattr(arguments, name, None)
        if value is not None and value not in accepted:
            raise ValueError(f"`{name}` has to be one of {list(accepted)} but is {value!r}.")
    if getattr(arguments, "optim", None) == MUON and (arguments.fsdp_config or arguments.deepspeed):
        raise ValueError("`optim` is 'muon', which needs whole matrices: use no `fsdp_config` or `deepspeed`.")
    sources = [name for name in ("train_data_dir", "dataset_name", "conversations") if getattr(arguments, name)]
    if getattr(arguments, "data", None):
        sources.append("data")
    if len(sources) != 1:
        raise ValueError(
            "Exactly one of `train_data_dir`, `dataset_name`, `conversations` and, for training, `data` has to be"
            f" given, but there are {sources}."
        )


def training_arguments(arguments: FineTuningArguments, steps_per_epoch: int) -> TrainingArguments:
    """
    The arguments of transformers' trainer.

    Args:
        arguments ([`FineTuningArguments`]): The flags.
        steps_per_epoch (`int`): Optimizer steps of an epoch.
    """
    warmup = arguments.lr_warmup_steps
    if warmup is None:
        warmup = round(0.01 * steps_per_epoch)
    names = {one.name for one in dataclasses.fields(TrainingArguments)}
    # Older versions of transformers have the other name.
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    values = {
        "output_dir": arguments.output_dir,
        "seed": arguments.seed,
        "per_device_train_batch_size": 1 if arguments.packing else arguments.train_batch_size,
        "num_train_epochs": arguments.num_train_epochs,
        "max_steps": arguments.max_train_steps or -1,
        "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        checkpointing: arguments.gradient_checkpointing,
        "bf16": arguments.mixed_precision == "bf16",
        "fp16": arguments.mixed_precision == "fp16",
        "learning_rate": arguments.learning_rate,
        "lr_scheduler_type": arguments.lr_scheduler,
        "warmup_steps": warmup,
        "optim": "adamw_torch_fused" if arguments.optim == MUON else arguments.optim,
        "adam_beta1": arguments.adam_beta1,
        "adam_beta2": arguments.adam_beta2,
        "adam_epsilon": arguments.adam_epsilon,
        "weight_decay": arguments.adam_weight_decay,
        "max_grad_norm": arguments.max_grad_norm,
        "dataloader_num_workers": arguments.dataloader_num_workers,
        "dataloader_pin_memory": torch.cuda.is_available() and not arguments.use_cpu,
        "save_strategy": "steps",
        "save_steps": arguments.checkpointing_steps,
        "save_total_limit": arguments.checkpoints_total_limit,
        "logging_steps": arguments.logging_steps,
        "logging_first_step": True,
        "report_to": arguments.report_to,
        "use_cpu": arguments.use_cpu,
        "fsdp": arguments.fsdp_config is not None,
        "fsdp_config": arguments.fsdp_config,
        "deepspeed": arguments.deepspeed,
        # All that is trained has a part in every loss; looking for what has none costs a walk through each graph.
        "ddp_find_unused_parameters": False,
        # The data decide their order, and hold nothing that the model does not take.
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
    }
    return TrainingArguments(**values, **json.loads(arguments.trainer_arguments or "{}"))
