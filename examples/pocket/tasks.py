# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Training samples and test cases: conversations about scenes, one for a task, a split and an index.

A sample has the original's form, `{"from": "human" or "gpt", "value": …}` turns with `<|image|>` for each image, and
its images as arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from language import SHAPE_WORDS, article, caption, noun_phrase, pick, question, reference
from maps import boxes_picture, depth_picture, normals_picture, segmentation_picture
from shapes import SHAPES
from world import (
    COLOURS,
    FLOORS,
    HELD_OUT,
    TEXTURES,
    Scene,
    Thing,
    draw_scene,
    draw_thing,
    fits,
    measure,
    most_things,
    random_generator,
    render,
)

from lumina_mgpt_diffusers import LUMINA_MGPT, TASKS
from lumina_mgpt_diffusers.lumina_mgpt.tasks import IMAGE_PLACEHOLDER
from lumina_mgpt_diffusers.lumina_mgpt.unirep import trained_sizes


CONTROLS = ("depth", "normal", "segmentation")


@dataclass(frozen=True)
class Example:
    """
    A conversation.

    Args:
        turns (`list[tuple[str, str]]`): What is asked and what is answered.
        images (`list[np.ndarray]`): The images that the turns mark, in order, `(height, width, 3)`, uint8.
        scene (`Scene`): The scene of the last image.
        before (`Scene`, *optional*): For edits, the scene before.
        targets (`tuple[Thing, ...]`): For detection, the objects that were asked for.
    """

    turns: list[tuple[str, str]]
    images: list[np.ndarray]
    scene: Scene
    before: Scene | None = None
    targets: tuple[Thing, ...] = ()

    @property
    def conversations(self) -> list[dict[str, str]]:
        """The turns in the original's form."""
        speakers = ("human", "gpt")
        return [{"from": who, "value": text} for turn in self.turns for who, text in zip(speakers, turn)]


def draw_size(random: np.random.Generator, base_size: int) -> tuple[int, int]:
    """A trained size of the base, often the square, rarely one so flat that little fits."""
    if random.random() < 0.4:
        return base_size, base_size
    return pick(random, [size for size in trained_sizes(base_size) if min(size) > 32])


def draw_example(task: str, split: str, index: int, base_size: int, num_things: int | None = None) -> Example:
    """
    Draw a sample.

    Args:
        task (`str`): One of `EXAMPLES`.
        split (`str`): One of `SPLITS`.
        index (`int`): Its number. The same number gives the same sample.
        base_size (`int`): Base size in pixels.
        num_things (`int`, *optional*): Number of objects, where it should not be drawn.
    """
    if task not in EXAMPLES:
        raise ValueError(f"`task` has to be one of {list(EXAMPLES)} but is {task!r}.")
    seed = [*random_generator(split, index).integers(2**31, size=3), list(EXAMPLES).index(task)]
    random = np.random.default_rng(seed)
    height, width = draw_size(random, base_size)
    # Some scenes are for counting: all of one kind.
    most = most_things(height, width)
    same = num_things is None and most > 1 and random.random() < 0.15
    if same:
        num_things = int(random.integers(2, min(most, 4) + 1))
    scene = draw_scene(split, index, height, width, num_things, same)
    return EXAMPLES[task](scene, random, split)


def _text_to_image(scene: Scene, random: np.random.Generator, split: str) -> Example:
    request = LUMINA_MGPT.text_to_image_prompt(caption(scene, random), scene.height, scene.width)
    return Example([(request, IMAGE_PLACEHOLDER)], [render(scene)], scene)


def _caption(scene: Scene, random: np.random.Generator, split: str) -> Example:
    return Example([(LUMINA_MGPT.caption, caption(scene, random))], [render(scene)], scene)


def map_picture(scene: Scene, task: str) -> np.ndarray:
    maps = measure(scene)
    if task == "segmentation":
        return segmentation_picture(scene, maps)
    return depth_picture(maps) if task == "depth" else normals_picture(maps)


def _map(task: str):
    def draw(scene: Scene, random: np.random.Generator, split: str) -> Example:
        return Example([(TASKS[task].template, IMAGE_PLACEHOLDER)], [render(scene), map_picture(scene, task)], scene)

    return draw


def _detection(scene: Scene, random: np.random.Generator, split: str) -> Example:
    thing = pick(random, scene.things)
    if random.random() < 0.5:
        targets = tuple(other for other in scene.things if other.shape == thing.shape)
        name = pick(random, SHAPE_WORDS[thing.shape])
    else:
        targets = tuple(other for other in scene.things if (other.shape, other.colour) == (thing.shape, thing.colour))
        name = f"{thing.colour} {pick(random, SHAPE_WORDS[thing.shape])}"
    request = TASKS["detection"].template.replace("{prompt}", name)
    images = [render(scene), boxes_picture(scene, targets)]
    return Example([(request, IMAGE_PLACEHOLDER)], images, scene, targets=targets)


