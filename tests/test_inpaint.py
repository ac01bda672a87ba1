# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Inpainting: what of an image is sampled anew, what stays, and how diffusers finds the pipeline."""

import inspect

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoPipelineForInpainting, AutoPipelineForText2Image
from omni import arrays

from lumina_mgpt_diffusers import LuminaMGPTInpaintPipeline, LuminaMGPTPipeline
from lumina_mgpt_diffusers.lumina_mgpt.image_encoding import kept_box, resize_and_crop
from lumina_mgpt_diffusers.lumina_mgpt.pipeline_lumina_mgpt_inpaint import touched_cells


IMAGE = arrays("7b_like/images.npz")["rgb_96x96"]
PROMPT = "a red fox"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mask_of(*spans: tuple[slice, slice], size: tuple[int, int] = (96, 96)) -> np.ndarray:
    mask = np.zeros(size, dtype=np.uint8)
    for span in spans:
        mask[span] = 255
    return mask


# Two pixels of a cell and all of another.
MASK = mask_of((slice(40, 41), slice(20, 22)), (slice(64, 80), slice(48, 64)))
HOLE = [(2, 1), (4, 3)]


@pytest.fixture(scope="module")
def pipe(random_pipe):
    return LuminaMGPTInpaintPipeline(**random_pipe.components)


def call(pipe, **kwargs):
    arguments = {"image": IMAGE, "mask_image": MASK, "generator": seeded(), "output_type": "latent", **kwargs}
    return pipe(arguments.pop("prompt", PROMPT), **arguments)


# What is sampled


def test_the_cells_that_the_mask_touches_are_sampled_and_the_others_kept(pipe, random_pipe):
    (before,) = pipe.encode_image(IMAGE)
    latents = before.clone()
    for cell in HOLE:
        latents[cell] = -1
    expected = random_pipe(PROMPT, latents=latents[None], generator=seeded(), output_type="latent").images
    assert torch.equal(call(pipe).images, expected)
    assert not torch.equal(expected[0], before)
    assert torch.equal(call(pipe, num_draft_tokens=7).images, expected)


def test_masks_of_every_kind(pipe):
    expected = call(pipe).images
    gray = PIL.Image.fromarray(MASK)
    for mask in (
        gray,
        gray.convert("RGB"),
        gray.convert("1"),
        gray.resize((192, 192), PIL.Image.Resampling.NEAREST),
        MASK > 0,
        torch.from_numpy(MASK)[None].float() / 255,
        torch.from_numpy(MASK > 0)[None, None],
        np.where(MASK, 128, 127).astype(np.uint8),
    ):
        assert torch.equal(call(pipe, mask_image=mask).images, expected)


def test_a_mask_of_nothing_and_of_all(pipe, random_pipe, count_forwards):
    with count_forwards(pipe.transformer) as forwards:
        codes = call(pipe, mask_image=np.zeros_like(MASK)).images
    assert len(forwards) == 0 and torch.equal(codes[0], pipe.encode_image(IMAGE)[0])
    plain = random_pipe(PROMPT, height=96, width=96, generator=seeded(), output_type="latent").images
    assert torch.equal(call(pipe, mask_image=np.full_like(MASK, 255)).images, plain)


