# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from lumina_mgpt_diffusers import LuminaMGPTScheduler
from lumina_mgpt_diffusers.lumina_mgpt import noise as noise_module
from lumina_mgpt_diffusers.lumina_mgpt.noise import NoiseStrip, draw_key, gumbel_noise
from lumina_mgpt_diffusers.lumina_mgpt.scheduling_lumina_mgpt import SamplingPlaces


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
    assert (config.text_top_k, config.resolution, config.num_draft_tokens) == (5, 768, "auto")
    assert (config.top_p, config.min_p, config.batch_invariant) == (1.0, 0.0, None)


def test_settings_of_any_type_of_number_are_saved(tmp_path):
    values = {"guidance_scale": np.float32(2), "top_k": np.int64(7), "text_top_k": 3.0, "num_draft_tokens": -0.0}
    values |= {"resolution": Fraction(192, 2), "top_p": np.float16(0.5), "temperature": Fraction(1, 2)}
    LuminaMGPTScheduler(**values).save_pretrained(tmp_path)
    config = LuminaMGPTScheduler.from_pretrained(tmp_path).config
    assert {name: config[name] for name in values} == values
    assert all(isinstance(config[name], int) for name in ("top_k", "text_top_k", "num_draft_tokens", "resolution"))


def test_save_load_and_from_config(tmp_path):
    scheduler = LuminaMGPTScheduler(top_k=500, resolution=512, draft_init="random")
    scheduler.save_pretrained(tmp_path)
    loaded = LuminaMGPTScheduler.from_pretrained(tmp_path).config
    for name in ("top_k", "resolution", "draft_init", "guidance_scale", "num_draft_tokens"):
        assert loaded[name] == scheduler.config[name]
    changed = LuminaMGPTScheduler.from_config(scheduler.config, num_draft_tokens=15)
    assert (changed.config.top_k, changed.config.num_draft_tokens) == (500, 15)
    assert scheduler.config.num_draft_tokens == "auto"


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
        ({"resolution": 96.5}, "`resolution` has to be a positive number of pixels, .* but is 96.5"),
        ({"resolution": 0}, "`resolution`"),
        ({"resolution": 320000}, "`resolution`"),
        ({"num_draft_tokens": -1}, "`num_draft_tokens` has to be an integer from 0 to 1024 or 'auto' but is -1"),
        ({"num_draft_tokens": 100_000}, "`num_draft_tokens`"),
        ({"num_draft_tokens": "many"}, "`num_draft_tokens`"),
        ({"top_p": 0}, "`top_p` has to be greater than 0"),
        ({"top_p": 1.5}, "`top_p`"),
        ({"min_p": -0.1}, "`min_p`"),
        ({"batch_invariant": 1}, "`batch_invariant`"),
        ({"guidance_schedule": "linear"}, r"`guidance_schedule` has to be one of \['constant', 'decay'\]"),
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


NOISE_OF_KEY_7 = [4.013927, -0.565895, 0.654971, 0.983071]


def places_of(scheduler, shape: tuple[int, int], **settings) -> SamplingPlaces:
    places = SamplingPlaces([scheduler.settings(**settings)] * shape[0], torch.device("cpu"))
    places.index = torch.arange(shape[1]).expand(shape)
    places.num_codes = places.num_columns = torch.full((shape[0], 1), shape[1])
    return places


