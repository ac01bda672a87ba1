# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A call that a host runs, as its caller sees it: events as they come, in a thread or in an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass

import torch

from ..lumina_mgpt.row import SampledImage, SampledText


class QueueFullError(RuntimeError):
    """
    More requests wait than may.

    Args:
        retry_after (`float`): Seconds after which some of them will have been answered, by what the last ones took.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"Too many requests wait already. Try again in {retry_after:.0f} s.")
        self.retry_after = retry_after


class HostClosedError(RuntimeError):
    """The host takes no more requests, or gave this one up as it closed."""


class StepError(RuntimeError):
    """The engine failed in a step with this request in its batch. What waited goes on in a new engine."""


class RowError(StepError):
    """This request alone failed, by what the model makes of it, such as logits that are not finite."""


@dataclass(frozen=True)
class RowsDone:
    """
    Rows of codes that are complete in an image that is being sampled.

    Args:
        index (`int`): Which answer of the call.
        codes (`torch.LongTensor` of shape `(rows, columns)`): On the CPU; -1 where there is none yet.
        num_rows (`int`): How many rows are complete.
        num_given (`int`): How many of them were given and not sampled.
    """

    index: int
    codes: torch.LongTensor
    num_rows: int
    num_given: int


@dataclass(frozen=True)
class Sampled:
    """
    Text of an answer, or an image that is finished.

    Args:
        index (`int`): Which answer of the call.
        piece ([`SampledText`] or [`SampledImage`]): The piece, its codes on the CPU.
    """

    index: int
    piece: SampledText | SampledImage


@dataclass(frozen=True)
class Ended:
    """
    The end of an answer.

    Args:
        index (`int`): Which answer of the call.
        finish_reason (`str`): `"stop"` or `"length"`.
        num_prompt_tokens (`int`), num_new_tokens (`int`): Tokens before the answer, and of it.
    """

    index: int
    finish_reason: str
    num_prompt_tokens: int
    num_new_tokens: int


Event = RowsDone | Sampled | Ended


class Job:
    """
    A call to a host.

    Iterate over it, with `for` or `async for`, to get its events. It is cancelled when the iteration ends early. Of an
    image that is being sampled only the newest rows are kept, so that a slow reader holds no more than a fast one.

    Raises from the iteration what the call failed with: a `ValueError` of its arguments, [`StepError`] or
    [`RowError`], [`HostClosedError`], or [`concurrent.futures.CancelledError`].
    """

    def __init__(self, cancel: Callable[[Job], None], every: int | None) -> None:
        self.every = every
        self._cancel = cancel
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._rows: dict[int, RowsDone] = {}  # of images that are being sampled, the newest
        self._is_done = False
        self._error: BaseException | None = None
        self._ring: Callable[[], None] = lambda: None

    @property
    def is_done(self) -> bool:
        return self._is_done

    @property
    def is_cancelled(self) -> bool:
        return isinstance(self._error, CancelledError)

    def cancel(self, error: BaseException | None = None) -> None:
        """
        Let the call go. Its rows are free before the next step of the engine.

        Args:
            error (`BaseException`, *optional*): What its reader is told, by default that it was cancelled.
        """
        if not self._is_done:
            self.fail(CancelledError() if error is None else error)
            self._cancel(self)

    def __iter__(self) -> Iterator[Event]:
        bell = threading.Event()
        self._ring = bell.set
        try:
            while True:
                bell.clear()
                events, is_done = self._take()
                yield from events
                if is_done:
                    return
                if not events:
                    bell.wait()
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop, bell = asyncio.get_running_loop(), asyncio.Event()

        def ring() -> None:
            with suppress(RuntimeError):  # a loop that has been closed
                loop.call_soon_threadsafe(bell.set)

        self._ring = ring
        try:
            while True:
                bell.clear()
                events, is_done = self._take()
                for event in events:
                    yield event
                if is_done:
                    return
                if not events:
                    await bell.wait()
        finally:
            self.cancel()

    def codes(self) -> list[torch.LongTensor]:
        """Wait for the images of the call, in their order."""
        images = {event.index: event.piece.codes for event in self if isinstance(event, Sampled)}
        return [images[index] for index in sorted(images)]

    # The host's side

    def put(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, RowsDone):
                self._rows[event.index] = event
            else:
                self._rows.pop(event.index, None)
                self._events.append(event)
        self._ring()

    def finish(self) -> None:
        self._is_done = True
        self._ring()

    def fail(self, error: BaseException) -> None:
        """End with an error, unless it has ended. What came before is dropped."""
        with self._lock:
            if self._is_done:
                return
            self._events, self._rows = [], {}
            self._error, self._is_done = error, True
        self._ring()

    # The caller's side

    def _take(self) -> tuple[list[Event], bool]:
        with self._lock:
            is_done, error = self._is_done, self._error
            events = [*self._events, *self._rows.values()]
            self._events, self._rows = [], {}
        if error is not None:
            raise error
        return events, is_done