def test_image_and_mask_are_cropped_alike():
    # The red rectangle is where the mask is, and has to be where the hole is.
    for size, wanted in (((300, 500), (96, 96)), ((97, 64), (128, 64)), ((1001, 399), (32, 128))):
        spans = (slice(size[0] // 3, size[0] // 2), slice(size[1] // 3, size[1] // 2))
        mask = mask_of(spans, size=size)
        fitted = np.asarray(resize_and_crop(PIL.Image.fromarray(mask), *wanted))
        hole = touched_cells(mask > 0, (size[1], size[0]), wanted, 1)
        assert hole.shape == wanted
        assert hole[fitted > 160].all() and not hole[fitted < 5].any()
        cells = touched_cells(mask > 0, (size[1], size[0]), wanted, 16)
        assert np.array_equal(cells, hole.reshape(wanted[0] // 16, 16, wanted[1] // 16, 16).any(axis=(1, 3)))


def test_a_pixel_across_an_edge_touches_both_cells():
    # Of 100 pixels on 6 cells each has 16.67; a mask of 50 is stretched over them.
    for width, column, touched in ((100, 16, [0, 1]), (100, 15, [0]), (100, 17, [1]), (50, 8, [0, 1]), (50, 7, [0])):
        mask = mask_of((slice(0, 1), slice(column, column + 1)), size=(100, width)) > 0
        cells = touched_cells(mask, (100, 100), (96, 96), 16)
        assert cells.nonzero()[1].tolist() == touched and not cells[1:].any()


def test_what_is_kept_of_an_image_is_in_its_middle():
    assert kept_box((200, 100), 96, 96) == (50, 0, 150, 100)
    assert kept_box((96, 96), 96, 96) == (0, 0, 96, 96)


# Batches and sizes


def test_batches_are_each_image_alone(pipe):
    wide = np.ascontiguousarray(IMAGE[:48])
    images, masks, seeds = [IMAGE, wide], [MASK, MASK[:48]], (3, 4)
    together = pipe(
        [PROMPT, "snow"], images, masks, generator=[seeded(seed) for seed in seeds], output_type="latent"
    ).images
    for codes, prompt, image, mask, seed in zip(together, (PROMPT, "snow"), images, masks, seeds):
        alone = pipe(prompt, image, mask, generator=seeded(seed), output_type="latent").images
        assert torch.equal(alone[0], codes)
    assert [tuple(codes.shape) for codes in together] == [(6, 6), (4, 8)]


def test_one_image_for_many_prompts_is_encoded_once(pipe, monkeypatch):
    calls = []
    encode = pipe.vqvae.encode
    monkeypatch.setattr(pipe.vqvae, "encode", lambda *args: (calls.append(1), encode(*args))[1])
    codes = call(pipe, prompt=["a", "b"], num_images_per_prompt=2).images
    assert codes.shape == (4, 6, 6) and len(calls) == 1


def test_sizes(pipe):
    assert call(pipe, height=64, width=32).images.shape == (1, 4, 2)
    codes = pipe.encode_image(IMAGE)[0]
    assert torch.equal(call(pipe, image=codes).images, call(pipe).images)


# Pixels


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_an_overlay_keeps_the_pixels_outside_of_the_mask(pipe, output_type):
    plain, pasted = (
        call(pipe, output_type=output_type, overlay=overlay, num_images_per_prompt=2).images
        for overlay in (False, True)
    )
    assert type(plain) is type(pasted) and len(plain) == len(pasted) == 2
    for before, after in zip(plain, pasted):
        if output_type == "pt":
            before, after = (one.movedim(0, -1).numpy() for one in (before, after))
        before, after = np.asarray(before), np.asarray(after)
        if output_type != "pil":
            before, after = (np.round(one * 255) for one in (before, after))
        assert np.array_equal(after[MASK == 0], IMAGE[MASK == 0])
        assert np.array_equal(after[MASK > 0], before[MASK > 0])
        assert not np.array_equal(before, after)


def test_an_overlay_of_codes_and_of_several_sizes(pipe):
    (codes,) = pipe.encode_image(IMAGE)
    wide = np.ascontiguousarray(IMAGE[:48])
    first, second = pipe(PROMPT, [codes, wide], [MASK, MASK[:48]], overlay=True, output_type="np", top_k=1).images
    decoded = pipe.decode_images(codes[None], "np")[0]
    np.testing.assert_allclose(first[MASK == 0], decoded[MASK == 0], atol=1e-6)
    assert second.shape == (64, 128, 3)


def test_a_stream_ends_at_the_codes_of_the_call(pipe):
    steps = list(pipe.stream(PROMPT, IMAGE, MASK, generator=seeded(), every=1))
    assert torch.equal(steps[-1].codes, call(pipe).images)
    parameters = inspect.signature(pipe.stream).parameters
    expected = inspect.signature(pipe.__call__).parameters.keys() - {"return_dict", "overlay"} | {"every"}
    assert parameters.keys() == expected


# diffusers


def test_a_script_for_other_pipelines_runs(random_pipe, pipe, tmp_path):
    assert diffusers.LuminaMGPTInpaintPipeline is LuminaMGPTInpaintPipeline
    random_pipe.save_pretrained(tmp_path)
    loaded = AutoPipelineForInpainting.from_pretrained(tmp_path)
    assert type(loaded) is LuminaMGPTInpaintPipeline
    assert type(AutoPipelineForInpainting.from_pipe(random_pipe)) is LuminaMGPTInpaintPipeline
    assert type(AutoPipelineForText2Image.from_pipe(pipe)) is LuminaMGPTPipeline
    image = PIL.Image.fromarray(IMAGE)
    output = loaded(
        prompt=PROMPT,
        image=image,
        mask_image=loaded.mask_processor.blur(PIL.Image.fromarray(MASK), blur_factor=1),
        negative_prompt="bad anatomy",
        generator=seeded(92),
        strength=0.85,
        guidance_scale=12.5,
        num_inference_steps=20,
    ).images[0]
    assert output.size == image.size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": None}, "`image` has to be given"),
        ({"mask_image": None}, "`mask_image` has to be given"),
        ({"image": "no.png"}, "`image` is 'no.png', which cannot be opened"),
        ({"image": [IMAGE] * 2, "mask_image": [MASK] * 3}, "There are 3 prompts or images but 2 in `image`"),
        ({"prompt": ["a", "b"], "image": [IMAGE] * 3}, "There are 2 prompts or images but 3 in `image`"),
        ({"prompt": []}, "There are 0 prompts"),
        ({"prompt": None}, "`prompt` has to be a string"),
        ({"mask_image": torch.zeros(6, 6, dtype=torch.long)}, "`mask_image` has to be an image"),
        ({"image": torch.zeros(6, 6, dtype=torch.long), "height": 64}, "`height` and `width` have to be 96 and 96"),
        ({"image": torch.full((6, 6), 9000)}, r"`image\[0\]` holds VQ codes that are no image"),
        ({"height": 50}, "divisible by 32 but are 50 and 96"),
        ({"strength": 2}, "`strength` has to be"),
        ({"overlay": 1}, "`overlay` has to be True or False"),
        ({"overlay": True}, "`overlay` has to be False"),
        ({"guidance_scale": -1}, "`guidance_scale` has to be"),
        ({"generator": [torch.Generator()] * 3}, "list of generators of length 3"),
    ],
)
def test_bad_arguments_are_refused_before_a_model_runs(pipe, monkeypatch, count_forwards, arguments, message):
    def fail(*args):
        raise AssertionError("the VQ model ran")

    monkeypatch.setattr(pipe.vqvae, "encode", fail)
    state = seeded().get_state()
    generator = seeded()
    with count_forwards(pipe.transformer) as forwards, pytest.raises(ValueError, match=message):
        call(pipe, **{"generator": generator, **arguments})
    assert len(forwards) == 0 and torch.equal(generator.get_state(), state)
