# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The server: OpenAI's interface to images and chat, as an ASGI application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Collection
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from .. import __version__
from . import chat_api, images_api
from .errors import to_api_error
from .guard import Guard, PunctualProtocol
from .host import EngineHost
from .limits import ServerLimits
from .metrics import ServerMetrics
from .schemas import ChatRequest, GenerationRequest
from .service import Service


def build_app(
    host: EngineHost,
    model: str = "lumina-mgpt",
    limits: ServerLimits | None = None,
    api_key: str | None = None,
    fetch_hosts: Collection[str] = (),
) -> FastAPI:
    """
    The application.

    Args:
        host ([`EngineHost`]): Runs the model. It is closed when the application ends, once it has answered.
        model (`str`, defaults to `"lumina-mgpt"`): Name of the model.
        limits ([`ServerLimits`], *optional*): What clients may do.
        api_key (`str`, *optional*): A key that clients have to know. With one there are no pages about the interface.
        fetch_hosts (`Collection[str]`): Hosts from which images of URLs are fetched. By default no URL is.

    Raises:
        `ValueError`: If the key is empty, which every client would know.
    """
    if api_key == "":
        raise ValueError("The key is empty. Leave it out to do without one.")
    limits, metrics = limits or ServerLimits(), ServerMetrics(host)
    service = Service(host, model, limits, metrics, frozenset(name.lower() for name in fetch_hosts))
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(host.close)

    app = FastAPI(
        title="Lumina-mGPT",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url="/openapi.json" if api_key is None else None,  # without it, /docs and /redoc are off too
    )
    app.state.service = service
    app.add_middleware(Guard, limits=limits, metrics=metrics, api_key=api_key)
    for kind in (HTTPException, RequestValidationError, ValidationError, Exception):
        app.add_exception_handler(kind, _answer_error)

    @app.post("/v1/images/generations", response_model=None)
    async def generate(fields: GenerationRequest, request: Request) -> Response:
        """Images from text."""
        return await _answered(images_api.generate(service, request, fields))

    @app.post("/v1/images/edits", response_model=None)
    async def edit(request: Request) -> Response:
        """Images from images: a form of `image` files and the fields of a generation, `task` and `mask`."""
        return await _answered(images_api.edit(service, request))

    @app.post("/v1/chat/completions", response_model=None)
    async def complete(fields: ChatRequest, request: Request) -> Response:
        """An answer of a conversation with text and images."""
        return await _answered(chat_api.complete(service, request, fields))

    @app.get("/v1/models")
    async def list_models() -> dict:
        return {"object": "list", "data": [_model_card(model, started)]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict:
        service.check_model(name)
        return _model_card(model, started)

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 while requests are taken, else 503."""
        state = {
            "status": "ok" if host.is_alive else "unavailable",
            "running": host.counts.num_running,
            "waiting": host.counts.num_waiting,
        }
        return JSONResponse(state, 200 if host.is_alive else 503)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return app


async def _answered(answer: Awaitable[Response]) -> Response:
    # Here and not by the application's handler, which logs every exception that it does not know as an error.
    try:
        return await answer
    except Exception as error:
        return to_api_error(error).response()


async def _answer_error(request: Request, error: Exception) -> Response:
    return to_api_error(error).response()


def _model_card(model: str, created: int) -> dict[str, str | int]:
    return {"id": model, "object": "model", "created": created, "owned_by": "lumina-mgpt-diffusers"}


def server_config(
    app: FastAPI,
    address: str = "127.0.0.1",
    port: int = 8000,
    max_connections: int = 1000,
    log_level: str = "info",
) -> uvicorn.Config:
    """
    How uvicorn serves the application: until SIGTERM or SIGINT, and then what runs is finished.

    Args:
        app (`FastAPI`): From [`build_app`].
        address (`str`, defaults to `"127.0.0.1"`), port (`int`, defaults to 8000): Where to listen.
        max_connections (`int`, defaults to 1000): Most connections; others are answered with 503.
        log_level (`str`, defaults to `"info"`): Of uvicorn.
    """
    limits = app.state.service.limits
    seconds = {"header_seconds": limits.header_seconds, "send_seconds": limits.send_seconds}
    return uvicorn.Config(
        app,
        host=address,
        port=port,
        http=type("Protocol", (PunctualProtocol,), seconds),
        ws="none",
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=int(limits.request_seconds) + 1,
        log_level=log_level,
        server_header=False,
    )


def run(config: uvicorn.Config) -> None:
    """Serve until SIGTERM or SIGINT, and end the process with an error if the address cannot be had."""
    server = uvicorn.Server(config)
    server.run()
    if not server.started:
        raise SystemExit(3)
