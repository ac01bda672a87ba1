# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Requests that come and go, and the same codes for them in every company, in float32 and in bfloat16."""

import itertools
import os
import pickle
import random
from dataclasses import replace

import pytest
import torch
from conftest import copy_of
from engine_helpers import DRAFTS, SIZES, Bench, random_kind, result_of, run, sample_in_company, widened

from lumina_mgpt_diffusers import LuminaMGPTScheduler
from lumina_mgpt_diffusers.lumina_mgpt import engine as engine_module
from lumina_mgpt_diffusers.lumina_mgpt.engine import Engine, as_slice
from lumina_mgpt_diffusers.lumina_mgpt.row import Row
from lumina_mgpt_diffusers.lumina_mgpt.slots import LENGTH_STEP
from lumina_mgpt_diffusers.lumina_mgpt.window_tuner import ForwardTimes, WindowTuner
from lumina_mgpt_diffusers.lumina_mgpt.windows import ForwardShapes


@pytest.fixture(scope="module")
def bench(trained_pipe) -> Bench:
    return Bench(trained_pipe)


@pytest.fixture(scope="module")
def bfloat16_bench(trained_pipe) -> Bench:
    pipe = copy_of(trained_pipe)
    pipe.transformer.to(torch.bfloat16)
    return Bench(pipe)


def run_schedule(bench: Bench, seed: int) -> None:
    """Requests enter at random steps; some are cancelled, some fail, and all others are what they are alone."""
    choice = random.Random(seed)
    engine = bench.engine(choice.choice(DRAFTS), max_slots=choice.choice([None, 3, 6]))
    waiting = [random_kind(choice) for _ in range(choice.randint(2, 7))]
    running: list[tuple[tuple, Row]] = []
    cancelled = set()
    for step in itertools.count():
        while waiting and (choice.random() < 0.3 or engine.is_idle):
            kind = waiting.pop()
            running.append((kind, engine.submit(bench.request(kind))))
        if running and choice.random() < 0.03:
            row = choice.choice(running)[1]
            engine.stop(row)
            cancelled.add(row)
        if running and choice.random() < 0.01:
            row = choice.choice(running)[1]
            if not row.is_finished:
                row.fail(RuntimeError("a client that left"))
                engine.discard(row)
                cancelled.add(row)
        if engine.is_idle and not waiting:
            break
        engine.step()
        assert step < 5000
    for kind, row in running:
        if row not in cancelled:
            assert row.error is None and result_of(row) == bench.alone(kind), (seed, kind)


@pytest.mark.parametrize("seed", range(8))
def test_schedules_of_requests(bench, seed):
    run_schedule(bench, seed)


