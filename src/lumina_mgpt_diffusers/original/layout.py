# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The folder of a diffusers pipeline, made from the files of an original checkpoint.

What is written depends on the originals alone: twice the same conversion gives the same bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import VQModel
from transformers import ChameleonConfig, GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .files import base_size_from_name, find_checkpoint, find_tokenizer, tensor_names, write_json
from .vqgan import ACCEPTED, load_vqvae


# The pipelines import this module to load original checkpoints, so what it needs of them is imported in functions.
if TYPE_CHECKING:
    from ..lumina_mgpt.scheduling_lumina_mgpt import LuminaMGPTScheduler

MODEL_INDEX = {
    "_class_name": "LuminaMGPTPipeline",
    "_diffusers_version": diffusers.__version__,
    "scheduler": ["lumina_mgpt", "LuminaMGPTScheduler"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["lumina_mgpt", "LuminaMGPTTransformer"],
    "vqvae": ["diffusers", "VQModel"],
}


def write_pipeline_folder(
    folder: str | os.PathLike,
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    vqvae: VQModel | None,
    scheduler: LuminaMGPTScheduler | None,
    torch_dtype: torch.dtype | None = None,
    model: str = ".",
) -> None:
    """
    Write everything of a pipeline but the transformer's weights.

    Args:
        folder (`str` or `os.PathLike`): Where to write; it is created.
        config (`dict`): Content of the original `config.json`.
        tokenizer ([`PreTrainedTokenizerBase`]): From [`load_tokenizer`].
        vqvae ([`VQModel`], *optional*): Not written if None.
        scheduler ([`LuminaMGPTScheduler`], *optional*): Not written if None.
        torch_dtype (`torch.dtype`, *optional*): Type that the transformer's weights are converted to, if they are.
        model (`str`, defaults to `"."`): How the model card refers to the pipeline.
    """
    from ..repository import finish_folder

    folder = Path(folder)
    transformer_config = pipeline_config(config, tokenizer)
    if torch_dtype is not None:
        transformer_config.dtype = torch_dtype
    transformer_config.save_pretrained(folder / "transformer")
    ids = {name: getattr(transformer_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids).save_pretrained(folder / "transformer")

    tokenizer.save_pretrained(folder / "tokenizer")
    if vqvae is not None:
        vqvae.save_pretrained(folder / "vqvae")
    if scheduler is not None:
        scheduler.save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", MODEL_INDEX)
    finish_folder(folder, model=model)


@contextmanager
def original_as_diffusers(
    checkpoint: str | os.PathLike,
    *,
    original_vqgan: str | os.PathLike | None = None,
    original_tokenizer: str | os.PathLike | None = None,
    base_size: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    transformer: torch.nn.Module | None = None,
    vqvae: VQModel | None = None,
    scheduler: LuminaMGPTScheduler | None = None,
    **hub_kwargs: Any,
) -> Iterator[str]:
    """
    Present an original checkpoint as the folder of a diffusers pipeline for as long as the context lasts.

    The transformer's weights are linked, not copied, so that `from_pretrained` of diffusers reads the original files
    with all its options.

    Args:
        checkpoint (`str` or `os.PathLike`): A local folder or a Hub id.
        original_vqgan (`str` or `os.PathLike`, *optional*):
            Where the VQ model is, see [`load_vqvae`]. Needed unless `vqvae` is passed.
        original_tokenizer (`str` or `os.PathLike`, *optional*):
            Folder or Hub id of the tokenizer; by default that of the checkpoint, else that of the model family.
        base_size (`int`, *optional*):
            Side in pixels of the square image of the trained area; by default from the name of the checkpoint, else
            the default of the scheduler.
        tokenizer, transformer, vqvae, scheduler (*optional*):
            Components that the caller already has: nothing is written for them and none of their files is looked for.
        hub_kwargs: `cache_dir`, `revision` (of `checkpoint`), `token`, `local_files_only`, `force_download`.

    Yields:
        `str`: Path of the temporary folder.

    Example:

    ```py
    >>> with original_as_diffusers("Alpha-VLLM/Lumina-mGPT-7B-768", original_vqgan="chameleon/tokenizer") as folder:
    ...     pipe = LuminaMGPTPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    ```
    """
    if vqvae is None and original_vqgan is None:
        raise ValueError(
            f"`checkpoint` {os.fspath(checkpoint)!r} holds no VQ model: pass `original_vqgan`. {ACCEPTED}"
        )
    original = find_checkpoint(checkpoint, need_weights=transformer is None, **hub_kwargs)
    if tokenizer is None:
        tokenizer = load_tokenizer(find_tokenizer(checkpoint, original_tokenizer, **hub_kwargs))
    vqgan_kwargs = {k: v for k, v in hub_kwargs.items() if k != "revision"}
    with TemporaryDirectory(prefix="lumina-mgpt-") as folder:
        write_pipeline_folder(
            folder,
            original.config,
            tokenizer,
            vqvae=load_vqvae(original_vqgan, **vqgan_kwargs) if vqvae is None else None,
            scheduler=make_scheduler(base_size or base_size_from_name(checkpoint)) if scheduler is None else None,
        )
        _link_weights(original.weights, Path(folder) / "transformer")
        yield folder


def load_tokenizer(folder: str | os.PathLike) -> PreTrainedTokenizerFast:
    """
    Load an original tokenizer with the special tokens and the chat template of the pipeline.

    Args:
        folder (`str` or `os.PathLike`): Folder that holds `tokenizer.json`.

    Returns:
        [`PreTrainedTokenizerFast`]: It tokenizes as the original does.
    """
    from ..lumina_mgpt.prompts import CHAT_TEMPLATE
    from ..lumina_mgpt.unirep import SEPARATOR_TOKEN

    # The files name the Llama tokenizer, whose classes would install a pre-tokenizer of their own.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        folder, bos_token="<s>", eos_token=SEPARATOR_TOKEN, pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_scheduler(base_size: int | None) -> LuminaMGPTScheduler:
    """The scheduler for a base size, the scheduler's own default if that is None."""
    from ..lumina_mgpt.scheduling_lumina_mgpt import LuminaMGPTScheduler

    return LuminaMGPTScheduler() if base_size is None else LuminaMGPTScheduler(resolution=base_size)


def pipeline_config(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> ChameleonConfig:
    """
    The transformer's configuration as stock transformers understands it.

    Args:
        config (`dict`): Content of the original `config.json`; its bos and eos ids are wrong and are not used.
        tokenizer ([`PreTrainedTokenizerBase`]): Where the ids come from.

    Returns:
        [`ChameleonConfig`]: With those names of `vocabulary_map` that are needed where there is no tokenizer.

    Raises:
        `ValueError`: If the tokenizer is not that of the checkpoint.
    """
    from ..lumina_mgpt.unirep import END_TOKEN, ROW_END_TOKEN, SEPARATOR_TOKEN, START_TOKEN, size_tag_token

    vocabulary = tokenizer.get_vocab()
    original_vocabulary = config.get("vocabulary_map") or {}
    wrong = [name for name, id in original_vocabulary.items() if vocabulary.get(name, id) != id]
    if wrong:
        raise ValueError(
            f"The tokenizer is not that of the checkpoint: {wrong[0]!r} is {vocabulary[wrong[0]]} in `tokenizer` but"
            f" {original_vocabulary[wrong[0]]} in the `vocabulary_map` of `config.json`. Pass the right one as"
            " `original_tokenizer`."
        )
    needed = {START_TOKEN, END_TOKEN, ROW_END_TOKEN, SEPARATOR_TOKEN, "<image>", *map(size_tag_token, range(200))}
    return ChameleonConfig.from_dict(
        {
            **config,
            "architectures": ["ChameleonForConditionalGeneration"],
            "bos_token_id": vocabulary["<s>"],
            "eos_token_id": vocabulary[SEPARATOR_TOKEN],
            "pad_token_id": vocabulary["<pad>"],
            "mask_image_logits": config.get("mask_image_logits", False),
            "vocabulary_map": {
                name: id
                for name, id in sorted(vocabulary.items(), key=lambda item: item[1])
                if name in needed or re.fullmatch(r"IMGIMG[A-J]+Z", name)
            },
        }
    )


def _link_weights(weights: list[Path], folder: Path) -> None:
    """Put an index and links to the shards into `folder`."""
    weight_map = {}
    for number, path in enumerate(weights, start=1):
        target = path.absolute()
        name = f"model-{number:05d}-of-{len(weights):05d}.safetensors"
        try:
            (folder / name).symlink_to(target)
        except OSError:  # Windows without the privilege: an absolute path in the index also works
            name = str(target)
        weight_map.update(dict.fromkeys(tensor_names(path), name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
