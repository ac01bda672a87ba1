# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is missing, does not fit or is malformed is an error by every route of loading, and nothing is made up."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from conftest import CHECKPOINT, VQGAN
from diffusers import AutoPipelineForText2Image, DDIMScheduler, DiffusionPipeline, VQModel
from huggingface_hub import constants
from packaging.version import Version
from safetensors.torch import load_file, save_file

from lumina_mgpt_diffusers import LuminaMGPTPipeline, LuminaMGPTScheduler, LuminaMGPTTransformer
from lumina_mgpt_diffusers.original import convert_diffusers_to_original, convert_original_to_diffusers


K_NORM = "model.layers.0.self_attn.k_norm.weight"


def edit_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan


DEFECTS = {
    "a weight is missing": (
        lambda folder: edit_weights(folder / "model.safetensors", lambda tensors: tensors.pop(K_NORM)),
        rf"1 missing \({K_NORM}\)",
    ),
    "too few layers": (
        lambda folder: edit_json(folder / "config.json", num_hidden_layers=1),
        r"13 unexpected \(model.layers.1.input_layernorm.weight, ",
    ),
    "too many layers": (
        lambda folder: edit_json(folder / "config.json", num_hidden_layers=3),
        r"13 missing \(model.layers.2|`num_hidden_layers` is 3 .* weights of 2 layers",
    ),
    "another shape": (
        lambda folder: edit_json(folder / "config.json", intermediate_size=192),
        r"6 of another shape \(model.layers.0.mlp.down_proj.weight \(64, 176\) instead of \(64, 192\)",
    ),
    "NaN": (
        lambda folder: edit_weights(folder / "model.safetensors", poison),
        r"1 hold NaN or inf \(model.layers.1.mlp.up_proj.weight\)",
    ),
}


@pytest.fixture(params=DEFECTS)
def defect(request) -> tuple[Callable[[Path], None], str]:
    return DEFECTS[request.param]


@pytest.fixture
def pipeline_folder(saved_folder, tmp_path) -> Path:
    return shutil.copytree(saved_folder, tmp_path / "pipeline")


@pytest.fixture
def original_folder(tmp_path) -> Path:
    return shutil.copytree(CHECKPOINT, tmp_path / "Lumina-mGPT-7B-512")


def custom_pipeline(folder: Path) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)


ROUTES = {
    "explicit": LuminaMGPTPipeline.from_pretrained,
    "diffusion": DiffusionPipeline.from_pretrained,
    "auto": AutoPipelineForText2Image.from_pretrained,
    "custom": custom_pipeline,
    "transformer": lambda folder: LuminaMGPTTransformer.from_pretrained(folder, subfolder="transformer"),
    "conversion": lambda folder: convert_diffusers_to_original(folder, folder / "back"),
}


@pytest.mark.parametrize("route", ["transformer", "conversion"])
def test_weights_of_a_pipeline_have_to_be_those_of_its_configuration(pipeline_folder, defect, route):
    damage, message = defect
    damage(pipeline_folder / "transformer")
    with pytest.raises(ValueError, match=message):
        ROUTES[route](pipeline_folder)


@pytest.mark.parametrize("route", ["explicit", "diffusion", "auto", "custom"])
def test_every_route_checks_the_weights(pipeline_folder, route):
    damage, message = DEFECTS["a weight is missing"]
    damage(pipeline_folder / "transformer")
    with pytest.raises(ValueError, match=message):
        ROUTES[route](pipeline_folder)


@pytest.mark.parametrize("route", ["load", "convert"])
def test_weights_of_an_original_checkpoint_have_to_be_those_of_its_configuration(original_folder, defect, route):
    damage, message = defect
    damage(original_folder)
    with pytest.raises(ValueError, match=message):
        if route == "load":
            LuminaMGPTPipeline.from_pretrained(original_folder, original_vqgan=VQGAN)
        else:
            convert_original_to_diffusers(original_folder, original_folder / "out", original_vqgan=VQGAN)
    assert not (original_folder / "out" / "model_index.json").exists()


def test_weights_of_another_shape_can_be_asked_for(pipeline_folder):
    DEFECTS["another shape"][0](pipeline_folder / "transformer")
    folder = pipeline_folder / "transformer"
    transformer, info = LuminaMGPTTransformer.from_pretrained(
        folder, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert transformer.config.intermediate_size == 192 and len(info["mismatched_keys"]) == 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_attention_heads": 3}, "`hidden_size` .* divisible by `num_attention_heads` 3 but is 64"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` .* at least 1 but is 0"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"vocabulary_map": [1]}, "vocabulary_map"),
    ],
)
def test_a_configuration_that_cannot_be(original_folder, values, message):
    edit_json(original_folder / "config.json", **values)
    with pytest.raises(ValueError, match=message):
        LuminaMGPTPipeline.from_pretrained(original_folder, original_vqgan=VQGAN)


