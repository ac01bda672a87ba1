# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Blocks of diffusers' modular pipelines: the same images as the pipelines, from the same folders."""

import inspect
import os
import shutil
import subprocess
import sys

import diffusers
import PIL.Image
import pytest
import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks
from hub_server import HubServer
from omni import modular_from

from lumina_mgpt_diffusers import (
    LuminaMGPTAutoBlocks,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTModularPipeline,
    LuminaMGPTPipeline,
)
from lumina_mgpt_diffusers.modular import LuminaMGPTDecodeStep, LuminaMGPTSampleStep, LuminaMGPTTextToImagePrepareStep


PROMPT = "a red fox in the snow"
CALL = {"height": 32, "width": 64}
GRAY = PIL.Image.new("RGB", (64, 64), "gray")

WITHOUT_IMPORT = """
import sys
import torch
from diffusers import ModularPipeline

for source in sys.argv[1:]:
    pipe = ModularPipeline.from_pretrained(source, trust_remote_code=True)
    pipe.load_components()
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 32, "width": 64, "generator": torch.Generator().manual_seed(0)}
    print(type(pipe).__name__, pipe(prompt="a red fox in the snow", output="latents", **call).flatten().tolist())
"""


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def expected(random_pipe) -> torch.Tensor:
    return random_pipe(PROMPT, generator=seeded(), output_type="pt", **CALL).images


@pytest.fixture(scope="module")
def modular_folder(random_pipe, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("modular") / "pipeline")
    pipe = modular_from(random_pipe)
    pipe.save_pretrained(folder, overwrite_modular_index=True)
    pipe.blocks.save_pretrained(folder)
    return folder


def test_text_to_image(random_pipe, expected):
    state = modular_from(random_pipe)(prompt=PROMPT, generator=seeded(), output_type="pt", **CALL)
    assert torch.equal(state.images, expected)
    assert state.latents.shape == (1, 2, 4)
    assert state.log_probs is None


def test_lumina_mgpt_2(pipe_2):
    call = {"prompt": PROMPT, "output_type": "pt", **CALL}
    wanted = pipe_2(generator=seeded(), **call).images
    assert torch.equal(modular_from(pipe_2)(generator=seeded(), output="images", **call), wanted)


def test_settings_are_those_of_the_pipeline(random_pipe):
    settings = {"negative_prompt": "blurry", "guidance_scale": 3.0, "top_k": 50, "num_images_per_prompt": 2}
    settings |= {"return_log_probs": True, "output_type": "latent"}
    wanted = random_pipe([PROMPT, "a hill"], generator=seeded(), **settings, **CALL)
    state = modular_from(random_pipe)(prompt=[PROMPT, "a hill"], generator=seeded(), **settings, **CALL)
    assert torch.equal(state.images, wanted.images) and torch.equal(state.log_probs, wanted.log_probs)


def test_given_codes_are_kept(random_pipe):
    codes = torch.full((1, 2, 4), -1)
    codes[:, 0] = torch.tensor([5, 6, 7, 8])
    made = modular_from(random_pipe)(prompt=PROMPT, latents=codes, generator=seeded(), output="latents")
    assert made[0, 0].tolist() == [5, 6, 7, 8] and (made[0, 1] >= 0).all()


def test_image_to_image(random_pipe, expected):
    pipe = LuminaMGPTImg2ImgPipeline.from_pipe(random_pipe)
    pipe.set_progress_bar_config(disable=True)
    call = {"image": expected, "task": "depth", "output_type": "np", **CALL}
    wanted = pipe(generator=seeded(), **call)
    state = modular_from(random_pipe)(generator=seeded(), **call)
    assert (state.images == wanted.images).all()
    assert (state.arrays[0] == wanted.arrays[0]).all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"image": GRAY, "task": "depth"},
        {"image": GRAY, "task": "to_depth", "result_only": True},
        {"task": "to_depth"},  # both panels are sampled
    ],
)
def test_panels(pipe_2, arguments):
    pipe = LuminaMGPTImg2ImgPipeline.from_pipe(pipe_2)
    pipe.set_progress_bar_config(disable=True)
    arguments |= {"prompt": "a", "height": 64, "width": 32, "output_type": "np", "return_log_probs": True}
    wanted = pipe(generator=seeded(), **arguments)
    state = modular_from(pipe_2)(generator=seeded(), **arguments)
    assert (state.images == wanted.images).all() and torch.equal(state.log_probs, wanted.log_probs)
    assert (state.arrays is None) == (wanted.arrays is None)
    assert wanted.arrays is None or (state.arrays[0] == wanted.arrays[0]).all()


