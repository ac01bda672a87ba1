# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Ctrl-C at any line of the package: the signal arrives there, and Python raises it where it handles signals."""

import ctypes
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import lumina_mgpt_diffusers


# The package, and what runs the context managers that it is made of.
TRACED = (str(Path(lumina_mgpt_diffusers.__file__).parent), contextmanager.__code__.co_filename)

# A trace function in C: a call of a function of Python would already handle the signal.
send_signal = ctypes.PYFUNCTYPE(None, *[ctypes.py_object] * 3)(("PyErr_SetInterrupt", ctypes.pythonapi))

Place = tuple[str, int, int]
"""File, line, and which of the times that it is executed."""


class Interrupter:
    """
    Runs calls, and counts the lines that they execute.

    Args:
        place (`Place`, *optional*): The line after which the signal arrives.
    """

    def __init__(self, place: Place | None = None) -> None:
        self.place = place
        self.counts: Counter = Counter()
        self.is_sent = self.is_late = False

    def run(self, call: Callable[[], object]) -> bool:
        """Whether the call was interrupted."""
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            sys.settrace(self._enter)
            call()
            sys.settrace(None)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
            signal.signal(signal.SIGINT, before)
        return False

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_filename == __file__:
            # What a trace function raises ends the frame that it is called for without its `finally`: a line later.
            self.is_late = True
            return
        sys.settrace(None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once
        self.is_sent = True
        raise KeyboardInterrupt

    def _enter(self, frame: FrameType, event: str, argument: object) -> Callable | None:
        return self._count if frame.f_code.co_filename.startswith(TRACED) else None

    def _count(self, frame: FrameType, event: str, argument: object) -> Callable:
        if event == "line":
            line = frame.f_code.co_filename, frame.f_lineno
            self.counts[line] += 1
            if self.is_late or (*line, self.counts[line]) == self.place:
                self.is_late = False
                return send_signal
        return self._count


def places_of(call: Callable[[], object], seed: int, number: int | None = None, file: str = "") -> list[Place]:
    """Every line that a call executes, each at one of its times, or so many of them, or those of one file."""
    interrupter = Interrupter()
    assert not interrupter.run(call)
    chosen = random.Random(seed)
    lines = sorted((line, times) for line, times in interrupter.counts.items() if line[0].endswith(file))
    places = [(*line, chosen.randint(1, times)) for line, times in lines]
    return places if number is None else chosen.sample(places, min(number, len(places)))
