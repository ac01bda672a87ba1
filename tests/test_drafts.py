# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What each first guess proposes, and that none of them changes a code."""

import pytest
import torch

from lumina_mgpt_diffusers import LuminaMGPTScheduler
from lumina_mgpt_diffusers.lumina_mgpt.drafts import CopyAbove, DraftRule, NeighborLogits
from lumina_mgpt_diffusers.lumina_mgpt.image_sampling import ImageSampling
from lumina_mgpt_diffusers.lumina_mgpt.scheduling_lumina_mgpt import DRAFT_INITS
from lumina_mgpt_diffusers.lumina_mgpt.unirep import ImageVocabulary


PROMPTS = ["A red fox in the snow.", "", "sunset, oil painting"]
SIZES = [(96, 96), (64, 128), (128, 64)]
NUM_CODES = 8
ROWS, COLUMNS, STRIDE = 4, 4, 5
VOCABULARY = ImageVocabulary(
    code_ids=torch.arange(NUM_CODES),
    size_tag_ids=(8, 9),
    start_id=10,
    end_id=11,
    row_end_id=12,
    separator_id=13,
)


def codes_of(pipe, prompt, seeds, **kwargs) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompt, generator=generators, output_type="latent", **kwargs).images


def neighbor_logits(temperature: float = 1.0, top_k: int = 0, batch_size: int = 1) -> NeighborLogits:
    device = torch.device("cpu")
    return NeighborLogits(LuminaMGPTScheduler(), batch_size, STRIDE, NUM_CODES, device, temperature, top_k)


def observe(rule: DraftRule, first: int, logits: torch.Tensor) -> None:
    """Show a rule the logits `(window, num_codes)` of the places from `first` on."""
    rule.observe(torch.arange(first, first + len(logits))[None], logits[None])


def peaks(*codes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(codes), NUM_CODES) * 20.0


def places(*values: int) -> torch.LongTensor:
    return torch.tensor([values])


NO_SAMPLE = torch.full((1, ROWS * STRIDE - 1), -1)


# The same codes


@pytest.mark.parametrize("size", SIZES, ids=["square", "wide", "tall"])
@pytest.mark.parametrize("num_drafts", [1, 4, 15, 31])
@pytest.mark.parametrize("draft_init", DRAFT_INITS)
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
    assert DraftRule().guess(places(3, 4), NO_SAMPLE, None).tolist() == [[-1, -1]]


def test_above_copies_the_nearest_known_code_above():
    sample = NO_SAMPLE.clone()
    sample[0, :10] = torch.tensor([0, 1, 2, 3, NUM_CODES, 4, 5, 6, -1, NUM_CODES])
    guesses = CopyAbove(STRIDE).guess(torch.arange(10, 20)[None], sample, None)
    assert guesses[0, :4].tolist() == [4, 5, 6, 3]
    assert guesses[0, 5:9].tolist() == [4, 5, 6, 3]
    assert CopyAbove(STRIDE).guess(places(0, 3), sample, None).tolist() == [[-1, -1]]


def test_logits_have_no_guess_before_the_first_forward():
    assert neighbor_logits(temperature=0).guess(places(0, 1), NO_SAMPLE, None).tolist() == [[-1, -1]]


def test_logits_in_the_first_row_are_those_of_the_last_place():
    rule = neighbor_logits(temperature=0)
    observe(rule, 0, peaks(6, 3))
    assert rule.guess(places(2, 3), NO_SAMPLE, None).tolist() == [[3, 3]]


def test_logits_in_a_new_row_are_those_above():
    rule = neighbor_logits(temperature=0)
    observe(rule, 0, peaks(6, 3, 1, 2, 7))
    assert rule.guess(places(5, 6, 7, 8), NO_SAMPLE, None).tolist() == [[6, 3, 1, 2]]


def test_logits_within_a_row_are_averaged():
    rule = neighbor_logits(temperature=0)
    # Above: 1 just wins over 0. Beside: 2 just wins over 0. In the mean 0 wins.
    observe(rule, 0, torch.tensor([[9.0, 10, 0, 0, 0, 0, 0, 0]]).repeat(STRIDE, 1))
    observe(rule, 5, torch.tensor([[9.0, 0, 10, 0, 0, 0, 0, 0]]))
    assert rule.guess(places(6, 7), NO_SAMPLE, None).tolist() == [[0, 0]]
    assert rule.guess(places(10), NO_SAMPLE, None).tolist() == [[2]]


def test_logits_of_a_window_of_several_rows_are_those_of_the_last():
    rule = neighbor_logits(temperature=0)
    observe(rule, 0, torch.cat([peaks(*[1] * 5), peaks(*[2] * 5), peaks(3, 3)]))
    # Row 3 lies below row 2 where that was evaluated, else below row 1.
    assert rule.guess(places(15, 16, 17), NO_SAMPLE, None).tolist() == [[3, 3, 2]]


