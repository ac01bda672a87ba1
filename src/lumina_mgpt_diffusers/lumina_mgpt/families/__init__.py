# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The families of models: all that sets one apart from another, in one description each.

Which family a checkpoint is of is stated in the configuration of its transformer as `model_family`, which conversions
write, or else follows from the names in its vocabulary.
"""

from .chameleon import CHAMELEON
from .description import CodeTokens, ModelFamily
from .lumina_mgpt import LUMINA_MGPT
from .lumina_mgpt_2 import LUMINA_MGPT_2
from .pocket import LUMINA_MGPT_POCKET
from .registry import as_family, families, find_family, register_family


__all__ = [
    "CHAMELEON",
    "CodeTokens",
    "LUMINA_MGPT",
    "LUMINA_MGPT_2",
    "LUMINA_MGPT_POCKET",
    "ModelFamily",
    "as_family",
    "families",
    "find_family",
    "register_family",
]
