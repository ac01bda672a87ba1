# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The nodes of ComfyUI: they fit its schema, make what the pipelines make, show it, and can be cancelled."""

import sys
from types import SimpleNamespace

import pytest
import torch
from comfyui import Interrupted, Server, load_nodes
from conftest import CHECKPOINT, VQGAN

from lumina_mgpt_diffusers import (
    LUMINA_MGPT,
    LuminaMGPTChatPipeline,
    LuminaMGPTConversation,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTPipeline,
)


PROMPT = "a red fox in the snow"
CALL = {"prompt": PROMPT, "height": 64, "width": 32, "seed": 3}


@pytest.fixture(params=["written down", "published"])
def comfy(request, saved_folder, monkeypatch) -> SimpleNamespace:
    server, nodes = load_nodes(request.param, saved_folder.parent, monkeypatch)
    return SimpleNamespace(server=server, **{node.define_schema().node_id: node for node in nodes})


def loaded(pipe) -> object:
    return sys.modules["lumina_mgpt_nodes.nodes"].LoadedModel(pipe, is_offloaded=False)


@pytest.fixture
def model(comfy, random_pipe) -> object:
    return loaded(random_pipe)


@pytest.fixture(scope="module")
def pocket() -> LuminaMGPTPipeline:
    return LuminaMGPTPipeline.from_pretrained("pocket", dtype=torch.float32)


@pytest.fixture(autouse=True)
def quiet(monkeypatch) -> None:
    monkeypatch.setattr("diffusers.DiffusionPipeline._progress_bar_config", {"disable": True}, raising=False)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(arrays: object) -> torch.Tensor:
    return torch.from_numpy((arrays * 255).round().astype("uint8")).float() / 255


def test_schemas(comfy):
    nodes = {name: node for name, node in vars(comfy).items() if not isinstance(node, Server)}
    assert sorted(nodes) == ["LuminaMGPTChat", "LuminaMGPTLoad", "LuminaMGPTTask", "LuminaMGPTTextToImage"]
    for node in nodes.values():
        schema = node.define_schema()
        assert schema.display_name and schema.description and schema.category == "Lumina-mGPT"
        arguments = node.execute.__func__.__code__
        names = arguments.co_varnames[1 : arguments.co_argcount]
        assert {one.id for one in schema.inputs} == set(names)
        if hasattr(node, "GET_SCHEMA"):  # of the published schema: what it tells the browser
            node.VALIDATE_CLASS()
            info = node.GET_SCHEMA().get_v1_info(node)
            assert info.input["required"].keys() | info.input.get("optional", {}).keys() == set(names)


def test_loading_makes_room(comfy, saved_folder):
    (model,) = comfy.server.run(comfy.LuminaMGPTLoad, model=saved_folder.name, dtype="float32")
    assert comfy.server.num_unloads == 1
    assert model.pipe.transformer.dtype == torch.float32


def test_loading_says_what_files_leave_open(comfy):
    call = {"model": str(CHECKPOINT), "original_vqgan": str(VQGAN), "dtype": "float32", "base_size": 64}
    (model,) = comfy.server.run(comfy.LuminaMGPTLoad, family="lumina-mgpt", original_tokenizer=str(CHECKPOINT), **call)
    assert model.pipe.family is LUMINA_MGPT and model.pipe.transformer.config.model_family == "lumina-mgpt"
    assert model.pipe.scheduler.config.resolution == 64
    with pytest.raises(ValueError, match="`original_tokenizer`"):
        comfy.server.run(comfy.LuminaMGPTLoad, original_tokenizer="nowhere", **call)


def test_text_to_image(comfy, model, random_pipe):
    wanted = random_pipe(PROMPT, height=64, width=32, generator=seeded(), num_images_per_prompt=2, output_type="np")
    (images,) = comfy.server.run(comfy.LuminaMGPTTextToImage, model=model, batch_size=2, preview_rows=1, **CALL)
    assert images.shape == (2, 64, 32, 3) and images.dtype == torch.float32
    assert torch.equal(images, images_of(wanted.images))
    progress = comfy.server.progress
    assert [value for value, *_ in progress] == sorted(value for value, *_ in progress) and progress[-1][:2] == (4, 4)
    previews = [preview for *_, preview in progress]
    assert previews[-1] is None and previews[0].size == (32, 64)


