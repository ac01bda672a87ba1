# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The same codes at every speed, and no forward too many."""

import itertools

import pytest
import torch
import torch._inductor.config
from conftest import CHECKPOINT, TRAINED_CHECKPOINT, copy_of, load_pipeline
from reference import generate, load_stock, make_34b_like

from lumina_mgpt_diffusers import LUMINA_MGPT, LuminaMGPTPipeline, LuminaMGPTScheduler
from lumina_mgpt_diffusers.lumina_mgpt import engine, pipeline_base, slots
from lumina_mgpt_diffusers.lumina_mgpt.prompts import encode_conversation


PROMPTS = [
    "A red fox in the snow.",
    "",
    "a cat",
    "A long and winding road that leads through green hills, past a mill and two ponds, to a small house by the sea",
    "sunset, oil painting",
]
SIZES = [(96, 96), (64, 128), (128, 64)]
DRAFTS = [0, 1, 3, 8, 15, 31]
SAMPLERS = list(itertools.product((1.0, 3.0, 4.0), (0, 0.7, 1.0), (1, 50, 2000, 0)))


def codes_of(pipe, prompt, seeds, **kwargs) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompt, generator=generators, output_type="latent", **kwargs).images


@pytest.mark.parametrize("size", SIZES, ids=["square", "wide", "tall"])
@pytest.mark.parametrize("draft_init, num_drafts", [("above", 1), ("random", 3), ("above", 15), ("random", 31)])
def test_drafts_do_not_change_the_codes(trained_pipe, with_sampler, num_drafts, draft_init, size):
    kwargs = {"height": size[0], "width": size[1], "seeds": [7]}
    expected = codes_of(trained_pipe, PROMPTS[0], **kwargs)
    with_sampler(trained_pipe, num_draft_tokens=num_drafts, draft_init=draft_init)
    assert torch.equal(codes_of(trained_pipe, PROMPTS[0], **kwargs), expected)


@pytest.mark.parametrize("index", range(len(SAMPLERS)), ids=[f"cfg{s[0]}-t{s[1]}-k{s[2]}" for s in SAMPLERS])
def test_a_prompt_alone_or_in_a_batch_at_any_setting(trained_pipe, with_sampler, index):
    guidance_scale, temperature, top_k = SAMPLERS[index]
    height, width = SIZES[index % len(SIZES)]
    settings = {
        "height": height,
        "width": width,
        "guidance_scale": guidance_scale,
        "temperature": temperature,
        "top_k": top_k,
    }
    alone = codes_of(trained_pipe, PROMPTS[3], [3], **settings)
    with_sampler(trained_pipe, num_draft_tokens=DRAFTS[1 + index % (len(DRAFTS) - 1)])
    batch = codes_of(trained_pipe, PROMPTS, range(5), **settings)
    assert torch.equal(batch[3], alone[0])


