# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What each first guess proposes, and that none of them changes a code."""

import pytest
import torch

from lumina_mgpt_diffusers import LuminaMGPTScheduler
from lumina_mgpt_diffusers.lumina_mgpt.batch import Window
from lumina_mgpt_diffusers.lumina_mgpt.drafts import NeighborLogits, codes_above, random_codes
from lumina_mgpt_diffusers.lumina_mgpt.noise import gumbel_noise
from lumina_mgpt_diffusers.lumina_mgpt.scheduling_lumina_mgpt import DRAFT_INITS, SamplingPlaces


PROMPTS = ["A red fox in the snow.", "", "sunset, oil painting"]
SIZES = [(96, 96), (64, 128), (128, 64)]
NUM_CODES = 8
STRIDE = 5


def codes_of(pipe, prompt, seeds, **kwargs) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompt, generator=generators, output_type="latent", **kwargs).images


def neighbor_logits(batch_size: int = 1) -> NeighborLogits:
    return NeighborLogits(LuminaMGPTScheduler(), batch_size, STRIDE, NUM_CODES, torch.device("cpu"))


def window(
    *values: int | list[int], noise: torch.Tensor | None = None, strides: tuple = (STRIDE,), **settings
) -> Window:
    place = torch.tensor(values if isinstance(values[0], list) else [values])
    own = LuminaMGPTScheduler().settings(**{"temperature": 1 if noise is not None else 0, "top_k": 0, **settings})
    rule = SamplingPlaces([own] * len(place), place.device).at(place)
    return Window(place, torch.tensor(strides)[:, None].expand(len(place), 1), noise, rule)


def observe(rule: NeighborLogits, first: int, logits: torch.Tensor) -> None:
    """Show a rule the logits `(window, num_codes)` of the places from `first` on."""
    rule.observe(window(*range(first, first + len(logits))), logits[None])


def peaks(*codes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(codes), NUM_CODES) * 20.0


# The same codes


@pytest.mark.parametrize(
    "draft_init, num_drafts, size",
    [(init, number, SIZES[(i + j) % 3]) for i, init in enumerate(DRAFT_INITS) for j, number in enumerate((1, 4, 15))]
    + [("logits", 31, SIZES[1])],
)
def test_a_batch_has_the_codes_of_no_drafts(trained_pipe, with_sampler, draft_init, num_drafts, size):
    settings = {"prompt": PROMPTS, "seeds": [1, 2, 3], "height": size[0], "width": size[1]}
    expected = codes_of(trained_pipe, **settings)
    with_sampler(trained_pipe, num_draft_tokens=num_drafts, draft_init=draft_init)
    assert torch.equal(codes_of(trained_pipe, **settings), expected)


@pytest.mark.parametrize("num_drafts", [3, 15])
@pytest.mark.parametrize("draft_init", DRAFT_INITS)
def test_holes_have_the_codes_of_no_drafts(trained_pipe, with_sampler, draft_init, num_drafts):
    holes = codes_of(trained_pipe, PROMPTS, [1, 2, 3])
    holes[0, 2:4, 1:5] = -1
    holes[1, ::2] = -1
    holes[2, :, 3:] = -1
    settings = {"prompt": PROMPTS, "seeds": [9, 10, 11], "latents": holes}
    expected = codes_of(trained_pipe, **settings)
    with_sampler(trained_pipe, num_draft_tokens=num_drafts, draft_init=draft_init)
    assert torch.equal(codes_of(trained_pipe, **settings), expected)


@pytest.mark.parametrize("sampler", [{"temperature": 0.0}, {"top_k": 1}, {"top_k": 5, "temperature": 0.7}])
@pytest.mark.parametrize("draft_init", DRAFT_INITS)
def test_other_samplers_have_the_codes_of_no_drafts(trained_pipe, with_sampler, draft_init, sampler):
    settings = {"prompt": PROMPTS[0], "seeds": [4], "guidance_scale": 1.0, **sampler}
    expected = codes_of(trained_pipe, **settings)
    with_sampler(trained_pipe, num_draft_tokens=7, draft_init=draft_init)
    assert torch.equal(codes_of(trained_pipe, **settings), expected)


# What is guessed