@pytest.mark.parametrize("seed", range(4))
def test_schedules_of_requests_in_bfloat16(bfloat16_bench, seed):
    run_schedule(bfloat16_bench, seed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_thousand_schedules(bench, bfloat16_bench, dtype):
    for seed in range(int(os.environ.get("LUMINA_MGPT_TEST_SCHEDULES", 1000))):
        run_schedule(bench if dtype == "float32" else bfloat16_bench, seed)


# bfloat16


@pytest.fixture(scope="module")
def wide_pipe(trained_pipe):
    pipe = widened(trained_pipe, 512)
    pipe.transformer.to(torch.bfloat16)
    return pipe


def codes_of(pipe, indices, num_draft_tokens, **kwargs) -> list[torch.Tensor]:
    prompts = ["a cat", "", "A red fox in the snow.", "sunset", "b"]
    return list(
        pipe(
            [prompts[index] for index in indices],
            height=[SIZES[index][0] for index in indices],
            width=[SIZES[index][1] for index in indices],
            generator=[torch.Generator().manual_seed(index) for index in indices],
            num_draft_tokens=num_draft_tokens,
            output_type="latent",
            **kwargs,
        ).images
    )


@pytest.mark.parametrize("guidance_scale, top_k", [(4.0, 2000), (1.0, 50), (4.0, 0)])
def test_bfloat16_images_depend_on_neither_drafts_nor_batch(wide_pipe, guidance_scale, top_k):
    settings = {"guidance_scale": guidance_scale, "top_k": top_k}
    expected = codes_of(wide_pipe, range(5), 0, **settings)
    for num_draft_tokens in (1, 7, 31, "auto"):
        found = codes_of(wide_pipe, range(5), num_draft_tokens, **settings)
        assert all(map(torch.equal, found, expected)), num_draft_tokens
    for indices in ([0], [3, 1]):
        found = codes_of(wide_pipe, indices, 15, **settings)
        assert all(torch.equal(own, expected[index]) for own, index in zip(found, indices)), indices


def test_without_canonical_shapes_bfloat16_images_differ(wide_pipe, monkeypatch):
    # Where the kernels of this machine agree in all shapes there is nothing to see.
    inputs, weight = torch.randn(256, 512).bfloat16(), torch.randn(1024, 512).bfloat16()
    if torch.equal((inputs @ weight.T)[:8], inputs[:8] @ weight.T):
        pytest.skip("kernels of this CPU round alike for any number of rows")
    expected = codes_of(wide_pipe, range(5), 0)
    monkeypatch.setattr(ForwardShapes, "for_device", lambda *args: ForwardShapes())
    found = [codes_of(wide_pipe, range(5), number) for number in (0, 31)]
    assert not all(map(torch.equal, found[0] + found[1], expected + expected))


@pytest.mark.parametrize("num_draft_tokens, number, start", [(0, 2, 100), (7, 5, 7)])
@pytest.mark.parametrize(
    "dtype, kind", [("float32", (0, (64, 64), 4.0, 50, 7)), ("bfloat16", (1, None, 1.0, 2000, 7))]
)
def test_the_same_codes_beside_others_that_are_under_way(
    bench, bfloat16_bench, dtype, kind, num_draft_tokens, number, start
):
    one = bench if dtype == "float32" else bfloat16_bench
    assert sample_in_company(one, kind, num_draft_tokens, number, start) == one.alone(kind)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [None, "inductor"])
@torch._dynamo.config.patch(recompile_limit=32)
def test_the_same_codes_in_every_company(wide_pipe, dtype, backend):
    """The whole: drafts x company x time of entry x guidance x top-k, eager and compiled."""
    pipe = copy_of(wide_pipe)
    pipe.transformer.to(dtype)
    if backend is not None:
        torch._dynamo.reset()
        pipe.transformer = torch.compile(pipe.transformer, fullgraph=True, backend=backend)
    bench = Bench(pipe)
    companies = list(itertools.product((1.0, 4.0), (1, 50, 2000, 0), DRAFTS, (1, 2, 5, 16), (0, 7, 100)))
    share = int(os.environ.get("LUMINA_MGPT_TEST_COMPANIES", len(companies)))
    for guidance_scale, top_k, drafts, number, start in random.Random(0).sample(companies, share):
        kinds = [(index % 4, size, guidance_scale, top_k, 7) for index, size in enumerate([*SIZES, None])]
        kind = kinds[(number + start) % len(kinds)]
        found = sample_in_company(bench, kind, drafts, number, start)
        assert found == bench.alone(kind), (guidance_scale, top_k, drafts, number, start)


# Windows


def test_shapes_of_forwards():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert not ForwardShapes.for_device(cpu, torch.float32, None, True).is_canonical
    assert ForwardShapes.for_device(cpu, torch.bfloat16, None, True) == ForwardShapes(has_blocks=True)
    assert ForwardShapes.for_device(cpu, torch.bfloat16, None, False) == ForwardShapes(max_tokens=32)
    assert not ForwardShapes.for_device(cpu, torch.bfloat16, False, True).is_canonical
    assert not ForwardShapes.for_device(cuda, torch.bfloat16, None, True).is_canonical
    assert ForwardShapes.for_device(cuda, torch.bfloat16, True, True).window == 16
    for shapes in (ForwardShapes(has_blocks=True), ForwardShapes(max_tokens=32)):
        assert shapes.is_canonical and shapes.max_window == 32


