# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The pocket model, which is part of the package: by name, by path and by every route, without a download."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from transformers import ChameleonConfig

import lumina_mgpt_diffusers
from lumina_mgpt_diffusers import (
    LUMINA_MGPT_POCKET,
    POCKET,
    LuminaMGPTChatPipeline,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTInpaintPipeline,
    LuminaMGPTPipeline,
    estimate_memory,
)
from lumina_mgpt_diffusers.cli import main
from lumina_mgpt_diffusers.lumina_mgpt.families import find_family
from lumina_mgpt_diffusers.original import convert_diffusers_to_original
from lumina_mgpt_diffusers.shipped import model_source
from lumina_mgpt_diffusers.training.arguments import LoraArguments
from lumina_mgpt_diffusers.training.sources import dtype_on_disk, load_pipeline


SMALL = {"height": 32, "width": 64}

LIGHT = {"transformer": None, "vqvae": None}
"""What of a pipeline is not loaded where only its class and settings matter."""


@pytest.fixture(scope="module", autouse=True)
def offline():
    """Nothing may be asked of the Hub."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args, **kwargs):
            raise AssertionError("The Hub was asked.")

        for name in ("lumina_mgpt_diffusers.original.files.model_info", "huggingface_hub.snapshot_download"):
            patch.setattr(name, refuse)
        yield


@pytest.fixture(scope="module")
def pocket() -> LuminaMGPTPipeline:
    pipe = LuminaMGPTPipeline.from_pretrained("pocket", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_it_is_in_the_package_and_small(pocket):
    assert Path(POCKET).parent == Path(lumina_mgpt_diffusers.__file__).parent
    assert sum(path.stat().st_size for path in Path(POCKET).rglob("*") if path.is_file()) <= 12_000_000
    assert pocket.family is LUMINA_MGPT_POCKET and pocket.transformer.config.model_family == "pocket"
    assert pocket.vqvae.config.num_vq_embeddings == LUMINA_MGPT_POCKET.num_codes
    assert sum(weight.numel() for weight in pocket.vqvae.parameters()) == LUMINA_MGPT_POCKET.vq_parameters
    assert pocket.scheduler.config.resolution == LUMINA_MGPT_POCKET.base_size


def test_what_it_says_of_itself():
    text = (Path(POCKET) / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in text and 'from_pretrained("pocket")' in text
    for heading in ("Data", "Recipe", "Figures", "Limits"):
        assert f"\n## {heading}\n" in text
    assert "| counting |" in text and "Not measured yet." not in text


@pytest.mark.parametrize(
    "pipeline_class", [LuminaMGPTImg2ImgPipeline, LuminaMGPTInpaintPipeline, LuminaMGPTChatPipeline]
)
def test_by_its_name_in_every_pipeline(pipeline_class):
    pipe = pipeline_class.from_pretrained("pocket", vqvae=None)
    assert type(pipe) is pipeline_class and pipe.family is LUMINA_MGPT_POCKET


def test_by_its_path_in_the_libraries():
    for loader in (DiffusionPipeline, AutoPipelineForText2Image):
        assert type(loader.from_pretrained(POCKET, **LIGHT)) is LuminaMGPTPipeline


def test_drafts_change_nothing(pocket):
    codes = [
        pocket("a red ball", **SMALL, generator=seeded(), num_draft_tokens=number, output_type="latent").images
        for number in (0, 7, "auto")
    ]
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])


def test_a_folder_of_that_name(pocket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pocket").mkdir()
    assert model_source("pocket") == POCKET  # a folder without a model is none
    shutil.copytree(POCKET, "pocket", dirs_exist_ok=True)
    (config,) = Path("pocket").glob("scheduler/scheduler_config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"top_k": 7}))
    assert LuminaMGPTPipeline.from_pretrained("pocket", **LIGHT).scheduler.config.top_k == 7
    packaged = LuminaMGPTPipeline.from_pretrained(POCKET, **LIGHT)
    assert packaged.scheduler.config.top_k == pocket.scheduler.config.top_k
    assert model_source("./pocket") == "./pocket" and model_source(Path("pocket")) == Path("pocket")


def test_commands_without_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["generate", "a red ball", "--height", "32", "--width", "32", "-o", "ball.png"])
    image = PIL.Image.open("ball.png")
    assert image.size == (32, 32) and json.loads(image.text["parameters"])["model"] == "pocket"
    image.resize((192, 192)).save("toys.png")
    main(["edit", "toys.png", "--height", "32", "--width", "32", "-o", "depth.png"])
    assert np.load("depth.npy").shape == (32, 32)
    main(["memory"])
    assert capsys.readouterr().out.count("GiB") == 5
    for command in ("generate", "edit", "chat", "app", "serve", "batch", "memory"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "default: pocket" in " ".join(capsys.readouterr().out.split())


def test_training_starts_from_it():
    arguments = LoraArguments(pretrained_model_name_or_path="pocket")
    assert dtype_on_disk(arguments) == "bfloat16"
    pipe = load_pipeline(arguments, torch.float32)
    assert pipe.family is LUMINA_MGPT_POCKET and pipe.vqvae.dtype is torch.float32


def test_it_has_no_original_form(tmp_path):
    """Its VQ model is narrower than the original's norms can be."""
    with pytest.raises(
        ValueError, match=r"norms of 4 groups \(`norm_num_groups`\), but the original's always have 32"
    ):
        convert_diffusers_to_original("pocket", tmp_path / "original")


def test_memory_as_estimated(pocket):
    config = ChameleonConfig.from_pretrained(POCKET, subfolder="transformer")
    assert find_family(config) is LUMINA_MGPT_POCKET
    weights = {
        id(weight): weight.nbytes for module in (pocket.transformer, pocket.vqvae) for weight in module.parameters()
    }
    estimate = estimate_memory(config, 192, 192, dtype=torch.float32)
    assert estimate.weights == pytest.approx(sum(weights.values()), rel=0.001)
