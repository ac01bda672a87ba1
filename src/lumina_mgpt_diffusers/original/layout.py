# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The folder of a diffusers pipeline, made from the files of an original checkpoint.

What is written depends on the originals alone: twice the same conversion gives the same bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from diffusers import VQModel
from diffusers.utils import logging
from tokenizers import Tokenizer
from transformers import (
    ChameleonConfig,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from ..files import read_json, write_json
from ..lumina_mgpt.components import states_base_size
from ..lumina_mgpt.families import ModelFamily, as_family, find_family
from ..lumina_mgpt.prompts import chat_template
from ..lumina_mgpt.scheduling_lumina_mgpt import LuminaMGPTScheduler
from ..lumina_mgpt.weight_checks import check_config
from ..repository import finish_folder
from .files import (
    BPE_FILES,
    TOKENIZER_FILES,
    base_size_from_name,
    elsewhere,
    find_checkpoint,
    find_tokenizer,
    open_weights,
    own_name,
)
from .vqgan import ACCEPTED, load_vqvae


logger = logging.get_logger(__name__)

MODEL_INDEX = {
    "_class_name": "LuminaMGPTPipeline",
    "_diffusers_version": diffusers.__version__,
    "scheduler": ["lumina_mgpt", "LuminaMGPTScheduler"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["lumina_mgpt", "LuminaMGPTTransformer"],
    "vqvae": ["diffusers", "VQModel"],
}


def write_pipeline_folder(
    folder: Path,
    config: ChameleonConfig,
    tokenizer: PreTrainedTokenizerBase,
    scheduler: LuminaMGPTScheduler,
    vqvae: VQModel | None,
    model: str = ".",
) -> None:
    """
    Write everything of a pipeline but the transformer's weights.

    Args:
        folder (`Path`): Where to write; it is created.
        config ([`~transformers.ChameleonConfig`]): From [`pipeline_config`].
        tokenizer ([`PreTrainedTokenizerBase`]): From [`load_tokenizer`].
        scheduler ([`LuminaMGPTScheduler`]): The sampler, which states the base size.
        vqvae ([`VQModel`], *optional*): Not written if None.
        model (`str`, defaults to `"."`): How the model card refers to the pipeline.
    """
    config.save_pretrained(folder / "transformer")
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids).save_pretrained(folder / "transformer")
    tokenizer.save_pretrained(folder / "tokenizer")
    scheduler.save_pretrained(folder / "scheduler")
    if vqvae is not None:
        vqvae.save_pretrained(folder / "vqvae")
    write_json(folder / "model_index.json", MODEL_INDEX)
    finish_folder(folder, model=model)


@contextmanager
def original_as_diffusers(
    checkpoint: str | os.PathLike,
    *,
    original_vqgan: str | os.PathLike | None = None,
    original_tokenizer: str | os.PathLike | None = None,
    base_size: int | None = None,
    family: str | ModelFamily | None = None,
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
            Side in pixels of the square image of the trained area, see [`make_scheduler`].
        family (`str` or [`ModelFamily`], *optional*): Which family it is of, see [`checkpoint_family`].
        tokenizer, transformer, vqvae, scheduler (*optional*):
            Components that the caller already has: none of their files is looked for.
        hub_kwargs: `cache_dir`, `revision` (of `checkpoint`), `token`, `local_files_only`, `force_download`.

    Yields:
        `str`: Path of the temporary folder.

    Example:

    ```py
    >>> with original_as_diffusers("Alpha-VLLM/Lumina-mGPT-7B-768", original_vqgan="chameleon/tokenizer") as folder:
    ...     pipe = LuminaMGPTPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    ```
    """
    if vqvae is None and original_vqgan is None:
        raise ValueError(
            f"`checkpoint` {os.fspath(checkpoint)!r} holds no VQ model: pass `original_vqgan`. {ACCEPTED}"
        )
    config, weights = find_checkpoint(checkpoint, need_weights=transformer is None, **hub_kwargs)
    if tokenizer is None:
        own_family = checkpoint_family(config, family, checkpoint=checkpoint)
        path = find_tokenizer(checkpoint, own_family, original_tokenizer, **hub_kwargs)
        tokenizer = load_tokenizer(path, config, family, checkpoint)
    family = checkpoint_family(config, family, tokenizer, checkpoint)
    if scheduler is not None and states_base_size(scheduler):
        base_size = scheduler.config.resolution
    with TemporaryDirectory(prefix="lumina-mgpt-") as folder:
        write_pipeline_folder(
            Path(folder),
            pipeline_config(config, tokenizer, family),
            tokenizer,
            make_scheduler(checkpoint, config, base_size, family),
            load_vqvae(original_vqgan, **elsewhere(hub_kwargs)) if vqvae is None else None,
        )
        _link_weights(weights, Path(folder) / "transformer")
        yield folder


def checkpoint_family(
    config: dict[str, Any],
    family: str | ModelFamily | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> ModelFamily:
    """
    Which family an original checkpoint is of.

    Args:
        config (`dict`): Content of its `config.json`, which may state it as `model_family` and has the vocabulary.
        family (`str` or [`ModelFamily`], *optional*): The family, if it is known.
        tokenizer ([`PreTrainedTokenizerBase`], *optional*): The tokenizer, whose names tell it as well.
        checkpoint (`str` or `os.PathLike`, *optional*): Its folder or Hub id, which may have a released name.

    Raises:
        `ValueError`: If the family is not known, or `vocabulary_map` is no object.
    """
    names = config.get("vocabulary_map") or {}
    if not isinstance(names, dict):
        raise ValueError("`vocabulary_map` in the `config.json` of the checkpoint has to be an object.")
    if family is not None:
        return as_family(family)
    names = {**names, **(tokenizer.get_vocab() if tokenizer is not None else {})}
    return find_family(config, names, "" if checkpoint is None else own_name(checkpoint))


def load_tokenizer(
    folder: str | os.PathLike,
    config: dict[str, Any] | None = None,
    family: str | ModelFamily | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> PreTrainedTokenizerFast:
    """
    Load an original tokenizer with the special tokens and the chat template of the pipeline.

    Args:
        folder (`str` or `os.PathLike`):
            Folder that holds `tokenizer.json`, or else the `vocab.json` and `merges.txt` of a Qwen2 tokenizer.
        config (`dict`, *optional*): Content of the `config.json` of the checkpoint.
        family (`str` or [`ModelFamily`], *optional*): What its names are, see [`checkpoint_family`].
        checkpoint (`str` or `os.PathLike`, *optional*): Folder or Hub id of the checkpoint.

    Returns:
        [`PreTrainedTokenizerFast`]: It tokenizes as the original does.

    Raises:
        `ValueError`: If a file is malformed, naming it, if the tokenizer lacks a token that it needs, or if a
            configuration names tokens that it lacks.
    """
    for name in (*TOKENIZER_FILES, BPE_FILES[0], BPE_FILES[2]):
        if (path := Path(folder, name)).is_file():
            read_json(path)
    try:
        names = _stated_ids(Path(folder))
        tokenizer = _read_tokenizer(Path(folder))
    except Exception as error:  # that of the tokenizers library has no other type
        raise ValueError(f"The files of the tokenizer in {os.fspath(folder)!r} cannot be read: {error}") from error
    hint = " If it is of another family, pass that as `family`." if family is None else ""
    family = checkpoint_family(config or {}, family, tokenizer, checkpoint)
    first = family.first_token or tokenizer.bos_token or tokenizer.eos_token
    special = {
        "bos_token": first,
        "eos_token": family.eos_token or family.separator_token,
        "pad_token": family.pad_token or tokenizer.pad_token or first,
    }
    for kind, name in special.items():
        # One that only a configuration names was added past the vocabulary, or would be now.
        if name not in names:
            what = f"no {name!r}" if name else "neither `bos_token` nor `eos_token` in its `tokenizer_config.json`"
            raise ValueError(
                f"The tokenizer is not that of a {family.title} checkpoint: it has {what}, the `{kind}` of a pipeline."
                + hint
            )
        setattr(tokenizer, kind, name)
    names = {**((config or {}).get("vocabulary_map") or {}), **names}
    extra = [name for name, id in tokenizer.get_vocab().items() if names.get(name) != id]
    if extra:
        raise ValueError(
            f"The configuration of the tokenizer names {len(extra)} tokens that its vocabulary does not have by these"
            f" ids, such as {', '.join(map(repr, sorted(extra)[:5]))}: they would be added past it. Remove them from"
            " `tokenizer_config.json` and `special_tokens_map.json`, or pass the right tokenizer as"
            " `original_tokenizer`."
        )
    tokenizer.chat_template = chat_template(tokenizer, family)
    return tokenizer


def _stated_ids(folder: Path) -> dict[str, int]:
    """The vocabulary of a tokenizer, without what is added to it on loading because a configuration names it."""
    path = folder / TOKENIZER_FILES[0]
    if path.is_file():
        return Tokenizer.from_file(str(path)).get_vocab()
    ids: dict[str, int] = {}
    for name in (BPE_FILES[0], BPE_FILES[2]):
        if (folder / name).is_file():
            ids |= read_json(folder / name)
    if (folder / TOKENIZER_FILES[1]).is_file():
        added = read_json(folder / TOKENIZER_FILES[1]).get("added_tokens_decoder", {})
        ids |= {token["content"]: int(id) for id, token in added.items()}
    return ids


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    if (folder / TOKENIZER_FILES[0]).is_file():
        # The files name the Llama tokenizer, whose classes would install a pre-tokenizer of their own.
        return PreTrainedTokenizerFast.from_pretrained(folder)
    with TemporaryDirectory(prefix="lumina-mgpt-") as whole:
        Qwen2Tokenizer.from_pretrained(folder).backend_tokenizer.save(str(Path(whole, TOKENIZER_FILES[0])))
        for name in filter(lambda name: (folder / name).is_file(), TOKENIZER_FILES):
            shutil.copy(folder / name, whole)
        return PreTrainedTokenizerFast.from_pretrained(whole)


def make_scheduler(
    checkpoint: str | os.PathLike, config: dict[str, Any], base_size: int | None, family: ModelFamily
) -> LuminaMGPTScheduler:
    """
    The scheduler of a checkpoint.

    Args:
        checkpoint (`str` or `os.PathLike`): Its folder or Hub id, which may state the base size.
        config (`dict`): Content of its `config.json`, which may state it as well.
        base_size (`int`, *optional*): The base size, if it is known.
        family ([`ModelFamily`]): Has the defaults of the sampler.

    Returns:
        [`LuminaMGPTScheduler`]: Of the family's default base size, with a warning, if nothing states another.
    """
    base_size = base_size or config.get("base_size") or family.fixed_side or base_size_from_name(checkpoint)
    if base_size is not None:
        return LuminaMGPTScheduler(**{**family.sampler, "resolution": base_size})
    logger.warning(
        f"Neither the name nor the configuration of {os.fspath(checkpoint)!r} states the base size:"
        f" {family.base_size} is taken. If it was trained at another, pass"
        " `scheduler=LuminaMGPTScheduler(resolution=…)`, or `base_size` to a conversion."
    )
    scheduler = LuminaMGPTScheduler(**family.sampler)
    if scheduler.config.resolution == family.base_size:
        return scheduler  # whose base size counts as not stated
    return LuminaMGPTScheduler.from_config(scheduler.config, resolution=family.base_size)


def pipeline_config(
    config: dict[str, Any], tokenizer: PreTrainedTokenizerBase, family: ModelFamily
) -> ChameleonConfig:
    """
    The transformer's configuration as stock transformers understands it.

    Args:
        config (`dict`): Content of the original `config.json`; its bos and eos ids are wrong and are not used.
        tokenizer ([`PreTrainedTokenizerBase`]): Where the ids come from.
        family ([`ModelFamily`]): What its names are.

    Returns:
        [`ChameleonConfig`]: With the family as `model_family`, and those names of `vocabulary_map` that are needed
        where there is no tokenizer.

    Raises:
        `ValueError`: If a value cannot be, or if the tokenizer is not that of the checkpoint.
    """
    vocabulary = tokenizer.get_vocab()
    original_vocabulary = config.get("vocabulary_map") or {}
    wrong = [name for name, id in original_vocabulary.items() if vocabulary.get(name, id) != id]
    if wrong:
        raise ValueError(
            f"The tokenizer is not that of the checkpoint: {wrong[0]!r} is {vocabulary[wrong[0]]} in `tokenizer` but"
            f" {original_vocabulary[wrong[0]]} in the `vocabulary_map` of `config.json`. Pass the right one as"
            " `original_tokenizer`."
        )
    missing = [name for name in family.control_tokens if name not in vocabulary]
    if missing:
        raise ValueError(f"The tokenizer is not that of a {family.title} checkpoint: it has no {missing[0]!r}.")
    needed = {*family.control_tokens, "<image>", *family.size_tags(range(200))}
    return checked_config(
        {
            **config,
            "architectures": ["ChameleonForConditionalGeneration"],
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "mask_image_logits": config.get("mask_image_logits", False),
            "model_family": family.name,
            "vocabulary_map": {
                name: id
                for name, id in sorted({**original_vocabulary, **vocabulary}.items(), key=lambda item: item[1])
                if name in needed or family.codes.is_code(name)
            },
        }
    )


def checked_config(content: dict[str, Any]) -> ChameleonConfig:
    """The configuration that a `config.json` holds. Raises a `ValueError` that names the value that cannot be."""
    try:
        config = ChameleonConfig.from_dict(content)
        check_config(config)
    except Exception as error:  # the checks of transformers have no common type
        raise ValueError(f"The `config.json` of the transformer cannot be used: {error}") from error
    return config


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
        with open_weights(path) as tensors:
            weight_map.update(dict.fromkeys(tensors.keys(), name))
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
