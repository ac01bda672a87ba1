# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What every pipeline of diffusers keeps to, in the manner of its own pipeline testers.

What has a file of its own (loading, saving, placement, LoRA, streaming, quantisation) is tested there.
"""

import inspect
import re

import pytest
import torch
from conftest import CHECKPOINT, copy_of, load_pipeline
from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.source_code_parsing_utils import ReturnNameVisitor

from lumina_mgpt_diffusers import (
    LuminaMGPTChatPipeline,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTInpaintPipeline,
    LuminaMGPTPipeline,
    LuminaMGPTScheduler,
)


PIPELINES = [LuminaMGPTPipeline, LuminaMGPTImg2ImgPipeline, LuminaMGPTInpaintPipeline, LuminaMGPTChatPipeline]
PROMPT = "A painting of a squirrel eating a burger"
SIZE = {"height": 32, "width": 64}


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def codes_of(pipe, prompt=PROMPT, **kwargs) -> torch.Tensor:
    kwargs = {"generator": torch.Generator().manual_seed(0), "output_type": "latent", **SIZE, **kwargs}
    return pipe(prompt, **kwargs).images


# The call


def test_signature():
    parameters = inspect.signature(LuminaMGPTPipeline.__call__).parameters
    assert list(parameters) == [
        "self",
        "prompt",
        "negative_prompt",
        "height",
        "width",
        "num_inference_steps",
        "guidance_scale",
        "num_images_per_prompt",
        "generator",
        "latents",
        "prompt_token_ids",
        "prompt_attention_mask",
        "negative_prompt_token_ids",
        "negative_prompt_attention_mask",
        "temperature",
        "top_k",
        "output_type",
        "return_dict",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "max_sequence_length",
        "top_p",
        "min_p",
        "num_draft_tokens",
        "draft_init",
        "return_log_probs",
    ]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in list(parameters.values())[1:])


def documented_arguments(method) -> list[str]:
    names, indent = [], None
    for line in method.__doc__.splitlines():
        depth = len(line) - len(line.lstrip())
        if indent is None:
            indent = depth if line.strip() == "Args:" else None
        elif line.strip() and depth <= indent:
            break
        elif depth == indent + 4:
            names += re.findall(r"(\w+) \(\[?`", line)
    return names


@pytest.mark.parametrize("pipeline_class", PIPELINES)
def test_every_argument_is_documented_and_none_is_stale(pipeline_class):
    arguments = list(inspect.signature(pipeline_class.__call__).parameters)[1:]
    assert documented_arguments(pipeline_class.__call__) == arguments


def test_stream_takes_the_arguments_of_a_call():
    call = inspect.signature(LuminaMGPTPipeline.__call__).parameters
    stream = inspect.signature(LuminaMGPTPipeline.stream).parameters
    assert list(stream) == [name for name in call if name != "return_dict"] + ["every"]
    assert all(stream[name].default == call[name].default for name in stream if name in call)


def test_components(random_pipe):
    assert list(random_pipe.components) == ["tokenizer", "transformer", "vqvae", "scheduler"]
    assert set(inspect.signature(LuminaMGPTPipeline.__init__).parameters) == {"self", *random_pipe.components}


def test_dict_and_tuple_are_equal(random_pipe):
    (images,) = random_pipe(PROMPT, **SIZE, generator=seeded(0), output_type="latent", return_dict=False)
    assert torch.equal(images, codes_of(random_pipe))
    assert torch.equal(random_pipe(PROMPT, **SIZE, generator=seeded(0), output_type="latent")[0], images)


def test_a_batch_of_unequal_prompts_is_each_of_them_alone(random_pipe):
    prompts = [PROMPT, PROMPT[:5], 20 * "very long "]
    batch = codes_of(random_pipe, prompts, generator=seeded(0, 1, 2))
    for index, prompt in enumerate(prompts):
        assert torch.equal(batch[index : index + 1], codes_of(random_pipe, prompt, generator=seeded(index)))


@pytest.mark.parametrize("num_prompts", [1, 2])
@pytest.mark.parametrize("num_images_per_prompt", [1, 2])
def test_num_images_per_prompt(random_pipe, num_prompts, num_images_per_prompt):
    prompts = ["a cat", "a red fox"][:num_prompts]
    generators = seeded(*range(num_prompts * num_images_per_prompt))
    codes = codes_of(random_pipe, prompts, generator=generators, num_images_per_prompt=num_images_per_prompt)
    assert len(codes) == len(generators)
    # The images of a prompt follow one another.
    repeated = [prompt for prompt in prompts for _ in range(num_images_per_prompt)]
    generators = seeded(*range(len(generators)))
    assert torch.equal(codes, codes_of(random_pipe, repeated, generator=generators))


def test_one_generator_draws_for_one_image_after_the_other(random_pipe):
    generator = torch.Generator().manual_seed(0)
    batch = codes_of(random_pipe, num_images_per_prompt=2, generator=generator)
    generator = torch.Generator().manual_seed(0)
    alone = [codes_of(random_pipe, generator=generator) for _ in range(2)]
    assert torch.equal(batch, torch.cat(alone))


def test_guidance_changes_the_image_but_not_its_shape(random_pipe):
    plain, guided = (codes_of(random_pipe, guidance_scale=scale) for scale in (1.0, 7.5))
    assert plain.shape == guided.shape and not torch.equal(plain, guided)


def test_common_arguments_of_other_pipelines_are_taken(random_pipe):
    images = random_pipe(
        prompt=PROMPT,
        negative_prompt="blurry",
        num_inference_steps=28,
        guidance_scale=5.0,
        num_images_per_prompt=1,
        generator=torch.Generator().manual_seed(0),
        output_type="pil",
        **SIZE,
    ).images
    assert images[0].size == (64, 32)


# Callbacks


def test_callbacks_get_what_they_ask_for(random_pipe):
    def check(pipe, step, timestep, kwargs):
        assert kwargs.keys() == {"latents"} == set(pipe._callback_tensor_inputs)
        return kwargs

    names = random_pipe._callback_tensor_inputs
    codes = codes_of(random_pipe, callback_on_step_end=check, callback_on_step_end_tensor_inputs=names)
    assert torch.equal(codes, codes_of(random_pipe))


def test_callback_changes_the_last_latents(random_pipe):
    def change(pipe, step, timestep, kwargs):
        if step == pipe.num_timesteps - 1:
            kwargs["latents"] = torch.zeros_like(kwargs["latents"])
        return kwargs

    assert not codes_of(random_pipe, callback_on_step_end=change).any()


def test_callback_raises_guidance_at_every_step(random_pipe):
    def raise_guidance(pipe, step, timestep, kwargs):
        pipe._guidance_scale += 1.0
        return kwargs

    codes_of(random_pipe, guidance_scale=2.0, callback_on_step_end=raise_guidance)
    assert random_pipe.guidance_scale == 2.0 + random_pipe.num_timesteps


# Prompts


def test_encode_prompt_works_in_isolation(random_pipe):
    tokenizer = random_pipe.tokenizer
    alone = LuminaMGPTPipeline(tokenizer=tokenizer, transformer=None, vqvae=None, scheduler=None)
    outputs = alone.encode_prompt(PROMPT, negative_prompt="blurry", **SIZE)
    visitor = ReturnNameVisitor()
    visitor.visit(visitor.get_ast_tree(cls=LuminaMGPTPipeline))
    assert set(visitor.return_names) <= set(inspect.signature(LuminaMGPTPipeline.__call__).parameters)
    rest = LuminaMGPTPipeline(**{**random_pipe.components, "tokenizer": None})
    rest.set_progress_bar_config(disable=True)
    kwargs = dict(zip(visitor.return_names, outputs))
    codes = codes_of(rest, None, **kwargs)
    assert torch.equal(codes, codes_of(random_pipe, negative_prompt="blurry"))
    with pytest.raises(ValueError, match="`height` and `width` have to be given"):
        alone.encode_prompt(PROMPT)


# Schedulers


def test_schedulers_are_swapped_by_their_configuration(random_pipe, with_sampler):
    before = codes_of(random_pipe, top_k=1)
    with_sampler(random_pipe, top_k=1)
    assert type(random_pipe.scheduler) is LuminaMGPTScheduler
    assert torch.equal(codes_of(random_pipe), before)


def test_unknown_values_of_a_scheduler_are_handled_as_diffusers_does(random_pipe):
    config = {**random_pipe.scheduler.config, "shift": 3.0}
    scheduler = LuminaMGPTScheduler.from_config(config)
    assert "shift" not in scheduler.config or scheduler.config["shift"] == 3.0
    scheduler, unused = LuminaMGPTScheduler.from_config(
        random_pipe.scheduler.config, return_unused_kwargs=True, shift=3.0
    )
    assert unused["shift"] == 3.0
    assert isinstance(scheduler, SchedulerMixin) and scheduler.order == 1


def test_a_scheduler_of_diffusers_does_not_fit(random_pipe):
    from diffusers import FlowMatchEulerDiscreteScheduler

    # It has its own settings, none of which mean anything here, and the defaults of ours.
    scheduler = LuminaMGPTScheduler.from_config(FlowMatchEulerDiscreteScheduler().config)
    assert scheduler.config.guidance_scale == 4.0


# Modules


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_to_dtype(random_pipe, dtype):
    pipe = copy_of(random_pipe).to(dtype=dtype)
    assert pipe.dtype == pipe.transformer.dtype == pipe.vqvae.dtype == dtype


def test_the_class_is_one_of_diffusers():
    import diffusers

    for pipeline_class in PIPELINES:
        assert getattr(diffusers, pipeline_class.__name__) is pipeline_class
        assert issubclass(pipeline_class, DiffusionPipeline)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_on_the_gpu(dtype):
    pipe = load_pipeline(CHECKPOINT, dtype=dtype).to("cuda")
    images = pipe(PROMPT, **SIZE, generator=seeded(0), output_type="pt").images
    assert images.isfinite().all()
    codes = codes_of(pipe)
    assert torch.equal(codes, codes_of(pipe))
    # A generator of the GPU is as good as one of the CPU.
    codes_of(pipe, generator=torch.Generator("cuda").manual_seed(0))
