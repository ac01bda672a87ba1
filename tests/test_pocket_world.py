# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The small world of the pocket model: seeded, true to what is said of it, and read back by its judge."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest


POCKET = Path(__file__).parents[1] / "examples" / "pocket"


@pytest.fixture(scope="module", autouse=True)
def pocket_modules():
    """The scripts import each other as scripts do: by the name of the file."""
    before = set(sys.modules)
    sys.path.insert(0, str(POCKET))
    yield
    sys.path.remove(str(POCKET))
    for name in set(sys.modules) - before:
        if str(POCKET) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("size", [(96, 96), (64, 128), (192, 96)])
def test_a_number_decides_the_picture(size):
    from world import draw_scene, render

    first, again, other = (render(draw_scene("train", index, *size)) for index in (3, 3, 4))
    assert first.shape == (*size, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, render(draw_scene("test", 3, *size)))


def test_objects_are_inside_and_apart():
    from world import draw_scene, fits

    for index in range(100):
        scene = draw_scene("train", index, 128, 128)
        for place, thing in enumerate(scene.things):
            left, top, right, bottom = thing.box
            assert min(left, top) >= 0 and right <= 128 and bottom <= 128
            assert fits(thing, scene.things[:place], 128, 128)


def test_maps_are_those_of_the_picture():
    from shapes import ELEVATION, SHAPES
    from world import Scene, Thing, measure, render

    floor = Scene(96, 96, "gray", ())
    for shape in SHAPES:
        thing = Thing(shape, "red", "plain", "large", (48, 70), 44)
        scene = replace(floor, things=(thing,))
        maps, empty = measure(scene), measure(floor)
        inside = maps.owner == 0
        y, x = np.nonzero(inside)
        assert np.allclose([x.min(), y.min(), x.max() + 1, y.max() + 1], thing.box, atol=1.01)
        # What covers the floor is nearer than it, and faces the camera.
        assert (maps.depth[inside] < empty.depth[inside] + 1e-3).all()
        assert np.allclose(np.linalg.norm(maps.normals, axis=-1), 1, atol=1e-5)
        assert (maps.normals[inside][:, 2] > -0.05).all()
        assert np.allclose(maps.normals[~inside], [0, np.cos(ELEVATION), np.sin(ELEVATION)])
        red = render(scene).astype(int)
        core = inside & np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1) & np.roll(inside, -1, 1)
        assert (red[core][:, 0] > red[core][:, 2]).all()
        assert (np.ptp(red[~inside & ~np.roll(inside, 2, 1)], axis=-1) < 60).mean() > 0.95


def test_held_out_pairs_are_never_in_training():
    from tasks import EXAMPLES, draw_example
    from world import COLOURS, HELD_OUT, SHAPES, draw_scene

    assert {shape for shape, _ in HELD_OUT} == set(SHAPES) and {colour for _, colour in HELD_OUT} == set(COLOURS)
    for index in range(300):
        assert not any(
            (thing.shape, thing.colour) in HELD_OUT for thing in draw_scene("train", index, 128, 128).things
        )
        assert all((thing.shape, thing.colour) in HELD_OUT for thing in draw_scene("held_out", index, 96, 96).things)
    for task in EXAMPLES:
        for index in range(8):
            example = draw_example(task, "train", index, 64)
            assert not any((thing.shape, thing.colour) in HELD_OUT for thing in example.scene.things)


def test_every_task_gives_a_conversation_with_its_images():
    from tasks import EXAMPLES, draw_example

    from lumina_mgpt_diffusers.lumina_mgpt.unirep import trained_sizes

    for task in EXAMPLES:
        example = draw_example(task, "train", 5, 96)
        text = " ".join(part for turn in example.turns for part in turn)
        assert text.count("<|image|>") == len(example.images)
        assert {pixels.shape[:2] for pixels in example.images} <= set(trained_sizes(96))
        assert [turn["from"] for turn in example.conversations] == ["human", "gpt"] * len(example.turns)


def test_samples_may_be_of_so_many_objects():
    from tasks import draw_example

    for index in range(20):
        assert len(draw_example("text-to-image", "train", index, 128, num_things=2).scene.things) == 2
    drawn = {len(draw_example("text-to-image", "train", index, 128).scene.things) for index in range(20)}
    assert len(drawn) > 2


def test_captions_count_what_is_there():
    from language import NUMBERS, caption
    from world import draw_scene

    for index in range(60):
        scene = draw_scene("train", index, 128, 128, num_things=3, same=True)
        text = caption(scene, np.random.default_rng(index))
        assert NUMBERS[3] in text.lower() or " 3 " in f" {text} "


