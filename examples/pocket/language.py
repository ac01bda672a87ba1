# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is said of scenes: captions, names of objects, relations, questions and their answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from shapes import SHAPES
from world import COLOURS, Scene, Thing


NUMBERS = ("no", "one", "two", "three", "four", "five", "six")

SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "ball", "sphere"),
    "cube": ("cube", "cube", "block"),
    "cylinder": ("cylinder",),
    "cone": ("cone",),
    "ring": ("ring", "ring", "donut"),
    "star": ("star",),
    "heart": ("heart",),
    "diamond": ("diamond", "diamond", "gem"),
}

SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big")}

TEXTURE_WORDS = {"plain": ("plain",), "striped": ("striped",), "spotted": ("spotted", "spotted", "dotted")}

RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "behind": ("behind", "in the back of"),
    "front": ("in front of",),
}

OPPOSITE = {"left": "right", "right": "left", "behind": "front", "front": "behind"}


def pick(random: np.random.Generator, options: Sequence):
    return options[int(random.integers(len(options)))]


def article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def relation(one: Thing, other: Thing) -> str | None:
    """How one object stands to another, seen from the camera, or None where it is neither clearly."""
    across = one.middle[0] - other.middle[0]
    away = other.foot[1] - one.foot[1]
    least = 0.35 * (one.unit + other.unit)
    if abs(across) >= 1.4 * abs(away) and abs(across) >= least:
        return "right" if across > 0 else "left"
    if abs(away) >= 1.4 * abs(across) and abs(away) >= least:
        return "behind" if away > 0 else "front"
    return None


def noun_phrase(
    random: np.random.Generator,
    things: Sequence[Thing],
    *,
    with_size: float = 0.45,
    with_texture: float = 0.9,
    with_colour: float = 1.0,
) -> str:
    """
    Words for objects of one shape, without an article: `small striped red balls`.

    Args:
        random (`np.random.Generator`): Chooses the words.
        things (`list[Thing]`): The objects.
        with_size (`float`), with_texture (`float`), with_colour (`float`):
            How often these are told, where all have the same. That nothing is on them is rarely told.
    """
    first = things[0]
    words = []
    if len({thing.size for thing in things}) == 1 and random.random() < with_size:
        words.append(pick(random, SIZE_WORDS[first.size]))
    if len({thing.texture for thing in things}) == 1:
        if random.random() < (0.08 if first.texture == "plain" else with_texture):
            words.append(pick(random, TEXTURE_WORDS[first.texture]))
    if len({thing.colour for thing in things}) == 1 and random.random() < with_colour:
        words.append(first.colour)
    return " ".join([*words, pick(random, SHAPE_WORDS[first.shape]) + ("s" if len(things) > 1 else "")])


def counted(random: np.random.Generator, things: Sequence[Thing], **options: float) -> str:
    phrase = noun_phrase(random, things, **options)
    if len(things) == 1:
        return article(phrase)
    number = str(len(things)) if random.random() < 0.2 else NUMBERS[len(things)]
    return f"{number} {phrase}"


