# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The families that are known, and which of them a checkpoint is of."""

from __future__ import annotations

from collections.abc import Container
from itertools import chain

from transformers import ChameleonConfig

from ..validation import shown
from .chameleon import CHAMELEON
from .description import ModelFamily
from .lumina_mgpt import LUMINA_MGPT
from .lumina_mgpt_2 import LUMINA_MGPT_2
from .pocket import LUMINA_MGPT_POCKET


_FAMILIES: dict[str, ModelFamily] = {
    family.name: family for family in (LUMINA_MGPT, LUMINA_MGPT_2, CHAMELEON, LUMINA_MGPT_POCKET)
}


def families() -> dict[str, ModelFamily]:
    """The families by name, in the order in which vocabularies are compared with them."""
    return dict(_FAMILIES)


def register_family(family: ModelFamily) -> ModelFamily:
    """
    Make a family known: checkpoints that state its name, or whose vocabulary is of its names alone, are of it then.

    Args:
        family ([`ModelFamily`]): The family. Registering the same again changes nothing.

    Returns:
        [`ModelFamily`]: The same.

    Raises:
        `ValueError`: If another is known by that name.

    Example:

    ```py
    >>> from dataclasses import replace

    >>> from lumina_mgpt_diffusers import LUMINA_MGPT, register_family

    >>> register_family(replace(LUMINA_MGPT, name="small", num_codes=1024, base_size=96))
    ```
    """
    if not isinstance(family, ModelFamily):
        raise ValueError(f"`family` has to be a `ModelFamily` but is {shown(family)}.")
    if _FAMILIES.setdefault(family.name, family) != family:
        raise ValueError(f"Another family is known as {family.name!r}. Choose another name.")
    return family


def as_family(family: str | ModelFamily) -> ModelFamily:
    """The family of a name, or as it is. Raises a `ValueError` that lists the names if it is none."""
    if isinstance(family, ModelFamily):
        return family
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ValueError(
            f"`family` has to be one of {list(_FAMILIES)} or a `ModelFamily` but is {shown(family)}. A family of your"
            " own has to be made known by `register_family` first."
        )
    return _FAMILIES[family]


def find_family(
    config: ChameleonConfig | dict | None, names: Container[str] = (), checkpoint: str = ""
) -> ModelFamily:
    """
    Which family a checkpoint is of: the one that is stated, else the one that its vocabulary tells, or its name where
    vocabularies do not. Of a vocabulary that lacks something, the family is that of its codes, else that of the name,
    else Lumina-mGPT, so that what is missing can be named.

    Args:
        config ([`~transformers.ChameleonConfig`] or `dict`, *optional*):
            Configuration of the transformer, which may state it as `model_family`.
        names (`Container[str]`): Names in its vocabulary.
        checkpoint (`str`, defaults to `""`): Its name, which may be that of a released one.

    Returns:
        [`ModelFamily`]: Of several, the first that was made known.

    Raises:
        `ValueError`: If the one that is stated is not known.
    """
    stated = config.get("model_family") if isinstance(config, dict) else getattr(config, "model_family", None)
    if stated is not None:
        return as_family(stated)
    known = _FAMILIES.values()
    released = [family for family in known if family.has_released(checkpoint)]
    found = chain(
        (family for family in released if family.size_tag_token is None and family.codes.is_in(names)),
        (family for family in known if family.is_in(names)),
        (family for family in known if family.codes.first_id is None and family.codes.is_in(names)),
        released,
    )
    return next(found, LUMINA_MGPT)
