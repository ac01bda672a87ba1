# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The token ids of the image language, read by name from a tokenizer or a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, takewhile
from weakref import WeakKeyDictionary

import torch
from transformers import ChameleonConfig, PreTrainedTokenizerBase

from .families import ModelFamily, families, find_family
from .unirep import ImageVocabulary


def family_of(tokenizer: PreTrainedTokenizerBase | None, config: ChameleonConfig | None = None) -> ModelFamily:
    """
    Which family the components of a pipeline are of, see [`~families.find_family`].

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The tokenizer.
        config ([`~transformers.ChameleonConfig`], *optional*): Configuration of the transformer.
    """
    if getattr(config, "model_family", None) is not None:
        return find_family(config)
    if tokenizer is None:
        return find_family(None, _names_in(config))
    known = _KNOWN.setdefault(tokenizer, {})
    key = ("family", len(tokenizer), len(_names_in(config)), *families())
    if key not in known:
        known[key] = find_family(None, {**_names_in(config), **tokenizer.get_vocab()})
    return known[key]


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Names of the tokens that a tokenizer did not make of text. Codes make them many: they are listed once."""
    known = _KNOWN.setdefault(tokenizer, {})
    key = ("added", len(tokenizer))
    if key not in known:
        known[key] = frozenset(tokenizer.added_tokens_encoder)
    return known[key]


def read_vocabulary(
    tokenizer: PreTrainedTokenizerBase | None,
    num_codes: int,
    patch_size: int,
    config: ChameleonConfig | None = None,
    family: ModelFamily | None = None,
) -> ImageVocabulary:
    """
    Read the ids of the image language by their names, never by assumption.

    They are kept for as long as the tokenizer lives, and read again if its control tokens or size tags change.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Has the names.
        num_codes (`int`): Number of codes of the VQ model.
        patch_size (`int`): Pixels per code, the stride of the VQ model.
        config ([`~transformers.ChameleonConfig`], *optional*):
            Its `vocabulary_map` has the names of the codes if the tokenizer lacks them.
        family ([`ModelFamily`], *optional*): What the names are; by default that of the components.

    Returns:
        [`ImageVocabulary`]: The ids.

    Raises:
        `ValueError`: If a name is missing.
    """
    family = family or family_of(tokenizer, config)
    if tokenizer is None:
        return from_names(_names_in(config), num_codes, patch_size, family, "`vocabulary_map` of the `transformer`")
    known = _KNOWN.setdefault(tokenizer, {})
    probes = [*family.control_tokens, *family.size_tags(range(1, 200))]
    if family.codes.suffix is not None:
        probes += [family.codes.name(0), family.codes.name(num_codes - 1), family.codes.name(num_codes)]
    of_config = _names_in(config)
    key = (family.name, num_codes, patch_size, len(tokenizer), len(of_config))
    key += tuple(tokenizer.convert_tokens_to_ids(probes))
    if key not in known:
        names = tokenizer.get_vocab()
        if not family.codes.is_in(names):
            names |= {name: id for name, id in of_config.items() if family.codes.is_code(name)}
        known[key] = from_names(names, num_codes, patch_size, family, "`tokenizer`")
    return known[key]


def from_names(
    names: Mapping[str, int], num_codes: int, patch_size: int, family: ModelFamily, source: str = "vocabulary"
) -> ImageVocabulary:
    """
    The ids of the image language out of all ids by name.

    Args:
        names (`Mapping[str, int]`): Ids by name.
        num_codes (`int`), patch_size (`int`): Number of codes of the VQ model and its stride.
        family ([`ModelFamily`]): What the names are.
        source (`str`): Where the names are from, for the error message.

    Raises:
        `ValueError`: If a name is missing.
    """
    missing = [name for name in (*family.control_tokens, *family.size_tags([1])) if name not in names]
    if missing:
        raise ValueError(
            f"The {source} is not that of a {family.title} checkpoint: it lacks {len(missing)} of the needed tokens,"
            f" the first of them {missing[0]!r}."
        )
    if family.grid_size % patch_size:
        raise ValueError(
            f"The `vqvae` has {patch_size} pixels per code, of which the {family.grid_size} of a size tag of"
            f" {family.title} are no multiple."
        )
    # On the CPU, and fit for training, whatever is the default where this is called first.
    with torch.inference_mode(False):
        code_ids = torch.tensor(family.codes.ids(names, num_codes, source), device="cpu")
    return ImageVocabulary(
        code_ids=code_ids,
        size_tag_ids=tuple(names[name] for name in takewhile(names.__contains__, family.size_tags(count(1)))),
        start_id=names[family.start_token],
        end_id=names[family.end_token],
        row_end_id=None if family.row_end_token is None else names[family.row_end_token],
        separator_id=names[family.separator_token],
        patch_size=patch_size,
        grid_size=family.grid_size,
    )


def _names_in(config: ChameleonConfig | None) -> Mapping[str, int]:
    return getattr(config, "vocabulary_map", None) or {}


_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple, object]] = WeakKeyDictionary()