def logits_and_noise(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    # Rounded, so that there are ties: all that equal the last of the top-k are among them.
    logits = torch.randn(shape, generator=generator(0)).mul(2).round()
    keys, index = torch.zeros(shape[:-1], dtype=torch.long), torch.arange(shape[0] * shape[1]).view(shape[:-1])
    return logits, gumbel_noise(keys, index, shape[-1])


@pytest.mark.parametrize("top_k", [2, 10, 49])
def test_codes_are_the_greatest_scores_of_the_top_k(scheduler, top_k):
    logits, noise = logits_and_noise(30, 20, 50)
    kept = logits >= logits.sort(dim=-1, descending=True).values[..., top_k - 1 : top_k]
    expected = (logits + noise).masked_fill(~kept, -torch.inf).argmax(dim=-1)
    places = places_of(scheduler, (30, 20), top_k=top_k)
    assert torch.equal(scheduler.choose(logits, noise, places), expected)
    assert torch.equal(scheduler.restrict(logits, places).isfinite(), kept)
    if top_k == 2:
        assert not torch.equal(expected, (logits + noise).argmax(dim=-1))


def test_top_p_and_min_p_keep_what_their_definitions_say(scheduler):
    logits, noise = logits_and_noise(3, 20, 50)
    logits = logits + torch.randn(logits.shape, generator=generator(1)) * 1e-3  # without ties
    probabilities = (logits / 0.8).softmax(dim=-1)
    for settings, kept in (
        ({"min_p": 0.2}, probabilities >= 0.2 * probabilities.amax(dim=-1, keepdim=True)),
        ({"top_p": 0.6}, None),
        ({"top_k": 4, "top_p": 0.9}, None),
    ):
        places = places_of(scheduler, (3, 20), temperature=0.8, **{"top_k": 0, **settings})
        found = scheduler.restrict(logits, places).isfinite()
        if kept is None:
            inside = probabilities
            if "top_k" in settings:
                inside = inside.where(inside >= inside.topk(4).values[..., -1:], 0)
                inside = inside / inside.sum(dim=-1, keepdim=True)
            kept = torch.zeros_like(found)
            for row, column in itertools.product(range(3), range(20)):
                total = 0.0
                for code in inside[row, column].argsort(descending=True).tolist():
                    kept[row, column, code] = inside[row, column, code] > 0
                    total += float(inside[row, column, code])
                    if total >= settings["top_p"]:
                        break
        assert torch.equal(found, kept)
        assert found.gather(-1, scheduler.choose(logits, noise, places)[..., None]).all()


def test_rows_of_different_settings_are_each_alone(scheduler):
    logits, noise = logits_and_noise(6, 20, 50)
    settings = [
        scheduler.settings(temperature=temperature, top_k=top_k, top_p=top_p)
        for temperature, top_k, top_p in ((1, 5, 1), (0.5, 0, 1), (0, 3, 1), (2.0, 40, 1), (1, 1, 1), (1, 7, 0.5))
    ]
    together = SamplingPlaces(settings, torch.device("cpu"))
    together.index = torch.arange(20).expand(6, 20)
    for number in (5, 6):
        picked = together.settings[:number]
        batch = SamplingPlaces(picked, torch.device("cpu")).at(together.index[:number])
        codes = scheduler.choose(logits[:number], noise[:number], batch)
        log_probs = scheduler.log_probs(logits[:number], codes, batch)
        for row, own in enumerate(picked):
            alone = SamplingPlaces([own], torch.device("cpu")).at(together.index[:1])
            only = slice(row, row + 1)
            assert torch.equal(scheduler.choose(logits[only], noise[only], alone), codes[only])
            assert torch.equal(scheduler.log_probs(logits[only], codes[only], alone), log_probs[only])
    assert (codes[2] == logits[2].argmax(-1)).all() and not log_probs[2].any() and not log_probs[4].any()


def test_log_probs_are_those_of_the_draws():
    scheduler = LuminaMGPTScheduler(top_k=3, temperature=0.7)
    logits = torch.randn(1, 1, 6, generator=generator(2)).expand(1, 40_000, 6)
    places = places_of(scheduler, (1, 40_000))
    codes = scheduler.choose(logits, gumbel_noise(torch.full((1, 40_000), 3), places.index, 6), places)
    probabilities = scheduler.log_probs(logits[:, :6], torch.arange(6)[None], places.at(places.index[:, :6])).exp()[0]
    counts = torch.bincount(codes[0], minlength=6)
    kept = probabilities > 0
    assert kept.sum() == 3 and not counts[~kept].any()
    expected = probabilities[kept].double()
    assert abs(float(expected.sum()) - 1) < 1e-6
    assert chisquare(counts[kept].numpy(), (expected / expected.sum() * 40_000).numpy()).pvalue > 1e-3


def test_guidance_goes_on_from_the_unconditional_to_the_conditional_logits():
    scheduler = LuminaMGPTScheduler()
    conditional, unconditional = torch.randn(2, 2, 3, 50, generator=generator(7))
    places = SamplingPlaces([scheduler.settings(guidance_scale=scale) for scale in (1.5, 4.0)], torch.device("cpu"))
    guided = scheduler.guide(conditional.clone(), unconditional.clone(), places.at(torch.arange(3).expand(2, 3)))
    for row, scale in enumerate((1.5, 4.0)):
        expected = scale * conditional[row].double() + (1 - scale) * unconditional[row].double()
        torch.testing.assert_close(guided[row].double(), expected, atol=1e-5, rtol=0)


def test_guidance_of_one_and_less_is_off():
    for scale in (0, 0.5, 1):
        assert not LuminaMGPTScheduler(guidance_scale=scale).settings().is_guided
    assert LuminaMGPTScheduler().settings(guidance_scale=1.01).is_guided


def test_a_temperature_that_float32_cannot_divide_by_is_greedy():
    assert LuminaMGPTScheduler().settings(temperature=1e-38).temperature == 0


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


def test_a_window_by_itself_is_sampled_as_in_its_image(scheduler, logits, sample):
    window = logits.shape[1]
    given = torch.zeros_like(sample, dtype=torch.bool)
    given[0, 1] = True
    whole = scheduler.step(logits, 0, sample, given=given, temperature=0)
    alone = scheduler.step(logits, 0, sample[:, :window], given=given[:, :window], temperature=0)
    assert torch.equal(alone.prev_sample, whole.prev_sample[:, :window])
    assert torch.equal(alone.num_accepted, whole.num_accepted)


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
    noise = gumbel_noise(torch.full((1000,), -5), torch.arange(1000), 200)
    assert noise.dtype == torch.float32 and noise.isfinite().all()
    assert abs(noise.mean() - 0.5772) < 0.01
    assert abs(noise.var() - math.pi**2 / 6) < 0.02
    uniform = (-(-noise).exp()).exp()
    assert chisquare(torch.histc(uniform, 50, 0, 1).numpy()).pvalue > 1e-3


def test_noise_is_a_function_of_key_place_and_code():
    keys = torch.tensor([7, -(2**63), 2**63 - 1])
    noise = gumbel_noise(keys[:, None].expand(-1, 40), torch.arange(40).expand(3, -1), 64)
    assert torch.equal(gumbel_noise(keys[1:2], torch.tensor([30]), 16)[0], noise[1, 30, :16])
    assert torch.equal(gumbel_noise(keys[:1].expand(3), torch.tensor([5, 0, 9]), 64), noise[0, [5, 0, 9]])
    # The bits are integers, the same everywhere; written down, so that no seed changes its images unnoticed.
    expected = torch.tensor(NOISE_OF_KEY_7)
    torch.testing.assert_close(noise[0, 30, :4], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("other", ["keys", "places", "codes"])
def test_noise_of_neighbours_is_independent(other):
    numbers = torch.arange(30_000)
    zero = torch.zeros_like(numbers)
    if other == "codes":
        pairs = gumbel_noise(zero + 3, numbers, 2).unbind(dim=1)
    else:
        both = [(zero + step, numbers) if other == "keys" else (numbers, zero + step) for step in (0, 1)]
        pairs = [gumbel_noise(keys, places, 1)[:, 0] for keys, places in both]
    quarters = [((-(-values).exp()).exp() * 4).long().clamp(max=3) for values in pairs]
    table = torch.zeros(4, 4).index_put(tuple(quarters), torch.ones(30_000), accumulate=True)
    assert chisquare(table.flatten().numpy()).pvalue > 1e-3


def test_a_key_has_64_bits():
    keys = [draw_key(generator(seed)) for seed in range(200)]
    assert len(set(keys)) == 200 and min(keys) < -(2**62) and max(keys) > 2**62


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
    keys = torch.arange(number)[:, None] * 0x5DEECE66D
    noise = gumbel_noise(keys.expand(-1, LENGTH), torch.arange(LENGTH).expand(number, -1), NUM_CODES)
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


class LoudNoise(LuminaMGPTScheduler):
    """A sampler that breaks the law: its noise is too large."""

    def choose(self, logits, noise, places):
        return super().choose(logits, noise / 0.8, places)


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


@pytest.mark.parametrize("wrong", [LoudNoise, AcceptsTooMuch])
def test_the_test_of_the_law_can_fail(wrong):
    codes = draw_sequences(wrong(top_k=0), 60_000, num_drafts=2)
    assert p_value(codes, exact_law(1.0, 0)) < 1e-6


def test_drafts_do_not_change_a_single_sequence():
    scheduler = LuminaMGPTScheduler(top_k=3)
    plain = draw_sequences(scheduler, 20_000, 0)
    for num_drafts in (1, 2, 5):
        assert torch.equal(draw_sequences(scheduler, 20_000, num_drafts), plain)


def test_a_strip_computes_a_place_once(monkeypatch):
    computed, compute = [], noise_module._noise_of
    monkeypatch.setattr(
        noise_module,
        "_noise_of",
        lambda keys, places, codes: computed.append(places.numel()) or compute(keys, places, codes),
    )
    strip = NoiseStrip(torch.tensor([[3]]), 50)
    for first, number in ((0, 8), (8, 1), (1, 8), (9, 2), (3, 8)):
        strip.read(torch.arange(first, first + number)[None])
    assert computed == [8, 1, 2]


def test_a_strip_gives_the_noise_of_its_places():
    random, keys = torch.Generator().manual_seed(0), torch.tensor([[3], [1 << 40], [-5]])
    strip, first = NoiseStrip(keys, 50), torch.zeros(3, 1, dtype=torch.long)
    for _ in range(200):
        number = int(torch.randint(1, 9, (1,), generator=random))
        places = first + torch.arange(number)
        expected = gumbel_noise(keys.expand_as(places), places, 50)
        torch.testing.assert_close(strip.read(places), expected, rtol=0, atol=0)
        # Mostly on by what was accepted, now and then back to where an image was changed.
        first = (first + torch.randint(-1, 5, (3, 1), generator=random)).clamp(min=0)
        if torch.rand((), generator=random) < 0.05:
            first[1] = 0
