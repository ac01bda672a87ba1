# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare

from lumina_mgpt_diffusers import LuminaMGPTScheduler


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def scheduler():
    return LuminaMGPTScheduler(top_k=3)


@pytest.fixture
def logits():
    return torch.randn(2, 4, 8, generator=generator(5))


@pytest.fixture
def sample():
    return torch.randint(8, (2, 10), generator=generator(6))


def test_defaults_are_those_of_the_paper():
    config = LuminaMGPTScheduler().config
    values = {name: config[name] for name in ("guidance_scale", "temperature", "top_k", "text_temperature")}
    assert values == {"guidance_scale": 4.0, "temperature": 1.0, "top_k": 2000, "text_temperature": 1.0}
    assert (config.text_top_k, config.resolution, config.num_draft_tokens) == (5, 768, 0)


def test_save_load_and_from_config(tmp_path):
    scheduler = LuminaMGPTScheduler(top_k=500, resolution=512, draft_init="random")
    scheduler.save_pretrained(tmp_path)
    loaded = LuminaMGPTScheduler.from_pretrained(tmp_path).config
    for name in ("top_k", "resolution", "draft_init", "guidance_scale", "num_draft_tokens"):
        assert loaded[name] == scheduler.config[name]
    changed = LuminaMGPTScheduler.from_config(scheduler.config, num_draft_tokens=15)
    assert (changed.config.top_k, changed.config.num_draft_tokens) == (500, 15)
    assert scheduler.config.num_draft_tokens == 0


@pytest.mark.parametrize(
    "values, message",
    [
        ({"guidance_scale": -1}, "`guidance_scale` has to be a finite number >= 0 but is -1"),
        ({"guidance_scale": math.nan}, "`guidance_scale`"),
        ({"temperature": -0.1}, "`temperature` has to be a finite number >= 0 but is -0.1"),
        ({"temperature": "hot"}, "`temperature`"),
        ({"text_temperature": math.inf}, "`text_temperature`"),
        ({"top_k": -1}, "`top_k` has to be an integer >= 0, or None, but is -1"),
        ({"top_k": 2.5}, "`top_k`"),
        ({"text_top_k": True}, "`text_top_k`"),
        ({"resolution": 500}, "`resolution` has to be a positive multiple of 32 pixels but is 500"),
        ({"resolution": 0}, "`resolution`"),
        ({"num_draft_tokens": -1}, "`num_draft_tokens` has to be an integer >= 0 but is -1"),
        ({"draft_init": "below"}, r"`draft_init` has to be one of \['logits', 'above', 'random'\] but is 'below'"),
    ],
)
def test_bad_values_raise(values, message):
    with pytest.raises(ValueError, match=message):
        LuminaMGPTScheduler(**values)


def test_timesteps_are_raster_indices(scheduler):
    scheduler.set_timesteps(6)
    assert scheduler.num_inference_steps == 6
    assert scheduler.timesteps.tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="`num_inference_steps`"):
        scheduler.set_timesteps(0)


def test_step_shapes_and_purity(scheduler, logits, sample):
    arguments = (logits.clone(), 3, sample.clone())
    config = dict(scheduler.config)
    output = scheduler.step(*arguments, generator=generator())
    assert output.prev_sample.shape == sample.shape
    assert output.num_accepted.shape == (2,)
    assert torch.equal(arguments[0], logits) and torch.equal(arguments[2], sample)
    assert dict(scheduler.config) == config
    again = scheduler.step(*arguments, generator=generator(), return_dict=False)
    assert isinstance(again, tuple)
    assert torch.equal(again[0], output.prev_sample) and torch.equal(again[1], output.num_accepted)
    # Only the window changes.
    assert torch.equal(output.prev_sample[:, :3], sample[:, :3])
    assert torch.equal(output.prev_sample[:, 7:], sample[:, 7:])


def test_step_needs_noise_unless_greedy(scheduler, logits, sample):
    with pytest.raises(ValueError, match="`noise` or `generator`"):
        scheduler.step(logits, 0, sample)
    greedy = scheduler.step(logits, 0, sample, temperature=0.0).prev_sample
    assert torch.equal(greedy[:, :4], logits.argmax(-1))
    assert torch.equal(scheduler.step(logits, 0, sample, top_k=1).prev_sample, greedy)


@pytest.mark.parametrize("shape", [(50,), (40, 50), (3, 20, 50)])
@pytest.mark.parametrize("top_k", [2, 10, 49])
def test_sample_is_the_greatest_score_of_the_top_k(scheduler, shape, top_k):
    generator = torch.Generator().manual_seed(0)
    # Rounded, so that there are ties: all that equal the last of the top-k are among them.
    logits = torch.randn(shape, generator=generator).mul(2).round()
    noise = scheduler.draw_noise(shape, generator)
    kept = logits >= logits.sort(dim=-1, descending=True).values[..., top_k - 1 : top_k]
    expected = (logits + noise).masked_fill(~kept, -torch.inf).argmax(dim=-1)
    assert torch.equal(scheduler.sample(logits, noise, top_k=top_k), expected)
    assert torch.equal(scheduler._argmax_of_top_k(logits + noise, logits, top_k), expected)
    if logits.ndim > 1 and top_k == 2:
        assert not torch.equal(expected, (logits + noise).argmax(dim=-1))


