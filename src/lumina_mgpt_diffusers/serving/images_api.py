# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""`/v1/images/generations` and `/v1/images/edits`."""

from __future__ import annotations

import asyncio
import base64
import io
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import PIL.Image
import torch
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..lumina_mgpt import PanelTask, Task
from ..lumina_mgpt.panels import lower_panel
from ..png import describe, png_info
from .answering import sse, stream, watched
from .errors import ApiError
from .inputs import InputReader, mask_of
from .job import Ended, Job, RowsDone, Sampled
from .schemas import EditRequest, GenerationRequest, ImageFields
from .service import Service


SAMPLER = ("guidance_scale", "temperature", "top_k", "top_p", "min_p", "negative_prompt")

FORM_FIELDS = 64
"""Most fields of a form, and most of its files."""

# A seed that programs of any language can hold.
SEED_BITS = 48


class EncodedImage(NamedTuple):
    """A file as base64, and the size of its image as `WIDTHxHEIGHT`."""

    data: str
    size: str


@dataclass
class ImageCall:
    """
    A request for images on its way.

    Args:
        service ([`Service`]): The server's parts.
        request ([`ImageFields`]): What was asked for.
        kind (`str`): `"image_generation"` or `"image_edit"`, the name of its events.
        job ([`Job`]): The job.
        settings (`dict`): What the metadata of the images say. The seed is that of the first; each has its own.
        result_only (`bool`): Whether an image is only the lower one of its two panels.
    """

    service: Service
    request: ImageFields
    kind: str
    job: Job
    settings: dict[str, Any]
    result_only: bool

    async def answer(self) -> Response:
        """All images at once."""
        images, ends = {}, []
        async for event in self.job:
            if isinstance(event, Sampled):
                images[event.index] = await self._encode(event.piece.codes, event.index)
            elif isinstance(event, Ended):
                ends.append(event)
        body = {
            "created": int(time.time()),
            "data": [self._as_data(images[index]) for index in sorted(images)],
            "output_format": self.request.output_format,
            "size": images[0].size,
            "seed": self.settings["seed"],
            "usage": usage(ends),
        }
        return JSONResponse(body)

    async def events(self) -> AsyncIterator[str]:
        """Previews and images as they come."""
        begin, told, images = time.monotonic(), {}, {}
        async for event in self.job:
            if isinstance(event, RowsDone):
                if not told:
                    self.service.metrics.first_rows.observe(time.monotonic() - begin)
                number = told.setdefault(event.index, 0)
                if number < num_previews(event, self.request.partial_images):
                    told[event.index] = number + 1
                    image = await self._encode(event.codes, event.index)
                    yield self._event("partial_image", image, event, partial_image_index=number)
            elif isinstance(event, Sampled):
                images[event.index] = await self._encode(event.piece.codes, event.index)
            else:
                yield self._event("completed", images.pop(event.index), event, usage=usage([event]))

    def _event(self, name: str, image: EncodedImage, event: RowsDone | Ended, **more: Any) -> str:
        kind = f"{self.kind}.{name}"
        data = {
            "type": kind,
            "b64_json": image.data,
            "created_at": int(time.time()),
            "size": image.size,
            "quality": "auto",
            "background": "opaque",
            "output_format": self.request.output_format,
            "image_index": event.index,
            "seed": self.settings["seed"] + event.index,
            **more,
        }
        return sse(data, kind)

    async def _encode(self, codes: torch.LongTensor, index: int) -> EncodedImage:
        image = await asyncio.wrap_future(self.service.host.decode(codes))
        own = {"height": image.height, "width": image.width, "seed": self.settings["seed"] + index}
        image = lower_panel(image) if self.result_only else image
        data = await asyncio.to_thread(self._to_file, image, {**self.settings, **own})
        return EncodedImage(base64.b64encode(data).decode(), f"{image.width}x{image.height}")

    def _to_file(self, image: PIL.Image.Image, settings: dict[str, Any]) -> bytes:
        file, kind = io.BytesIO(), self.request.output_format
        if kind == "png":
            image.save(file, "PNG", pnginfo=png_info({**settings, **describe(self.service.host.pipe)}))
        else:
            image.save(file, kind.upper(), quality=self.request.output_compression)
        return file.getvalue()

    def _as_data(self, image: EncodedImage) -> dict[str, str]:
        if self.request.response_format == "url":
            return {"url": f"data:image/{self.request.output_format};base64,{image.data}"}
        return {"b64_json": image.data}