def enumerate_phrases(phrases: Sequence[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def floor_phrase(random: np.random.Generator, scene: Scene) -> str:
    noun = pick(random, ("floor", "floor", "ground", "surface"))
    return f"{pick(random, ('a', 'a', 'the'))} {scene.floor} {noun}"


def groups(scene: Scene, by_colour: bool = True) -> list[list[Thing]]:
    """The objects by shape and, if wanted, colour, in order of appearance."""
    found: dict[tuple[str, str], list[Thing]] = {}
    for thing in scene.things:
        found.setdefault((thing.shape, thing.colour if by_colour else ""), []).append(thing)
    return list(found.values())


def caption(scene: Scene, random: np.random.Generator) -> str:
    """A true sentence about a scene. All objects are named; what else is told varies."""
    coloured = random.random() < 0.8
    kinds = groups(scene, coloured)
    random.shuffle(kinds)
    options = {} if coloured else {"with_colour": 0.0, "with_size": 0.1, "with_texture": 0.1}
    shapes = {thing.shape for thing in scene.things}
    if len(kinds) > 1 and len(shapes) == 1 and random.random() < 0.3:
        word = pick(random, SHAPE_WORDS[scene.things[0].shape])
        parts = enumerate_phrases([counted(random, kind) for kind in kinds])
        content = f"{NUMBERS[len(scene.things)]} {word}s: {parts}"
    elif len(kinds) == 2 and all(len(kind) == 1 for kind in kinds) and random.random() < 0.75:
        content = related(random, kinds[0][0], kinds[1][0], **options)
    else:
        content = enumerate_phrases([counted(random, kind, **options) for kind in kinds])
    return frame(random, content, len(scene.things), floor_phrase(random, scene))


def frame(random: np.random.Generator, content: str, count: int, floor: str | None = None) -> str:
    """What is seen as a sentence, perhaps with the floor."""
    form = random.random()
    if floor is not None and form < 0.45:
        if form < 0.3:
            text = f"{content} on {floor}"
        elif form < 0.38:
            text = f"{floor} with {content} on it"
        else:
            text = f"there {'is' if count == 1 else 'are'} {content} on {floor}"
    elif form < 0.6:
        text = f"{pick(random, ('a picture of', 'an image of', 'a photo of', 'a render of'))} {content}"
    else:
        text = content
    return text[0].upper() + text[1:] + "." if random.random() < 0.25 else text


def related(random: np.random.Generator, one: Thing, other: Thing, **options: float) -> str:
    """Two objects and how they stand to each other."""
    phrases = counted(random, [one], **options), counted(random, [other], **options)
    how = relation(one, other)
    if how is None:
        return f"{phrases[0]} and {phrases[1]}"
    joint = pick(random, (" ", " ", " that is ", " standing "))
    return f"{phrases[0]}{joint}{pick(random, RELATIONS[how])} {phrases[1]}"


def reference(scene: Scene, thing: Thing, random: np.random.Generator) -> str | None:
    """Words that mean this object alone, with the article, or None where it has a twin."""
    others = [other for other in scene.things if other is not thing]
    word = pick(random, SHAPE_WORDS[thing.shape])
    names = []
    if all(other.shape != thing.shape for other in others):
        names.append(f"the {word}")
    if all(other.colour != thing.colour for other in others):
        names.append(f"the {thing.colour} {pick(random, ('object', 'thing', 'one'))}")
    if all((other.shape, other.colour) != (thing.shape, thing.colour) for other in others):
        names += [f"the {thing.colour} {word}"] * 2
    return pick(random, names) if names else None


def question(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
    """A question about a scene and its answer."""
    while True:
        asked = pick(random, _QUESTIONS)(scene, random)
        if asked is not None:
            return asked


def _ask_count(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
    return pick(random, ("How many objects are there?", "How many things do you see?")), NUMBERS[len(scene.things)]


def _ask_count_shape(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
    present = pick(random, scene.things).shape
    shape = present if random.random() < 0.8 else pick(random, list(SHAPES))
    count = sum(thing.shape == shape for thing in scene.things)
    return f"How many {pick(random, SHAPE_WORDS[shape])}s are there?", NUMBERS[count]


def _ask_colour(scene: Scene, random: np.random.Generator) -> tuple[str, str] | None:
    thing = pick(random, scene.things)
    if sum(other.shape == thing.shape for other in scene.things) > 1:
        return None
    return f"What colour is the {pick(random, SHAPE_WORDS[thing.shape])}?", thing.colour


def _ask_shape(scene: Scene, random: np.random.Generator) -> tuple[str, str] | None:
    thing = pick(random, scene.things)
    if sum(other.colour == thing.colour for other in scene.things) > 1:
        return None
    return f"What is the {thing.colour} object?", article(thing.shape)


def _ask_exists(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
    thing = pick(random, scene.things)
    shape, colour = thing.shape, thing.colour
    if random.random() < 0.5:
        if random.random() < 0.5:
            colour = pick(random, list(COLOURS))
        else:
            shape = pick(random, list(SHAPES))
    there = any((other.shape, other.colour) == (shape, colour) for other in scene.things)
    return f"Is there {article(f'{colour} {pick(random, SHAPE_WORDS[shape])}')}?", "yes" if there else "no"


def _ask_relation(scene: Scene, random: np.random.Generator) -> tuple[str, str] | None:
    if len(scene.things) < 2:
        return None
    one, other = (scene.things[place] for place in random.permutation(len(scene.things))[:2])
    how = relation(one, other)
    names = reference(scene, one, random), reference(scene, other, random)
    if how is None or None in names:
        return None
    asked = how if random.random() < 0.5 else OPPOSITE[how]
    return f"Is {names[0]} {RELATIONS[asked][0]} {names[1]}?", "yes" if asked == how else "no"


def _ask_floor(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
    return f"What colour is the {pick(random, ('floor', 'ground'))}?", scene.floor


def _ask_texture(scene: Scene, random: np.random.Generator) -> tuple[str, str] | None:
    name = reference(scene, thing := pick(random, scene.things), random)
    return None if name is None else (f"Is {name} plain, striped or spotted?", thing.texture)


_QUESTIONS = (
    _ask_count, _ask_count_shape, _ask_colour, _ask_shape, _ask_exists, _ask_relation, _ask_floor, _ask_texture,
)  # fmt: skip
