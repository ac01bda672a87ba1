# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Models of another VQ stride and base size need no change of code."""

import numpy as np
import pytest
import torch
from diffusers import VQModel
from omni import chat_from, img2img_from

from lumina_mgpt_diffusers import (
    LuminaMGPTInpaintPipeline,
    LuminaMGPTPipeline,
)


IMAGE = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def pipe(trained_pipe):
    """With codes of 8x8 pixels."""
    config = {name: value for name, value in trained_pipe.vqvae.config.items() if name[0] != "_"}
    for name in ("block_out_channels", "down_block_types", "up_block_types"):
        config[name] = config[name][:4]
    with torch.random.fork_rng():
        vqvae = VQModel.from_config(config)
    components = {**trained_pipe.components, "vqvae": vqvae}
    return LuminaMGPTPipeline(**components)


@pytest.mark.parametrize("num_draft_tokens", [0, 7])
def test_text_to_image_of_stride_8(pipe, num_draft_tokens):
    def call(prompt, **kwargs):
        return pipe(
            prompt, height=32, width=64, generator=seeded(), num_draft_tokens=num_draft_tokens, **kwargs
        ).images

    codes = call("a", output_type="latent")
    assert codes.shape == (1, 4, 8)
    assert torch.equal(call(["a", "b"], output_type="latent")[:1], codes)
    assert call("a", latents=codes)[0].size == (64, 32)


def test_images_in_of_stride_8(pipe):
    (codes,) = pipe.encode_image(IMAGE)
    assert codes.shape == (12, 12)
    edited = img2img_from(pipe)(image=IMAGE, task="depth", height=32, width=64).images[0]
    assert edited.size == (64, 32)
    mask = np.zeros((96, 96), dtype=bool)
    mask[8:16, :9] = True
    inpaint = LuminaMGPTInpaintPipeline(**pipe.components)
    after = inpaint("a", IMAGE, mask, output_type="latent", generator=seeded()).images[0]
    changed = (after != codes).nonzero().tolist()
    assert changed and all(cell in ([1, 0], [1, 1]) for cell in changed)
    answer = chat_from(pipe)("What is it? <|image|>", images=IMAGE, max_new_tokens=2)
    image = pipe.image_vocabulary.to_tokens(codes).tolist()
    assert len(image) == 12 * 13 + 4 and " ".join(map(str, image)) in " ".join(map(str, answer.conversation.token_ids))


def test_a_base_size_of_1536(trained_pipe, with_sampler):
    with_sampler(trained_pipe, resolution=1536)
    pipe = LuminaMGPTPipeline(**trained_pipe.components)
    assert pipe.encode_prompt("a")[4:] == (1536, 1536)
    latents = torch.zeros(1, 96, 96, dtype=torch.long)
    assert pipe("a", latents=latents, output_type="latent").images.shape == (1, 96, 96)
    assert pipe("a", height=32, width=32, output_type="latent").images.shape == (1, 2, 2)
