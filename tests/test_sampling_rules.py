# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Rules of sampling through the pipelines: those of the documentation, top-p, min-p, and log-probabilities."""

import pytest
import torch
from omni import arrays, chat_from, img2img_from
from test_docs import blocks_of

from lumina_mgpt_diffusers import LuminaMGPTInpaintPipeline, LuminaMGPTScheduler
from lumina_mgpt_diffusers.lumina_mgpt.scheduling_lumina_mgpt import SamplingPlaces


PROMPTS = ["A red fox in the snow.", "a cat", "sunset, oil painting"]
IMAGE = arrays("7b_like/images.npz")["rgb_96x96"]


# Where the trained model is not so sure that no rule makes a difference.
SETTINGS = {"height": 64, "width": 64, "temperature": 2.0, "guidance_scale": 4.0}


def call(pipe, prompt=PROMPTS[0], seeds=(7,), **kwargs):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompt, generator=generators, output_type="latent", **{**SETTINGS, **kwargs})


# A rule of one's own


def documented_rules() -> dict[str, type]:
    (code,) = (code for _, code in blocks_of("sampling") if "(LuminaMGPTScheduler)" in code)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    classes, _, _ = code.partition("pipe.scheduler")
    namespace = {"LuminaMGPTScheduler": LuminaMGPTScheduler, "torch": torch}
    exec(classes, namespace)
    return {name: namespace[name] for name in ("FallingGuidance", "EntropyTopK")}


@pytest.fixture(params=["FallingGuidance", "EntropyTopK"])
def pipe_with_rule(request, trained_pipe, with_sampler):
    with_sampler(trained_pipe)  # puts the scheduler back
    plain = call(trained_pipe).images
    trained_pipe.scheduler = documented_rules()[request.param].from_config(trained_pipe.scheduler.config)
    assert trained_pipe.scheduler.config.num_draft_tokens == 0
    assert not torch.equal(call(trained_pipe).images, plain)
    return trained_pipe


@pytest.mark.parametrize("num_draft_tokens", [1, 7, 31, "auto"])
def test_drafts_and_batches_change_nothing_under_a_rule_of_ones_own(pipe_with_rule, num_draft_tokens):
    alone = call(pipe_with_rule).images
    together = call(
        pipe_with_rule, PROMPTS, (7, 8, 9), height=[64, 96, 32], width=[64, 64, 96], num_draft_tokens=num_draft_tokens
    ).images
    assert torch.equal(together[0], alone[0])


def test_the_rules_of_the_documentation_do_what_they_say():
    rules = documented_rules()
    scheduler = rules["FallingGuidance"](guidance_scale=5.0)
    conditional, unconditional = torch.randn(2, 1, 4, 9, generator=torch.Generator().manual_seed(0))
    places = places_of(scheduler, 4)
    guided = scheduler.guide(conditional, unconditional, places)
    for place, scale in enumerate((5.0, 4.0, 3.0, 2.0)):
        expected = unconditional[:, place] + scale * (conditional - unconditional)[:, place]
        torch.testing.assert_close(guided[:, place], expected)
    # As many codes as the perplexity, rounded up: all of a flat law, one of a sure one.
    scheduler = rules["EntropyTopK"](top_k=0)
    logits = torch.tensor([[[0.0] * 8, [50.0] + [0.0] * 7, [5.0, 5.0, 5.0] + [-50.0] * 5]])
    kept = scheduler.restrict(logits + torch.arange(8) * 1e-4, places_of(scheduler, 3)).isfinite().sum(dim=-1)
    assert kept.tolist() == [[8, 1, 3]]


def places_of(scheduler: LuminaMGPTScheduler, number: int):
    places = SamplingPlaces([scheduler.settings()], torch.device("cpu"))
    places.index = torch.arange(number)[None]
    places.num_codes = places.num_columns = torch.tensor([[number]])
    return places


# top-p and min-p