def test_logits_guess_with_the_noise_and_within_the_top_k():
    noise = torch.zeros(1, 1, NUM_CODES)
    noise[..., 5] = 30
    noise[..., 2] = 10
    logits = torch.tensor([[4.0, 3, 2, 1, 0, 0, 0, 0]])
    for top_k, expected in ((0, 5), (3, 2), (2, 0)):
        rule = neighbor_logits(top_k=top_k)
        observe(rule, 0, logits)
        assert rule.guess(places(1), NO_SAMPLE, noise).item() == expected


def test_images_of_a_batch_do_not_see_each_other():
    rule = neighbor_logits(temperature=0, batch_size=2)
    rule.observe(torch.tensor([[0, 1], [5, 6]]), torch.stack([peaks(1, 2), peaks(3, 4)]))
    sample = NO_SAMPLE.expand(2, -1)
    assert rule.guess(torch.tensor([[2], [7]]), sample, None).tolist() == [[2], [4]]


# Where the guesses go


class RecordingRule(DraftRule):
    def __init__(self) -> None:
        self.guessed: list[list[int]] = []
        self.observed: list[list[int]] = []

    def observe(self, places, logits):
        self.observed.append(places[0].tolist())

    def guess(self, places, sample, noise):
        self.guessed.append(places[0].tolist())
        return torch.full_like(places, 7)


@pytest.fixture
def recording_rule(monkeypatch):
    rule = RecordingRule()
    monkeypatch.setattr(ImageSampling, "_make_draft_rule", lambda self: rule)
    return rule


def start(num_drafts: int, seed: int = 0, **config) -> ImageSampling:
    scheduler = LuminaMGPTScheduler(num_draft_tokens=num_drafts, **config)
    generators = [torch.Generator().manual_seed(seed)]
    codes = torch.full((1, ROWS, COLUMNS), -1)
    return ImageSampling(scheduler, VOCABULARY, codes, generators, torch.device("cpu"), 1.0, 0)


def test_every_place_is_guessed_once(recording_rule):
    sampling = start(3)
    while not sampling.is_finished:
        window = sampling.open_window()
        sampling.accept(window, torch.zeros(1, window.shape[1], NUM_CODES))
    guessed = sum(recording_rule.guessed, [])
    assert guessed == list(range(len(guessed))) and len(guessed) >= ROWS * STRIDE - 1
    assert recording_rule.guessed[0] == recording_rule.observed[0] == [0, 1, 2, 3]
    assert sampling.codes.min() >= 0


def test_guesses_are_fed_and_known_places_kept(recording_rule):
    sampling = start(5)
    ids = sampling.window_ids(sampling.open_window())
    assert ids.tolist() == [[9, 7, 7, 7, 7, VOCABULARY.row_end_id]]


def test_after_an_edit_guesses_start_anew(recording_rule):
    sampling = start(3)
    for _ in range(3):
        window = sampling.open_window()
        sampling.accept(window, torch.zeros(1, window.shape[1], NUM_CODES))
    codes = sampling.codes
    codes[0, 0, 1] = (codes[0, 0, 1] + 1) % NUM_CODES
    codes[0, 0, 2:] = codes[0, 1:] = -1
    sampling.edit(codes)
    sampling.open_window()
    assert recording_rule.guessed[-1] == list(range(1, 1 + len(recording_rule.guessed[-1])))


def test_without_a_guess_the_noise_chooses():
    sampling = start(3, draft_init="random")
    window = sampling.open_window()
    generator = torch.Generator().manual_seed(0)
    noise = LuminaMGPTScheduler.draw_noise((ROWS * COLUMNS, NUM_CODES), generator)
    assert sampling.window_ids(window)[0, 1:].tolist() == noise.argmax(dim=1)[:3].tolist()


# Forwards


def toy_logits(sampling: ImageSampling, window: torch.LongTensor) -> torch.Tensor:
    """A model whose distribution depends on the column, and somewhat on the code before."""
    generator = torch.Generator().manual_seed(1)
    of_column = torch.randn(COLUMNS + 1, NUM_CODES, generator=generator) * 1.5
    of_code = torch.randn(VOCABULARY.separator_id, NUM_CODES, generator=generator) * 0.5
    return of_column[window % STRIDE] + of_code[sampling.window_ids(window)]


def count_rounds(num_drafts: int, **config) -> int:
    rounds = 0
    for seed in range(20):
        sampling = start(num_drafts, seed=seed, **config)
        while not sampling.is_finished:
            window = sampling.open_window()
            sampling.accept(window, toy_logits(sampling, window))
            rounds += 1
    return rounds


def test_logits_save_forwards():
    rounds = {draft_init: count_rounds(3, draft_init=draft_init) for draft_init in DRAFT_INITS}
    assert rounds["logits"] < 0.95 * min(rounds["above"], rounds["random"])
