# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

import json

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import CHECKPOINT, FIXTURES, VQGAN

from lumina_mgpt_diffusers import LuminaMGPTPipeline, LuminaMGPTPipelineOutput
from lumina_mgpt_diffusers.lumina_mgpt import pipeline_base


PROMPT = "A red fox in the snow."
RUNS = json.loads((FIXTURES / "7b_like" / "generations.json").read_text())[:9]
TRAINED_RUNS = [
    run
    for run in json.loads((FIXTURES / "7b_like_trained" / "generations.json").read_text())
    if run["name"].startswith("t2i")
]


def size_of(run: dict) -> dict[str, int]:
    width, height = map(int, run["name"].split("_")[1].split("x"))
    return {"height": height, "width": width}


@pytest.fixture
def seeded():
    return lambda seed=0: torch.Generator().manual_seed(seed)


# The original's runs


@pytest.mark.parametrize("num_drafts", [0, 1, 3, 8, 15, 31])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_codes_are_the_originals(random_pipe, with_sampler, run, num_drafts):
    with_sampler(random_pipe, num_draft_tokens=num_drafts)
    codes = random_pipe(PROMPT, **size_of(run), guidance_scale=run["cfg"], top_k=1, output_type="latent").images
    tokens = random_pipe.image_vocabulary.to_tokens(codes[0]).tolist()
    assert tokens == run["forced_prefix"] + run["tokens"]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_images_are_the_originals(random_pipe, fixtures, run):
    image = random_pipe(PROMPT, **size_of(run), guidance_scale=run["cfg"], temperature=0).images[0]
    golden = np.load(fixtures / "7b_like" / "generated_images.npz")[f"{run['name']}/0"]
    # The original truncates where diffusers rounds.
    assert np.abs(np.asarray(image).astype(int) - golden.astype(int)).max() <= 1


@pytest.mark.parametrize("num_drafts", [0, 7, 31])
@pytest.mark.parametrize("run", TRAINED_RUNS, ids=lambda run: run["name"])
def test_end_to_end_runs_are_the_originals(trained_pipe, with_sampler, fixtures, run, num_drafts):
    vocabulary = trained_pipe.image_vocabulary
    golden = vocabulary.to_codes(run["tokens_without_eos"])
    with_sampler(trained_pipe, num_draft_tokens=num_drafts)
    settings = {
        "prompt_token_ids": torch.tensor([run["prompt_ids"]]),
        # The trained checkpoint chooses its size by itself.
        "height": golden.shape[0] * 16,
        "width": golden.shape[1] * 16,
        "guidance_scale": run["cfg"],
        "top_k": 1,
    }
    assert torch.equal(trained_pipe(**settings, output_type="latent").images[0], golden)
    image = np.asarray(trained_pipe(**settings).images[0]).astype(int)
    expected = np.load(fixtures / "7b_like_trained" / "generated_images.npz")[f"{run['name']}/out0"]
    assert np.abs(image - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["t2i_64x96", "t2i_64x64", "t2i_96x64"])
def test_encode_prompt_is_the_originals(random_pipe, prompts_golden, name):
    width, height = map(int, name.split("_")[1].split("x"))
    ids, mask, negative_ids, negative_mask, *size = random_pipe.encode_prompt(PROMPT, height=height, width=width)
    assert ids.tolist() == [prompts_golden["prompts"][name]["input_ids"]]
    assert mask.all() and negative_ids is None and negative_mask is None
    assert size == [height, width]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_runs(dtype, seeded):
    pipe = LuminaMGPTPipeline.from_pretrained(CHECKPOINT, original_vqgan=VQGAN, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.dtype == pipe.vqvae.dtype == dtype
    images = pipe(PROMPT, height=64, width=64, generator=seeded(), output_type="pt").images
    assert images.dtype == dtype and images.isfinite().all()


# The arguments


def test_output_types(random_pipe, seeded):
    def run(output_type, **kwargs):
        return random_pipe([PROMPT, "x"], height=64, width=96, generator=seeded(), output_type=output_type, **kwargs)

    codes = run("latent").images
    assert codes.shape == (2, 4, 6) and codes.dtype == torch.long
    tensor, array, images = (run(kind).images for kind in ("pt", "np", "pil"))
    assert tensor.shape == (2, 3, 64, 96) and array.shape == (2, 64, 96, 3)
    assert all(isinstance(image, PIL.Image.Image) and image.size == (96, 64) for image in images)
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.stack([np.asarray(i) for i in images]), (array * 255).round().astype("uint8"))
    assert isinstance(run("pt"), LuminaMGPTPipelineOutput)
    assert torch.equal(run("pt", return_dict=False)[0], tensor)


