# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Prompts with one thing to get right each, in the categories of GenEval (https://huggingface.co/papers/2310.11513), and
a judge. It is stricter than GenEval's: what was not asked for may not be there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from detect import Reading
from language import (
    NUMBERS,
    OPPOSITE,
    RELATIONS,
    SHAPE_WORDS,
    article,
    enumerate_phrases,
    frame,
    pick,
    relation,
)
from shapes import SHAPES
from world import COLOURS, FLOORS, Scene, Thing, draw_kind, draw_thing, fits, put, random_generator


CATEGORIES = ("single object", "colours", "two objects", "position", "counting", "colour attribution")

MOST_TRIES = 20
"""Scenes that are begun for a case, before a size is held to have no room for it."""


@dataclass(frozen=True)
class Wanted:
    """So many objects of a shape and, if one is named, a colour."""

    shape: str
    colour: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Case:
    """
    A prompt and what makes a picture right.

    Args:
        category (`str`): One of `CATEGORIES`.
        prompt (`str`): The prompt.
        wanted (`tuple[Wanted, ...]`): All the objects there have to be.
        relation (`str`, *optional*): How the first stands to the second.
    """

    category: str
    prompt: str
    wanted: tuple[Wanted, ...]
    relation: str | None = None


def draw_case(category: str, split: str, index: int) -> Case:
    """The case of a number. In the split `held_out` the colours make pairs that training never shows."""
    random = np.random.default_rng(
        [*random_generator(split, index).integers(2**31, size=2), CATEGORIES.index(category), 7]
    )
    kinds = [draw_kind(random, split)]
    while len(kinds) < 2:
        other = draw_kind(random, split)
        if other[0] != kinds[0][0] and other[1] != kinds[0][1]:
            kinds.append(other)
    how = None
    if category == "counting":
        wanted = (Wanted(kinds[0][0], count=int(random.integers(1, 5))),)
    elif category in ("single object", "colours"):
        wanted = (Wanted(kinds[0][0], kinds[0][1] if category == "colours" else None),)
    else:
        coloured = category == "colour attribution"
        wanted = tuple(Wanted(shape, colour if coloured else None) for shape, colour in kinds)
        how = pick(random, list(RELATIONS)) if category == "position" else None
    return Case(category, _write(random, wanted, how), wanted, how)


def _write(random: np.random.Generator, wanted: tuple[Wanted, ...], how: str | None) -> str:
    phrases = []
    for one in wanted:
        words = pick(random, SHAPE_WORDS[one.shape]) + ("s" if one.count > 1 else "")
        words = f"{one.colour} {words}" if one.colour else words
        phrases.append(article(words) if one.count == 1 else f"{NUMBERS[one.count]} {words}")
    content = f"{phrases[0]} {pick(random, RELATIONS[how])} {phrases[1]}" if how else enumerate_phrases(phrases)
    return frame(random, content, sum(one.count for one in wanted))


def spoil(case: Case, random: np.random.Generator) -> Case:
    """Another case of the category that differs in one thing, so that its pictures are wrong for this one."""
    wanted = list(case.wanted)
    place = int(random.integers(len(wanted)))
    one = wanted[place]
    if case.relation:
        return replace(case, relation=OPPOSITE[case.relation])
    if case.category == "counting":
        count = one.count + (1 if one.count == 1 or (one.count < 4 and random.random() < 0.5) else -1)
        wanted[place] = replace(one, count=count)
    elif one.colour and random.random() < 0.7:
        wanted[place] = replace(one, colour=pick(random, [name for name in COLOURS if name != one.colour]))
    else:
        taken = {other.shape for other in wanted}
        wanted[place] = replace(one, shape=pick(random, [name for name in SHAPES if name not in taken]))
    return replace(case, wanted=tuple(wanted))


def draw_right(case: Case, random: np.random.Generator, height: int, width: int) -> Scene:
    """
    A scene that is right for a case.

    Raises:
        `ValueError`: If none was found, since pictures so small or flat have too little room.
    """
    kinds = [one for one in case.wanted for _ in range(one.count)]
    for _ in range(MOST_TRIES):
        things: list[Thing] = []
        for _ in range(400):
            one = kinds[len(things)]
            colour = one.colour or pick(random, list(COLOURS))
            thing = replace(draw_thing(random, "test", height, width), shape=one.shape, colour=colour)
            if len(kinds) > 2:
                thing = replace(thing, size="small")
            thing = put(random, thing, height, width)
            if fits(thing, things, height, width):
                things.append(thing)
            if len(things) == len(kinds):
                break
        else:
            continue
        if case.relation is None or relation(*things) == case.relation:
            return Scene(height, width, pick(random, list(FLOORS)), tuple(things))
    raise ValueError(f"`height` and `width` are {height} and {width}, which have no room for {case.prompt!r}.")


def cases_with_room(category: str, split: str, number: int, height: int, width: int) -> list[Case]:
    """
    The first cases of a category that pictures of a size can show.

    Args:
        category (`str`): One of `CATEGORIES`.
        split (`str`): One of `SPLITS`.
        number (`int`): How many.
        height (`int`), width (`int`): Size in pixels.
    """
    cases: list[Case] = []
    for index in range(10 * number):
        case = draw_case(category, split, index)
        try:
            draw_right(case, np.random.default_rng(index), height, width)
        except ValueError:
            continue
        cases.append(case)
        if len(cases) == number:
            return cases
    raise ValueError(f"`height` and `width` are {height} and {width}, which have no room for {category!r}.")


def is_right(case: Case, reading: Reading) -> bool:
    """Whether a picture, as it was read, is what a case asks for."""
    if len(reading.things) != sum(one.count for one in case.wanted):
        return False
    shapes = Counter(thing.shape for thing in reading.things)
    pairs = Counter((thing.shape, thing.colour) for thing in reading.things)
    for one in case.wanted:
        if (pairs[one.shape, one.colour] if one.colour else shapes[one.shape]) != one.count:
            return False
    if case.relation is None:
        return True
    first, second = (next(thing for thing in reading.things if thing.shape == one.shape) for one in case.wanted)
    across = first.middle[0] - second.middle[0]
    away = second.foot[1] - first.foot[1]
    along, aside = {
        "left": (-across, away), "right": (across, away), "behind": (away, across), "front": (-away, across)
    }[case.relation]  # fmt: skip
    return along > 0.2 * (first.unit + second.unit) and along > 0.8 * abs(aside)