def test_relations_are_seen_from_the_camera():
    from language import OPPOSITE, relation
    from world import Thing

    middle = Thing("ball", "red", "plain", "large", (60, 60), 30)
    for foot, how in (((20, 60), "left"), ((100, 62), "right"), ((62, 20), "behind"), ((60, 110), "front")):
        other = replace(middle, foot=foot)
        assert relation(other, middle) == how
        assert relation(middle, other) == OPPOSITE[how]
    assert relation(middle, replace(middle, foot=(100, 100))) is None


def test_the_judge_reads_what_was_rendered():
    from detect import detect
    from world import draw_scene, render

    wrong = 0
    for index in range(25):
        scene = draw_scene("test", 7000 + index, 96, 96)
        reading = detect(render(scene))
        assert reading.floor == scene.floor
        wanted = sorted((thing.shape, thing.colour, thing.size, thing.texture) for thing in scene.things)
        found = sorted((str(one.shape), str(one.colour), one.size, one.texture) for one in reading.things)
        wrong += wanted != found
    assert wrong <= 1


def test_the_judge_accepts_right_pictures_and_no_wrong_ones():
    from detect import detect
    from judge import CATEGORIES, draw_case, draw_right, is_right, spoil
    from world import render

    accepted, fooled = [], []
    for category in CATEGORIES:
        for index in range(2):
            case, random = draw_case(category, "test", index), np.random.default_rng(index)
            accepted.append(is_right(case, detect(render(draw_right(case, random, 128, 128)))))
            fooled.append(is_right(case, detect(render(draw_right(spoil(case, random), random, 128, 128)))))
    assert sum(accepted) >= len(accepted) - 1
    assert not any(fooled)


def test_flat_pictures_are_asked_for_what_they_have_room_for():
    from judge import cases_with_room

    cases = cases_with_room("position", "test", 4, 64, 160)
    assert len({case.prompt for case in cases}) == 4 and {case.relation for case in cases} <= {"left", "right"}
    with pytest.raises(ValueError, match="no room for 'two objects'"):
        cases_with_room("two objects", "test", 1, 32, 32)


def test_true_maps_and_answers_measure_as_perfect():
    import measures
    from detect import detect
    from tasks import draw_example

    for index in range(3):
        example = draw_example("depth", "test", index, 96)
        assert measures.depth_error(example, example.images[1]) < 0.01
        example = draw_example("normal", "test", index, 96)
        assert measures.normals_error(example, example.images[1]) < 1.0
        example = draw_example("segmentation", "test", index, 96)
        assert measures.segmentation_iou(example, example.images[1]) == 1
        assert measures.segmentation_iou(example, np.zeros_like(example.images[1])) < 0.6
        example = draw_example("detection", "test", index, 96)
        assert measures.boxes_iou(example, example.images[1]) > 0.85
        example = draw_example("edit", "test", index, 128)
        assert measures.edit_is_right(example, detect(example.images[1]))
        assert not measures.edit_is_right(example, detect(example.images[0]))


def test_tokenizer_has_the_names_of_the_released_one():
    from make_tokenizer import MOST_GRIDS, make_tokenizer

    from lumina_mgpt_diffusers.lumina_mgpt.prompts import encode_text
    from lumina_mgpt_diffusers.lumina_mgpt.vocabulary import read_vocabulary

    tokenizer = make_tokenizer(num_codes=64, num_texts=400, num_examples=4)
    vocabulary = read_vocabulary(tokenizer, num_codes=64, patch_size=16)
    assert vocabulary.num_codes == 64 and len(vocabulary.size_tag_ids) == MOST_GRIDS
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (0, 1)
    assert tokenizer.eos_token_id == vocabulary.separator_id
    text = 'Two striped red balls on a "mint" floor; größer 42 <eoss>'
    ids = encode_text(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert min(ids) > max(vocabulary.size_tag_ids)


def test_the_judge_refuses_what_was_not_asked_for():
    from detect import detect
    from judge import Case, Wanted, is_right
    from world import Scene, Thing, render

    ball = Thing("ball", "red", "plain", "large", (35, 60), 40)
    star = Thing("star", "blue", "plain", "large", (95, 90), 40)
    case = Case("colours", "a red ball", (Wanted("ball", "red"),))
    assert is_right(case, detect(render(Scene(128, 128, "sand", (ball,)))))
    assert not is_right(case, detect(render(Scene(128, 128, "sand", (ball, star)))))
    assert not is_right(case, detect(render(Scene(128, 128, "sand", ()))))


@pytest.mark.parametrize("size", [(96, 96), (64, 128), (192, 192), (96, 288)])
def test_objects_stand_on_the_lattice_in_sizes_that_are_its_multiples(size):
    from world import LATTICE, draw_scene, unit_of

    for index in range(60):
        for thing in draw_scene("train", index, *size).things:
            assert all(edge % LATTICE == 0 for edge in thing.foot)
            assert thing.unit == unit_of(thing.size, *size)
            assert thing.unit % LATTICE == 0
