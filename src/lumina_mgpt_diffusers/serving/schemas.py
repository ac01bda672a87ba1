# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What clients send: OpenAI's parameters and, beside them, the sampler's.

What OpenAI's interface knows but this server does not do is accepted where it changes nothing, else refused by name.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


MAX_SEED = (1 << 63) - 1

SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


def _without_nulls(values: Any) -> Any:
    """A null is the default of a field, as clients send it."""
    if not isinstance(values, dict):
        return values
    return {name: value for name, value in values.items() if value is not None}


class SamplerFields(BaseModel):
    """Settings of the sampler, by default the model's or the task's."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    guidance_scale: float | None = None
    top_k: int | None = None
    min_p: float | None = None

    # Accepted, without effect
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None


class ImageFields(SamplerFields):
    """What requests for images have in common."""

    n: int = Field(1, ge=1)
    size: str = "auto"
    temperature: float | None = None
    top_p: float | None = None
    negative_prompt: str | None = None
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(100, ge=0, le=100)
    stream: bool = False
    partial_images: int = Field(0, ge=0)
    background: Literal["auto", "opaque"] = "auto"

    # Accepted, without effect
    quality: str | None = None
    moderation: str | None = None
    style: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        return _without_nulls(values)

    @field_validator("size")
    @classmethod
    def _is_size(cls, value: str) -> str:
        if value not in ("auto", "free") and not SIZE.fullmatch(value):
            raise ValueError("has to be WIDTHxHEIGHT such as 768x512, or auto")
        return value

    @property
    def sides(self) -> tuple[int, int] | None:
        """`(height, width)` in pixels, None if the default or the model decides."""
        match = SIZE.fullmatch(self.size)
        return (int(match[2]), int(match[1])) if match else None


class GenerationRequest(ImageFields):
    """`POST /v1/images/generations`"""

    prompt: str


class EditRequest(ImageFields):
    """The fields of `POST /v1/images/edits` beside its images."""

    prompt: str = ""
    task: str = "edit"
    result_only: bool = False
    input_fidelity: str | None = None  # accepted, without effect


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "top_p": (1, 1.0),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "stop": ([], ""),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"], ["text", "image"], ["image", "text"], ["image"]),
    "store": (False,),
    "parallel_tool_calls": (False, True),
}
"""What of OpenAI's chat is not done here, and the values by which nothing of it is asked for."""


class ChatRequest(SamplerFields):
    """`POST /v1/chat/completions`"""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None  # of text
    text_top_k: int | None = None
    image_temperature: float | None = None
    size: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_extra(cls, values: Any) -> Any:
        values = _without_nulls(values)
        for name in values.keys() - cls.model_fields.keys() if isinstance(values, dict) else ():
            if name not in NEUTRAL:
                raise ValueError(f"`{str(name)[:80]}` is no parameter of this server")
            if values[name] not in NEUTRAL[name]:
                raise ValueError(f"`{name}` is not supported: leave it out")
        return values

    @field_validator("size")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None and not SIZE.fullmatch(value):
            raise ValueError("has to be WIDTHxHEIGHT such as 768x512")
        return value
