# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Reading and writing the originally released files: checkpoint, VQGAN, tokenizer."""

from .conversion import convert_diffusers_to_original, convert_original_to_diffusers
from .files import base_size_from_name
from .layout import original_as_diffusers
from .vqgan import load_vqvae, vqvae_to_original


__all__ = [
    "base_size_from_name",
    "convert_diffusers_to_original",
    "convert_original_to_diffusers",
    "load_vqvae",
    "original_as_diffusers",
    "vqvae_to_original",
]