def num_previews(event: RowsDone, most: int) -> int:
    """How many previews of an image are due by now. They come after equal numbers of rows that are sampled."""
    num_sampled, of = event.num_rows - event.num_given, len(event.codes) - event.num_given
    return min(num_sampled * (most + 1) // of, most)


def usage(ends: list[Ended]) -> dict[str, Any]:
    """Tokens of answers, in OpenAI's form."""
    prompts, answers = sum(end.num_prompt_tokens for end in ends), sum(end.num_new_tokens for end in ends)
    return {
        "input_tokens": prompts,
        "input_tokens_details": {"text_tokens": prompts, "image_tokens": 0},
        "output_tokens": answers,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": answers},
        "total_tokens": prompts + answers,
    }


async def generate(service: Service, request: Request, fields: GenerationRequest) -> Response:
    """Text to image."""
    if fields.size == "free":
        raise ApiError(400, "size: has to be WIDTHxHEIGHT or auto.", "invalid_value", "size")
    prompt = service.reader().text(fields.prompt, "prompt")
    height, width = service.size(fields.sides)
    arguments = {"prompt": prompt, "height": height, "width": width}
    return await _run(service, request, fields, "image_generation", "text_to_image", arguments)


async def edit(service: Service, request: Request) -> Response:
    """Image to image, of any task, and inpainting where there is a mask."""
    values, files = await _read_form(request, max(service.limits.max_text * 4, 1 << 20))
    fields = EditRequest.model_validate({name: value for name, value in values.items() if value != ""})
    reader = service.reader()
    if not files["image"]:
        raise ApiError(400, "image: has to be a file.", "missing", "image")
    images = [reader.image(data, "image") for data in files["image"]]
    prompt = reader.text(fields.prompt, "prompt")
    if files["mask"]:
        return await _inpaint(service, request, fields, reader, images, prompt, files["mask"])
    tasks = service.host.pipe.family.tasks
    if fields.task not in tasks:
        message = f"task: has to be one of {', '.join(tasks)}." if tasks else "task: this model has no tasks."
        raise ApiError(400, message, "invalid_value", "task")
    arguments = {"image": [images], "task": fields.task, "prompt": prompt or None}
    if fields.result_only:
        _check_has_panels(fields.task, tasks)
        arguments["result_only"] = True
    if fields.task != "edit" and not tasks[fields.task].needs_prompt:
        arguments["prompt"] = None  # clients of OpenAI always send one
    if fields.size == "free":
        arguments["size"] = "free"
    elif fields.sides is not None:
        arguments["height"], arguments["width"] = service.size(fields.sides)
    return await _run(service, request, fields, "image_edit", "image_to_image", arguments)


def _check_has_panels(task: str, tasks: Mapping[str, Task]) -> None:
    if isinstance(tasks[task], PanelTask):
        return
    others = ", ".join(name for name, own in tasks.items() if isinstance(own, PanelTask))
    others = f"These have: {others}." if others else "No task of this model has."
    message = f"result_only: has to be false for the task {task}, which has no panels. {others}"
    raise ApiError(400, message, "invalid_value", "result_only")


async def _read_form(request: Request, max_field_size: int) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    """The fields of a form, and its files under the names that are expected."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(415, "The body has to be multipart/form-data.", "unsupported_media_type")
    values: dict[str, str] = {}
    files: dict[str, list[bytes]] = {"image": [], "mask": []}
    async with request.form(max_files=FORM_FIELDS, max_fields=FORM_FIELDS, max_part_size=max_field_size) as form:
        for name, value in form.multi_items():
            own = name.removesuffix("[]")
            if isinstance(value, UploadFile):
                if own not in files:
                    raise ApiError(400, f"{own[:80]}: is no file that is expected.", "unknown_parameter", own[:80])
                files[own].append(await value.read())
            elif name in values:
                raise ApiError(400, f"{name[:80]}: is given twice.", "invalid_value", name[:80])
            else:
                values[name] = value
    return values, files


async def _inpaint(
    service: Service,
    request: Request,
    fields: EditRequest,
    reader: InputReader,
    images: list[PIL.Image.Image],
    prompt: str,
    masks: list[bytes],
) -> Response:
    if len(images) != 1 or len(masks) != 1 or fields.task != "edit" or fields.size == "free" or fields.result_only:
        message = "mask: goes with one image, without a task, its result_only or a free size."
        raise ApiError(400, message, "invalid_value", "mask")
    mask = await asyncio.to_thread(_read_mask, reader.image(masks[0], "mask"))
    arguments = {"prompt": prompt, "image": images[0], "mask_image": mask}
    if fields.sides is not None:
        arguments["height"], arguments["width"] = service.size(fields.sides)
    return await _run(service, request, fields, "image_edit", "inpaint", arguments)


def _read_mask(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        image.load()
        return mask_of(image)
    except Exception as error:  # what decoders make of malformed files is of every kind
        raise ApiError(400, "mask: cannot be read.", "invalid_image", "mask") from error


async def _run(
    service: Service, request: Request, fields: ImageFields, event_kind: str, kind: str, arguments: dict[str, Any]
) -> Response:
    limits = service.limits
    service.check_model(fields.model)
    if fields.n > limits.max_images:
        raise ApiError(400, f"n: has to be at most {limits.max_images}.", "invalid_value", "n")
    if fields.partial_images > limits.max_partial_images:
        message = f"partial_images: has to be at most {limits.max_partial_images}."
        raise ApiError(400, message, "invalid_value", "partial_images")
    if fields.negative_prompt is not None:
        service.reader().text(fields.negative_prompt, "negative_prompt")
    seed = secrets.randbits(SEED_BITS) if fields.seed is None else fields.seed
    own = {name: getattr(fields, name) for name in SAMPLER if getattr(fields, name) is not None}
    job = service.host.start(
        kind,
        num_answers=fields.n,
        every=1 if fields.stream else None,
        max_pixels=limits.max_pixels,
        num_images_per_prompt=fields.n,
        generator=[torch.Generator().manual_seed(seed + index) for index in range(fields.n)],
        **arguments,
        **own,
    )
    told = {name: value for name, value in arguments.items() if isinstance(value, (str, int))}
    settings = {"model": service.model, **told, **own, "seed": seed}
    call = ImageCall(service, fields, event_kind, job, settings, arguments.get("result_only", False))
    if fields.stream:
        return await stream(request, job, call.events(), limits.request_seconds)
    async with watched(request, job, limits.request_seconds):
        return await call.answer()
