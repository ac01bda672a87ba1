# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The host of an engine: callers of any number, threads and event loops among them, share one batch.

Three kinds of threads meet here. Callers start jobs and read them. One thread encodes what goes in and decodes what
comes out, since the VQ model serves one at a time. One thread runs the engine, and it alone touches it.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import PIL.Image
import torch

from ..lumina_mgpt import (
    LuminaMGPTChatPipeline,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTInpaintPipeline,
    LuminaMGPTPipeline,
)
from ..lumina_mgpt.engine import Engine
from ..lumina_mgpt.pipeline_base import LuminaMGPTBasePipeline
from ..lumina_mgpt.request import Grammar, Request
from ..lumina_mgpt.validation import check_choice, check_integer
from .engine_jobs import EngineJobs
from .job import HostClosedError, Job, QueueFullError


logger = logging.getLogger("lumina_mgpt_diffusers.serving")

PIPELINES: dict[str, type[LuminaMGPTBasePipeline]] = {
    "text_to_image": LuminaMGPTPipeline,
    "image_to_image": LuminaMGPTImg2ImgPipeline,
    "inpaint": LuminaMGPTInpaintPipeline,
    "chat": LuminaMGPTChatPipeline,
}
"""The kinds of calls, and whose arguments they take."""


def check_room(max_slots: object, max_waiting: object, max_length: object) -> tuple[int, int, int | None]:
    """The numbers of a host, checked. Commands do so before they load a model."""
    return (
        check_integer("max_slots", max_slots, least=2),
        check_integer("max_waiting", max_waiting, least=1),
        None if max_length is None else check_integer("max_length", max_length, least=1),
    )


