# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the handlers of a server share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .errors import ApiError
from .host import EngineHost
from .inputs import InputReader
from .limits import ServerLimits
from .metrics import ServerMetrics


@dataclass(frozen=True)
class Service:
    """
    The parts of a server.

    Args:
        host ([`EngineHost`]): Runs the model.
        model (`str`): Its name.
        limits ([`ServerLimits`]): What clients may do.
        metrics ([`ServerMetrics`]): What is counted.
        fetch_hosts (`Collection[str]`): Hosts, in lower case, from which images of URLs are fetched.
    """

    host: EngineHost
    model: str
    limits: ServerLimits
    metrics: ServerMetrics
    fetch_hosts: Collection[str] = ()

    def reader(self) -> InputReader:
        """What reads the inputs of one request."""
        return InputReader(self.limits, self.fetch_hosts)

    def check_model(self, model: str | None) -> None:
        if model not in (None, self.model):
            message = f"The model {model[:80]!r} is not here. This server has {self.model!r}."
            raise ApiError(404, message, "model_not_found", "model")

    def size(self, sides: tuple[int, int] | None) -> tuple[int, int]:
        """`(height, width)` of an image that is asked for, by default the base size."""
        height, width = sides or (self.host.pipe.scheduler.config.resolution,) * 2
        if height * width > self.limits.max_pixels:
            message = f"size: has to be of at most {self.limits.max_pixels} pixels but is {width}x{height}."
            raise ApiError(400, message, "image_too_large", "size")
        return height, width
