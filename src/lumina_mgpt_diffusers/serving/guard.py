# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What stands between the network and the application: the key, and limits of bytes and time.

A body is received as a whole before the application sees it, so that nothing else has to be on its guard against
slow or endless ones.
"""

from __future__ import annotations

import asyncio
import hmac
import time

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import ApiError
from .limits import ServerLimits
from .metrics import ServerMetrics


class Guard:
    """
    ASGI middleware: refuses what is too long, too slow or without the key.

    Args:
        app (`ASGIApp`): The application.
        limits ([`ServerLimits`]): The limits.
        metrics ([`ServerMetrics`]): Is told of every answer.
        api_key (`str`, *optional*): Key that requests below `/v1` have to bear.
    """

    def __init__(self, app: ASGIApp, limits: ServerLimits, metrics: ServerMetrics, api_key: str | None) -> None:
        self.app = app
        self.limits = limits
        self.metrics = metrics
        self._api_key = None if api_key is None else api_key.encode()
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, statuses = time.monotonic(), []

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        held = 0
        try:
            self._check_key(scope)
            body = await self._receive_body(scope, receive)
            held = len(body)
            await self.app(scope, _replayed(body, receive), watched_send)
        except ApiError as error:
            if not statuses:
                await error.response()(scope, receive, watched_send)
        finally:
            self._buffered -= held
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.answered(route, statuses[0] if statuses else 499, time.monotonic() - begin)

    def _check_key(self, scope: Scope) -> None:
        if self._api_key is None or not scope["path"].startswith("/v1"):
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._api_key):
            raise ApiError(
                401,
                "A key is needed, as `Authorization: Bearer KEY`, and this is not it.",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _receive_body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self.limits.max_body_bytes
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > limit:
            raise _too_long(limit)
        body = bytearray()
        try:
            await asyncio.wait_for(self._receive_into(body, limit, receive), self.limits.body_seconds)
        except (asyncio.TimeoutError, TimeoutError):
            self._buffered -= len(body)
            message = f"The body was not received within {self.limits.body_seconds:g} s."
            raise ApiError(408, message, "body_timeout", headers={"Connection": "close"}) from None
        except BaseException:
            self._buffered -= len(body)
            raise
        return bytes(body)

    async def _receive_into(self, body: bytearray, limit: int, receive: Receive) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(499, "The client left.", "client_left")
            chunk = message.get("body", b"")
            if len(body) + len(chunk) > limit:
                raise _too_long(limit)
            if self._buffered + len(chunk) > self.limits.max_buffered_bytes:
                message = "The server receives as much as it can hold. Try again."
                raise ApiError(429, message, "too_many_bytes", headers={"Retry-After": "5", "Connection": "close"})
            body += chunk
            self._buffered += len(chunk)
            if not message.get("more_body"):
                return


def _too_long(limit: int) -> ApiError:
    return ApiError(
        413, f"The body has to be of at most {limit} bytes.", "body_too_large", headers={"Connection": "close"}
    )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Receives a body that was received before, and then what follows: that the client leaves."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


class PunctualProtocol(H11Protocol):
    """HTTP of uvicorn that cuts connections off on which a head does not come to its end, or an answer is not read."""

    header_seconds = ServerLimits.header_seconds
    send_seconds = ServerLimits.send_seconds
    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_send_timer()
        self._send_timer = self.loop.call_later(self.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_send_timer()

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.header_seconds, self._end_head)

    def _end_head(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