class EngineHost:
    r"""
    Runs the calls of many in one batch of one engine.

    The images and texts are those of the pipelines for the same arguments and generators, whatever runs beside them
    (in float32; in other dtypes as the engine promises).

    Args:
        pipe ([`LuminaMGPTBasePipeline`]):
            A pipeline of any kind, without offloading. The host is to be its only user.
        max_slots (`int`, defaults to 32):
            Most rows of the KV cache. An answer takes one, with guidance two. See `lumina-mgpt memory`.
        max_waiting (`int`, defaults to 64): Most answers that wait for a place in the batch.
        max_length (`int`, *optional*):
            Most tokens of a prompt and its answer. What an answer may come to counts, not what it comes to.
        num_draft_tokens (`int` or `"auto"`, *optional*), draft_init (`str`, *optional*):
            See [`LuminaMGPTScheduler`], whose configuration is the default. Those of calls are ignored: the batch has
            one of each, and they decide the speed alone.

    Attributes:
        pipelines (`dict[str, LuminaMGPTBasePipeline]`): A pipeline of the same components for each kind of calls.
        pipe ([`LuminaMGPTChatPipeline`]): That of chats.
        counts ([`Counts`]): What it does and has done.

    Raises:
        `ValueError`: If the pipeline cannot run beside itself, or a number is not one.
    """

    def __init__(
        self,
        pipe: LuminaMGPTBasePipeline,
        max_slots: int = 32,
        max_waiting: int = 64,
        max_length: int | None = None,
        num_draft_tokens: int | str | None = None,
        draft_init: str | None = None,
    ) -> None:
        pipe.check_components()
        if any(hasattr(model, "_hf_hook") for model in (pipe.transformer, pipe.vqvae)):
            raise ValueError("`pipe` has to be without offloading, whose hooks move models while others use them.")
        self.max_slots, self.max_waiting, self.max_length = check_room(max_slots, max_waiting, max_length)
        self.device = pipe._execution_device
        self.pipelines = {kind: own.from_pipe(pipe) for kind, own in PIPELINES.items()}
        for own in self.pipelines.values():
            own.set_progress_bar_config(disable=True)
        self.pipe = self.pipelines["chat"]
        vocabulary, base_size = self.pipe.image_vocabulary, self.pipe.scheduler.config.resolution
        grammar = Grammar(vocabulary, base_size)
        if self.pipe.tokenizer is not None:
            grammar = Grammar.from_tokenizer(self.pipe.tokenizer, vocabulary, base_size, self.pipe.can_draw)
        new_engine = functools.partial(
            Engine,
            self.pipe.transformer,
            self.pipe.scheduler,
            grammar,
            self.device,
            num_draft_tokens,
            draft_init,
            self.max_slots,
        )
        self._jobs = EngineJobs(new_engine, self._release)
        self.counts = self._jobs.counts
        # Guards what callers and the engine's thread share: the messages, and the jobs with the places they hold.
        self._changed = threading.Condition()
        self._messages: deque[Callable[[], None]] = deque()
        self._held: dict[Job, int] = {}
        self._is_closing = False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lumina-mgpt-images")
        self._thread = threading.Thread(target=self._run, name="lumina-mgpt-engine", daemon=True)
        self._thread.start()

    # For callers

    def start(
        self,
        kind: str,
        num_answers: int = 1,
        every: int | None = None,
        max_pixels: int | None = None,
        **arguments: Any,
    ) -> Job:
        """
        Start a call. It waits for a place in the batch, and its arguments are checked meanwhile.

        Args:
            kind (`str`): `"text_to_image"`, `"image_to_image"`, `"inpaint"` or `"chat"`.
            num_answers (`int`, defaults to 1): How many images or answers the call has.
            every (`int`, *optional*): Tell of an image that is being sampled after so many rows of codes.
            max_pixels (`int`, *optional*):
                Most pixels of an image. The model chooses sizes among those that have no more; a call whose image
                would have more, by a size that is given or by default, fails.
            arguments: Those of the call of that pipeline, see [`PIPELINES`].

        Raises:
            [`QueueFullError`]: If too many answers wait already.
            [`HostClosedError`]: If the host is closing.
        """
        check_choice("kind", kind, list(PIPELINES))
        job = Job(self._drop, every)
        with self._changed:
            if self._is_closing:
                raise HostClosedError("The host is shutting down and takes no more requests.")
            # By what is held and not by what waits, or those would overtake the count that are just being encoded.
            held = sum(self._held.values())
            if held and held - self.counts.num_running + num_answers > self.max_waiting:
                raise QueueFullError(self._retry_after(held))
            self._held[job] = num_answers
        self._worker.submit(self._prepare, job, kind, arguments, max_pixels)
        return job

    def decode(self, codes: torch.LongTensor) -> Future[PIL.Image.Image]:
        """The image of codes `(rows, columns)`, where -1 repeats the code above."""
        return self.run(lambda: self.pipe.decode_images([codes.to(self.device)])[0])

    def run(self, function: Callable, *args: Any) -> Future:
        """Call a function in the thread that runs the VQ model, as the reader of an answer with images has to be."""
        return self._worker.submit(function, *args)

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken, and steps do not fail one after the other, as after an error of the device."""
        return self._thread.is_alive() and not self._is_closing and self._jobs.can_go_on

    def close(self, drain: bool = True) -> None:
        """
        Take no more requests, and end when those that were taken are answered.

        Args:
            drain (`bool`, defaults to `True`): Whether they are answered, or fail with a [`HostClosedError`].
        """
        with self._changed:
            self._is_closing = True
            jobs = [] if drain else list(self._held)
            self._changed.notify()
        for job in jobs:
            job.fail(HostClosedError("The host was closed."))
            self._drop(job)
        self._thread.join()
        self._worker.shutdown()

    def __enter__(self) -> EngineHost:
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        self.close(drain=kind is None)

    def _retry_after(self, held: int) -> float:
        num_running = self.counts.num_running
        rounds = max(held - num_running, 1) / max(num_running, 1)
        return min(max(self.counts.seconds_per_answer * rounds, 1.0), 600.0)

    # In the thread of the VQ model

    def _prepare(self, job: Job, kind: str, arguments: dict[str, Any], max_pixels: int | None) -> None:
        requests: list[Request] = []
        if not job.is_done:
            try:
                requests = self.pipelines[kind].prepare(**arguments).requests
                self._check_length(requests)
                if max_pixels is not None:
                    self._limit_pixels(requests, max_pixels)
            except Exception as error:
                job.fail(error)
        self._tell(functools.partial(self._admit, job, requests))

    def _check_length(self, requests: Sequence[Request]) -> None:
        side = self.pipe.scheduler.config.resolution
        for request in requests:
            size = (side, side) if request.size is None else request.size
            length = len(request.context)
            length += self.pipe.image_vocabulary.num_tokens(*size) if request.is_image else request.max_new_tokens
            if self.max_length is not None and length > self.max_length:
                raise ValueError(
                    f"Prompt and answer have to come to at most {self.max_length} tokens together, but these may come"
                    f" to {length}, of which {len(request.context)} are the prompt."
                )

    def _limit_pixels(self, requests: Sequence[Request], max_pixels: int) -> None:
        grid_size = self.pipe.image_vocabulary.grid_size
        for request in requests:
            request.max_pixels = max_pixels
            height, width = request.size or (grid_size, grid_size)  # the smallest, if the model is to choose
            if height * width > max_pixels and self.pipe.can_draw:
                raise ValueError(
                    f"An image may be of at most {max_pixels} pixels, but this one would be of {height}x{width}"
                    " (height x width)."
                )

    # Between threads

    def _tell(self, message: Callable[[], None]) -> None:
        with self._changed:
            self._messages.append(message)
            self._changed.notify()

    def _drop(self, job: Job) -> None:
        self._tell(functools.partial(self._jobs.cancel, job))

    def _release(self, job: Job, number: int) -> None:
        """Give back places that a job holds, which ends without any."""
        with self._changed:
            left = self._held.get(job, 0) - number
            if left > 0:
                self._held[job] = left
                return
            self._held.pop(job, None)
        job.finish()

    # In the thread of the engine

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            logger.critical("The engine cannot go on.", exc_info=error)
            with self._changed:
                self._is_closing = True
                jobs, self._held = list(self._held), {}
            for job in jobs:
                job.fail(HostClosedError("The engine cannot go on."))

    def _serve(self) -> None:
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)
        while True:
            with self._changed:
                while not self._messages and not self._jobs.answers:
                    if self._is_closing and not self._held:
                        return
                    self._changed.wait()
                messages, self._messages = self._messages, deque()
            for message in messages:
                message()
            self._jobs.step()

    def _admit(self, job: Job, requests: Sequence[Request]) -> None:
        if job.is_done:
            held = self._held.get(job, 0)
            self.counts.num_cancelled += held if job.is_cancelled else 0
            self._release(job, held)
            return
        with self._changed:
            self._held[job] = len(requests)
        self._jobs.add(job, requests)
