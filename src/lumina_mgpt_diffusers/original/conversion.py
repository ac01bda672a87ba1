# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Whole checkpoints from the original form to a diffusers pipeline, and back.

A conversion can be interrupted at any time: what is complete has its name, the file that makes the folder loadable
comes last, and a second run keeps what is already right.
"""

from __future__ import annotations

import filecmp
import os
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..files import files_in, move_files, read_json, staging_folder, write_json
from ..lumina_mgpt.components import check_fit
from ..lumina_mgpt.families import ModelFamily
from ..repository import CARD_NAME, INDEX_NAME
from ..shipped import model_source
from .checkpoint import Shard, plan_shards
from .files import FileSource, elsewhere, find_checkpoint, find_tokenizer
from .layout import (
    checked_config,
    checkpoint_family,
    load_tokenizer,
    make_scheduler,
    pipeline_config,
    write_pipeline_folder,
)
from .vqgan import load_vqvae, original_vqgan_files


logger = logging.get_logger(__name__)


def convert_original_to_diffusers(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    original_vqgan: str | os.PathLike,
    original_tokenizer: str | os.PathLike | None = None,
    base_size: int | None = None,
    family: str | ModelFamily | None = None,
    dtype: torch.dtype | None = None,
    model: str = ".",
    **hub_kwargs: Any,
) -> Path:
    """
    Write an original checkpoint as a diffusers pipeline.

    Args:
        checkpoint (`str` or `os.PathLike`): A local folder or a Hub id.
        output (`str` or `os.PathLike`): Folder to write to.
        original_vqgan (`str` or `os.PathLike`): Where the VQ model is, see [`load_vqvae`]. It is written in float32.
        original_tokenizer (`str` or `os.PathLike`, *optional*):
            Folder or Hub id of the tokenizer; by default that of the checkpoint, else that of the model family.
        base_size (`int`, *optional*):
            Side in pixels of the square image of the trained area, a multiple of 32; by default what the checkpoint's
            configuration or its name states, as released, else that of the family, with a warning.
        family (`str` or [`ModelFamily`], *optional*):
            Which family it is of; by default what its configuration states or its vocabulary or its own name
            shows. Its name is written to the configuration of the transformer.
        dtype (`torch.dtype`, *optional*): Type of the transformer's weights; by default they keep theirs.
        model (`str`, defaults to `"."`):
            How the model card refers to the pipeline: the id of the repository that it is for. A card that is already
            in the folder is kept.
        hub_kwargs: `cache_dir`, `revision` (of `checkpoint`), `token`, `local_files_only`, `force_download`.

    Returns:
        `Path`: The folder.

    Raises:
        `FileExistsError`: If the folder holds another conversion. It is not changed then.
        `BlockingIOError`: If another process writes to the folder.
        `ValueError` or `OSError`: If a file is missing or is not what it should be.
    """
    content, weights = find_checkpoint(checkpoint, **hub_kwargs)
    own_family = checkpoint_family(content, family, checkpoint=checkpoint)
    path = find_tokenizer(checkpoint, own_family, original_tokenizer, **hub_kwargs)
    tokenizer = load_tokenizer(path, content, family, checkpoint)
    family = checkpoint_family(content, family, tokenizer, checkpoint)
    config = pipeline_config(content, tokenizer, family)
    config.dtype = dtype or config.dtype
    shards, index = plan_shards(weights, config, rows_per_head=True, dtype=dtype)
    scheduler = make_scheduler(checkpoint, content, base_size, family)
    vqvae = load_vqvae(original_vqgan, **elsewhere(hub_kwargs))
    check_fit(tokenizer, config, vqvae, scheduler.config.resolution)
    output = Path(output)
    with staging_folder(output) as staging:
        write_pipeline_folder(staging, config, tokenizer, scheduler, vqvae, model)
        _install(staging, output, shards, index, weights_folder="transformer", last=INDEX_NAME)
    return output


def convert_diffusers_to_original(pipeline: str | os.PathLike, output: str | os.PathLike, **hub_kwargs: Any) -> Path:
    """
    Write a diffusers pipeline as an original checkpoint, with the VQ model where its family has it: `vqgan.ckpt` and
    `vqgan.yaml` in `original_tokenizers/`, or for Lumina-mGPT 2.0 `movqgan/270M/movqgan_270M.ckpt`.

    Args:
        pipeline (`str` or `os.PathLike`): A folder, a Hub id, or `"pocket"`.
        output (`str` or `os.PathLike`): Folder to write to.
        hub_kwargs: `cache_dir`, `revision`, `token`, `local_files_only`, `force_download`.

    Returns:
        `Path`: The folder.

    Raises:
        `FileExistsError`: If the folder holds another conversion. It is not changed then.
        `BlockingIOError`: If another process writes to the folder.
        `ValueError` or `OSError`: If a file is missing, or if the weights have no original form, see [`resize_norm`].
    """
    pipeline = model_source(pipeline)
    accepted = "It takes a folder or a Hub id that `LuminaMGPTPipeline.save_pretrained` or the converter has written."
    files = FileSource(pipeline, "pipeline", accepted, **hub_kwargs)
    path = files.require("transformer/config.json")
    config = read_json(path)
    for key in ("rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"):
        if key not in config:
            raise ValueError(f"`{key}` is missing in {str(path)!r}. {accepted}")
    transformer_config = checked_config(config)
    weights = files.find_weights("transformer/")
    if not weights:
        raise files.missing("`transformer/model.safetensors` or `transformer/model.safetensors.index.json`")
    shards, index = plan_shards(weights, transformer_config, rows_per_head=False)
    files.require("tokenizer/tokenizer_config.json")
    tokenizer = load_tokenizer(files.require("tokenizer/tokenizer.json").parent, config)
    family = checkpoint_family(config, tokenizer=tokenizer)
    vqvae = load_vqvae(pipeline, **hub_kwargs)
    check_fit(tokenizer, transformer_config, vqvae, config.get("base_size"))
    output = Path(output)
    with staging_folder(output) as staging:
        write_json(staging / "config.json", original_config(config, tokenizer))
        write_json(staging / "generation_config.json", _generation_config(config))
        _write_original_tokenizer(staging, tokenizer, family)
        checkpoint = staging / family.vq_file
        checkpoint.parent.mkdir(parents=True)
        for name, content in original_vqgan_files(vqvae, checkpoint.name).items():
            (checkpoint.parent / name).write_bytes(content)
        _install(staging, output, shards, index, weights_folder="", last="config.json")
    return output


def original_config(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """
    The configuration of a transformer in the form of the released checkpoints.

    Args:
        config (`dict`): Content of `transformer/config.json`.
        tokenizer ([`PreTrainedTokenizerBase`]): Where the whole vocabulary comes from.

    Returns:
        `dict`: Content of the original's `config.json`. The ids of bos and eos are right, unlike those released.
    """
    renamed = ("rope_parameters", "dtype", "image_token_id")
    rope = config["rope_parameters"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {
        **{key: value for key, value in config.items() if key not in renamed},
        "architectures": ["ChameleonXLLMXForConditionalGeneration"],
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else scaling,
        "torch_dtype": config.get("dtype"),
        "vocabulary_map": {**(config.get("vocabulary_map") or {}), **tokenizer.get_vocab()},
    }


def _generation_config(config: dict[str, Any]) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")
    return {"_from_model_config": True, **{name: config[name] for name in names}}


def _write_original_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast, family: ModelFamily) -> None:
    special_tokens = {**tokenizer.special_tokens_map, "eos_token": family.original_eos_token}
    if family.first_token is None:
        # The original takes the end of text for the first token where there is no other.
        special_tokens["eos_token"] = special_tokens.pop("bos_token")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "special_tokens_map.json", special_tokens)
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": family.first_token is not None,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": tokenizer.model_max_length,
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special_tokens,
        },
    )


def _install(
    staging: Path, output: Path, shards: list[Shard], index: dict[str, Any] | None, *, weights_folder: str, last: str
) -> None:
    """Write the shards and move all other files in place, the one named `last` at the end."""
    folder = output / weights_folder
    if index is not None:
        write_json(staging / weights_folder / "model.safetensors.index.json", index)
    if (output / CARD_NAME).is_file():
        (staging / CARD_NAME).unlink(missing_ok=True)

    # 1. Refuse, before anything changes
    ours = {shard.name for shard in shards} | {path.name for path in (staging / weights_folder).iterdir()}
    foreign = sorted({path.name for path in folder.glob("model*.safetensors*")} - ours)
    if foreign:
        raise FileExistsError(
            f"The output folder {str(output)!r} holds weights of another conversion ({foreign[0]!r}). Remove them or"
            " choose another folder."
        )
    written = {shard.name for shard in shards if shard.is_written(folder)}
    if (output / last).is_file():
        changed = [folder / shard.name for shard in shards if shard.name not in written]
        changed += [output / path for path in files_in(staging) if not _is_equal(staging / path, output / path)]
        for path in changed:
            if path.is_file():
                raise FileExistsError(
                    f"The output folder {str(output)!r} is finished and made from something else:"
                    f" {str(path.relative_to(output))!r} would change. Remove it or choose another folder."
                )
    for path in files_in(staging):
        if _is_equal(staging / path, output / path):
            (staging / path).unlink()

    # 2. Write
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards, start=1):
        if shard.name not in written:
            shard.write(folder, staging)
        state = "already there" if shard.name in written else "written"
        logger.info(f"[{number}/{len(shards)}] {shard.name} ({shard.num_bytes / 1e9:.2f} GB): {state}")
    move_files(staging, output, last=last)


def _is_equal(first: Path, second: Path) -> bool:
    return second.is_file() and filecmp.cmp(first, second, shallow=False)