def test_callbacks_and_the_progress_bar(random_pipe, capsys):
    seen = []
    pipe = modular_from(random_pipe)
    pipe.set_progress_bar_config(disable=False)
    pipe(prompt=PROMPT, callback_on_step_end=lambda pipe, step, *rest: seen.append(step) or {}, **CALL)
    assert seen[-1] == 7
    assert "8/8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompt": 5}, "`prompt` has to be a string"),
        ({"prompt": PROMPT, "height": 50}, "divisible by 32"),
        ({"prompt": PROMPT, "top_k": -1}, "`top_k`"),
        ({"image": [], "prompt": PROMPT}, "`image` has to hold"),
        ({"task": "edit", "prompt": PROMPT}, "`image` has to be given"),
    ],
)
def test_wrong_arguments(random_pipe, count_forwards, call, message):
    with count_forwards(random_pipe.transformer) as forwards, pytest.raises(ValueError, match=message):
        modular_from(random_pipe)(**call)
    assert not len(forwards)


class Greedy(ModularPipelineBlocks):
    """Has every second image sampled without noise."""

    @property
    def inputs(self):
        return [InputParam("call", required=True)]

    def __call__(self, components, state):
        for request in state.call.requests[::2]:
            request.settings = request.settings.__class__(**{**vars(request.settings), "top_k": 1})
        return components, state


def test_a_block_in_between_changes_requests(random_pipe):
    blocks = LuminaMGPTAutoBlocks()
    blocks.sub_blocks.insert("greedy", Greedy(), 1)
    pipe = blocks.init_pipeline()
    pipe.update_components(**random_pipe.components)
    pipe.set_progress_bar_config(disable=True)
    call = {"output_type": "latent", **CALL}
    greedy = random_pipe(PROMPT, top_k=1, **call).images[0]
    drawn = random_pipe(PROMPT, num_images_per_prompt=2, generator=seeded(), **call).images[1]
    made = pipe(prompt=PROMPT, num_images_per_prompt=2, generator=seeded(), output="images", **call)
    assert torch.equal(made[0], greedy) and torch.equal(made[1], drawn)


def test_steps_one_by_one(random_pipe, expected):
    state = None
    for block in (LuminaMGPTTextToImagePrepareStep(), LuminaMGPTSampleStep(), LuminaMGPTDecodeStep()):
        pipe = block.init_pipeline()
        pipe.update_components(**{name: random_pipe.components[name] for name in pipe.component_names})
        arguments = {} if state else {"prompt": PROMPT, "generator": seeded(), "output_type": "pt", **CALL}
        state = pipe(state=state, **arguments)
    assert torch.equal(state.images, expected)


def test_a_workflow_and_what_is_documented():
    blocks = LuminaMGPTAutoBlocks()
    text = blocks.get_workflow("text2image")
    assert list(text.sub_blocks) == ["prepare.encode_prompt", "prepare.prepare", "sample", "decode"]
    assert list(blocks.get_workflow("image2image").sub_blocks) == ["prepare", "sample", "decode"]
    for one in (blocks, text, *text.sub_blocks.values()):
        assert all(parameter.description for parameter in one.inputs)
        assert "TODO" not in one.doc


@pytest.mark.parametrize(
    ("workflow", "pipeline_class"),
    [("text2image", LuminaMGPTPipeline), ("image2image", LuminaMGPTImg2ImgPipeline)],
)
def test_arguments_are_those_of_the_pipelines(workflow, pipeline_class):
    arguments = inspect.signature(pipeline_class.__call__).parameters.keys() - {"self", "return_dict"}
    encoded = {f"{name}prompt_{kind}" for name in ("", "negative_") for kind in ("token_ids", "attention_mask")}
    assert set(LuminaMGPTAutoBlocks().get_workflow(workflow).input_names) == arguments - encoded


def test_from_the_folder_of_any_pipeline(saved_folder, expected):
    pipe = ModularPipeline.from_pretrained(str(saved_folder))
    assert type(pipe) is LuminaMGPTModularPipeline is diffusers.LuminaMGPTModularPipeline
    pipe.load_components(dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(pipe(prompt=PROMPT, generator=seeded(), output_type="pt", output="images", **CALL), expected)


def test_from_a_folder_and_a_hub_without_import(random_pipe, modular_folder, tmp_path):
    codes = random_pipe(PROMPT, generator=seeded(), output_type="latent", **CALL).images.flatten().tolist()
    repository = shutil.copytree(modular_folder, tmp_path / "repository")
    index = repository / "modular_model_index.json"
    index.write_text(index.read_text().replace(modular_folder, "tiny/modular"))  # as it is pushed
    with HubServer({"tiny/modular": {"main": repository}}) as server:
        process = subprocess.run(
            [sys.executable, "-c", WITHOUT_IMPORT, modular_folder, "tiny/modular"],
            env={**os.environ, **server.environment(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert process.stdout.splitlines() == [f"LuminaMGPTModularPipeline {codes}"] * 2, process.stderr[-3000:]