# The VQ model and the tokenizer


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("loader", [LuminaMGPTPipeline, DiffusionPipeline])
def test_a_vq_model_that_lacks_a_weight(pipeline_folder, loader, low_cpu_mem_usage):
    path = pipeline_folder / "vqvae" / "diffusion_pytorch_model.safetensors"
    edit_weights(path, lambda tensors: tensors.pop("decoder.conv_in.bias"))
    with pytest.raises(ValueError, match=r"vqvae' .* 1 missing \(decoder.conv_in.bias\)"):
        loader.from_pretrained(pipeline_folder, low_cpu_mem_usage=low_cpu_mem_usage)
    with pytest.raises(ValueError, match=r"1 missing \(decoder.conv_in.bias\)"):
        convert_diffusers_to_original(pipeline_folder, pipeline_folder / "back")


def test_a_vq_model_with_too_few_blocks_configured(pipeline_folder):
    edit_json(pipeline_folder / "vqvae" / "config.json", layers_per_block=1)
    with pytest.raises(ValueError, match="unexpected .*decoder.up_blocks"):
        DiffusionPipeline.from_pretrained(pipeline_folder)


def test_a_vq_model_that_is_not_finite(original_folder, tmp_path):
    shutil.copytree(VQGAN, tmp_path / "vqgan")
    content = torch.load(VQGAN / "vqgan.ckpt", weights_only=True)
    content["state_dict"]["post_quant_conv.bias"][0] = torch.inf
    torch.save(content, tmp_path / "vqgan" / "vqgan.ckpt")
    with pytest.raises(ValueError, match=r"vqgan.ckpt' are not finite: 1 hold NaN or inf \(post_quant_conv.bias\)"):
        LuminaMGPTPipeline.from_pretrained(original_folder, original_vqgan=tmp_path / "vqgan")


@pytest.mark.parametrize(
    ("num_codes", "message"), [(8191, "more codes than the 8191"), (8193, "lacks 1 of the 8193 tokens of codes")]
)
def test_a_vq_model_with_another_number_of_codes(random_pipe, num_codes, message):
    with torch.device("meta"):
        vqvae = VQModel.from_config(random_pipe.vqvae.config, num_vq_embeddings=num_codes)
    with pytest.raises(ValueError, match=message):
        LuminaMGPTPipeline(**{**random_pipe.components, "vqvae": vqvae})


def damaged_tokenizer(folder: Path, edit: Callable[[dict[str, int]], object]) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    edit(content["model"]["vocab"])
    names = content["model"]["vocab"].keys()
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in names]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(
            lambda vocabulary: vocabulary.update(IMGIMGBZ=vocabulary["IMGIMGCZ"]),
            "have the same id",
            marks=pytest.mark.skipif(
                Version(tokenizers.__version__) < Version("0.23"), reason="gives the second token an id of its own"
            ),
        ),
        (lambda vocabulary: vocabulary.pop("<reserved08804>"), "size tags up to 96 pixels, but .* need 128"),
        (lambda vocabulary: vocabulary.update(beyond=9500), "ids beyond the `vocab_size` 9472 .* 'beyond'"),
    ],
)
def test_a_tokenizer_that_does_not_fit(pipeline_folder, edit, message):
    damaged_tokenizer(pipeline_folder, edit)
    with pytest.raises(ValueError, match=message):
        DiffusionPipeline.from_pretrained(pipeline_folder)


# The base size


@pytest.mark.parametrize("loader", [LuminaMGPTPipeline, DiffusionPipeline, AutoPipelineForText2Image])
def test_a_scheduler_without_a_base_size_keeps_that_of_the_folder(saved_folder, loader):
    passed = LuminaMGPTScheduler(top_k=500)
    config = loader.from_pretrained(saved_folder, scheduler=passed).scheduler.config
    assert (config.top_k, config.resolution) == (500, 96)
    assert passed.config.resolution == 768
    explicit = LuminaMGPTScheduler(top_k=500, resolution=768)
    assert loader.from_pretrained(saved_folder, scheduler=explicit).scheduler is explicit


def test_the_base_size_of_a_released_name_is_known(original_folder, caplog):
    kwargs = {"original_vqgan": VQGAN, "scheduler": LuminaMGPTScheduler(top_k=500)}
    config = LuminaMGPTPipeline.from_pretrained(original_folder, **kwargs).scheduler.config
    assert (config.top_k, config.resolution) == (500, 512)
    assert "base size" not in caplog.text


def test_a_guessed_base_size_is_said(tmp_path, caplog):
    folder = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint-512")
    assert LuminaMGPTPipeline.from_pretrained(folder, original_vqgan=VQGAN).scheduler.config.resolution == 768
    assert "states the base size: 768 is taken" in caplog.text and "resolution=" in caplog.text
    caplog.clear()
    edit_json(folder / "config.json", base_size=512)
    assert LuminaMGPTPipeline.from_pretrained(folder, original_vqgan=VQGAN).scheduler.config.resolution == 512
    assert "base size" not in caplog.text


