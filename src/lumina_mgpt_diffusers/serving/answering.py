# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""From a job to an answer over HTTP: time limits, clients that leave, and server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from .errors import to_api_error
from .job import Job


# A comment that keeps proxies from closing a stream on which nothing comes.
PING = ": ping\n\n"
PING_SECONDS = 15.0


@asynccontextmanager
async def watched(request: Request, job: Job, seconds: float) -> AsyncIterator[None]:
    """Cancel a job when its client leaves, when its time is over, or when the answer is given up."""
    timer = asyncio.get_running_loop().call_later(
        seconds, job.cancel, TimeoutError(f"The request was not answered within {seconds:g} s.")
    )
    leaving = asyncio.ensure_future(_leaves(request, job))
    try:
        yield
    finally:
        timer.cancel()
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        job.cancel()


async def _leaves(request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.cancel()


def sse(data: dict[str, Any] | str, event: str | None = None) -> str:
    """A server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {event}\n" if event else "") + f"data: {text}\n\n"


async def stream(request: Request, job: Job, events: AsyncIterator[str], seconds: float) -> StreamingResponse:
    """
    An answer of server-sent events.

    What goes wrong early is raised, and is an answer with a status of its own; later it is an event.
    """
    scope = watched(request, job, seconds)
    await scope.__aenter__()
    first = asyncio.ensure_future(anext(events, None))
    try:
        if (await asyncio.wait([first], timeout=PING_SECONDS))[0]:
            first.result()
    except BaseException:
        first.cancel()
        await scope.__aexit__(None, None, None)
        raise

    async def body() -> AsyncIterator[str]:
        pending = first
        try:
            while True:
                while not (await asyncio.wait([pending], timeout=PING_SECONDS))[0]:
                    yield PING
                text = pending.result()
                if text is None:
                    return
                yield text
                pending = asyncio.ensure_future(anext(events, None))
        except Exception as error:
            yield sse(to_api_error(error).body)
        finally:
            pending.cancel()
            await scope.__aexit__(None, None, None)

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)
