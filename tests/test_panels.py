# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Tasks that are one image of two panels."""

import numpy as np
import PIL.Image
import pytest
import torch
from omni import img2img_from

from lumina_mgpt_diffusers import LUMINA_MGPT_2, PanelTask


GRAY = PIL.Image.new("RGB", (64, 64), "gray")

SIZE = {"height": 128, "width": 64}


@pytest.fixture(scope="module")
def pipe(pipe_2):
    return img2img_from(pipe_2)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_upper_half_is_given(pipe):
    codes = pipe("a", GRAY, "depth", **SIZE, generator=seeded(), output_type="latent").images[0]
    assert codes.shape == (16, 8)
    again = pipe("a", codes[:8], "depth", generator=seeded(), output_type="latent").images[0]
    assert torch.equal(codes, again)
    both = pipe("a", None, "depth", **SIZE, generator=seeded(), output_type="latent").images[0]
    assert not torch.equal(both[:8], codes[:8])


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_the_result_is_the_lower_half(pipe, output_type):
    def call(**kwargs):
        output = pipe(
            ["a", "b"], GRAY, "depth", **SIZE, generator=seeded(), output_type=output_type, return_log_probs=True,
            **kwargs,
        )  # fmt: skip
        images = output.images if output_type != "pil" else np.stack([np.asarray(one) for one in output.images])
        return images, output.log_probs

    (whole, log_probs), (result, own) = call(), call(result_only=True)
    axis = {"pil": 1, "np": 1, "pt": 2, "latent": 1}[output_type]
    half = whole.shape[axis] // 2
    lower = whole[:, half:] if axis == 1 else whole[:, :, half:]
    assert (np.asarray(lower) == np.asarray(result)).all()
    assert torch.equal(log_probs[:, 8:], own) and not log_probs[:, :8].any()


def test_arrays_are_of_the_result(pipe):
    output = pipe("a", GRAY, "to_depth", **SIZE, generator=seeded())
    (array,) = output.arrays
    (image,) = output.images
    assert image.size == (64, 128) and array.shape == (64, 64)
    lower = np.asarray(image)[64:].astype(np.float32).mean(axis=-1) / 255
    assert np.allclose(array, lower)


def test_sizes(pipe):
    def size(image, **kwargs):
        (request,) = pipe.prepare("a", image, "depth", **kwargs).requests
        return request.size

    assert size(GRAY) == (192, 96)  # the trained panel of that shape, twice
    assert size(PIL.Image.new("RGB", (200, 100))) == (128, 128)
    assert size(None) == (192, 96)
    assert size(GRAY, height=128, width=32) == (128, 32)
    assert size(torch.zeros(4, 8, dtype=torch.long)) == (64, 64)


def test_a_negative_prompt_sees_the_panel_too(pipe):
    (request,) = pipe.prepare("a", GRAY, "depth", negative_prompt="b", **SIZE).requests
    text = pipe.tokenizer.decode(request.unconditional_context)
    assert text.startswith("<|im_end|>Generate a dual-panel image of 64x128") and "\nb<" in text
    assert (request.codes[:8] >= 0).all()


def test_a_task_of_ones_own(pipe):
    task = PanelTask("{width}x{height}: {prompt}", guidance_scale=2.0, top_k=7)
    call = pipe.prepare("{width} of a", GRAY, task, **SIZE)
    assert "64x128: {width} of a" in pipe.tokenizer.decode(call.requests[0].context)
    assert (call.settings.guidance_scale, call.settings.top_k) == (2.0, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 96}, "`height` has to be divisible by 64, so that each of two panels .* but is 96"),
        ({"prompt": None}, "`prompt` has to be given, for the task"),
        ({"image": [[GRAY, GRAY]]}, "`image` holds 2 images for one prompt, but a task of two panels takes one"),
        ({"size": "free", "height": None, "width": None}, r"`size` has to be one of \[None\] but is 'free'"),
        ({"result_only": 1}, "`result_only` has to be True or False but is 1"),
        ({"task": "edit"}, r"`task` has to be one of \['depth', 'canny', 'hed', 'pose', 'subject', 'to_depth'"),
        ({"task": "{prompt} <|image|>", "result_only": True}, "`result_only` has to be False for the task"),
        (
            {"image": torch.zeros(4, 8, dtype=torch.long)},
            "`height` and `width` have to be 64 and 64, as `image`",
        ),
        ({"image": torch.full((8, 8), 16384)}, "`image` holds VQ codes that are no image"),
    ],
)
def test_bad_arguments_are_refused_by_name(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": "a", "image": GRAY, "task": "depth", **SIZE, **arguments})


def test_both_directions_of_every_map_have_a_task():
    maps = {"depth", "canny", "hed", "pose"}
    assert set(LUMINA_MGPT_2.tasks) == maps | {f"to_{name}" for name in maps} | {"subject"}
    for name in maps:
        to_image, to_map = (LUMINA_MGPT_2.tasks[task].template for task in (name, f"to_{name}"))
        swapped = to_image.replace("upper", "x").replace("lower", "upper").replace("x half", "lower half")
        assert swapped == to_map != to_image
