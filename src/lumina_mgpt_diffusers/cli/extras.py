# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Parts of the package that need more than it does itself."""

import importlib
from types import ModuleType


def import_extra(name: str, extra: str) -> ModuleType:
    """
    Import a module of this package that needs an extra.

    Args:
        name (`str`): The module, such as `"serving.server"`.
        extra (`str`): Name of the extra.

    Raises:
        `ValueError`: If a package of the extra is missing, with how to install it.
    """
    try:
        return importlib.import_module(f"lumina_mgpt_diffusers.{name}")
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("lumina_mgpt_diffusers"):
            raise
        raise ValueError(
            f"This needs the package `{error.name}`: pip install 'lumina-mgpt-diffusers[{extra}]'"
        ) from error