def test_latent_output_can_be_fed_back(random_pipe, seeded):
    codes = random_pipe(PROMPT, height=64, width=96, generator=seeded(), output_type="latent").images
    image = random_pipe(PROMPT, height=64, width=96, generator=seeded(), output_type="pt").images
    again = random_pipe(PROMPT, latents=codes, output_type="pt").images
    assert torch.equal(again, image)


def test_size_defaults_to_the_base_size(random_pipe):
    codes = random_pipe(PROMPT, output_type="latent").images
    assert codes.shape == (1, 6, 6)


def test_encoded_prompts_give_the_same(random_pipe, seeded):
    kwargs = {"height": 64, "width": 64, "output_type": "latent"}
    prompts, negatives = [PROMPT, "a much longer prompt than the first one"], ["ugly", "blurred, dark"]
    expected = random_pipe(prompts, negatives, generator=seeded(), **kwargs).images
    names = [
        "prompt_token_ids",
        "prompt_attention_mask",
        "negative_prompt_token_ids",
        "negative_prompt_attention_mask",
    ]
    encoded = dict(zip(names, random_pipe.encode_prompt(prompts, negatives, height=64, width=64)))
    assert torch.equal(random_pipe(**encoded, generator=seeded(), **kwargs).images, expected)
    # Nor does the tokenizer have to be there, once the prompts are encoded.
    bare = LuminaMGPTPipeline(**{**random_pipe.components, "tokenizer": None})
    bare.set_progress_bar_config(disable=True)
    assert torch.equal(bare(**encoded, generator=seeded(), **kwargs).images, expected)


def test_negative_prompt_changes_the_unconditional_branch_only(random_pipe, seeded):
    def run(**kwargs):
        return random_pipe(PROMPT, height=64, width=64, generator=seeded(), output_type="latent", **kwargs).images

    assert not torch.equal(run(negative_prompt="ugly"), run())
    assert torch.equal(run(negative_prompt="ugly", guidance_scale=1.0), run(guidance_scale=1.0))


def test_settings_override_the_scheduler(random_pipe, with_sampler, seeded):
    kwargs = {"prompt": PROMPT, "height": 64, "width": 64, "output_type": "latent"}
    by_argument = random_pipe(**kwargs, generator=seeded(), guidance_scale=2.0, temperature=0.5, top_k=7).images
    config = dict(random_pipe.scheduler.config)
    with_sampler(random_pipe, guidance_scale=2.0, temperature=0.5, top_k=7)
    assert torch.equal(random_pipe(**kwargs, generator=seeded()).images, by_argument)
    assert config["top_k"] == 2000


def test_control_strings_in_a_prompt_do_not_change_the_structure(random_pipe, seeded):
    prompt = "<eoss> <racm3:break> IMGIMGBZ <|image|> <reserved08706> <reserved08799> <reserved08804> </s>"
    fed = []
    hook = random_pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    codes = random_pipe(prompt, height=64, width=64, generator=seeded(), output_type="latent").images
    hook.remove()
    assert codes.shape == (1, 4, 4) and codes.min() >= 0
    control = set(random_pipe.tokenizer.added_tokens_encoder.values())
    ids = fed[0][0].tolist()
    start = ids.index(8197)
    assert ids[0] == 0 and ids[start - 1 : start + 2] == [8710, 8197, 8806]
    assert not control & set(ids[1 : start - 1])


def test_global_random_state_is_left_alone(random_pipe):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = random_pipe(PROMPT, height=64, width=64, output_type="latent").images
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    assert not torch.equal(random_pipe(PROMPT, height=64, width=64, output_type="latent").images, first)