def test_random_leaves_the_choice_to_the_noise():
    noise = gumbel_noise(torch.tensor([[3, 3]]), torch.tensor([[0, 1]]), NUM_CODES)
    assert torch.equal(random_codes(window(0, 1, noise=noise), NUM_CODES), noise.argmax(-1))
    codes = random_codes(window(*range(40)), NUM_CODES)
    assert codes.min() >= 0 and codes.max() < NUM_CODES and len(codes.unique()) > 1


def test_above_copies_the_nearest_known_code_above():
    image = torch.full((1, 19), -1)
    image[0, :10] = torch.tensor([0, 1, 2, 3, NUM_CODES, 4, 5, 6, -1, NUM_CODES])
    guesses = codes_above(window(*range(10, 19)), image)
    assert guesses[0, :4].tolist() == [4, 5, 6, 3]
    assert guesses[0, 5:9].tolist() == [4, 5, 6, 3]
    assert codes_above(window(0, 3), image).tolist() == [[-1, -1]]


def test_logits_have_no_guess_before_the_first_forward():
    assert neighbor_logits().guess(window(0, 1)).tolist() == [[-1, -1]]


def test_logits_in_the_first_row_are_those_of_the_last_place():
    rule = neighbor_logits()
    observe(rule, 0, peaks(6, 3))
    assert rule.guess(window(2, 3)).tolist() == [[3, 3]]


def test_logits_in_a_new_row_are_those_above():
    rule = neighbor_logits()
    observe(rule, 0, peaks(6, 3, 1, 2, 7))
    assert rule.guess(window(5, 6, 7, 8)).tolist() == [[6, 3, 1, 2]]


def test_logits_within_a_row_are_averaged():
    rule = neighbor_logits()
    # Above: 1 just wins over 0. Beside: 2 just wins over 0. In the mean 0 wins.
    observe(rule, 0, torch.tensor([[9.0, 10, 0, 0, 0, 0, 0, 0]]).repeat(STRIDE, 1))
    observe(rule, 5, torch.tensor([[9.0, 0, 10, 0, 0, 0, 0, 0]]))
    assert rule.guess(window(6, 7)).tolist() == [[0, 0]]
    assert rule.guess(window(10)).tolist() == [[2]]


def test_logits_of_a_window_of_several_rows_are_those_of_the_last():
    rule = neighbor_logits()
    observe(rule, 0, torch.cat([peaks(*[1] * 5), peaks(*[2] * 5), peaks(3, 3)]))
    # Row 3 lies below row 2 where that was evaluated, else below row 1.
    assert rule.guess(window(15, 16, 17)).tolist() == [[3, 3, 2]]


def test_logits_guess_with_the_noise_and_within_the_top_k():
    noise = torch.zeros(1, 1, NUM_CODES)
    noise[..., 5] = 30
    noise[..., 2] = 10
    logits = torch.tensor([[4.0, 3, 2, 1, 0, 0, 0, 0]])
    for top_k, expected in ((0, 5), (3, 2), (2, 0)):
        rule = neighbor_logits()
        observe(rule, 0, logits)
        assert rule.guess(window(1, noise=noise, top_k=top_k)).item() == expected


def test_images_of_a_batch_do_not_see_each_other_and_have_their_own_strides():
    rule = neighbor_logits(batch_size=2)
    logits = torch.stack([peaks(1, 2, 3, 4), peaks(5, 6, 7, 0)])
    rule.observe(window([0, 1, 2, 3], [6, 7, 8, 9], strides=(5, 3)), logits)
    # The second image has rows of 3 places: 9 lies below 6, whose logits it replaced.
    assert rule.guess(window([4, 5], [12, 13], strides=(5, 3))).tolist() == [[4, 1], [0, 6]]


def test_images_that_come_and_go_keep_their_logits():
    rule = neighbor_logits(batch_size=2)
    rule.observe(window([0, 1], [5, 6]), torch.stack([peaks(1, 2), peaks(3, 4)]))
    rule.take(torch.tensor([1, -1]), 7)
    assert rule.guess(window([7], [7])).tolist() == [[4], [-1]]


# Forwards


@pytest.mark.parametrize("draft_init", DRAFT_INITS)
def test_drafts_save_forwards(trained_pipe, count_forwards, draft_init):
    number = {}
    for num_drafts in (0, 7):
        with count_forwards(trained_pipe.transformer) as forwards:
            trained_pipe(PROMPTS, top_k=1, num_draft_tokens=num_drafts, draft_init=draft_init, output_type="latent")
        number[num_drafts] = len(forwards)
    assert number[7] < 0.85 * number[0]
