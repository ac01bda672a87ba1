# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Evaluation mode for as long as anyone samples from a model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn as nn


# Of each model that is sampled from: by how many, and which of its modules were in training mode before. A mode is the
# model's, whoever samples, so no engine can keep this for itself.
_sampled: dict[nn.Module, tuple[int, list[nn.Module]]] = {}
_lock = threading.Lock()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """
    Dropout and gradient checkpointing off, as in training scripts that draw an image on the way.

    Threads may be in it at once: the first turns training mode off, the last one on again.

    Args:
        module (`nn.Module`): The model, compiled or not.
    """
    model = getattr(module, "_orig_mod", module)
    with _lock:
        number, training = _sampled.get(model, (0, []))
        if number == 0 and module.training:
            training = [part for part in module.modules() if part.training]
        for part in training:
            part.training = False
        _sampled[model] = number + 1, training
    try:
        yield
    finally:
        with _lock:
            number, training = _sampled.pop(model)
            if number > 1:
                _sampled[model] = number - 1, training
            else:
                for part in training:
                    part.training = True
