# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Requests to one engine: all at once, or as they arrive on a clock that runs only while the engine does."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from calls import ModelOptions
from models import synchronize

from lumina_mgpt_diffusers import LuminaMGPTScheduler, LuminaMGPTTransformer
from lumina_mgpt_diffusers.lumina_mgpt.engine import Engine
from lumina_mgpt_diffusers.lumina_mgpt.noise import draw_key
from lumina_mgpt_diffusers.lumina_mgpt.request import Grammar, Request
from lumina_mgpt_diffusers.lumina_mgpt.row import Row


@dataclass
class Workload:
    """
    A model and how it is sampled.

    Args:
        options ([`ModelOptions`]): The model.
        size (`int`): Base size in pixels.
        num_draft_tokens (`int` or `"auto"`): Drafts.
    """

    options: ModelOptions
    size: int
    num_draft_tokens: int | str
    guidance_scale: float = 4.0
    transformer: LuminaMGPTTransformer = field(init=False)

    def __post_init__(self) -> None:
        self.transformer = self.options.build()

    @property
    def name(self) -> str:
        options = self.options
        model = f"{options.shape}, random weights" if options.folder is None else "trained model"
        drafts = "no drafts" if self.num_draft_tokens == 0 else f"drafts {self.num_draft_tokens}"
        return f"{model}, {options.dtype}, {'compiled' if options.is_compiled else 'eager'}, {drafts}"

    def engine(
        self,
        num_draft_tokens: int | str | None = None,
        text_ids: Sequence[int] = (),
        max_slots: int | None = None,
    ) -> Engine:
        grammar = Grammar(self.options.vocabulary, self.size, torch.tensor(text_ids, dtype=torch.long))
        return Engine(
            self.transformer,
            LuminaMGPTScheduler(),
            grammar,
            self.transformer.device,
            self.num_draft_tokens if num_draft_tokens is None else num_draft_tokens,
            max_slots=max_slots,
        )

    def request(self, index: int, size: tuple[int, int] | None = None, is_image: bool = True) -> Request:
        """
        One of several images.

        Args:
            index (`int`): Says which prompt and seed.
            size (`tuple[int, int]`, *optional*): `(height, width)` in pixels, the base size by default.
            is_image (`bool`): Whether it is asked for as an image, or as the answer of a chat that holds nothing else.
        """
        size = size or (self.size, self.size)
        return Request(
            context=self.options.context(index),
            settings=LuminaMGPTScheduler().settings(guidance_scale=self.guidance_scale, top_k=self.options.top_k),
            key=draw_key(torch.Generator().manual_seed(index)),
            size=size,
            is_image=is_image,
            max_new_tokens=None if is_image else self.options.vocabulary.num_tokens(*size),
        )


@dataclass
class Trial:
    """
    Some requests, sampled at once.

    Args:
        rows (`list[Row]`): Their rows, finished.
        seconds (`float`): How long all took.
        late_seconds (`float`): How long all took from when the first two rows of codes of each were final.
        steps (`int`): How many steps they took.
    """

    rows: list[Row]
    seconds: float
    late_seconds: float
    steps: int

    @property
    def num_codes(self) -> int:
        return sum(row.num_codes for row in self.rows)


@torch.no_grad()
def sample(engine: Engine, requests: Sequence[Request]) -> Trial:
    start = begin = time.perf_counter()
    rows = [engine.submit(request) for request in requests]
    is_early, steps = True, 0
    while not engine.is_idle:
        engine.step()
        steps += 1
        if is_early and all(row.num_codes and row.num_final_codes >= 2 * row.num_columns for row in rows):
            is_early, begin = False, time.perf_counter()
    synchronize(engine.device)
    end = time.perf_counter()
    raise_errors(rows)
    return Trial(rows, end - start, end - begin, steps)


def raise_errors(rows: Sequence[Row]) -> None:
    for row in rows:
        if row.error is not None:
            raise row.error


Policy = Callable[[int, int, bool], int]
"""How many requests to take, of the numbers that are sampled and that wait, and whether none is to come any more."""


def at_any_step(num_sampled: int, num_waiting: int, is_last: bool) -> int:
    return num_waiting


def batches_of_waiting(most: int) -> Policy:
    """A batch of what waits, as soon as the one before is done."""
    return lambda num_sampled, num_waiting, is_last: 0 if num_sampled else min(num_waiting, most)


def full_batches(most: int) -> Policy:
    """A batch when there are enough for a full one."""

    def policy(num_sampled: int, num_waiting: int, is_last: bool) -> int:
        return 0 if num_sampled or not (is_last or num_waiting >= most) else min(num_waiting, most)

    return policy


@torch.no_grad()
def serve(engine: Engine, arrivals: Sequence[tuple[float, Request]], policy: Policy) -> list[float]:
    """
    Sample requests as they arrive.

    Args:
        engine ([`Engine`]): The engine, with as many slots as it may fill.
        arrivals (`list[tuple[float, Request]]`): When each arrives, in seconds, ascending.
        policy (`Callable`): When they are taken.

    Returns:
        `list[float]`: Seconds from the arrival of each to its end, in the order in which they end.
    """
    upcoming, waiting, sampled = deque(arrivals), deque(), {}
    clock, latencies = 0.0, []
    while upcoming or waiting or sampled:
        while upcoming and upcoming[0][0] <= clock:
            waiting.append(upcoming.popleft())
        number = policy(len(sampled), len(waiting), not upcoming)
        if not number and not sampled:
            clock = upcoming[0][0]  # nobody needs to wait for it
            continue
        for _ in range(number):
            arrival, request = waiting.popleft()
            sampled[engine.submit(request)] = arrival
        start = time.perf_counter()
        engine.step()
        clock += time.perf_counter() - start
        finished = [row for row in sampled if row.is_finished]
        raise_errors(finished)
        latencies += [clock - sampled.pop(row) for row in finished]
    return latencies
