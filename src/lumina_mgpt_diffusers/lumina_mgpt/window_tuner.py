# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""How many places a forward takes, chosen by what is measured as it goes: the fastest number for this machine."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence


class ForwardTimes:
    """
    What a step takes by the number of its tokens: measured, or read off the straight line between neighbours.

    More tokens take neither less time than fewer, nor more than in proportion. Times that say so are of steps that
    something else disturbed, and are not believed.
    """

    num_steps, most_sizes = 8, 24
    """Steps of each number of tokens that are known, and numbers of tokens, the last of both."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._line: list[tuple[int, float]] = []

    def __len__(self) -> int:
        return len(self._seconds)

    @property
    def most_tokens(self) -> int:
        """Most tokens of a step that was measured."""
        return max(self._seconds)

    def observe(self, num_tokens: int, seconds: float) -> None:
        own = self._seconds.pop(num_tokens, None) or deque(maxlen=self.num_steps)
        own.append(seconds)
        self._seconds[num_tokens] = own  # the newest
        if len(self._seconds) > self.most_sizes:
            del self._seconds[next(iter(self._seconds))]
        self._line = self._believed()

    def _believed(self) -> list[tuple[int, float]]:
        sizes = sorted(self._seconds)
        times = [min(self._seconds[size]) for size in sizes]
        for index in reversed(range(len(sizes) - 1)):
            times[index] = min(times[index : index + 2])
        for index in range(1, len(sizes)):
            times[index] = min(times[index], times[index - 1] * sizes[index] / sizes[index - 1])
        return list(zip(sizes, times))

    def of(self, num_tokens: int) -> float:
        if len(self._line) == 1:
            return self._line[0][1]
        after = bisect_left(self._line, (num_tokens,))
        (size, seconds), (larger, longer) = self._line[min(max(after, 1), len(self._line) - 1) - 1 :][:2]
        return seconds + (longer - seconds) / (larger - size) * (num_tokens - size)


class WindowTuner:
    """
    Chooses the window that makes the most codes in a second: codes of a step over the time of a step.

    What a window makes final is known of smaller ones too, and about known of the next larger one: the images that
    accept a whole window are taken to accept that. The time is known of the numbers of tokens that were tried. So two
    windows are tried at the beginning, and from time to time one beside the best. Pipelines keep a tuner from call to
    call of one kind, since few steps make a small image.

    Args:
        windows (`list[int]`): The windows to choose from, ascending.
    """

    first_tokens = 16
    """Tokens of a forward to begin with."""

    least_first, most_first_tokens = 4, 128
    """Window to begin with for many rows, as long as a forward has no more tokens than this."""

    trial_steps = 3
    """Steps of a window before it is judged, of which the first may have had something to set up."""

    trial_interval = 24
    """Steps between two trials; it doubles with every trial that changes nothing."""

    max_trial_interval = 192

    least_gain = 1.08
    """How much faster another window has to be: times are no more exact."""

    first_gain = 1.1
    """How much a larger window has to promise to be the second that is tried, rather than a smaller one."""

    least_promise = 0.6
    """How fast another window has to be, as far as known, to be tried."""

    def __init__(self, windows: Sequence[int]) -> None:
        self.windows = list(windows)
        self._best: int | None = None
        self._current: int | None = None
        self._load = 0
        self._steps = 0
        self._steps_since_trial = 0
        self._interval = self.trial_interval
        self._direction = 1
        self._num_observed = 0
        self._times = ForwardTimes()
        self._means: dict[int, float] = {}

    def choose(self, load: int) -> int:
        """
        The window of the next step.

        Args:
            load (`int`): Number of rows of the forward.
        """
        if load != self._load:
            self._load = load
            self._begin()
        return self.windows[self._current]

    def observe(self, window: int, seconds: float, num_final: Sequence[int]) -> None:
        """
        Take note of a step.

        Args:
            window (`int`): Its window.
            seconds (`float`): How long it took.
            num_final (`list[int]`): How many places it made final in each image.
        """
        index = self.windows.index(window)
        self._times.observe(window * self._load, seconds)
        self._num_observed += 1
        weight = max(0.1, 1 / self._num_observed)
        for other, size in enumerate(self.windows[: index + 2]):
            numbers = [size if number >= window else min(number, size) for number in num_final]
            mean = sum(numbers) / len(numbers)
            before = self._means.get(other, mean)
            self._means[other] = before + weight * (mean - before)
        self._steps_since_trial += 1
        # Another window than the chosen one, where more codes are known or a queue still holds it, is no trial.
        self._steps += index == self._current
        if self._steps >= self.trial_steps:
            self._decide()

    def _begin(self) -> None:
        """Go to the window that is the fastest, as far as the times of about so many tokens are known."""
        most = max(self.first_tokens // self._load, min(self.least_first, self.most_first_tokens // self._load))
        if len(self._times) > 1:
            most = max(most, 2 * self._times.most_tokens // self._load)
        allowed = [index for index, window in enumerate(self.windows) if window <= most] or [0]
        if self._best not in allowed:
            self._best = allowed[-1]
        if len(self._times) > 1:
            self._improve({index: self._rate(index) for index in allowed if index in self._means})
        self._current, self._steps = self._best, 0

    def _decide(self) -> None:
        """Go to the best window, or from there to one beside it."""
        rates = {index: self._rate(index) for index in self._means}
        self._improve(rates)
        wanted = self._best
        if wanted == self._current and (len(self._times) == 1 or self._steps_since_trial >= self._interval):
            wanted = self._beside(rates)
            self._steps_since_trial = 0
            self._interval = min(2 * self._interval, self.max_trial_interval)
        if wanted != self._current:
            self._current, self._steps = wanted, 0

    def _improve(self, rates: dict[int, float]) -> None:
        fastest = max(rates, key=rates.get)
        if rates[fastest] > self.least_gain * rates.get(self._best, 0.0):
            self._best, self._interval = fastest, self.trial_interval

    def _beside(self, rates: dict[int, float]) -> int:
        """The window to try: of the two beside the best the one that was not tried last, if it promises enough."""
        least = self.first_gain if len(self._times) == 1 else self.least_promise
        for direction in (self._direction, -self._direction):
            index = self._best + direction
            if index in rates and (rates[index] > least * rates[self._best] or (direction < 0 and least > 1)):
                self._direction = -direction
                return index
        return self._best

    def _rate(self, index: int) -> float:
        """Places that a window makes final in a second."""
        return self._means[index] / self._times.of(self.windows[index] * self._load)
