# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Watching an image while it is sampled: `stream`, callbacks, the progress bar."""

import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from lumina_mgpt_diffusers.lumina_mgpt import engine


SIZE = {"height": 96, "width": 32}  # 6 rows of 2 codes
PROMPT = "a cat"


def call(pipe, **kwargs) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(PROMPT, **{**SIZE, "output_type": "latent", **kwargs}, generator=generator).images


def stream(pipe, **kwargs):
    return pipe.stream(PROMPT, **{**SIZE, **kwargs}, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def count_decodes(random_pipe, monkeypatch) -> list:
    calls = []
    decode = random_pipe.vqvae.decode
    monkeypatch.setattr(
        random_pipe.vqvae, "decode", lambda *args, **kwargs: (calls.append(1), decode(*args, **kwargs))[1]
    )
    return calls


@pytest.mark.parametrize(
    ("every", "num_draft_tokens", "rows"),
    [(1, 0, [1, 2, 3, 4, 5, 6]), (1, 7, None), (4, 0, [4, 6]), (9, 0, [6]), (None, 0, [6])],
)
def test_yields_after_every_so_many_rows(random_pipe, count_decodes, with_sampler, every, rows, num_draft_tokens):
    with_sampler(random_pipe, num_draft_tokens=num_draft_tokens)
    expected = call(random_pipe)
    steps = list(stream(random_pipe, every=every))
    if rows is not None:  # drafts may complete several rows at once
        assert [step.num_rows for step in steps] == rows
    for step in steps:
        assert torch.equal(step.codes[:, : step.num_rows], expected[:, : step.num_rows])
    assert torch.equal(steps[-1].codes, expected)
    assert count_decodes == []


def test_previews_are_decoded_when_asked_for(random_pipe, count_decodes):
    images = []
    for step in stream(random_pipe, every=3, output_type="pt"):
        images.append(step.preview())
    assert len(images) == len(count_decodes) == 2
    torch.testing.assert_close(images[-1], call(random_pipe, output_type="pt"))
    filled = step.codes.clone()
    filled[:, 3:] = filled[:, 2:3]
    torch.testing.assert_close(
        images[0], random_pipe.image_processor.postprocess(random_pipe.decode_codes(filled), output_type="pt")
    )
    assert step.preview("pil")[0].size == (32, 96)
    assert torch.equal(step.preview("latent"), step.codes)


def test_wrong_arguments_raise_at_once(random_pipe):
    with pytest.raises(ValueError, match="`every` has to be an integer >= 1 but is 0"):
        random_pipe.stream(PROMPT, every=0)
    with pytest.raises(ValueError, match="divisible by 32"):
        random_pipe.stream(PROMPT, height=50, width=32)


def test_an_abandoned_stream_frees_its_hooks(random_pipe, monkeypatch):
    freed = []
    monkeypatch.setattr(random_pipe, "maybe_free_model_hooks", lambda: freed.append(1))
    steps = stream(random_pipe)
    next(steps)
    assert not freed and torch.is_grad_enabled()
    steps.close()
    assert freed


def test_given_codes_are_not_yielded_again(random_pipe):
    expected = call(random_pipe)
    given = expected.clone()
    given[:, 3:] = -1
    steps = list(stream(random_pipe, latents=given))
    assert [step.num_rows for step in steps] == [4, 5, 6]
    (step,) = stream(random_pipe, latents=expected)
    assert torch.equal(step.codes, expected)


def test_stopping_and_going_on_gives_the_same_image(random_pipe):
    def stop(pipe, step, timestep, kwargs):
        pipe._interrupt = step >= 5
        return kwargs

    part = list(stream(random_pipe, callback_on_step_end=stop))[-1]
    assert part.num_rows == 3 and (part.codes[:, 3:] == -1).all()
    assert torch.equal(call(random_pipe, latents=part.codes), call(random_pipe))


class Recorder(PipelineCallback):
    tensor_inputs = ["latents"]

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.steps = []

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        self.steps.append((step_index, int(timestep), pipeline.num_timesteps, list(callback_kwargs)))
        return callback_kwargs


@pytest.mark.parametrize("is_several", [False, True])
def test_pipeline_callbacks(random_pipe, is_several):
    recorder = Recorder(cutoff_step_ratio=1.0)
    callback = MultiPipelineCallbacks([recorder]) if is_several else recorder
    codes = call(random_pipe, callback_on_step_end=callback)
    assert recorder.steps == [(index, index, 12, ["latents"]) for index in range(12)]
    assert torch.equal(codes, call(random_pipe))


def test_guidance_that_a_callback_sets_is_checked(random_pipe):
    for scale in ("4", -1.0, float("nan"), None):

        def change(pipe, step, timestep, inputs, scale=scale):
            pipe._guidance_scale = scale

        with pytest.raises(ValueError, match="`pipe._guidance_scale` has to be a finite number >= 0"):
            call(random_pipe, callback_on_step_end=change)


@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_callbacks_know_of_the_last_step_where_the_host_learns_late(
    random_pipe, with_sampler, monkeypatch, num_draft_tokens
):
    with_sampler(random_pipe, num_draft_tokens=num_draft_tokens)
    monkeypatch.setitem(engine.FRONTIER_LAG, "cpu", 1)
    seen = []

    def watch(pipe, step, timestep, inputs):
        codes = inputs["latents"].flatten()
        missing = (codes < 0).nonzero()
        seen.append((step, int(timestep), int(missing[0]) if len(missing) else len(codes)))

    call(random_pipe, callback_on_step_end=watch)
    assert [(step, step, step + 1) for step, *_ in seen] == seen
    assert [step for step, *_ in seen] == sorted({step for step, *_ in seen})  # each once
    assert seen[-1][0] == 11


def test_turning_guidance_off_on_the_way(random_pipe):
    def turn_off(pipe, step, timestep, kwargs):
        if step == 5:
            pipe._guidance_scale = 1.0
        return kwargs

    guided, plain = call(random_pipe, guidance_scale=4.0), call(random_pipe, guidance_scale=1.0)
    mixed = call(random_pipe, guidance_scale=4.0, callback_on_step_end=turn_off)
    assert torch.equal(mixed[:, :3], guided[:, :3])
    expected = call(random_pipe, guidance_scale=1.0, latents=torch.where(torch.arange(6)[:, None] < 3, guided, -1))
    assert torch.equal(mixed, expected)
    assert not torch.equal(mixed, guided) and not torch.equal(mixed, plain)
    assert random_pipe.guidance_scale == 1.0


def test_the_progress_bar_counts_codes(random_pipe, capsys):
    random_pipe.set_progress_bar_config(disable=False, desc="codes", ncols=80, mininterval=0, leave=True)
    try:
        call(random_pipe)
    finally:
        random_pipe.set_progress_bar_config(disable=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "codes: 100%" in captured.err and "12/12" in captured.err
    # Time spent and time left
    assert "6/12 [00:0" in captured.err and "<00:0" in captured.err