@pytest.mark.parametrize("values, message", [({"temperature": -1.0}, "`temperature`"), ({"top_k": -2}, "`top_k`")])
def test_step_refuses_bad_values(scheduler, logits, sample, values, message):
    with pytest.raises(ValueError, match=message):
        scheduler.step(logits, 0, sample, generator=generator(), **values)


def test_step_refuses_counts_that_do_not_match(scheduler, logits, sample):
    with pytest.raises(ValueError, match="`sample` has 1 rows but `model_output` has 2"):
        scheduler.step(logits, 0, sample[:1], generator=generator())
    with pytest.raises(ValueError, match="list of 3 but the batch size is 2"):
        scheduler.step(logits, 0, sample, generator=[generator()] * 3)


def test_rows_have_their_own_generators(scheduler, logits, sample):
    both = scheduler.step(logits, 0, sample, generator=[generator(1), generator(2)]).prev_sample
    for row, seed in enumerate((1, 2)):
        one = slice(row, row + 1)
        alone = scheduler.step(logits[one], 0, sample[one], generator=[generator(seed)]).prev_sample
        assert torch.equal(alone[0], both[row])


def test_drafts_are_accepted_up_to_the_first_that_differs(scheduler, logits, sample):
    codes = logits.argmax(-1)  # (2, 4)
    drafts = sample.clone()
    drafts[0, 2:6] = codes[0]
    drafts[1, 2:6] = codes[1]
    drafts[1, 3] = (codes[1, 1] + 1) % 8
    output = scheduler.step(logits, 2, drafts, temperature=0)
    # All but the last place of a window are drafts that were fed; the last is only sampled.
    assert output.num_accepted.tolist() == [4, 2]
    assert torch.equal(output.prev_sample[:, 2:6], codes)


def test_rows_advance_by_themselves(scheduler, logits, sample):
    output = scheduler.step(logits, torch.tensor([0, 5]), sample, temperature=0)
    assert torch.equal(output.prev_sample[0, :4], logits[0].argmax(-1))
    assert torch.equal(output.prev_sample[0, 4:], sample[0, 4:])
    assert torch.equal(output.prev_sample[1, 5:9], logits[1].argmax(-1))
    assert torch.equal(output.prev_sample[1, :5], sample[1, :5])


def test_given_places_are_kept_and_count_as_confirmed(scheduler, logits, sample):
    given = torch.zeros_like(sample, dtype=torch.bool)
    given[:, 0:2] = True
    output = scheduler.step(logits, 0, sample, given=given, temperature=0)
    assert torch.equal(output.prev_sample[:, :2], sample[:, :2])
    assert (output.num_accepted >= 3).all()


def test_places_past_the_end_are_ignored(scheduler, logits, sample):
    output = scheduler.step(logits, 8, sample, temperature=0)
    assert torch.equal(output.prev_sample[:, 8:], logits[:, :2].argmax(-1))
    assert torch.equal(output.prev_sample[:, :8], sample[:, :8])
    past = scheduler.step(logits, 10, sample, temperature=0)
    assert torch.equal(past.prev_sample, sample)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_sampled_in_float32(scheduler, logits, sample, dtype):
    half = scheduler.step(logits.to(dtype), 0, sample, generator=generator()).prev_sample
    full = scheduler.step(logits.to(dtype).float(), 0, sample, generator=generator()).prev_sample
    assert torch.equal(half, full)


def test_noise_is_finite_and_gumbel():
    noise = LuminaMGPTScheduler.draw_noise((1000, 200), generator())
    assert noise.dtype == torch.float32 and noise.isfinite().all()
    assert abs(noise.mean() - 0.5772) < 0.01
    assert abs(noise.var() - math.pi**2 / 6) < 0.02


def test_noise_of_an_image_does_not_depend_on_how_much_is_drawn():
    whole = LuminaMGPTScheduler.draw_noise((12, 64), generator(3))
    assert torch.equal(LuminaMGPTScheduler.draw_noise((5, 64), generator(3)), whole[:5])


# The sampling law


NUM_CODES, LENGTH = 5, 3


def toy_logits(history: tuple[int, ...]) -> torch.Tensor:
    """Logits of the next code: any fixed function of those before it."""
    seed = sum((code + 1) * 7**place for place, code in enumerate(history)) + 1000 * len(history)
    return 1.5 * torch.randn(NUM_CODES, generator=generator(seed))


