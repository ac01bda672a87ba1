# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Evaluation mode for as long as anyone samples from a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import repeat

import torch.nn as nn


# Of each model that is sampled from: by how many, and what turns training mode on again. A mode is the model's,
# whoever samples, so no engine can keep this for itself.
_sampled: dict[nn.Module, tuple[int, Callable[[], object]]] = {}
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
    is_counted = False
    try:
        with _lock:
            number, restore = _sampled.get(model, (0, None))
            training = []
            if number == 0:
                if model.training:
                    training = [vars(part) for part in model.modules() if vars(part).get("training")]
                # All at once, in C: Ctrl-C comes before or after.
                restore = partial(any, map(dict.update, training, repeat({"training": True})))
            _sampled[model], is_counted = (number + 1, restore), True
            for part in training:
                part["training"] = False
        yield
    finally:
        with _lock:
            if is_counted:
                number, restore = _sampled[model]
                if number > 1:
                    _sampled[model] = number - 1, restore
                else:
                    del _sampled[model]
                    restore()