@pytest.mark.parametrize("name", ["random_pipe", "pipe_2", "pocket"])
def test_defaults_are_those_of_the_model(comfy, request, name):
    pipe = request.getfixturevalue(name)
    wanted = pipe(PROMPT, generator=seeded(), output_type="np").images
    (images,) = comfy.server.run(
        comfy.LuminaMGPTTextToImage, model=loaded(pipe), prompt=PROMPT, seed=3, preview_rows=0
    )
    assert torch.equal(images, images_of(wanted))


def test_settings(comfy, model, random_pipe):
    settings = {"guidance_scale": 0.0, "temperature": 0.5, "top_k": 0, "top_p": 0.7}
    wanted = random_pipe(PROMPT, height=64, width=32, generator=seeded(), output_type="np", **settings).images
    (images,) = comfy.server.run(comfy.LuminaMGPTTextToImage, model=model, preview_rows=0, **CALL, **settings)
    assert torch.equal(images, images_of(wanted))


def test_without_previews(comfy, model):
    comfy.server.run(comfy.LuminaMGPTTextToImage, model=model, preview_rows=0, **CALL)
    assert comfy.server.progress[-1][:3] == (4, 4, "7")
    assert not any(preview for *_, preview in comfy.server.progress)


def test_cancelling(comfy, model, count_forwards):
    comfy.server.cancel_at = 1
    with count_forwards(model.pipe.transformer) as forwards, pytest.raises(Interrupted):
        comfy.server.run(comfy.LuminaMGPTTextToImage, model=model, preview_rows=1, **CALL)
    assert 0 < len(forwards) < 9
    comfy.server.cancel_at = None
    comfy.server.run(comfy.LuminaMGPTTextToImage, model=model, **CALL)


def test_tasks(comfy, model, random_pipe):
    image = torch.rand(2, 96, 96, 3, generator=seeded())
    (images,) = comfy.server.run(comfy.LuminaMGPTTask, model=model, image=image, task="depth", seed=3)
    pipe = LuminaMGPTImg2ImgPipeline.from_pipe(random_pipe)
    pil = [pipe.image_processor.numpy_to_pil(one.numpy())[0] for one in image]
    wanted = pipe(image=pil, task="depth", generator=seeded(), output_type="np").images
    assert torch.equal(images, images_of(wanted))
    with pytest.raises(ValueError, match="`prompt` has to be given"):
        comfy.server.run(comfy.LuminaMGPTTask, model=model, image=image, task="edit")
    with pytest.raises(ValueError, match="`image` has to be given"):
        comfy.server.run(comfy.LuminaMGPTTask, model=model, prompt="a", task="edit")


@pytest.mark.parametrize("has_image, result_only", [(True, False), (True, True), (False, True)])
def test_panels(comfy, pipe_2, has_image, result_only):
    image = torch.rand(1, 96, 96, 3, generator=seeded()) if has_image else None
    call = {"prompt": PROMPT, "task": "depth", "height": 64, "width": 32, "result_only": result_only}
    given = {"image": image} if has_image else {}
    (images,) = comfy.server.run(comfy.LuminaMGPTTask, model=loaded(pipe_2), seed=3, preview_rows=4, **call, **given)
    pipe = LuminaMGPTImg2ImgPipeline.from_pipe(pipe_2)
    pil = pipe.image_processor.numpy_to_pil(image.numpy()) if has_image else None
    wanted = pipe(image=pil, generator=seeded(), output_type="np", **call).images
    assert images.shape == (1, 32 if result_only else 64, 32, 3)
    assert torch.equal(images, images_of(wanted))


def test_chat(comfy, model, random_pipe):
    call = {"model": model, "max_new_tokens": 12}
    text, images, conversation = comfy.server.run(comfy.LuminaMGPTChat, message="Hello.", seed=3, **call)
    pipe = LuminaMGPTChatPipeline.from_pipe(random_pipe)
    wanted = pipe("Hello.", conversation=LuminaMGPTConversation(), generator=seeded(), max_new_tokens=12)
    assert text == wanted.text and len(images if isinstance(images, list) else []) == len(wanted.images)
    before = list(conversation.token_ids)
    picture = torch.rand(1, 32, 32, 3, generator=seeded())
    _, _, later = comfy.server.run(
        comfy.LuminaMGPTChat, message="And this?", images=picture, conversation=conversation, seed=4, **call
    )
    assert later.token_ids[: len(before)] == before and conversation.token_ids == before
