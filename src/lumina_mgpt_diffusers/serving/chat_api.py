# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""`/v1/chat/completions`. Images of answers stand in `images` beside `content`, as other servers say it."""

from __future__ import annotations

import asyncio
import base64
import io
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..lumina_mgpt import ImagePart, TextPart
from ..lumina_mgpt.row import SampledText
from .answering import sse, stream, watched
from .errors import ApiError
from .images_api import SEED_BITS
from .job import Ended, Job, Sampled
from .schemas import SIZE, ChatRequest
from .service import Service


@dataclass
class ChatCall:
    """
    A request of a chat on its way.

    Args:
        service ([`Service`]): The server's parts.
        request ([`ChatRequest`]): What was asked for.
        job ([`Job`]): The job.
        seed (`int`): The seed of its answer.
    """

    service: Service
    request: ChatRequest
    job: Job
    seed: int
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    end: Ended | None = None

    async def parts(self) -> AsyncIterator[TextPart | ImagePart]:
        """Text and images as they come."""
        host = self.service.host
        reader = host.pipe.answer_reader()
        async for event in self.job:
            if isinstance(event, Ended):
                self.end = event
            elif isinstance(event, Sampled) and isinstance(event.piece, SampledText):
                for part in reader.read(event.piece):
                    yield part
            elif isinstance(event, Sampled):
                for part in await asyncio.wrap_future(host.run(_all, reader, event.piece)):
                    yield part
        for part in reader.rest():
            yield part

    async def answer(self) -> Response:
        """The whole answer."""
        text, images = "", []
        async for part in self.parts():
            if isinstance(part, TextPart):
                text += part.text
            elif part.image is not None:
                images.append(await self._image(part, len(images), len(text)))
        message = {"role": "assistant", "content": text, **({"images": images} if images else {})}
        choice = {"index": 0, "message": message, "finish_reason": self.end.finish_reason, "logprobs": None}
        return JSONResponse({**self._head("chat.completion"), "choices": [choice], "usage": self._usage()})

    async def events(self) -> AsyncIterator[str]:
        """The answer in pieces."""
        length = num_images = 0
        # The role goes with what comes first, since before it the arguments may turn out to be wrong.
        role = {"role": "assistant"}
        async for part in self.parts():
            if isinstance(part, TextPart):
                length += len(part.text)
                delta = {"content": part.text}
            elif part.image is not None:
                delta = {"images": [await self._image(part, num_images, length)]}
                num_images += 1
            else:
                continue
            yield self._chunk({**role, **delta})
            role = {}
        yield self._chunk(role, self.end.finish_reason)
        if self.request.stream_options is not None and self.request.stream_options.include_usage:
            yield sse({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()})
        yield sse("[DONE]")

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return sse({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.service.model,
            "seed": self.seed,
        }

    def _usage(self) -> dict[str, int]:
        before, new = self.end.num_prompt_tokens, self.end.num_new_tokens
        return {"prompt_tokens": before, "completion_tokens": new, "total_tokens": before + new}

    async def _image(self, part: ImagePart, index: int, text_offset: int) -> dict[str, Any]:
        data = await asyncio.to_thread(_to_png, part)
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        return {"type": "image_url", "image_url": {"url": url}, "index": index, "text_offset": text_offset}


def _all(reader: Any, piece: Any) -> list[TextPart | ImagePart]:
    return list(reader.read(piece))


def _to_png(part: ImagePart) -> bytes:
    file = io.BytesIO()
    part.image.save(file, "PNG")
    return file.getvalue()


async def complete(service: Service, request: Request, fields: ChatRequest) -> Response:
    """Answer a conversation."""
    limits = service.limits
    service.check_model(fields.model)
    wanted = fields.max_completion_tokens or fields.max_tokens or limits.max_tokens
    if wanted > limits.max_tokens:
        raise ApiError(400, f"max_tokens: has to be at most {limits.max_tokens}.", "invalid_value", "max_tokens")
    height = width = None
    if fields.size is not None:
        match = SIZE.fullmatch(fields.size)
        height, width = service.size((int(match[2]), int(match[1])))
    messages = await service.reader().messages(fields.messages)
    seed = secrets.randbits(SEED_BITS) if fields.seed is None else fields.seed
    job = service.host.start(
        "chat",
        max_pixels=limits.max_pixels,
        messages=messages,
        max_new_tokens=wanted,
        height=height,
        width=width,
        guidance_scale=fields.guidance_scale,
        temperature=fields.image_temperature,
        top_k=fields.top_k,
        min_p=fields.min_p,
        text_temperature=fields.temperature,
        text_top_k=fields.text_top_k,
        generator=torch.Generator().manual_seed(seed),
    )
    call = ChatCall(service, fields, job, seed)
    if fields.stream:
        return await stream(request, job, call.events(), limits.request_seconds)
    async with watched(request, job, limits.request_seconds):
        return await call.answer()