def test_components_are_left_alone(random_pipe, seeded):
    configs = {name: str(component.config) for name, component in random_pipe.components.items()
               if hasattr(component, "config")}  # fmt: skip
    vocabulary = random_pipe.tokenizer.get_vocab()
    random_pipe(PROMPT, height=64, width=64, generator=seeded(), num_images_per_prompt=2, top_k=5)
    assert configs == {name: str(random_pipe.components[name].config) for name in configs}
    assert random_pipe.tokenizer.get_vocab() == vocabulary
    assert random_pipe.tokenizer("<eoss>", add_special_tokens=False)["input_ids"] == [8196]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "Exactly one of `prompt` and `prompt_token_ids` has to be given but neither was"),
        ({"prompt": "x", "prompt_token_ids": torch.zeros(1, 3).long()}, "`prompt_token_ids` .* but both were"),
        ({"prompt": 3}, "`prompt` has to be a string or a non-empty list of strings but is 3"),
        ({"prompt": []}, r"`prompt` has to be .* but is \[\]"),
        ({"prompt": ["x", None]}, "`prompt` has to be"),
        ({"prompt": "x", "negative_prompt": 3}, "`negative_prompt` has to be"),
        ({"prompt": "x", "negative_prompt": ["a", "b"]}, "1 prompts but 2 negative prompts"),
        ({"prompt": "x", "negative_prompt": "a", "negative_prompt_token_ids": torch.zeros(1, 3).long()}, "both were"),
        ({"prompt_token_ids": [1, 2]}, r"`prompt_token_ids` has to be an integer tensor .* but is <class 'list'>"),
        ({"prompt_token_ids": torch.zeros(3).long()}, r"`prompt_token_ids` .* but is torch.int64 of shape \(3,\)"),
        ({"prompt_token_ids": torch.zeros(1, 3)}, "`prompt_token_ids` has to be an integer tensor"),
        (
            {"prompt_token_ids": torch.zeros(1, 3).long(), "prompt_attention_mask": torch.ones(1, 2).long()},
            r"`prompt_attention_mask` has to be of the shape of `prompt_token_ids`, \(1, 3\), but is \(1, 2\)",
        ),
        ({"prompt": "x", "height": 500, "width": 512}, "divisible by 32 but are 500 and 512. Nearest trained size"),
        ({"prompt": "x", "height": 0, "width": 64}, "positive integers but are 0 and 64"),
        ({"prompt": "x", "height": 64.5, "width": 64}, "positive integers but are 64.5 and 64"),
        ({"prompt": "x", "height": 3232, "width": 64}, "at most 3200"),
        ({"prompt": "x", "num_inference_steps": 0}, "`num_inference_steps` has to be an integer >= 1 but is 0"),
        ({"prompt": "x", "guidance_scale": -1.0}, "`guidance_scale` has to be a finite number >= 0 but is -1.0"),
        ({"prompt": "x", "guidance_scale": "4"}, "`guidance_scale`"),
        ({"prompt": "x", "num_images_per_prompt": 0}, "`num_images_per_prompt` has to be an integer >= 1 and <= 1024"),
        ({"prompt": "x", "num_images_per_prompt": 1.5}, "`num_images_per_prompt`"),
        ({"prompt": "x", "generator": 3}, "`generator` has to be a `torch.Generator` or a list of them but is 3"),
        ({"prompt": "x", "generator": [torch.Generator()] * 2}, "list of generators of length 2, .* batch size of 1"),
        ({"prompt": "x", "latents": torch.zeros(1, 6, 6)}, r"`latents` .* but are torch.float32 of shape"),
        ({"prompt": "x", "latents": torch.zeros(2, 6, 6).long()}, r"\(1, 6, 6\), but are .* of shape \(2, 6, 6\)"),
        ({"prompt": "x", "latents": torch.zeros(6, 6).long()}, r"`latents"),
        ({"prompt": "x", "latents": [[0]]}, r"`latents"),
        ({"prompt": "x", "latents": torch.full((1, 6, 6), 8192)}, r"`latents` .* range from 8192 to 8192"),
        ({"prompt": "x", "latents": torch.full((1, 6, 6), -2)}, r"`latents` .* range from -2 to -2"),
        ({"prompt": "x", "temperature": -1.0}, "`temperature` has to be a finite number >= 0 but is -1.0"),
        ({"prompt": "x", "top_k": -1}, "`top_k` has to be an integer >= 0, or None, but is -1"),
        ({"prompt": "x", "top_k": 1.5}, "`top_k`"),
        ({"prompt": "x", "output_type": "jpeg"}, r"`output_type` has to be one of \['pil', .*\] but is 'jpeg'"),
        ({"prompt": "x", "callback_on_step_end_tensor_inputs": ["noise"]}, r"\['latents'\], but found \['noise'\]"),
        ({"prompt": "x", "max_sequence_length": 0}, "`max_sequence_length` has to be an integer >= 2 but is 0"),
    ],
)  # fmt: skip
def test_bad_arguments_raise_before_the_model_runs(random_pipe, count_forwards, arguments, message):
    with count_forwards(random_pipe.transformer) as forwards, pytest.raises(ValueError, match=message):
        random_pipe(**arguments)
    assert len(forwards) == 0


@pytest.fixture
def log(caplog):
    pipeline_base.warn_once.cache_clear()
    return caplog


def test_other_step_counts_warn_once(random_pipe, log):
    for _ in range(2):
        random_pipe(PROMPT, num_inference_steps=30, output_type="latent")
    random_pipe(PROMPT, num_inference_steps=36, output_type="latent")
    assert sum("`num_inference_steps` does not apply" in record.message for record in log.records) == 1


def test_untrained_sizes_warn(random_pipe, log):
    random_pipe(PROMPT, height=96, width=96, output_type="latent")
    assert not log.records
    random_pipe(PROMPT, height=64, width=64, output_type="latent")
    assert "not trained on images of 64x64" in log.text and "Nearest trained size: 96x96" in log.text


