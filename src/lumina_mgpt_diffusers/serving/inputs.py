# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What clients send as images and messages, read within the limits of the server."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import Collection, Sequence
from typing import Any

import PIL.Image

from .errors import ApiError
from .fetching import fetch
from .limits import ServerLimits


FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""Decoders that strangers may reach."""


class InputReader:
    """
    Reads what comes in with one request.

    Args:
        limits ([`ServerLimits`]): The limits.
        fetch_hosts (`Collection[str]`): Hosts, in lower case, from which images of URLs are fetched.
    """

    def __init__(self, limits: ServerLimits, fetch_hosts: Collection[str]) -> None:
        self.limits = limits
        self._fetch_hosts = fetch_hosts
        self._num_images = 0
        self._num_characters = 0

    def text(self, text: object, param: str) -> str:
        """A text, as long as all texts together are not too long."""
        if not isinstance(text, str):
            raise ApiError(400, f"{param}: has to be a string.", "invalid_type", param)
        self._num_characters += len(text)
        if self._num_characters > self.limits.max_text:
            raise ApiError(
                400, f"All text has to be of at most {self.limits.max_text} characters.", "text_too_long", param
            )
        return text

    def image(self, data: bytes, param: str) -> PIL.Image.Image:
        """An image of which the head is read; the rest is decoded when it is needed."""
        self._num_images += 1
        if self._num_images > self.limits.max_input_images:
            message = f"At most {self.limits.max_input_images} images may go in."
            raise ApiError(400, message, "too_many_images", param)
        try:
            image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
        except Exception as error:  # what decoders make of malformed files is of every kind
            names = ", ".join(FORMATS)
            raise ApiError(400, f"{param}: is no image of the formats {names}.", "invalid_image", param) from error
        if not 0 < image.width * image.height <= self.limits.max_input_pixels:
            message = f"{param}: is of {image.width}x{image.height}, more than {self.limits.max_input_pixels} pixels."
            raise ApiError(400, message, "image_too_large", param)
        return image

    async def image_of_url(self, url: object, param: str) -> PIL.Image.Image:
        """The image of a data URL, or of a URL of a host from which images may be fetched."""
        if not isinstance(url, str):
            raise ApiError(400, f"{param}: has to be a URL.", "invalid_type", param)
        if url[:5].lower() == "data:":
            head, comma, data = url.partition(",")
            if not comma or not head.lower().endswith(";base64"):
                raise ApiError(400, f"{param}: has to be a data URL in base64.", "invalid_image", param)
            try:
                return self.image(base64.b64decode(data, validate=True), param)
            except (binascii.Error, ValueError) as error:
                raise ApiError(400, f"{param}: is not base64.", "invalid_image", param) from error
        if not self._fetch_hosts:
            message = f"{param}: this server fetches no URLs. Send the image as a data URL."
            raise ApiError(400, message, "image_url_forbidden", param)
        limits = self.limits
        data = await asyncio.to_thread(fetch, url, self._fetch_hosts, limits.max_body_bytes, limits.fetch_seconds)
        return self.image(data, param)

    async def messages(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """OpenAI's messages as turns of the model, which knows no system prompt: it goes before the first turn."""
        turns: list[dict[str, Any]] = []
        system: list[str] = []
        for index, message in enumerate(messages):
            param, role = f"messages.{index}", message.get("role")
            if role in ("system", "developer") and not turns:
                parts = await self._content(message, param)
                if any(part["type"] != "text" for part in parts):
                    raise ApiError(400, f"{param}: has to be text.", "invalid_value", param)
                system += [part["text"] for part in parts]
            elif role in ("user", "assistant"):
                content = await self._content(message, param)
                turns.append({"role": role, "content": content})
            else:
                raise ApiError(
                    400, f"{param}: the role has to be user or assistant, or system at first.", "invalid_value", param
                )
        if system and turns:
            turns[0]["content"].insert(0, {"type": "text", "text": "\n".join(system) + "\n"})
        return turns

    async def _content(self, message: dict[str, Any], param: str) -> list[dict[str, Any]]:
        content = message.get("content")
        if isinstance(content, str) or content is None:
            parts = [{"type": "text", "text": self.text(content or "", f"{param}.content")}]
        elif isinstance(content, list):
            parts = [await self._part(part, f"{param}.content.{number}") for number, part in enumerate(content)]
        else:
            raise ApiError(400, f"{param}.content: has to be a string or a list of parts.", "invalid_type", param)
        images = message.get("images") if message.get("role") == "assistant" else None
        if images is None:
            return parts
        if not isinstance(images, list) or len(parts) != 1 or parts[0]["type"] != "text":
            raise ApiError(
                400, f"{param}.images: has to be a list, beside content that is text.", "invalid_type", param
            )
        return await self._with_images(parts[0]["text"], images, f"{param}.images")

    async def _with_images(self, text: str, images: list[Any], param: str) -> list[dict[str, Any]]:
        """An answer of this server as it was: its images at their places in its text."""
        parts, end = [], 0
        for number, image in enumerate(images):
            offset = image.get("text_offset", len(text)) if isinstance(image, dict) else None
            if not isinstance(offset, int) or not end <= offset <= len(text):
                raise ApiError(400, f"{param}.{number}.text_offset: does not fit the text.", "invalid_value", param)
            parts += [{"type": "text", "text": text[end:offset]}, await self._part(image, f"{param}.{number}")]
            end = offset
        parts.append({"type": "text", "text": text[end:]})
        return [part for part in parts if part != {"type": "text", "text": ""}]

    async def _part(self, part: Any, param: str) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            return {"type": "text", "text": self.text(part.get("text"), f"{param}.text")}
        if kind == "image_url":
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, dict) else url
            return {"type": "image", "image": await self.image_of_url(url, f"{param}.image_url")}
        raise ApiError(400, f"{param}: has to be a part of the type text or image_url.", "invalid_value", param)


def mask_of(image: PIL.Image.Image) -> PIL.Image.Image:
    """A mask that is white where it is transparent, as OpenAI's are; one without transparency is taken as it is."""
    if not image.has_transparency_data:
        return image
    return image.convert("RGBA").getchannel("A").point(lambda alpha: 255 if alpha == 0 else 0)