TABLE = {
    history: toy_logits(history)
    for length in range(LENGTH)
    for history in itertools.product(range(NUM_CODES), repeat=length)
}


def exact_law(temperature: float, top_k: int) -> dict[tuple[int, ...], float]:
    law = {}
    for codes in itertools.product(range(NUM_CODES), repeat=LENGTH):
        probability = 1.0
        for place, code in enumerate(codes):
            logits = TABLE[codes[:place]]
            kept = logits >= logits.sort(descending=True).values[(top_k or NUM_CODES) - 1]
            weights = torch.where(kept, (logits.double() / temperature).exp(), 0.0)
            probability *= float(weights[code] / weights.sum())
        law[codes] = probability
    return law


def draw_sequences(scheduler, number: int, num_drafts: int) -> torch.Tensor:
    """Many sequences at once, each with its own noise, by windows of `num_drafts` drafts."""
    table = torch.zeros(LENGTH, NUM_CODES**LENGTH, NUM_CODES)
    for history, logits in TABLE.items():
        table[len(history), sum(code * NUM_CODES**place for place, code in enumerate(history))] = logits
    noise = scheduler.draw_noise((number * LENGTH, NUM_CODES), generator(42)).view(number, LENGTH, NUM_CODES)
    codes = torch.randint(NUM_CODES, (number, LENGTH), generator=generator(43))
    first = torch.zeros(number, dtype=torch.long)
    scale = NUM_CODES ** torch.arange(LENGTH)
    while (first < LENGTH).any():
        places = (first[:, None] + torch.arange(num_drafts + 1)).clamp(max=LENGTH - 1)
        history = torch.cat([torch.zeros(number, 1, dtype=torch.long), (codes * scale).cumsum(1)], dim=1)
        logits = table[places, history.gather(1, places)]
        step = scheduler.step(logits, first, codes, noise=noise.gather(1, places[..., None].expand_as(logits)))
        codes, first = step.prev_sample, first + step.num_accepted
    return codes


def p_value(codes: torch.Tensor, law: dict[tuple[int, ...], float]) -> float:
    outcomes = [outcome for outcome, probability in law.items() if probability * len(codes) > 5]
    flat = (codes * NUM_CODES ** torch.arange(LENGTH)).sum(1)
    counts = torch.bincount(flat, minlength=NUM_CODES**LENGTH)
    observed = [int(counts[sum(c * NUM_CODES**p for p, c in enumerate(outcome))]) for outcome in outcomes]
    expected = [law[outcome] * len(codes) for outcome in outcomes]
    rest = len(codes) - sum(observed)
    rest_expected = len(codes) - sum(expected)
    if rest_expected > 5:
        observed.append(rest)
        expected.append(rest_expected)
    else:
        if rest > 5 * max(rest_expected, 1):
            return 0.0
        expected = [value * sum(observed) / sum(expected) for value in expected]
    return float(chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("num_drafts", [0, 1, 2])
@pytest.mark.parametrize("temperature, top_k", [(1.0, 0), (0.7, 0), (1.0, 3), (1.6, 2)])
def test_joint_law_is_exact(num_drafts, temperature, top_k):
    scheduler = LuminaMGPTScheduler(temperature=temperature, top_k=top_k)
    codes = draw_sequences(scheduler, 60_000, num_drafts)
    assert p_value(codes, exact_law(temperature, top_k)) > 1e-3


class RankNoise(LuminaMGPTScheduler):
    """A sampler that breaks the law: it applies the temperature to the noise as well."""

    def sample(self, logits, noise=None, temperature=None, top_k=None):
        return super().sample(logits, noise / 0.8, temperature, top_k)


class AcceptsTooMuch(LuminaMGPTScheduler):
    """A sampler that keeps one draft more than the noise confirms."""

    def step(self, model_output, timestep, sample, **kwargs):
        output = super().step(model_output, timestep, sample, **kwargs)
        window = model_output.shape[1]
        accepted = (output.num_accepted + 1).clamp(max=window)
        place = (timestep + accepted - 1).clamp(max=sample.shape[1] - 1)[:, None]
        output.prev_sample = output.prev_sample.scatter(1, place, sample.gather(1, place))
        output.num_accepted = accepted
        return output


@pytest.mark.parametrize("wrong", [RankNoise, AcceptsTooMuch])
def test_the_test_of_the_law_can_fail(wrong):
    codes = draw_sequences(wrong(top_k=0), 60_000, num_drafts=2)
    assert p_value(codes, exact_law(1.0, 0)) < 1e-6


def test_drafts_do_not_change_a_single_sequence():
    scheduler = LuminaMGPTScheduler(top_k=3)
    plain = draw_sequences(scheduler, 20_000, 0)
    for num_drafts in (1, 2, 5):
        assert torch.equal(draw_sequences(scheduler, 20_000, num_drafts), plain)