def test_a_converter_takes_any_base_size(tmp_path, saved_folder):
    output = convert_original_to_diffusers(CHECKPOINT, tmp_path / "out", original_vqgan=VQGAN, base_size=640)
    assert LuminaMGPTScheduler.from_pretrained(output, subfolder="scheduler").config.resolution == 640
    back = convert_diffusers_to_original(output, tmp_path / "back")
    assert json.loads((back / "config.json").read_text())["base_size"] == 640
    with pytest.raises(ValueError, match="`resolution` has to be a positive multiple of 32 pixels, .* but is 500"):
        convert_original_to_diffusers(CHECKPOINT, tmp_path / "other", original_vqgan=VQGAN, base_size=500)
    assert not (tmp_path / "other").exists()


def test_a_subclass_of_the_scheduler_keeps_the_configuration():
    class Mine(LuminaMGPTScheduler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    config = Mine.from_config(LuminaMGPTScheduler(resolution=512, top_k=3).config, temperature=0.5).config
    assert (config.resolution, config.top_k, config.temperature) == (512, 3, 0.5)


# Files


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json",
        "transformer/model.safetensors.index.json",
        "vqvae/config.json",
    ],
)
def test_malformed_files_of_a_pipeline(pipeline_folder, name):
    contents = ["", "{", "[1]", "[" * 100_000]
    if name.endswith("safetensors.index.json"):
        contents += ['{"weight_map": 3}', '{"weight_map": {"a": "../b"}}']
    for content in contents:
        (pipeline_folder / name).write_text(content)
        with pytest.raises(ValueError, match=f"{name}' (is not a|has to hold a) JSON|`weight_map` in .*{name}"):
            LuminaMGPTPipeline.from_pretrained(pipeline_folder)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"]
)
def test_malformed_files_of_an_original_checkpoint(original_folder, name):
    if "index" in name:
        (original_folder / "model.safetensors").unlink()
    # Nothing of the tokenizer's configuration is needed.
    for content in ["", "{", "[1]"] + ["{}", '{"model": 3}'] * (name != "tokenizer_config.json"):
        (original_folder / name).write_text(content)
        with pytest.raises(ValueError, match=name.split(".")[0]):
            LuminaMGPTPipeline.from_pretrained(original_folder, original_vqgan=VQGAN)


def test_damaged_weights_of_an_original_checkpoint(original_folder):
    content = (original_folder / "model.safetensors").read_bytes()
    (original_folder / "model.safetensors").write_bytes(content[:-5])
    for route in ("load", "convert"):
        with pytest.raises(ValueError, match="model.safetensors' cannot be read as safetensors"):
            if route == "load":
                LuminaMGPTPipeline.from_pretrained(original_folder, original_vqgan=VQGAN)
            else:
                convert_original_to_diffusers(original_folder, original_folder / "out", original_vqgan=VQGAN)


# Without a network


@pytest.fixture
def no_network(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", os.fspath(tmp_path / "cache"))


@pytest.mark.parametrize("kwargs", [{}, {"local_files_only": True}])
def test_a_repository_that_cannot_be_reached_is_not_taken_for_a_pipeline(no_network, kwargs):
    with pytest.raises(OSError, match="the Hub was not read .*Lumina-mGPT-7B-768' has no `model_index.json`"):
        LuminaMGPTPipeline.from_pretrained("Alpha-VLLM/Lumina-mGPT-7B-768", original_vqgan=VQGAN, **kwargs)


def test_a_missing_folder_is_said_soon(no_network):
    start = time.monotonic()
    with pytest.raises(OSError, match="`original_vqgan`: there is no such folder, .*'chameleon/tokenizer'"):
        LuminaMGPTPipeline.from_pretrained(CHECKPOINT, original_vqgan="chameleon/tokenizer")
    assert time.monotonic() - start < 5


# Components


@pytest.mark.parametrize("name", ["transformer", "vqvae", "scheduler"])
def test_a_component_that_is_missing(random_pipe, name):
    pipe = LuminaMGPTPipeline(**{**random_pipe.components, name: None})
    with pytest.raises(ValueError, match=f"This pipeline has no `{name}`"):
        pipe.check_components()


def test_a_call_without_a_vq_model(saved_folder):
    pipe = LuminaMGPTPipeline.from_pretrained(saved_folder, vqvae=None)
    with pytest.raises(ValueError, match="This pipeline has no `vqvae`"):
        pipe("a cat")


def test_prompts_are_encoded_without_models(saved_folder):
    pipe = LuminaMGPTPipeline.from_pretrained(saved_folder, vqvae=None, transformer=None)
    assert pipe.encode_prompt("a cat", height=32, width=32)[0].shape[0] == 1


def test_components_of_another_kind(random_pipe, saved_folder):
    message = "`scheduler` has to be a `LuminaMGPTScheduler` but is a `DDIMScheduler`"
    with pytest.raises(ValueError, match=message):
        LuminaMGPTPipeline(**{**random_pipe.components, "scheduler": DDIMScheduler()})
    with pytest.raises(ValueError, match=message):
        DiffusionPipeline.from_pretrained(saved_folder, scheduler=DDIMScheduler())
    with pytest.raises(ValueError, match="`vqvae` has to be a `VQModel` but is a `Linear`"):
        LuminaMGPTPipeline(**{**random_pipe.components, "vqvae": torch.nn.Linear(1, 1)})
    pipe = LuminaMGPTPipeline(**random_pipe.components)
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match=message):
        pipe.check_components()