@pytest.mark.parametrize("setting", [{"top_p": 1e-6}, {"min_p": 1.0}])
@pytest.mark.parametrize("kind", ["text to image", "image to image", "inpainting", "chat"])
def test_every_pipeline_takes_top_p_and_min_p(trained_pipe, kind, setting):
    if kind == "chat":
        pipe = chat_from(trained_pipe)

        def codes(**kwargs):
            return pipe("a", max_new_tokens=60, text_top_k=1, output_type="latent", height=32, width=32, **kwargs)

        def of(answer):
            return answer.token_ids
    else:
        pipe, given = {
            "text to image": (trained_pipe, {}),
            "image to image": (img2img_from(trained_pipe), {"image": IMAGE}),
            "inpainting": (
                LuminaMGPTInpaintPipeline(**trained_pipe.components),
                {"image": IMAGE, "mask_image": IMAGE[..., 0] > 128},
            ),
        }[kind]

        def codes(**kwargs):
            return call(pipe, **given, **kwargs)

        def of(output):
            return output.images.tolist()

    # Only the most likely code is left.
    assert of(codes(**setting)) == of(codes(temperature=0.0))


@pytest.mark.parametrize("setting", [{"top_p": 0.5}, {"min_p": 0.1}, {"top_k": 40, "top_p": 0.9, "min_p": 0.02}])
def test_drafts_do_not_change_codes_of_top_p_and_min_p(trained_pipe, setting):
    expected = call(trained_pipe, **setting).images
    assert not torch.equal(expected, call(trained_pipe).images)
    together = call(trained_pipe, PROMPTS, (7, 8, 9), num_draft_tokens=7, **setting).images
    assert torch.equal(together[0], expected[0])


# Log-probabilities


@pytest.mark.parametrize("num_draft_tokens", [1, 7, 31, "auto"])
def test_log_probs_are_the_same_with_drafts_and_in_batches(trained_pipe, num_draft_tokens):
    settings = {"return_log_probs": True, "top_k": 50, "top_p": 0.9}
    alone = call(trained_pipe, **settings)
    assert alone.log_probs.shape == alone.images.shape and alone.log_probs.dtype == torch.float32
    assert (alone.log_probs <= 0).all() and (alone.log_probs < -1e-3).any()
    together = call(trained_pipe, PROMPTS, (7, 8, 9), num_draft_tokens=num_draft_tokens, **settings)
    assert torch.equal(together.images[0], alone.images[0])
    torch.testing.assert_close(together.log_probs[0], alone.log_probs[0], atol=1e-4, rtol=1e-4)
    several = call(trained_pipe, PROMPTS[:2], (7, 8), height=[64, 32], width=[64, 96], **settings)
    assert [one.shape for one in several.log_probs] == [(4, 4), (2, 6)]
    images, log_probs = call(trained_pipe, return_dict=False, **settings)
    assert torch.equal(log_probs, alone.log_probs) and torch.equal(images, alone.images)


def test_log_probs_add_up_to_the_law_and_are_0_for_what_was_not_sampled(random_pipe):
    latents = call(random_pipe, height=32, width=32).images
    latents[0, 1, 1] = -1
    output = call(
        random_pipe,
        height=32,
        width=32,
        latents=latents.repeat(60, 1, 1),
        num_images_per_prompt=60,
        seeds=range(60),
        top_k=3,
        return_log_probs=True,
    )
    of_code = {}
    for code, log_prob in zip(output.images[:, 1, 1].tolist(), output.log_probs[:, 1, 1].tolist()):
        assert of_code.setdefault(code, log_prob) == pytest.approx(log_prob, abs=1e-5)
    assert len(of_code) == 3
    assert sum(torch.tensor(list(of_code.values())).exp()) == pytest.approx(1, abs=1e-5)
    assert not output.log_probs.flatten(1)[:, :3].any()
    greedy = call(random_pipe, temperature=0.0, return_log_probs=True)
    assert not greedy.log_probs.any()
    nothing = call(random_pipe, height=32, width=32, latents=output.images[:1], return_log_probs=True)
    assert nothing.log_probs.shape == (1, 2, 2) and not nothing.log_probs.any()
    assert call(random_pipe, height=32, width=32).log_probs is None


@pytest.mark.parametrize("num_draft_tokens", [0, 7])
def test_given_codes_between_sampled_ones_have_no_log_probs(random_pipe, num_draft_tokens):
    latents = call(random_pipe, height=32, width=32).images
    latents[0, 0, 0] = latents[0, 1, 1] = -1
    output = call(
        random_pipe, height=32, width=32, latents=latents, return_log_probs=True, num_draft_tokens=num_draft_tokens
    )
    assert (output.log_probs[0] < 0).tolist() == [[True, False], [False, True]]


def test_log_probs_of_images_from_images(trained_pipe):
    pipe = img2img_from(trained_pipe)
    output = call(pipe, image=IMAGE, return_log_probs=True)
    assert output.log_probs.shape == output.images.shape and (output.log_probs < 0).any()
