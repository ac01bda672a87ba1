# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whether the components of a pipeline fit each other."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import VQModel
from diffusers.utils import logging
from safetensors import safe_open
from transformers import ChameleonConfig, PreTrainedTokenizerBase

from .families import ModelFamily
from .scheduling_lumina_mgpt import LuminaMGPTScheduler
from .unirep import ImageVocabulary, trained_sizes
from .vocabulary import family_of, read_vocabulary
from .weight_checks import check_shapes


logger = logging.get_logger(__name__)


def stride_of(vqvae: VQModel) -> int:
    """Pixels per code of a VQ model."""
    return 2 ** (len(vqvae.config.block_out_channels) - 1)


def check_fit(
    tokenizer: PreTrainedTokenizerBase, config: ChameleonConfig, vqvae: VQModel, resolution: int | None
) -> None:
    """
    Check that the components mean the same by the same ids and codes.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Names the tokens of codes and sizes.
        config ([`~transformers.ChameleonConfig`]): Configuration of the transformer, which has a `vocab_size`.
        vqvae ([`VQModel`]): Has a number of codes.
        resolution (`int`, *optional*): Base size in pixels, if it is known.

    Raises:
        `ValueError`: If they do not fit, saying in what.
    """
    vocab_size = config.vocab_size
    vocabulary = read_vocabulary(tokenizer, vqvae.config.num_vq_embeddings, stride_of(vqvae), config)
    if resolution is not None:
        check_base_size(resolution, family_of(tokenizer, config))
        needed = max(map(max, trained_sizes(resolution, vocabulary.grid_size)))
        if vocabulary.max_side < needed:
            raise ValueError(
                f"The `tokenizer` has size tags up to {vocabulary.max_side} pixels, but the sizes of the base size"
                f" {resolution} need {needed}."
            )
    control = (vocabulary.start_id, vocabulary.end_id, vocabulary.row_end_id, vocabulary.separator_id)
    ids = [*vocabulary.code_ids.tolist(), *vocabulary.size_tag_ids, *(id for id in control if id is not None)]
    if len(set(ids)) < len(ids):
        raise ValueError("In the `tokenizer` several tokens of codes, sizes or control have the same id.")
    # Special tokens are never made of text: those that were added for other programs do no harm.
    special = set(tokenizer.all_special_tokens)
    beyond = [name for name, id in tokenizer.get_vocab().items() if id >= vocab_size and name not in special]
    if beyond or max(ids) >= vocab_size:
        raise ValueError(
            f"The `tokenizer` has ids beyond the `vocab_size` {vocab_size} of the `transformer`, such as that of"
            f" {(beyond or ['the image tokens'])[0]!r}."
        )


def check_base_size(resolution: int, family: ModelFamily) -> None:
    """Raise a `ValueError` if the base size of a scheduler is none of a family."""
    if family.fixed_side not in (None, resolution):
        raise ValueError(
            f"`resolution` has to be {family.fixed_side}, the side of all images of {family.title}, but is"
            f" {resolution}."
        )
    if resolution % family.grid_size:
        raise ValueError(
            f"`resolution` has to be a positive multiple of {family.grid_size} pixels, as the size tags of"
            f" {family.title} count, but is {resolution}."
        )


def can_draw(transformer: torch.nn.Module, vocabulary: ImageVocabulary) -> bool:
    """
    Whether a transformer can sample images: not if its logits of codes are masked, or the same for all.

    Args:
        transformer ([`LuminaMGPTTransformer`]):
            The model, whose output layer is looked at, if its weights are plain: few of them, unless those are equal.
        vocabulary ([`ImageVocabulary`]): Token ids of the codes.
    """
    if getattr(transformer.config, "mask_image_logits", False):
        return False
    weight = getattr(transformer.lm_head, "weight", None)
    if type(weight) is not torch.nn.Parameter or weight.is_meta or len(weight) < transformer.config.vocab_size:
        return True  # quantised, or not here
    # A head that was zeroed for training differs where codes were seen, which may be few.
    return any(_differ(weight[ids.to(weight.device)]) for ids in (vocabulary.code_ids[:8], vocabulary.code_ids))


def _differ(rows: torch.Tensor) -> bool:
    return bool((rows != rows[0]).any())


def check_loaded_vqvae(vqvae: VQModel) -> None:
    """
    Raise a `ValueError` if the folder that the VQ model was loaded from does not hold just its weights.

    diffusers leaves weights that are missing without values, and says so in its log only.
    """
    folder = Path(vqvae.config.get("_name_or_path") or "")
    found = {}
    for path in folder.glob("diffusion_pytorch_model*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
    if found:
        with torch.device("meta"):
            expected = VQModel.from_config(vqvae.config).state_dict()
        check_shapes(str(folder), found, {name: tuple(tensor.shape) for name, tensor in expected.items()})


def states_base_size(scheduler: LuminaMGPTScheduler) -> bool:
    """Whether the base size was given to a scheduler, rather than left at its default."""
    return "resolution" not in scheduler.config.get("_use_default_values", ())


def with_defaults(scheduler: LuminaMGPTScheduler, config: ChameleonConfig, family: ModelFamily) -> LuminaMGPTScheduler:
    """
    A scheduler with what it does not state taken from the model.

    Args:
        scheduler ([`LuminaMGPTScheduler`]): The scheduler.
        config ([`~transformers.ChameleonConfig`]): Configuration of the transformer, which may have a `base_size`.
        family ([`ModelFamily`]): Has the sampler's defaults.

    Returns:
        [`LuminaMGPTScheduler`]: The same, or another of its class. A base size that is a guess is said in the log.
    """
    unstated = scheduler.config.get("_use_default_values", ())
    values = {name: value for name, value in family.sampler.items() if name in unstated}
    if not states_base_size(scheduler):
        base_size = getattr(config, "base_size", None) or family.fixed_side
        if base_size is None:
            logger.warning_once(
                "Neither the scheduler nor the transformer states the base size: "
                f"{scheduler.config.resolution} is taken. If the checkpoint was trained at another, pass"
                " `scheduler=LuminaMGPTScheduler(resolution=…)`."
            )
        else:
            values["resolution"] = base_size
    return type(scheduler).from_config(scheduler.config, **values) if values else scheduler
