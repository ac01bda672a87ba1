# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The jobs of a host in its engine: what of their answers is new after a step, and who is lost when one fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..lumina_mgpt.engine import Engine
from ..lumina_mgpt.request import Request
from ..lumina_mgpt.row import Row
from .job import Ended, Job, RowError, RowsDone, Sampled, StepError


logger = logging.getLogger("lumina_mgpt_diffusers.serving")

# So many steps that fail in a row are not a matter of their requests.
MAX_FAILED_STEPS = 3


@dataclass
class Counts:
    """
    What a host does and has done.

    Args:
        num_running (`int`), num_waiting (`int`): Answers in the batch, and those that wait for a place in it.
        num_steps (`int`), num_codes (`int`), num_text_tokens (`int`): What was done so far.
        num_finished (`int`), num_cancelled (`int`), num_failed (`int`): How answers ended so far.
        seconds_per_answer (`float`): What the last answers took, about.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_steps: int = 0
    num_codes: int = 0
    num_text_tokens: int = 0
    num_finished: int = 0
    num_cancelled: int = 0
    num_failed: int = 0
    seconds_per_answer: float = 1.0

    def finish(self, row: Row, seconds: float) -> None:
        """Count an answer that is finished, and the seconds since it was submitted."""
        self.num_finished += 1
        self.num_codes += row.num_codes
        self.num_text_tokens += 0 if row.request.is_image else row.num_new_tokens
        self.seconds_per_answer += 0.2 * (seconds - self.seconds_per_answer)


@dataclass(eq=False)
class Answer:
    """An answer that is sampled or waits: whose it is, which one of the call, and how many rows were told of."""

    job: Job
    index: int
    request: Request
    row: Row
    submitted: float
    num_rows: int = 0


class EngineJobs:
    """
    Jobs and the engine that samples them. One thread alone may touch them.

    Args:
        new_engine (`Callable[[], Engine]`): Makes the engine, and another one when a step of it has failed.
        release (`Callable[[Job, int], None]`): Is called when so many answers of a job have ended.

    Attributes:
        engine ([`Engine`]): The engine.
        answers (`list[Answer]`): The answers that have not ended.
        counts ([`Counts`]): What was done.
    """

    def __init__(self, new_engine: Callable[[], Engine], release: Callable[[Job, int], None]) -> None:
        self._new_engine = new_engine
        self._release = release
        self.engine = new_engine()
        self.answers: list[Answer] = []
        self.counts = Counts()
        self._num_failed_steps = 0  # that followed one another

    @property
    def can_go_on(self) -> bool:
        """Whether steps do not fail one after the other, as after an error of the device."""
        return self._num_failed_steps < MAX_FAILED_STEPS

    def add(self, job: Job, requests: Sequence[Request]) -> None:
        """Submit the requests of a job."""
        now = time.monotonic()
        for index, request in enumerate(requests):
            self.answers.append(Answer(job, index, request, self.engine.submit(request), now))

    def cancel(self, job: Job) -> None:
        """Let the answers of a job go."""
        self.counts.num_cancelled += self._remove(job)

    def step(self) -> None:
        """Make every answer go on, and tell the jobs what is new. If that fails, the batch is lost."""
        try:
            self.engine.step()
            self._num_failed_steps = 0
        except Exception as error:
            self._num_failed_steps += 1
            self._recover(error)
        self.counts.num_steps += 1
        self._publish()

    def _remove(self, job: Job) -> int:
        """Have the engine let the answers of a job go. Gives how many there were."""
        own = [answer for answer in self.answers if answer.job is job]
        for answer in own:
            self.engine.discard(answer.row)
            self.answers.remove(answer)
        if own:
            self._release(job, len(own))
        return len(own)

    def _recover(self, error: Exception) -> None:
        """Fail the jobs of a batch that cannot be stepped, and have the others wait for a new engine."""
        logger.error("A step of the engine failed; its batch is lost.", exc_info=error)
        in_batch = set(self.engine.rows)
        lost = {answer.job for answer in self.answers if answer.row in in_batch}
        if not lost:  # whatever it was, none of those that wait may meet it again
            lost = {answer.job for answer in self.answers}
        self.engine = None  # and its KV cache, before there is another one
        for job in lost:
            number = sum(answer.job is job for answer in self.answers)
            failure = StepError(f"The engine failed while it sampled this request ({type(error).__name__}).")
            failure.__cause__ = error
            self.counts.num_failed += number
            job.fail(failure)
            self._release(job, number)
        self.answers = [answer for answer in self.answers if answer.job not in lost]
        self.engine = self._new_engine()
        for answer in self.answers:
            answer.row = self.engine.submit(answer.request)

    def _publish(self) -> None:
        for answer in list(self.answers):
            job, row = answer.job, answer.row
            if row.error is not None:
                job.fail(RowError(str(row.error)))
                self.counts.num_failed += self._remove(job)  # the other answers of the call too
                continue
            if not job.is_done:
                self._tell(answer)
            if row.is_finished and answer in self.answers:
                self.answers.remove(answer)
                self.counts.finish(row, time.monotonic() - answer.submitted)
                self._release(job, 1)
        batch = set(self.engine.rows)
        self.counts.num_running = sum(answer.row in batch for answer in self.answers)
        self.counts.num_waiting = len(self.answers) - self.counts.num_running
        if not self.answers and batch:
            self.engine.step()  # which lets the rows of the last ones go

    def _tell(self, answer: Answer) -> None:
        """Give a job what is new of an answer."""
        job, row = answer.job, answer.row
        for piece in row.take_pieces():
            answer.num_rows = 0
            job.put(Sampled(answer.index, piece))
        if row.is_finished:
            job.put(Ended(answer.index, row.finish_reason, row.answer_start, row.num_new_tokens))
        elif job.every is not None and row.in_image:
            num_rows = row.num_final_codes // row.num_columns
            if num_rows >= answer.num_rows + job.every:
                answer.num_rows = num_rows
                num_given = row.num_given_codes // row.num_columns
                job.put(RowsDone(answer.index, self.engine.codes(row).cpu(), num_rows, num_given))
