# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
One engine for many callers.

[`EngineHost`] runs it and needs nothing but this package. What it is for needs more: `server` the extra `serve`,
`demo` the extra `app`, `ray` and `ray_batch` the extra `ray`.
"""

from .host import EngineHost
from .job import Ended, HostClosedError, Job, QueueFullError, RowError, RowsDone, Sampled, StepError


__all__ = [
    "Ended",
    "EngineHost",
    "HostClosedError",
    "Job",
    "QueueFullError",
    "RowError",
    "RowsDone",
    "Sampled",
    "StepError",
]
