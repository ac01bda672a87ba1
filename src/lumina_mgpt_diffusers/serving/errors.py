# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Errors in the form of OpenAI's interface: a status and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import logging
import math
from concurrent.futures import CancelledError
from dataclasses import dataclass, field

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from .job import HostClosedError, QueueFullError, StepError


logger = logging.getLogger("lumina_mgpt_diffusers.serving")

# Messages quote what clients sent, which may be long.
MAX_MESSAGE = 1000

CODES = {404: "not_found", 405: "method_not_allowed"}


@dataclass(eq=False)
class ApiError(Exception):
    """
    An answer that is an error.

    Args:
        status (`int`): The HTTP status.
        message (`str`): What is wrong.
        code (`str`, *optional*): A name for it that programs may know.
        param (`str`, *optional*): The parameter that is wrong.
        headers (`dict[str, str]`): Further headers.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        message = self.message if len(self.message) <= MAX_MESSAGE else self.message[:MAX_MESSAGE] + "…"
        return {"error": {"message": message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        # As ASCII, since what clients sent need not be text that can be encoded.
        return Response(json.dumps(self.body), self.status, self.headers, "application/json")


def to_api_error(error: BaseException) -> ApiError:
    """How a client is told of an error. What it is not to know goes to the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), "queue_full", headers={"Retry-After": str(math.ceil(error.retry_after))})
    if isinstance(error, (RequestValidationError, ValidationError)):
        return _of_validation(error)
    if isinstance(error, HTTPException):
        return ApiError(
            error.status_code, str(error.detail), CODES.get(error.status_code), headers=error.headers or {}
        )
    if isinstance(error, ValueError):
        return ApiError(400, str(error), "invalid_value")
    if isinstance(error, HostClosedError):
        return ApiError(503, str(error), "shutting_down", headers={"Retry-After": "10"})
    if isinstance(error, TimeoutError):
        return ApiError(504, str(error), "timeout")
    if isinstance(error, CancelledError):
        return ApiError(499, "The client left.", "client_left")
    if isinstance(error, StepError):
        return ApiError(500, str(error), "engine_error")
    logger.error("A request failed.", exc_info=error)
    return ApiError(500, "The server failed to answer this request.", "internal_error")


def _of_validation(error: RequestValidationError | ValidationError) -> ApiError:
    first, *others = error.errors()
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    more = f" (and {len(others)} more)" if others else ""
    return ApiError(400, f"{param or 'The body'}: {first['msg']}{more}", first["type"], param and param[:200])
