# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Whole checkpoints from the original form to a diffusers pipeline, and back.

A conversion can be interrupted at any time: what is complete has its name, the file that makes the folder loadable
comes last, and a second run keeps what is already right.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .checkpoint import Shard, expand_norms, fold_norms, plan_shards
from .files import FileSource, find_checkpoint, find_tokenizer, read_json, write_json
from .layout import load_tokenizer, make_scheduler, write_pipeline_folder
from .vqgan import load_vqvae, original_vqgan_files


logger = logging.get_logger(__name__)


def convert_original_to_diffusers(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    original_vqgan: str | os.PathLike,
    original_tokenizer: str | os.PathLike | None = None,
    base_size: int | None = None,
    torch_dtype: torch.dtype | None = None,
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
            Side in pixels of the square image of the trained area; by default that of the scheduler.
        torch_dtype (`torch.dtype`, *optional*): Type of the transformer's weights; by default they keep theirs.
        model (`str`, defaults to `"."`):
            How the model card refers to the pipeline: the id of the repository that it is for. A card that is already
            in the folder is kept.
        hub_kwargs: `cache_dir`, `revision` (of `checkpoint`), `token`, `local_files_only`, `force_download`.

    Returns:
        `Path`: The folder.

    Raises:
        `FileExistsError`: If the folder holds another conversion.
        `ValueError` or `OSError`: If a file is missing or is not what it should be.
    """
    original = find_checkpoint(checkpoint, **hub_kwargs)
    shards, index = plan_shards(original.weights, expand_norms(original.config), torch_dtype)
    tokenizer = load_tokenizer(find_tokenizer(checkpoint, original_tokenizer, **hub_kwargs))
    vqvae = load_vqvae(original_vqgan, **{k: v for k, v in hub_kwargs.items() if k != "revision"})
    output = Path(output)
    with _staging_folder(output) as staging:
        write_pipeline_folder(
            staging,
            original.config,
            tokenizer,
            vqvae=vqvae,
            scheduler=make_scheduler(base_size),
            torch_dtype=torch_dtype,
            model=model,
        )
        _install(staging, output, shards, index, weights_folder="transformer", last="model_index.json")
    return output


def convert_diffusers_to_original(pipeline: str | os.PathLike, output: str | os.PathLike, **hub_kwargs: Any) -> Path:
    """
    Write a diffusers pipeline as an original checkpoint, with `vqgan.ckpt` and `vqgan.yaml` in `original_tokenizers/`.

    Args:
        pipeline (`str` or `os.PathLike`): A folder or a Hub id.
        output (`str` or `os.PathLike`): Folder to write to.
        hub_kwargs: `cache_dir`, `revision`, `token`, `local_files_only`, `force_download`.

    Returns:
        `Path`: The folder.

    Raises:
        `FileExistsError`: If the folder holds another conversion.
        `ValueError` or `OSError`: If a file is missing, or if the weights have no original form, see [`fold_norms`].
    """
    accepted = "It takes a folder or a Hub id that `LuminaMGPTPipeline.save_pretrained` or the converter has written."
    files = FileSource(pipeline, "pipeline", accepted, **hub_kwargs)
    config = read_json(files.require("transformer/config.json"))
    weights = files.find_weights("transformer")
    if not weights:
        raise files.missing("`transformer/model.safetensors` or `transformer/model.safetensors.index.json`")
    shards, index = plan_shards(weights, fold_norms(config))
    files.require("tokenizer/tokenizer_config.json")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(files.require("tokenizer/tokenizer.json").parent)
    vqvae = load_vqvae(pipeline, **hub_kwargs)
    output = Path(output)
    with _staging_folder(output) as staging:
        write_json(staging / "config.json", original_config(config, tokenizer))
        write_json(staging / "generation_config.json", _generation_config(config))
        _write_original_tokenizer(staging, tokenizer)
        (staging / "original_tokenizers").mkdir()
        for name, content in original_vqgan_files(vqvae).items():
            (staging / "original_tokenizers" / name).write_bytes(content)
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
        "vocabulary_map": tokenizer.get_vocab(),
    }


def _generation_config(config: dict[str, Any]) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")
    return {"_from_model_config": True, **{name: config[name] for name in names}}


def _write_original_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    special_tokens = {**tokenizer.special_tokens_map, "eos_token": "</s>"}
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "special_tokens_map.json", special_tokens)
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": tokenizer.model_max_length,
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special_tokens,
        },
    )


@contextmanager
def _staging_folder(output: Path) -> Iterator[Path]:
    # In the output folder itself, because only within one file system can a file be moved atomically.
    staging = output / ".incomplete"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging)


def _install(
    staging: Path, output: Path, shards: list[Shard], index: dict[str, Any] | None, *, weights_folder: str, last: str
) -> None:
    """Write the shards and move all other files in place, the one named `last` at the end."""
    from ..repository import CARD_NAME

    folder = output / weights_folder
    if index is not None:
        write_json(staging / weights_folder / "model.safetensors.index.json", index)
    foreign = {path.name for path in folder.glob("model*.safetensors*")} - {shard.name for shard in shards}
    foreign -= {path.name for path in (staging / weights_folder).iterdir()}
    foreign = {name for name in foreign if not name.endswith(".incomplete")}
    if foreign:
        raise FileExistsError(
            f"The output folder {str(output)!r} holds weights of another conversion ({sorted(foreign)[0]!r}). Remove"
            " them or choose another folder."
        )
    is_finished = (output / last).is_file()
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards, start=1):
        progress = f"[{number}/{len(shards)}] {shard.name} ({shard.num_bytes / 1e9:.2f} GB)"
        if shard.is_written(folder):
            logger.info(f"{progress}: already there")
            continue
        if is_finished and (folder / shard.name).exists():
            raise _is_another(output, folder / shard.name)
        shard.write(folder)
        logger.info(f"{progress}: written")

    paths = [path.relative_to(staging) for path in sorted(staging.rglob("*")) if path.is_file()]
    for path in sorted(paths, key=lambda path: path == Path(last)):
        target = output / path
        if target.is_file():
            if path.name == CARD_NAME or filecmp.cmp(target, staging / path, shallow=False):
                continue
            if is_finished:
                raise _is_another(output, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / path, target)


def _is_another(output: Path, path: Path) -> FileExistsError:
    return FileExistsError(
        f"The output folder {str(output)!r} is finished and made from something else:"
        f" {str(path.relative_to(output))!r} would change. Remove it or choose another folder."
    )
