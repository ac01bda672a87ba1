# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Wherever the components are and in whatever pipeline, the images are the same."""

import pytest
import torch
from accelerate import disk_offload
from accelerate.hooks import CpuOffload
from conftest import CHECKPOINT, copy_of, load_pipeline
from diffusers import AutoPipelineForText2Image, DiffusionPipeline

from lumina_mgpt_diffusers import (
    LuminaMGPTChatPipeline,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTPipeline,
    LuminaMGPTScheduler,
)


def run(pipe, output_type: str = "latent") -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat", height=32, width=32, generator=generator, output_type=output_type).images.cpu()


@pytest.fixture(scope="module")
def expected(random_pipe) -> dict[str, torch.Tensor]:
    return {output_type: run(random_pipe, output_type) for output_type in ("latent", "pt")}


@pytest.fixture
def pipe(random_pipe) -> LuminaMGPTPipeline:
    return copy_of(random_pipe)


@pytest.fixture(scope="module")
def in_bfloat16() -> LuminaMGPTPipeline:
    return load_pipeline(CHECKPOINT, dtype=torch.bfloat16)


def check(pipe, expected: dict[str, torch.Tensor], **tolerance: float) -> None:
    # Twice: what a call leaves behind may not spoil the next.
    for output_type, images in expected.items():
        torch.testing.assert_close(run(pipe, output_type), images, **tolerance)


@pytest.mark.parametrize("device_map", ["cpu", "balanced"])
def test_device_map(saved_folder, expected, device_map):
    check(LuminaMGPTPipeline.from_pretrained(saved_folder, device_map=device_map), expected)


def test_model_cpu_offload(pipe, expected):
    pipe.enable_model_cpu_offload(device="cpu")
    check(pipe, expected)
    assert isinstance(pipe.transformer._hf_hook, CpuOffload) and isinstance(pipe.vqvae._hf_hook, CpuOffload)
    for step in pipe.stream("a cat", height=32, width=32):
        step.preview()
    check(pipe, expected)


def test_weights_that_are_nowhere_between_calls(pipe, expected, tmp_path):
    # The hooks of `enable_sequential_cpu_offload`, which needs another device to run on: outside of its own forward a
    # layer has no weights, so nothing may be computed from them there.
    disk_offload(pipe.transformer, tmp_path, execution_device=torch.device("cpu"))
    assert pipe.transformer.lm_head.weight.device.type == "meta"
    check(pipe, expected)


@pytest.mark.parametrize(
    "kwargs",
    [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}],
    ids=lambda kwargs: kwargs["offload_type"],
)
def test_group_offload(pipe, expected, kwargs):
    pipe.enable_group_offload(onload_device=torch.device("cpu"), exclude_modules=["vqvae"], **kwargs)
    check(pipe, expected)


def test_cast_to_bfloat16_and_back(pipe, in_bfloat16):
    pipe.to(torch.bfloat16)
    assert pipe.transformer.dtype == pipe.vqvae.dtype == torch.bfloat16
    assert pipe.transformer.model.rotary_emb.inv_freq.dtype == torch.float32
    torch.testing.assert_close(run(pipe), run(in_bfloat16), rtol=0, atol=0)


def test_components_of_a_pipeline_make_another(pipe, expected):
    check(LuminaMGPTPipeline(**pipe.components), expected)
    assert set(pipe.components) == {"tokenizer", "transformer", "vqvae", "scheduler"}


@pytest.mark.parametrize("other", [LuminaMGPTImg2ImgPipeline, LuminaMGPTChatPipeline])
def test_from_pipe(other, in_bfloat16):
    pipe = copy_of(in_bfloat16)
    before = run(pipe)
    there = other.from_pipe(pipe)
    assert type(there) is other
    back = LuminaMGPTPipeline.from_pipe(there, scheduler=LuminaMGPTScheduler(resolution=64))
    assert all(getattr(back, name) is getattr(pipe, name) for name in ("tokenizer", "transformer", "vqvae"))
    assert back.scheduler.config.resolution == 64
    # diffusers by itself would have cast the modules of all three to float32.
    assert pipe.transformer.dtype == torch.bfloat16
    torch.testing.assert_close(run(back), before, rtol=0, atol=0)
    cast = LuminaMGPTPipeline.from_pipe(back, dtype=torch.float32)
    assert cast.transformer.dtype == torch.float32


def test_from_pipe_of_diffusers_classes(pipe, expected):
    check(AutoPipelineForText2Image.from_pipe(pipe), expected)
    check(AutoPipelineForText2Image.from_pipe(LuminaMGPTImg2ImgPipeline.from_pipe(pipe)), expected)


def test_attention_slicing_changes_nothing(pipe, expected):
    pipe.enable_attention_slicing()
    check(pipe, expected, atol=1e-5, rtol=0)
    pipe.disable_attention_slicing()


def test_group_offload_of_the_vqvae_is_refused(pipe):
    with pytest.raises(ValueError, match="VQModel does not support group offloading"):
        pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


# Other kernels than on the CPU: the same codes are compared within the device.


@pytest.fixture
def on_gpu(random_pipe) -> tuple[LuminaMGPTPipeline, dict[str, torch.Tensor]]:
    pipe = copy_of(random_pipe).to("cuda")
    return copy_of(random_pipe), {output_type: run(pipe, output_type) for output_type in ("latent", "pt")}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("method", "kwargs"),
    [
        ("to", {"torch_device": "cuda"}),
        ("enable_model_cpu_offload", {}),
        ("enable_sequential_cpu_offload", {}),
        (
            "enable_group_offload",
            {"onload_device": torch.device("cuda"), "offload_type": "leaf_level", "exclude_modules": ["vqvae"]},
        ),
        (
            "enable_group_offload",
            {
                "onload_device": torch.device("cuda"),
                "offload_type": "block_level",
                "num_blocks_per_group": 1,
                "use_stream": True,
                "exclude_modules": ["vqvae"],
            },
        ),
    ],
    ids=["to", "model", "sequential", "group-leaf", "group-block-stream"],
)
def test_offload_on_the_gpu(on_gpu, method, kwargs):
    pipe, expected = on_gpu
    if method == "to":
        pipe.to("cuda")
    else:
        getattr(pipe, method)(**kwargs)
    check(pipe, expected, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("device_map", ["cuda", "balanced"])
def test_device_map_on_the_gpu(on_gpu, saved_folder, device_map):
    pipe = DiffusionPipeline.from_pretrained(saved_folder, device_map=device_map)
    check(pipe, on_gpu[1], atol=1e-4, rtol=0)