@pytest.mark.parametrize("kind", ["plain", "quantised", "compiled layers"])
def test_a_batch_in_bfloat16_takes_one_forward(bfloat16_bench, count_forwards, monkeypatch, kind):
    """Unless its linear layers are not those of torch: then forwards have no more tokens than agree."""
    transformer = bfloat16_bench.pipe.transformer
    if kind == "quantised":
        monkeypatch.setattr(transformer, "hf_quantizer", object(), raising=False)
    elif kind == "compiled layers":
        layer = transformer.model.layers[0]
        monkeypatch.setattr(layer, "_compiled_call_impl", layer._call_impl)
    kinds = [(index % 4, size, 4.0, 50, 1) for index, size in enumerate(SIZES)]
    engine = bfloat16_bench.engine(7)
    rows = [engine.submit(bfloat16_bench.request(kind)) for kind in kinds]
    engine.step()
    with count_forwards(transformer) as forwards:
        engine.step()
    assert forwards.rows == ([10] if kind == "plain" else [4, 4, 2])
    run(engine)
    assert [result_of(row) for row in rows] == [bfloat16_bench.alone(kind) for kind in kinds]


def test_one_shape_for_all_forwards(bench, monkeypatch, count_forwards):
    # As `batch_invariant` has it on a GPU.
    monkeypatch.setattr(ForwardShapes, "for_device", lambda *args: ForwardShapes(max_tokens=32, window=16))
    kinds = [(0, (64, 96), 4.0, 50, 1), (2, (32, 96), 1.0, 50, 2), (1, None, 4.0, 50, 3)]
    engine = bench.engine("auto")
    with count_forwards(bench.pipe.transformer) as forwards:
        rows = [engine.submit(bench.request(kind)) for kind in kinds]
        run(engine)
    assert {*zip(forwards.rows, forwards.windows)} <= {(2, 16), (1, 32), (1, 256)}
    assert forwards.text_rows == {2}
    monkeypatch.undo()
    assert [result_of(row) for row in rows] == [bench.alone(kind) for kind in kinds]


# How many places drafts alone would make final, step by step.
ACCEPTED = [1, 1, 2, 3, 3, 4, 5, 6, 9, 20]

