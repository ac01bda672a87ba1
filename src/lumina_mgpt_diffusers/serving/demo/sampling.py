# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Jobs as a page shows them: images that grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
import PIL.Image

from ..host import EngineHost
from ..job import HostClosedError, Job, QueueFullError, RowsDone, Sampled, StepError


# So many previews of an image, about.
NUM_PREVIEWS = 16


def every_for(height: int, scale: int) -> int:
    """After how many rows of codes an image of a height is shown."""
    return max(height // scale // NUM_PREVIEWS, 1)


def start(host: EngineHost, kind: str, **arguments: Any) -> Job:
    try:
        return host.start(kind, **arguments)
    except (QueueFullError, HostClosedError) as error:
        raise gr.Error(str(error), print_exception=False) from error


async def growing_images(host: EngineHost, job: Job) -> AsyncIterator[tuple[int, PIL.Image.Image, bool]]:
    """The images of a job as they grow: which one, what there is of it, and whether it is finished."""
    try:
        async for event in job:
            if isinstance(event, RowsDone):
                yield event.index, await asyncio.wrap_future(host.decode(event.codes)), False
            elif isinstance(event, Sampled):
                yield event.index, await asyncio.wrap_future(host.decode(event.piece.codes)), True
    except (ValueError, StepError, HostClosedError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    finally:
        job.cancel()  # at once if the visitor has left