def _control(scene: Scene, random: np.random.Generator, split: str) -> Example:
    request = TASKS["control"].template.replace("{prompt}", caption(scene, random))
    return Example([(request, IMAGE_PLACEHOLDER)], [map_picture(scene, pick(random, CONTROLS)), render(scene)], scene)


def _question(scene: Scene, random: np.random.Generator, split: str) -> Example:
    asked, answer = question(scene, random)
    return Example([(f"{asked} {IMAGE_PLACEHOLDER}", answer)], [render(scene)], scene)


def _conversation(scene: Scene, random: np.random.Generator, split: str) -> Example:
    turns = [question(scene, random) for _ in range(int(random.integers(2, 4)))]
    turns[0] = (f"{turns[0][0]} {IMAGE_PLACEHOLDER}", turns[0][1])
    return Example(turns, [render(scene)], scene)


def _edit(scene: Scene, random: np.random.Generator, split: str) -> Example:
    instruction, after = draw_edit(scene, random, split)
    request = TASKS["edit"].template.replace("{prompt}", instruction)
    return Example([(request, IMAGE_PLACEHOLDER)], [render(scene), render(after)], after, scene)


def draw_edit(scene: Scene, random: np.random.Generator, split: str) -> tuple[str, Scene]:
    """An instruction and the scene it makes."""
    while True:
        edit = pick(random, _EDITS)(scene, random, split)
        if edit is not None:
            return edit


def _allowed(thing: Thing, split: str) -> bool:
    return split != "train" or (thing.shape, thing.colour) not in HELD_OUT


def _swap(scene: Scene, old: Thing, new: Thing) -> Scene:
    return replace(scene, things=tuple(new if thing is old else thing for thing in scene.things))


def _recolour(scene: Scene, random: np.random.Generator, split: str) -> tuple[str, Scene] | None:
    thing = pick(random, scene.things)
    name = reference(scene, thing, random)
    new = replace(thing, colour=pick(random, list(COLOURS)))
    if name is None or new.colour == thing.colour or not _allowed(new, split):
        return None
    return pick(random, ("Make {} {}", "Paint {} {}", "Turn {} {}")).format(name, new.colour), _swap(scene, thing, new)


def _reshape(scene: Scene, random: np.random.Generator, split: str) -> tuple[str, Scene] | None:
    thing = pick(random, scene.things)
    name = reference(scene, thing, random)
    new = replace(thing, shape=pick(random, list(SHAPES)))
    others = [other for other in scene.things if other is not thing]
    left, top, right, bottom = new.box
    inside = min(left, top) >= 0 and right <= scene.width and bottom <= scene.height
    if name is None or new.shape == thing.shape or not inside or not fits(new, others, scene.height, scene.width):
        return None
    if not _allowed(new, split):
        return None
    target = article(pick(random, SHAPE_WORDS[new.shape]))
    return pick(random, ("Turn {} into {}", "Replace {} by {}")).format(name, target), _swap(scene, thing, new)


def _remove(scene: Scene, random: np.random.Generator, split: str) -> tuple[str, Scene] | None:
    thing = pick(random, scene.things)
    name = reference(scene, thing, random)
    if name is None or len(scene.things) < 2:
        return None
    rest = tuple(other for other in scene.things if other is not thing)
    return pick(random, ("Remove {}", "Take {} away")).format(name), replace(scene, things=rest)


def _add(scene: Scene, random: np.random.Generator, split: str) -> tuple[str, Scene] | None:
    if len(scene.things) >= most_things(scene.height, scene.width):
        return None
    for _ in range(20):
        thing = draw_thing(random, split, scene.height, scene.width)
        if fits(thing, scene.things, scene.height, scene.width):
            phrase = article(noun_phrase(random, [thing], with_size=1.0))
            after = replace(scene, things=(*scene.things, thing))
            return pick(random, ("Add {}", "Put {} there")).format(phrase), after
    return None


def _change_floor(scene: Scene, random: np.random.Generator, split: str) -> tuple[str, Scene] | None:
    floor = pick(random, list(FLOORS))
    if floor == scene.floor:
        return None
    return pick(random, ("Make the floor {}", "Change the floor to {}")).format(floor), replace(scene, floor=floor)


def _retexture(scene: Scene, random: np.random.Generator, split: str) -> tuple[str, Scene] | None:
    thing = pick(random, scene.things)
    name = reference(scene, thing, random)
    new = replace(thing, texture=pick(random, TEXTURES))
    if name is None or new.texture == thing.texture:
        return None
    return f"Make {name} {new.texture}", _swap(scene, thing, new)


_EDITS = (_recolour, _recolour, _reshape, _remove, _add, _change_floor, _retexture)

EXAMPLES = {
    "text-to-image": _text_to_image,
    "caption": _caption,
    "depth": _map("depth"),
    "normal": _map("normal"),
    "segmentation": _map("segmentation"),
    "detection": _detection,
    "control": _control,
    "edit": _edit,
    "question": _question,
    "conversation": _conversation,
}
