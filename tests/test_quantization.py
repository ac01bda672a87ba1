# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Quantised transformers: `PipelineQuantizationConfig` with torchao and bitsandbytes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CHECKPOINT, VQGAN
from diffusers import PipelineQuantizationConfig
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, TorchAoConfig

from lumina_mgpt_diffusers import LuminaMGPTPipeline, LuminaMGPTTransformer
from lumina_mgpt_diffusers.original import convert_original_to_diffusers


# Greatest relative error of the logits of the tiny model, whose few channels are the hardest case.
INT8_ERROR, NF4_ERROR = 0.05, 0.25

NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def load(folder: Path, config=None, dtype: torch.dtype = torch.float32, **kwargs) -> LuminaMGPTPipeline:
    if config is not None:
        kwargs["quantization_config"] = PipelineQuantizationConfig(quant_mapping={"transformer": config})
    pipe = LuminaMGPTPipeline.from_pretrained(folder, dtype=dtype, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def codes_of(pipe, **kwargs) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat", height=32, width=32, generator=generator, output_type="latent", **kwargs).images.cpu()


def logits_of(pipe) -> torch.Tensor:
    ids = torch.arange(4, 36, device=pipe.transformer.device)[None]
    with torch.no_grad():
        return pipe.transformer(input_ids=ids, logits_range=(4, 8196)).logits.float().cpu()


def error(pipe, reference) -> float:
    expected = logits_of(reference)
    return float((logits_of(pipe) - expected).norm() / expected.norm())


@pytest.fixture
def int8_config() -> TorchAoConfig:
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


@pytest.fixture(scope="module")
def nf4_folder(saved_folder, tmp_path_factory) -> Path:
    """A pipeline whose layers have the sizes that the 4-bit kernel for CPUs can do: multiples of 32."""
    folder = tmp_path_factory.mktemp("nf4") / "pipeline"
    shutil.copytree(saved_folder, folder)
    plain = LuminaMGPTTransformer.from_pretrained(folder / "transformer")
    plain.config.intermediate_size = 192
    torch.manual_seed(0)
    LuminaMGPTTransformer(plain.config).save_pretrained(folder / "transformer")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchao_int8(saved_folder, int8_config, dtype):
    reference, pipe = load(saved_folder, dtype=dtype), load(saved_folder, int8_config, dtype)
    weight = pipe.transformer.model.layers[0].mlp.up_proj.weight
    assert weight.qdata.dtype == torch.int8
    assert 0 < error(pipe, reference) < INT8_ERROR
    assert (codes_of(pipe) >= 0).all()


def test_torchao_int8_with_the_head(saved_folder):
    quantization = pytest.importorskip("torchao.quantization")
    # The head is a layer of which only the rows of the codes are wanted: those of the whole head, cut out.
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=[])
    pipe = load(saved_folder, config)
    assert pipe.transformer.lm_head.weight.qdata.dtype == torch.int8
    assert error(pipe, load(saved_folder)) < INT8_ERROR
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        whole = pipe.transformer(input_ids=ids).logits[..., 4:100]
        torch.testing.assert_close(pipe.transformer(input_ids=ids, logits_range=(4, 100)).logits, whole)


def test_torchao_int8_saves_and_loads(saved_folder, int8_config, tmp_path):
    pipe = load(saved_folder, int8_config)
    pipe.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.transformer.model.layers[0].mlp.up_proj.weight.qdata.dtype == torch.int8
    assert torch.equal(codes_of(loaded), codes_of(pipe))


def test_lora_on_torchao_int8(saved_folder, int8_config, tmp_path):
    pipe = load(saved_folder, int8_config)
    plain = logits_of(pipe)
    pipe.transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False), "x"
    )
    adapted = logits_of(pipe)
    tensors = get_peft_model_state_dict(pipe.transformer, adapter_name="x")
    with pytest.raises(ValueError, match="cannot be saved while it has LoRA adapters"):
        pipe.save_pretrained(tmp_path)
    pipe.unload_lora_weights()
    torch.testing.assert_close(logits_of(pipe), plain)
    pipe.load_lora_weights(tensors)
    torch.testing.assert_close(logits_of(pipe), adapted)


