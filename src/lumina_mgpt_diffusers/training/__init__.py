# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning of Lumina-mGPT. Needs the extra `train`."""

from .transformer import make_trainable


__all__ = ["make_trainable"]