@pytest.mark.parametrize("num_drafts", [0, 7])
def test_images_of_a_prompt_equal_single_calls(trained_pipe, with_sampler, num_drafts):
    with_sampler(trained_pipe, num_draft_tokens=num_drafts)
    together = codes_of(trained_pipe, PROMPTS[:2], range(6), num_images_per_prompt=3)
    assert len({tuple(codes.flatten().tolist()) for codes in together}) == 6
    for seed in range(6):
        assert torch.equal(codes_of(trained_pipe, PROMPTS[seed // 3], [seed])[0], together[seed])


def test_one_generator_is_used_in_the_order_of_the_images(trained_pipe):
    together = trained_pipe(PROMPTS[0], num_images_per_prompt=2, generator=torch.Generator().manual_seed(1),
                            output_type="latent").images  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for index in range(2):
        one = trained_pipe(PROMPTS[0], generator=generator, output_type="latent").images
        assert torch.equal(one[0], together[index])


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_equals_eager(trained_pipe, with_sampler, backend):
    kwargs = {"prompt": PROMPTS[:2], "seeds": [0, 1]}
    expected = codes_of(trained_pipe, **kwargs)
    plain = trained_pipe.transformer
    torch._dynamo.reset()
    try:
        trained_pipe.transformer = torch.compile(plain, fullgraph=True, backend=backend)
        assert torch.equal(codes_of(trained_pipe, **kwargs), expected)
        with_sampler(trained_pipe, num_draft_tokens=8)
        assert torch.equal(codes_of(trained_pipe, **kwargs), expected)
    finally:
        trained_pipe.transformer = plain


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    checkpoint = make_34b_like(tmp_path_factory.mktemp("34b") / "Lumina-mGPT-34B-512", CHECKPOINT)
    return load_pipeline(checkpoint, scheduler=LuminaMGPTScheduler(resolution=64)), load_stock(checkpoint)


@pytest.mark.parametrize("num_drafts", [0, 8])
@pytest.mark.parametrize(
    "guidance_scale, temperature, top_k",
    [(1.0, 0.0, 0), (3.0, 0.0, 0), (4.0, 1.0, 50), (3.0, 0.7, 0), (1.0, 1.0, 2000)],
)
def test_34b_like_equals_stock_transformers(large, with_sampler, num_drafts, guidance_scale, temperature, top_k):
    pipe, stock = large
    with_sampler(pipe, num_draft_tokens=num_drafts)
    height, width = 64, 96
    settings = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k}
    codes = codes_of(pipe, PROMPTS[0], [11], height=height, width=width, **settings)[0]

    vocabulary = pipe.image_vocabulary
    assert vocabulary.code_ids[2] != 6  # lexicographic
    content = LUMINA_MGPT.text_to_image_prompt(PROMPTS[0], height, width)
    expected = generate(
        stock,
        vocabulary.code_ids.tolist(),
        encode_conversation(pipe.tokenizer, [{"role": "user", "content": content}]),
        vocabulary.prefix(height, width),
        height // 16,
        width // 16,
        vocabulary.row_end_id,
        generator=torch.Generator().manual_seed(11),
        **settings,
    )
    assert torch.equal(codes, expected)


# Forwards


@pytest.mark.parametrize("size", SIZES)
def test_one_forward_for_a_code_and_one_for_the_prompt(random_pipe, count_forwards, size):
    with count_forwards(random_pipe.transformer) as forwards:
        codes_of(random_pipe, PROMPTS[0], [0], height=size[0], width=size[1])
    assert len(forwards) == size[0] * size[1] // 256 + 1
    # A row end is fed together with the code before it.
    rows = size[0] // 16
    assert sorted(forwards.windows[1:]) == [1] * (len(forwards) - rows) + [2] * (rows - 1)


@pytest.mark.parametrize("num_drafts", [1, 3, 31])
def test_no_forward_for_a_row_end_with_drafts(random_pipe, with_sampler, count_forwards, num_drafts):
    # On random weights next to no draft is right, so a pass for row ends would show.
    with_sampler(random_pipe, num_draft_tokens=num_drafts, draft_init="random")
    with count_forwards(random_pipe.transformer) as forwards:
        codes_of(random_pipe, PROMPTS[0], [0], height=96, width=96)
    assert len(forwards) <= 36 + 1
    assert set(forwards.windows[1:]) == {num_drafts + 1}


def test_drafts_save_forwards(trained_pipe, with_sampler, count_forwards):
    with_sampler(trained_pipe, num_draft_tokens=15)
    with count_forwards(trained_pipe.transformer) as forwards:
        trained_pipe(PROMPTS[0], height=96, width=64, top_k=1, output_type="latent")
    assert len(forwards) <= 20 < 24


@pytest.mark.parametrize("lag", [1, 3])
def test_host_that_learns_late_changes_nothing(trained_pipe, with_sampler, count_forwards, monkeypatch, lag):
    # As on a GPU, where the next forward is queued before the host knows what the last one accepted.
    with_sampler(trained_pipe, num_draft_tokens=7)

    def run(**kwargs):
        with count_forwards(trained_pipe.transformer) as forwards:
            codes = codes_of(trained_pipe, PROMPTS, range(5), **kwargs)
        return codes, len(forwards)

    expected, number = run()
    monkeypatch.setitem(engine.FRONTIER_LAG, "cpu", lag)
    codes, late_number = run()
    assert torch.equal(codes, expected)
    assert number <= late_number <= number + lag
    holes = expected.clone()
    holes[0, 2:4, 1:5] = -1
    holes[1, ::2] = -1
    assert torch.equal(run(latents=holes)[0], expected)
    steps = []
    run(callback_on_step_end=lambda pipe, step, timestep, kwargs: steps.append(step))
    assert steps[-1] == trained_pipe.num_timesteps - 1


@pytest.mark.parametrize("num_drafts", [1, 40])
@pytest.mark.parametrize("lag", [0, 1])
def test_windows_past_the_end_have_room_in_rows_of_just_the_length(
    trained_pipe, with_sampler, monkeypatch, num_drafts, lag
):
    size = {"height": 32, "width": 96}
    expected = [codes_of(trained_pipe, prompt, [1], **size) for prompt in PROMPTS[:2]]
    holes = torch.cat(expected)
    holes[:, :, 2::4] = -1  # between them are runs of codes that all go at once
    with_sampler(trained_pipe, num_draft_tokens=num_drafts)
    monkeypatch.setattr(slots, "LENGTH_STEP", 1)
    monkeypatch.setattr(engine, "LENGTH_STEP", 1)
    monkeypatch.setitem(engine.FRONTIER_LAG, "cpu", lag)
    for prompt, codes in zip(PROMPTS, expected):
        assert torch.equal(codes_of(trained_pipe, prompt, [1], **size), codes)
    for latents in (None, holes):
        together = codes_of(trained_pipe, PROMPTS[:2], [1, 1], latents=latents, **size)
        assert torch.equal(together, torch.cat(expected))


def test_prompts_are_fed_once_for_all_their_images(random_pipe, count_forwards):
    with count_forwards(random_pipe.transformer) as forwards:
        codes_of(random_pipe, PROMPTS[:2], range(6), num_images_per_prompt=3, height=64, width=64)
    # Two prompts and the one unconditional beginning, then six images in two branches.
    assert forwards.rows == [3] + [12] * 16


# Given codes


def test_given_codes_are_kept_and_what_follows_sees_them(trained_pipe):
    whole = codes_of(trained_pipe, PROMPTS[0], [5])
    start = torch.full_like(whole, -1)
    start[:, :2] = whole[:, :2]
    assert torch.equal(codes_of(trained_pipe, PROMPTS[0], [5], latents=start), whole)
    other = start.clone()
    other[:, 0, 0] = (whole[:, 0, 0] + 1) % 8192
    assert not torch.equal(codes_of(trained_pipe, PROMPTS[0], [5], latents=other)[:, 2:], whole[:, 2:])


@pytest.mark.parametrize("num_drafts", [0, 3, 15])
def test_holes_are_filled_the_same_at_every_speed(trained_pipe, with_sampler, num_drafts):
    whole = codes_of(trained_pipe, PROMPTS[:3], [1, 2, 3])
    holes = whole.clone()
    holes[0, 2:4, 1:5] = -1
    holes[1, ::2] = -1
    holes[2, :, 3:] = -1
    expected = torch.cat([codes_of(trained_pipe, PROMPTS[i], [9 + i], latents=holes[i : i + 1]) for i in range(3)])
    assert torch.equal(expected[holes >= 0], holes[holes >= 0])
    with_sampler(trained_pipe, num_draft_tokens=num_drafts)
    assert torch.equal(codes_of(trained_pipe, PROMPTS[:3], [9, 10, 11], latents=holes), expected)


def test_known_codes_cost_next_to_no_forwards(random_pipe, count_forwards):
    latents = torch.randint(8192, (1, 6, 6), generator=torch.Generator().manual_seed(0))
    latents[0, 5, 4] = -1
    with count_forwards(random_pipe.transformer) as forwards:
        codes = codes_of(random_pipe, PROMPTS[0], [0], latents=latents)
    assert len(forwards) == 2
    assert codes.min() >= 0
    with count_forwards(random_pipe.transformer) as forwards:
        assert torch.equal(codes_of(random_pipe, PROMPTS[0], [0], latents=codes), codes)
    assert len(forwards) == 0


# Finished images


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("num_drafts", [0, 7])
def test_finished_images_leave_the_forward(
    trained_pipe, with_sampler, count_forwards, monkeypatch, num_drafts, guidance_scale, lag
):
    monkeypatch.setitem(engine.FRONTIER_LAG, "cpu", lag)
    with_sampler(trained_pipe, num_draft_tokens=num_drafts, guidance_scale=guidance_scale)
    # Of so many rows of codes each image samples the first ones; the others are given.
    sampled = [1, 6, 2, 4]
    latents = torch.randint(8192, (4, 6, 6), generator=torch.Generator().manual_seed(0))
    for image, number in zip(latents, sampled):
        image[:number] = -1
    alone = [codes_of(trained_pipe, PROMPTS[i], [i], latents=latents[i : i + 1])[0] for i in range(4)]
    with count_forwards(trained_pipe.transformer) as forwards:
        together = codes_of(trained_pipe, PROMPTS[:4], range(4), latents=latents)
    assert torch.equal(together, torch.stack(alone))
    num_branches = 1 if guidance_scale == 1.0 else 2
    rows = forwards.rows[1:]
    assert rows == sorted(rows, reverse=True)
    assert {rows[0], rows[-1]} == {4 * num_branches, num_branches} and len(set(rows)) >= 3
    assert lag or set(rows) == {num_branches * number for number in (4, 3, 2, 1)}


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_a_finished_image_that_is_opened_again_goes_on_from_there(trained_pipe, guidance_scale):
    whole = codes_of(trained_pipe, PROMPTS[:2], [0, 1], guidance_scale=guidance_scale)
    latents = torch.full_like(whole, -1)
    latents[0, 1:] = 77
    ends, positions = [], []

    def open_again(pipe, step, timestep, kwargs):
        codes = kwargs["latents"]
        ends.append((codes[0] >= 0).all())
        if ends[-1] and 77 in codes[0]:
            codes[0, 1:] = -1
        return {"latents": codes}

    def see(module, args, kwargs):
        if ends and ends[-1]:
            positions.append(kwargs["position_ids"])

    hook = trained_pipe.transformer.register_forward_pre_hook(see, with_kwargs=True)
    arguments = {"latents": latents, "guidance_scale": guidance_scale, "callback_on_step_end": open_again}
    codes = codes_of(trained_pipe, PROMPTS[:2], [0, 1], **arguments)
    hook.remove()
    assert torch.equal(codes, whole)
    # It is still in the batch: nothing is fed again but the last code.
    assert positions[0].min() >= 0 and positions[0].shape[0] == (2 if guidance_scale == 1.0 else 4)
    assert len(ends) <= whole[0].numel() + 6


@pytest.mark.parametrize("num_drafts", [0, 7])
def test_a_finished_image_that_a_callback_opens_again(trained_pipe, with_sampler, count_forwards, num_drafts):
    with_sampler(trained_pipe, num_draft_tokens=num_drafts)
    whole = codes_of(trained_pipe, PROMPTS[:2], [0, 1])
    latents = torch.full_like(whole, -1)
    latents[0, 1:] = 77

    def open_again(pipe, step, timestep, kwargs):
        codes = kwargs["latents"]
        if step >= 20 and 77 in codes[0]:
            assert forwards.rows[-1] == 2
            codes = codes.clone()
            codes[0, 1:] = -1
        return {"latents": codes}

    with count_forwards(trained_pipe.transformer) as forwards:
        codes = codes_of(trained_pipe, PROMPTS[:2], [0, 1], latents=latents, callback_on_step_end=open_again)
    assert torch.equal(codes, whole)
    assert 4 in forwards.rows[forwards.rows.index(2) :]


# Compiled code


@pytest.fixture
def compiled_pipe(trained_pipe):
    """The trained pipeline, compiled as far as to tell which code is compiled anew."""
    plain = trained_pipe.transformer
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trained_pipe.transformer = torch.compile(plain, fullgraph=True, backend="aot_eager")
    yield trained_pipe
    trained_pipe.transformer = plain


@pytest.mark.parametrize("num_drafts, num_graphs", [(0, 2), (31, 1)])
def test_few_graphs_serve_all_prompts_sizes_and_lengths(
    compiled_pipe, with_sampler, monkeypatch, num_drafts, num_graphs
):
    # Without drafts a window holds one place, or two where a row ends. Here the cache is read in many lengths.
    monkeypatch.setattr(slots, "LENGTH_STEP", 16)
    monkeypatch.setattr(engine, "LENGTH_STEP", 16)
    with_sampler(compiled_pipe, num_draft_tokens=num_drafts)
    codes = codes_of(compiled_pipe, PROMPTS[0], [1], height=128, width=128)
    num_compiled = [torch._dynamo.utils.counters["stats"]["unique_graphs"]]
    for prompt, size in zip(PROMPTS, SIZES):
        codes_of(compiled_pipe, prompt, [1], height=size[0], width=size[1])
        num_compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert num_compiled == [num_graphs] * 4
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(codes_of(compiled_pipe, PROMPTS[0], [1], height=128, width=128), codes)


def test_a_kept_cache_is_one_calls_at_a_time_and_clean(trained_pipe, monkeypatch):
    # As for CUDA graphs, which read and write the very memory that they were recorded with.
    monkeypatch.setattr(pipeline_base, "is_compiled", lambda module: True)
    monkeypatch.setattr(type(trained_pipe), "kept_cache_device", "cpu")
    expected = codes_of(trained_pipe, PROMPTS[0], [0])
    (cache,) = trained_pipe._kept_caches.values()
    keys = cache.layers[0].keys
    with torch.no_grad():
        keys[:, :, 20:] = torch.nan
    assert torch.equal(codes_of(trained_pipe, PROMPTS[0], [0]), expected)
    assert list(trained_pipe._kept_caches.values()) == [cache] and cache.layers[0].keys is keys
    # Two calls at once do not share it,
    stream = trained_pipe.stream(PROMPTS[0], output_type="latent", generator=torch.Generator().manual_seed(0))
    next(stream)
    assert not trained_pipe._kept_caches
    codes_of(trained_pipe, PROMPTS[1], [3])
    *_, last = stream
    assert torch.equal(last.codes, expected)
    # one that was made in inference mode is of use only there, and a stream that nobody reads takes none.
    with torch.inference_mode():
        trained_pipe._kept_caches.clear()
        codes_of(trained_pipe, PROMPTS[0], [0])
    trained_pipe.stream(PROMPTS[0])
    assert torch.equal(codes_of(trained_pipe, PROMPTS[0], [0]), expected)
    trained_pipe.to("cpu")
    assert not trained_pipe._kept_caches


@pytest.fixture
def keeping_pipe(trained_pipe, monkeypatch):
    """A pipeline of its own that keeps its cache, as one that is compiled does on CUDA."""
    monkeypatch.setattr(pipeline_base, "is_compiled", lambda module: True)
    monkeypatch.setattr(LuminaMGPTPipeline, "kept_cache_device", "cpu")
    return copy_of(trained_pipe)


@pytest.mark.parametrize("change", ["dtype", "autocast", "transformer"])
def test_a_kept_cache_of_another_kind_is_left(keeping_pipe, change):
    size = {"height": 32, "width": 32}
    codes_of(keeping_pipe, PROMPTS[0], [0], **size)
    if change == "dtype":
        keeping_pipe.transformer.to(torch.bfloat16)
    elif change == "transformer":
        config = keeping_pipe.transformer.config
        values = {**config.to_dict(), "num_key_value_heads": config.num_key_value_heads // 2}
        keeping_pipe.transformer = type(keeping_pipe.transformer)(type(config)(**values)).eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        found = codes_of(keeping_pipe, PROMPTS[0], [0], **size)
        (kept,) = keeping_pipe._kept_caches.values()
        keeping_pipe._kept_caches.clear()
        assert torch.equal(found, codes_of(keeping_pipe, PROMPTS[0], [0], **size))
    (own,) = keeping_pipe._kept_caches.values()
    assert kept.layers[0].keys.shape == own.layers[0].keys.shape
    assert kept.layers[0].keys.dtype == own.layers[0].keys.dtype


def test_a_kept_cache_that_another_thread_took_is_not_there(keeping_pipe, monkeypatch):
    class Taken(dict):
        """As one thread sees it that was interrupted by another after it looked."""

        def __bool__(self) -> bool:
            return True

    monkeypatch.setattr(keeping_pipe, "_kept_caches", Taken())
    assert codes_of(keeping_pipe, PROMPTS[0], [0], height=32, width=32).min() >= 0


def test_a_call_with_nothing_to_sample_keeps_the_kept_cache(keeping_pipe):
    codes = codes_of(keeping_pipe, PROMPTS[0], [0], height=32, width=32)
    (cache,) = keeping_pipe._kept_caches.values()
    assert torch.equal(codes_of(keeping_pipe, PROMPTS[0], [0], latents=codes), codes)
    assert list(keeping_pipe._kept_caches.values()) == [cache]


def test_only_compiled_code_keeps_the_cache(trained_pipe):
    codes_of(trained_pipe, PROMPTS[0], [0])
    assert not trained_pipe._kept_caches


@pytest.mark.slow
def test_frozen_weights_do_not_freeze_the_cache(trained_pipe):
    expected = [codes_of(trained_pipe, prompt, [0], height=64, width=64) for prompt in PROMPTS[:2]]
    torch._dynamo.reset()
    plain = trained_pipe.transformer
    try:
        trained_pipe.transformer = torch.compile(plain, fullgraph=True)
        with torch._inductor.config.patch(freezing=True):
            for prompt, codes in zip(PROMPTS, expected):
                assert torch.equal(codes_of(trained_pipe, prompt, [0], height=64, width=64), codes)
    finally:
        trained_pipe.transformer = plain


@pytest.mark.gpu
@pytest.mark.parametrize("num_drafts", [0, 7])
def test_cuda_graphs_give_the_codes_of_eager_code(with_sampler, num_drafts):
    pipe = load_pipeline(TRAINED_CHECKPOINT, original_tokenizer=CHECKPOINT).to("cuda")
    with_sampler(pipe, num_draft_tokens=num_drafts)
    calls = [
        {"prompt": prompts, "seeds": range(len(prompts)), "height": height, "width": width}
        for prompts, (height, width) in zip((PROMPTS[:1], PROMPTS[3:4], PROMPTS[:3]), SIZES)
    ]
    expected = [codes_of(pipe, **call) for call in calls]
    torch._dynamo.reset()
    pipe.transformer.compile(fullgraph=True, mode="reduce-overhead")
    # The first time round they are recorded, later replayed, between each other.
    for _ in range(3):
        for call, codes in zip(calls, expected):
            assert torch.equal(codes_of(pipe, **call), codes)