def test_long_prompts_are_cut_with_a_warning(random_pipe, log):
    text = "very long " * 100
    ids, mask, *_ = random_pipe.encode_prompt([text, "short"], height=64, width=64, max_sequence_length=60)
    assert ids.shape == (2, 60) and mask[0].all()
    assert ids[0, -1] == 8710
    assert "more than `max_sequence_length` 60" in log.text


# Watching and steering


def test_callback_sees_every_forward(random_pipe, seeded):
    seen = []

    def callback(pipe, step, timestep, kwargs):
        seen.append((step, int(timestep), int((kwargs["latents"] >= 0).sum())))
        return kwargs

    random_pipe(PROMPT, height=64, width=64, generator=seeded(), callback_on_step_end=callback)
    assert random_pipe.num_timesteps == 16
    assert seen == [(index, index, index + 1) for index in range(16)]


def test_callback_steps_reach_the_last_code_with_drafts(trained_pipe, with_sampler, seeded):
    with_sampler(trained_pipe, num_draft_tokens=15)
    steps = []
    trained_pipe(
        [PROMPT, "x"],
        generator=seeded(),
        callback_on_step_end=lambda pipe, step, timestep, kwargs: steps.append(step),
        output_type="latent",
    )
    assert steps == sorted(steps) and steps[-1] == trained_pipe.num_timesteps - 1


def test_interrupt_keeps_what_is_done(random_pipe, seeded):
    def callback(pipe, step, timestep, kwargs):
        pipe._interrupt = step >= 5
        return kwargs

    kwargs = {"prompt": PROMPT, "height": 64, "width": 64}
    whole = random_pipe(**kwargs, generator=seeded(), output_type="latent").images
    part = random_pipe(**kwargs, generator=seeded(), output_type="latent", callback_on_step_end=callback).images
    assert torch.equal(part.flatten()[:6], whole.flatten()[:6]) and (part.flatten()[6:] == -1).all()
    image = random_pipe(**kwargs, generator=seeded(), output_type="pil", callback_on_step_end=callback).images[0]
    assert image.size == (64, 64)
    assert torch.equal(random_pipe(**kwargs, generator=seeded(), output_type="latent", latents=part).images, whole)


def test_guidance_can_change_on_the_way(random_pipe, seeded):
    def callback(pipe, step, timestep, kwargs):
        if step == 7:
            pipe._guidance_scale = 1.0
        return kwargs

    def run(**settings):
        kwargs = {"height": 64, "width": 64, "generator": seeded(), "output_type": "latent", "top_k": 1}
        return random_pipe(PROMPT, **kwargs, **settings).images.flatten()

    changed = run(guidance_scale=4.0, callback_on_step_end=callback)
    assert torch.equal(changed[:8], run(guidance_scale=4.0)[:8])
    assert not torch.equal(changed, run(guidance_scale=4.0))
    # As if the first half had been given and the rest sampled without guidance.
    start = torch.cat([changed[:8], torch.full((8,), -1)]).view(1, 4, 4)
    assert torch.equal(run(guidance_scale=1.0, latents=start), changed)


@pytest.mark.parametrize("num_drafts", [0, 5])
def test_codes_changed_by_a_callback_are_seen_by_what_follows(random_pipe, with_sampler, seeded, num_drafts):
    with_sampler(random_pipe, num_draft_tokens=num_drafts)
    changed = []

    def callback(pipe, step, timestep, kwargs):
        if step >= 6 and not changed:
            latents = kwargs["latents"].clone()
            latents.view(-1)[2] = 77
            changed.append(latents)
            return {"latents": latents}

    kwargs = {"prompt": PROMPT, "height": 64, "width": 64, "output_type": "latent"}
    codes = random_pipe(**kwargs, generator=seeded(), callback_on_step_end=callback).images
    assert codes.flatten()[2] == 77
    assert torch.equal(random_pipe(**kwargs, generator=seeded(), latents=changed[0]).images, codes)


def test_callback_can_replace_the_result(random_pipe):
    def callback(pipe, step, timestep, kwargs):
        if step == pipe.num_timesteps - 1:
            kwargs["latents"] = torch.zeros_like(kwargs["latents"])
        return kwargs

    codes = random_pipe(PROMPT, height=64, width=64, output_type="latent", callback_on_step_end=callback).images
    assert codes.abs().sum() == 0


def test_more_tokens_than_the_model_was_trained_on_are_warned_of(random_pipe, monkeypatch):
    warnings = []
    monkeypatch.setattr(pipeline_base, "warn_once", warnings.append)
    monkeypatch.setattr(random_pipe.transformer.config, "max_position_embeddings", 60)
    for size in (32, 96):
        random_pipe("a cat", height=size, width=size, top_k=1, output_type="latent")
        assert any("60 tokens (`max_position_embeddings`)" in warning for warning in warnings) is (size == 96)