# Milliseconds of a step by the number of its tokens.
STEP_TIMES = {
    "a small model": lambda tokens: 4 + 0.08 * tokens,
    "a small model in bfloat16": lambda tokens: 10 + 0.07 * tokens,
    "bound by memory": lambda tokens: 10 * max(1, tokens / 300),
    "in blocks": lambda tokens: 100 * (1 if tokens <= 16 else 1.4 * -(-tokens // 32)),
    "bound by its tokens": lambda tokens: 5 + tokens,
}


def sample_by(choose, observe, step_time, num_images: int, num_codes: int, choice: random.Random) -> float:
    """Time of images that are sampled together."""
    left, spent = [num_codes] * num_images, 0.0
    while left:
        window = choose(2 * len(left))
        seconds = step_time(2 * len(left) * window) * choice.choice([1.0, 1.02, 1.05, 1.1, 1.5])
        final = [min(choice.choice(ACCEPTED), window, number) for number in left]
        observe(window, seconds, final)
        left = [number - done for number, done in zip(left, final) if number > done]
        spent += seconds
    return spent


@pytest.mark.parametrize("num_images", [1, 2, 8, 32])
@pytest.mark.parametrize(
    "kind, num_codes, most",
    [
        ("a small model", 64, 1.15),
        ("a small model in bfloat16", 64, 1.15),
        *((kind, 576, 1.1) for kind in STEP_TIMES),
    ],
)
def test_the_tuner_is_about_as_fast_as_the_best_window(kind, num_codes, most, num_images):
    windows, spent = [1, 2, 4, 8, 16, 32], {}
    for window in [*windows, None]:
        spent[window] = 0.0
        for seed in range(1 + 16 // num_images):
            tuner = WindowTuner(windows)
            choose, observe = (
                (tuner.choose, tuner.observe)
                if window is None
                else (lambda load, window=window: window, lambda *args: None)
            )
            spent[window] += sample_by(choose, observe, STEP_TIMES[kind], num_images, num_codes, random.Random(seed))
    auto = spent.pop(None)
    assert auto < most * min(spent.values()), (auto, spent)


@pytest.mark.parametrize("kind", STEP_TIMES)
def test_the_tuner_stays_where_it_is_fast(kind):
    tuner, chosen, choice = WindowTuner([1, 2, 4, 8, 16, 32]), [], random.Random(0)
    for _ in range(1000):
        chosen.append(tuner.choose(2))
        accepted = [min(choice.choice(ACCEPTED), chosen[-1])]
        tuner.observe(chosen[-1], STEP_TIMES[kind](2 * chosen[-1]) * choice.uniform(1, 1.1), accepted)
    rates = {
        window: sum(min(number, window) for number in ACCEPTED) / STEP_TIMES[kind](2 * window)
        for window in tuner.windows
    }
    assert sum(rates[window] > 0.8 * max(rates.values()) for window in chosen[200:]) > 0.9 * 800
    assert sum(one != other for one, other in itertools.pairwise(chosen)) < 150


def test_many_rows_begin_with_small_windows():
    windows = [1, 2, 4, 8, 16, 32]
    assert [WindowTuner(windows).choose(load) for load in (1, 2, 4, 16, 32, 64, 512)] == [16, 8, 4, 4, 4, 2, 1]
    assert WindowTuner(windows[1:]).choose(512) == 2


def test_what_a_step_takes_by_its_tokens():
    times = ForwardTimes()
    times.observe(16, 5.0)
    assert times.of(1) == times.of(16) == times.of(64) == 5.0
    for tokens, seconds in ((16, 4.0), (32, 6.0), (64, 10.0)):
        times.observe(tokens, seconds)
    assert [times.of(tokens) for tokens in (8, 16, 24, 48, 64, 128)] == [3.0, 4.0, 5.0, 8.0, 10.0, 18.0]


@pytest.mark.parametrize("disturbed", [16, 64])
def test_steps_that_something_disturbed_are_not_believed(disturbed):
    times = ForwardTimes()
    for tokens in (16, 32, 64):
        times.observe(tokens, 90.0 if tokens == disturbed else 6.0)
    assert times.of(16) == times.of(32) == 6.0 and times.of(64) <= 12.0
    assert times.of(1) > 0


def test_a_queue_may_still_hold_another_window():
    tuner = WindowTuner([1, 2, 4, 8, 16, 32])
    first = tuner.choose(2)
    while tuner.choose(2) == first:
        tuner.observe(first, 1.0, [3])
    tried = tuner.choose(2)
    tuner.observe(first, 1.0, [3])
    tuner.observe(tried, 1.0, [3])
    assert tuner.choose(2) == tried


def test_a_window_there_was_no_room_for_is_not_judged():
    tuner = WindowTuner([1, 2, 4, 8, 16, 32])
    while (tried := tuner.choose(2)) == 8:
        tuner.observe(8, 1.0, [1, 1])
    for _ in range(2 * tuner.trial_steps):  # near the end of an image windows are smaller than was chosen
        tuner.observe(8, 1.0, [1, 1])
        assert tuner.choose(2) == tried
    for _ in range(tuner.trial_steps):
        assert tuner.choose(2) == tried
        tuner.observe(tried, 2.0, [1, 1])
    assert tuner.choose(2) != tried


def test_other_numbers_of_rows_begin_with_what_is_fastest_for_them():
    tuner = WindowTuner([1, 2, 4, 8, 16, 32])
    for _ in range(60):  # up to 32 tokens take about the same time, and twice as many twice as long
        window = tuner.choose(2)
        tuner.observe(window, max(1.0, window / 16) + window / 1000, [12])
    # Of far more tokens than were measured nothing is believed.
    assert [tuner.choose(load) for load in (2, 4, 64, 2)] == [16, 8, 2, 16]


def test_only_the_last_numbers_of_tokens_are_known():
    times = ForwardTimes()
    for tokens in range(1, 200):
        times.observe(tokens, 1.0 if tokens < 100 else 2.0)
    assert len(times) == times.most_sizes and times.of(1) == times.of(150) == 2.0


@pytest.mark.parametrize("lag", [0, 1])
def test_what_the_caller_does_between_steps_is_not_their_time(bench, monkeypatch, lag):
    now = [0.0]
    monkeypatch.setattr(engine_module.time, "perf_counter", lambda: now[0])
    monkeypatch.setitem(engine_module.FRONTIER_LAG, "cpu", lag)
    forward = type(bench.pipe.transformer).forward

    def take_a_second(self, *args, **kwargs):
        now[0] += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(bench.pipe.transformer), "forward", take_a_second)
    engine, observed = bench.engine("auto"), []
    monkeypatch.setattr(engine.tuner, "observe", lambda window, seconds, number: observed.append(seconds))
    rows = [engine.submit(bench.request((0, size, 4.0, 50, 1))) for size in ((64, 64), (96, 96))]
    num_steps = 0
    while not engine.is_idle:
        engine.step()
        num_steps += 1
        now[0] += 100
        if num_steps % 3 == 0:
            engine.settle()
            now[0] += 100
        engine.codes(rows[0])
    engine.read()
    assert len(observed) == num_steps and sum(observed) == num_steps and min(observed) >= 0


def test_a_call_goes_on_with_what_one_of_its_kind_measured(trained_pipe):
    pipe = copy_of(trained_pipe)

    def call(**options) -> list[WindowTuner]:
        pipe("a cat", **{"height": 64, "width": 64, "output_type": "latent", "num_draft_tokens": "auto", **options})
        return [*pipe._kept_tuners.values()]

    (first,) = call()
    assert len(first._times) > 1
    assert call() == call(num_draft_tokens=3) == [first]
    assert call(guidance_scale=1.0)[0] == first and len(call(height=96)) == 3
    stream = pipe.stream("a cat", height=64, width=64, output_type="latent", num_draft_tokens="auto")
    next(stream)
    assert first not in call()  # which is in use
    list(stream)
    assert first in call()
    with torch.autocast("cpu", torch.bfloat16):
        assert len(call()) == 4
    for top_k in range(2, 20):
        tuners = call(height=32, width=32, top_k=top_k)
    assert len(tuners) == 16
    pipe.transformer = copy_of(trained_pipe).transformer
    assert call(height=32, width=32, top_k=19)[-1] not in tuners
    assert torch.equal(*(one.transformer.lm_head.weight for one in (pipe, pickle.loads(pickle.dumps(pipe)))))


@pytest.mark.parametrize("indices", [[0], [3], [0, 1, 2], [0, 2, 4], [1, 4]])
def test_evenly_spaced_rows_are_taken_without_a_copy(indices):
    assert list(range(8)[as_slice(indices)]) == indices


@pytest.mark.parametrize("indices", [[], [0, 2, 3], [2, 1], [1, 1]])
def test_other_rows_are_taken_by_their_indices(indices):
    assert as_slice(indices) is None


# Room


def test_waiting_requests_enter_as_others_leave(bench, count_forwards):
    kinds = [(0, (32, 32), 4.0, 50, key) for key in range(6)]
    engine = bench.engine(max_slots=4)
    with count_forwards(bench.pipe.transformer) as forwards:
        rows = [engine.submit(bench.request(kind)) for kind in kinds]
        run(engine)
    assert max(forwards.rows) <= 4
    assert [result_of(row) for row in rows] == [bench.alone(kind) for kind in kinds]


def test_memory_stays_flat(bench):
    engine = bench.engine("auto", max_slots=4)
    sizes = []
    for key in range(12):
        for size in ((96, 96), (32, 96), None):
            engine.submit(bench.request((key % 4, size, 4.0, 50, key)))
        run(engine)
        sizes.append(engine.cache.num_bytes)
    assert len(set(sizes[1:])) == 1 and not engine.rows[1:]


def test_a_long_text_is_seldom_given_more_room(bench, monkeypatch):
    vocabulary, text_ids = bench.vocabulary, bench.grammar.text_ids
    is_text = (text_ids != vocabulary.start_id) & (text_ids != vocabulary.separator_id)
    grammar = replace(bench.grammar, text_ids=text_ids[is_text])
    engine = Engine(bench.pipe.transformer, bench.pipe.scheduler, grammar, torch.device("cpu"), 0)
    times = []
    hold = engine._slots.hold
    monkeypatch.setattr(engine._slots, "hold", lambda *args: times.append(row.num_new_tokens) or hold(*args))
    row = engine.submit(replace(bench.request((0, None, 1.0, 50, 1)), max_new_tokens=4 * LENGTH_STEP))
    run(engine)
    assert row.finish_reason == "length" and len(row.token_ids) == 4 * LENGTH_STEP
    # Once when it comes, then each time for a step of lengths.
    assert len(times) in (4, 5)
    assert {later - earlier for earlier, later in itertools.pairwise(times[1:])} == {LENGTH_STEP}


def test_a_row_that_fails_leaves_the_others_alone(bench):
    kinds = [(0, (64, 64), 4.0, 50, 1), (1, (64, 64), 4.0, 50, 2)]
    engine = bench.engine()
    rows = [engine.submit(bench.request(kind)) for kind in kinds]
    for _ in range(5):
        engine.step()
    state = {"is_on": True}

    def poison(module, args, output):
        if state["is_on"]:
            output.logits[0] = torch.nan
        state["is_on"] = False
        return output

    hook = bench.pipe.transformer.register_forward_hook(poison)
    run(engine)
    hook.remove()
    assert isinstance(rows[0].error, ValueError)
    assert rows[1].error is None and result_of(rows[1]) == bench.alone(kinds[1])


def test_log_probs_do_not_depend_on_drafts(trained_pipe):
    latents = torch.full((1, 4, 6), -1)
    latents[:, 1, 2:4] = 5
    found = [
        trained_pipe(
            "a cat",
            latents=latents,
            generator=torch.Generator().manual_seed(0),
            num_draft_tokens=number,
            return_log_probs=True,
        ).log_probs
        for number in (0, 7, "auto")
    ]
    assert found[0].shape == (1, 4, 6) and (found[0] <= 0).all()
    assert (found[0][latents >= 0] == 0).all() and (found[0][latents < 0] < 0).all()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-4, rtol=0)


class Decaying(LuminaMGPTScheduler):
    def guide(self, conditional, unconditional, places):
        scale = 1 + (places.guidance_scale - 1) * (1 - places.index / places.num_codes)
        return unconditional + scale[..., None] * (conditional - unconditional)


def test_a_rule_of_ones_own_is_exact_with_drafts(trained_pipe):
    pipe = copy_of(trained_pipe)
    expected = codes_of(pipe, range(3), 0)
    pipe.scheduler = Decaying.from_config(pipe.scheduler.config)
    own = codes_of(pipe, range(3), 0)
    assert not any(map(torch.equal, own, expected))
    for number in (1, 7, "auto"):
        assert all(map(torch.equal, codes_of(pipe, range(3), number), own))