@pytest.mark.slow
def test_torchao_int8_compiled(saved_folder, int8_config):
    pipe = load(saved_folder, int8_config)
    codes = codes_of(pipe)
    pipe.transformer.compile(fullgraph=True)
    assert torch.equal(codes_of(pipe), codes)


def test_bitsandbytes_8bit(saved_folder):
    pytest.importorskip("bitsandbytes")
    pipe = load(saved_folder, BitsAndBytesConfig(load_in_8bit=True))
    assert pipe.transformer.model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    assert 0 < error(pipe, load(saved_folder)) < 2 * INT8_ERROR
    assert (codes_of(pipe) >= 0).all()


def test_bitsandbytes_4bit(nf4_folder):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    pipe = load(nf4_folder, config)
    assert pipe.transformer.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert 0 < error(pipe, load(nf4_folder)) < NF4_ERROR
    assert (codes_of(pipe) >= 0).all()


@pytest.fixture(scope="module")
def four_bit_checkpoint(nf4_folder, tmp_path_factory) -> Path:
    """The model in the form in which the original was released in four bits."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("released") / "Lumina-mGPT-7B-768-bnb-int4"
    quantised = load(nf4_folder, NF4).transformer
    quantised.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    shards = quantised.config.model_parallel_size
    for name, tensor in weights.items():
        if "_norm." in name and tensor.ndim == 2:  # one row for the heads of a shard
            weights[name] = tensor[:: len(tensor) // shards].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    saved = json.loads((folder / "config.json").read_text())
    config = json.loads((CHECKPOINT / "config.json").read_text())
    config |= {name: saved[name] for name in ("intermediate_size", "quantization_config")}
    (folder / "config.json").write_text(json.dumps(config))
    for path in CHECKPOINT.glob("*token*.json"):
        shutil.copy(path, folder)
    return folder


def test_a_checkpoint_that_was_released_in_four_bits(four_bit_checkpoint, nf4_folder, tmp_path):
    pipe = load(four_bit_checkpoint, original_vqgan=VQGAN)
    assert pipe.scheduler.config.resolution == 768
    weight = pipe.transformer.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.uint8 and pipe.transformer.lm_head.weight.dtype == torch.float32
    torch.testing.assert_close(logits_of(pipe), logits_of(load(nf4_folder, NF4)))
    pipe.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.transformer.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert torch.equal(codes_of(loaded), codes_of(pipe))


@pytest.mark.parametrize("is_quantised", [True, False])
def test_weights_of_another_shape_than_the_configuration_says(four_bit_checkpoint, nf4_folder, tmp_path, is_quantised):
    folder = four_bit_checkpoint if is_quantised else nf4_folder / "transformer"
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 224}))
    with pytest.raises(
        ValueError, match=r"6 of another shape .*0.mlp.down_proj.weight \(64, 192\) instead of \(64, 224\)"
    ):
        LuminaMGPTTransformer.from_pretrained(tmp_path, quantization_config=None if is_quantised else NF4)


def test_quantised_weights_are_not_converted(four_bit_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="are quantised .* only plain ones can be converted.*`save_pretrained`"):
        convert_original_to_diffusers(four_bit_checkpoint, tmp_path / "new", original_vqgan=VQGAN)
    assert not list((tmp_path / "new").glob("**/*.safetensors"))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "config",
    [
        BitsAndBytesConfig(load_in_8bit=True),
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16),
    ],
    ids=["8bit", "4bit"],
)
def test_bitsandbytes_on_the_gpu(nf4_folder, config):
    pytest.importorskip("bitsandbytes")
    reference = load(nf4_folder, dtype=torch.bfloat16).to("cuda")
    pipe = load(nf4_folder, config, dtype=torch.bfloat16, device_map="cuda")
    assert 0 < error(pipe, reference) < NF4_ERROR
    pipe.vqvae.to("cuda")
    assert (codes_of(pipe) >= 0).all()


@pytest.mark.gpu
def test_torchao_int8_on_the_gpu(saved_folder, int8_config):
    reference = load(saved_folder, dtype=torch.bfloat16).to("cuda")
    pipe = load(saved_folder, int8_config, dtype=torch.bfloat16).to("cuda")
    assert 0 < error(pipe, reference) < INT8_ERROR
    codes_of(pipe)
    pipe.transformer.compile(fullgraph=True)
    assert (codes_of(pipe) >= 0).all()
