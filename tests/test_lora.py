# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""LoRA adapters as users of diffusers know them."""

import warnings
from pathlib import Path

import pytest
import torch
from conftest import CHECKPOINT, copy_of
from hub_server import HubServer
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from lumina_mgpt_diffusers import LuminaMGPTPipeline, LuminaMGPTTransformer


PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# A rank and a scale of its own for every kind of layer.
CONFIG = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": [*PROJECTIONS, "lm_head"],
    "rank_pattern": {"q_proj": 2, "down_proj": 3, "lm_head": 5},
    "alpha_pattern": {"v_proj": 4},
    "init_lora_weights": False,
}
# Peft adds the base weights of an adapted `lm_head` unless it is told not to.
pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")


def logits_of(pipe) -> torch.Tensor:
    ids = torch.arange(4, 16)[None]
    with torch.no_grad():
        return pipe.transformer(input_ids=ids, logits_range=(0, 300)).logits


def codes_of(pipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat", height=32, width=32, generator=generator, output_type="latent").images


def add_adapter(pipe, name: str, seed: int, **config) -> None:
    torch.manual_seed(seed)
    pipe.transformer.add_adapter(LoraConfig(**{**CONFIG, **config}), name)


def save(pipe, folder: Path, name: str) -> Path:
    pipe.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(pipe.transformer, adapter_name=name),
        transformer_lora_adapter_metadata=pipe.transformer.peft_config[name].to_dict(),
    )
    return folder


@pytest.fixture(scope="module")
def adapter(random_pipe, tmp_path_factory) -> dict:
    """An adapter in the files of diffusers and of peft, with its logits."""
    folder = tmp_path_factory.mktemp("adapter")
    pipe = copy_of(random_pipe)
    base = logits_of(pipe)
    add_adapter(pipe, "style", seed=0)
    logits, codes = logits_of(pipe), codes_of(pipe)
    save(pipe, folder / "diffusers", "style")
    tensors = get_peft_model_state_dict(pipe.transformer, adapter_name="style")

    peft_model = get_peft_model(copy_of(random_pipe).transformer, LoraConfig(**CONFIG))
    lora = {f"base_model.model.{name}": tensor for name, tensor in tensors.items() if "lora" in name}
    set_peft_model_state_dict(peft_model, lora)
    peft_model.save_pretrained(folder / "peft")
    assert (logits - base).abs().max() > 0.1
    return {"folder": folder, "base": base, "logits": logits, "codes": codes, "tensors": tensors}


@pytest.fixture
def pipe(random_pipe):
    yield random_pipe
    random_pipe.unload_lora_weights()


def check(pipe, adapter: dict) -> None:
    torch.testing.assert_close(logits_of(pipe), adapter["logits"])


@pytest.mark.parametrize("style", ["diffusers", "peft"])
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_loading_a_folder(pipe, adapter, style, low_cpu_mem_usage, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.load_lora_weights(adapter["folder"] / style, low_cpu_mem_usage=low_cpu_mem_usage)
        pipe.load_lora_weights(adapter["folder"] / style, low_cpu_mem_usage=low_cpu_mem_usage, adapter_name="again")
        pipe.set_adapters("default_0")
        pipe.delete_adapters("again")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []
    assert pipe.get_active_adapters() == ["default_0"]
    assert pipe.get_list_adapters() == {"transformer": ["default_0"]}
    check(pipe, adapter)
    assert torch.equal(codes_of(pipe), adapter["codes"])


def test_loading_a_file(pipe, adapter):
    pipe.load_lora_weights(adapter["folder"] / "peft" / "adapter_model.safetensors", adapter_name="style")
    assert pipe.get_active_adapters() == ["style"]
    check(pipe, adapter)


def test_loading_from_a_hub(pipe, adapter, tmp_path, monkeypatch):
    repositories = {"tiny/diffusers": {"main": adapter["folder"] / "diffusers"}}
    repositories["tiny/peft"] = {"main": adapter["folder"] / "peft"}
    with HubServer(repositories) as server:
        for module in ("huggingface_hub.constants", "huggingface_hub.file_download.constants"):
            monkeypatch.setattr(f"{module}.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", server.url + TEMPLATE)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)
        for repository in repositories:
            pipe.load_lora_weights(repository, cache_dir=tmp_path)
            check(pipe, adapter)
            pipe.unload_lora_weights()


TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"

STYLES = {
    "bare": lambda name: name,
    "diffusers": lambda name: f"transformer.{name}",
    "peft": lambda name: f"base_model.model.{name}",
    "old diffusers": lambda name: f"transformer.{name}".replace(".lora_A.", ".lora.down.").replace(
        ".lora_B.", ".lora.up."
    ),
    "kohya": lambda name: f"transformer.{name}".replace(".lora_A.", ".lora_down.").replace(".lora_B.", ".lora_up."),
    "named": lambda name: name.replace(".lora_A.", ".lora_A.other.").replace(".lora_B.", ".lora_B.other."),
}


@pytest.mark.parametrize("style", STYLES)
def test_loading_tensors_in_any_style(pipe, adapter, style):
    # Without a configuration the scale of each layer is alpha over rank, where an alpha is given, else 1.
    tensors, alphas = {}, {}
    for name, tensor in adapter["tensors"].items():
        if "lora" not in name:
            continue
        tensors[STYLES[style](name)] = tensor
        module = name.split(".lora_")[0]
        alphas[f"{module}.alpha"] = torch.tensor(
            float(CONFIG["alpha_pattern"].get(module.split(".")[-1], CONFIG["lora_alpha"]))
        )
    pipe.load_lora_weights({**tensors, **{STYLES[style](name): alpha for name, alpha in alphas.items()}})
    check(pipe, adapter)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tensors)
    scaling = pipe.transformer.model.layers[0].self_attn.q_proj.scaling
    assert scaling == {"default_0": 1.0}


def test_what_is_no_lora_of_this_model(pipe, adapter, caplog):
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint.*lm_head.weight"):
        pipe.load_lora_weights({"lm_head.weight": torch.zeros(1)})
    pipe.load_lora_weights({"transformer.single_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 2)})
    assert pipe.get_list_adapters() == {}
    pipe.load_lora_weights({**adapter["tensors"], "text_encoder.a.q_proj.lora_A.weight": torch.zeros(2, 2)})
    assert pipe.get_list_adapters() == {"transformer": ["default_0"]}


def test_adapters_of_the_embedding_are_refused(pipe, adapter):
    embedding = {"model.embed_tokens.lora_embedding_A": torch.zeros(2, 320)}
    with pytest.raises(ValueError, match="embed_tokens.lora_embedding_A.*not supported.*merge_and_unload"):
        pipe.load_lora_weights({**adapter["tensors"], **embedding})
    with pytest.raises(ValueError, match="`target_modules`.*embed_tokens.*not supported"):
        pipe.transformer.add_adapter(LoraConfig(target_modules=["q_proj", "embed_tokens"]))
    assert pipe.get_list_adapters() == {}


def test_an_alpha_of_one_module_scales_that_module(pipe, adapter):
    module = "model.layers.0.self_attn.q_proj"
    pipe.load_lora_weights({**adapter["tensors"], f"{module}.alpha": torch.tensor(6.0)}, adapter_name="x")
    for name, parameter in pipe.transformer.named_parameters():
        if ".lora_B." in name:
            saved = adapter["tensors"][name.replace(".lora_B.x.", ".lora_B.")]
            torch.testing.assert_close(parameter, saved * 3 if module in name else saved)  # the rank there is 2
    layers = [layer for layer in pipe.transformer.modules() if isinstance(layer, LoraLayer)]
    assert layers and all(layer.scaling == {"x": 1.0} for layer in layers)


def test_weights_of_adapters(pipe, adapter):
    pipe.load_lora_weights(adapter["folder"] / "diffusers", adapter_name="one")
    add_adapter(pipe, "two", seed=1)
    pipe.set_adapters("two")
    two = logits_of(pipe)
    for name, weight, expected in [("one", 1.0, adapter["logits"]), ("one", 0.0, adapter["base"]), ("two", 1.0, two)]:
        pipe.set_adapters(name, weight)
        torch.testing.assert_close(logits_of(pipe), expected)
    pipe.set_adapters(["one", "two"], [1.0, 0.0])
    check(pipe, adapter)
    pipe.set_adapters(["one", "two"], [0.5, 0.7])
    mixed = logits_of(pipe)
    assert not torch.allclose(mixed, two, atol=1e-2) and not torch.allclose(mixed, adapter["logits"], atol=1e-2)
    with pytest.raises(ValueError, match="not in the list of present adapters"):
        pipe.set_adapters("three")

    pipe.disable_lora()
    torch.testing.assert_close(logits_of(pipe), adapter["base"])
    pipe.enable_lora()
    torch.testing.assert_close(logits_of(pipe), mixed)
    pipe.delete_adapters("two")
    pipe.set_adapters("one")
    check(pipe, adapter)
    assert pipe.get_list_adapters() == {"transformer": ["one"]}


def test_fusing(random_pipe, adapter):
    pipe = copy_of(random_pipe)
    pipe.load_lora_weights(adapter["folder"] / "diffusers", adapter_name="one")
    pipe.fuse_lora()
    assert pipe.num_fused_loras == 1
    torch.testing.assert_close(logits_of(pipe), adapter["logits"], atol=1e-4, rtol=1e-4)
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    pipe.set_adapters("one", 0.5)
    half = logits_of(pipe)
    pipe.set_adapters("one", 1.0)
    pipe.fuse_lora(lora_scale=0.5)
    torch.testing.assert_close(logits_of(pipe), half, atol=1e-4, rtol=1e-4)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(logits_of(pipe), adapter["base"], atol=1e-4, rtol=1e-4)


def test_unloading_restores_the_model(pipe, adapter):
    names = [name for name, _ in pipe.transformer.named_modules()]
    pipe.load_lora_weights(adapter["folder"] / "diffusers")
    pipe.unload_lora_weights()
    assert [name for name, _ in pipe.transformer.named_modules()] == names
    assert pipe.get_list_adapters() == {}
    torch.testing.assert_close(logits_of(pipe), adapter["base"], rtol=0, atol=0)


def test_hotswapping(pipe, adapter):
    only = {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {}, "alpha_pattern": {}}
    add_adapter(pipe, "a", seed=1, **only)
    add_adapter(pipe, "b", seed=2, **only)
    states = {name: get_peft_model_state_dict(pipe.transformer, adapter_name=name) for name in "ab"}
    states = {name: {key: tensor.clone() for key, tensor in state.items()} for name, state in states.items()}
    pipe.unload_lora_weights()
    pipe.load_lora_weights(states["b"])
    expected = logits_of(pipe)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(states["a"], adapter_name="x")
    pipe.load_lora_weights(states["b"], adapter_name="x", hotswap=True)
    torch.testing.assert_close(logits_of(pipe), expected)


def test_saved_adapters_hold_no_base_weights_and_no_paths(pipe, adapter, tmp_path):
    weights = load_file(adapter["folder"] / "diffusers" / "pytorch_lora_weights.safetensors")
    assert all(name.startswith("transformer.") and "lora_" in name for name in weights)
    content = (adapter["folder"] / "diffusers" / "pytorch_lora_weights.safetensors").read_bytes()
    assert b"/tmp" not in content and str(CHECKPOINT).encode() not in content
    # Saved again, it is the same.
    pipe.load_lora_weights(adapter["folder"] / "diffusers", adapter_name="x")
    again = load_file(save(pipe, tmp_path, "x") / "pytorch_lora_weights.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_saving_a_pipeline_that_has_adapters(random_pipe, adapter, tmp_path):
    pipe = copy_of(random_pipe)
    pipe.load_lora_weights(adapter["folder"] / "diffusers")
    pipe.save_pretrained(tmp_path / "without")
    pipe.fuse_lora()
    pipe.transformer.save_pretrained(tmp_path / "with")
    plain = LuminaMGPTPipeline.from_pretrained(tmp_path / "without")
    torch.testing.assert_close(logits_of(plain), adapter["base"], rtol=0, atol=0)
    plain.transformer = LuminaMGPTTransformer.from_pretrained(tmp_path / "with")
    torch.testing.assert_close(logits_of(plain), adapter["logits"], atol=1e-4, rtol=1e-4)


def test_loading_into_an_offloaded_pipeline(random_pipe, adapter, tmp_path):
    pipe = copy_of(random_pipe)
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level", exclude_modules=["vqvae"])
    pipe.load_lora_weights(adapter["folder"] / "diffusers")
    check(pipe, adapter)


def test_adapters_take_the_dtype_of_the_model(random_pipe, adapter):
    pipe = copy_of(random_pipe).to(torch.bfloat16)
    pipe.load_lora_weights(adapter["folder"] / "diffusers")
    assert {parameter.dtype for parameter in pipe.transformer.parameters()} == {torch.bfloat16}
    assert (codes_of(pipe) >= 0).all()


def test_a_pickle_is_only_read_where_it_is_allowed(pipe, adapter, tmp_path):
    torch.save(dict(adapter["tensors"]), tmp_path / "weights.bin")
    with pytest.raises(OSError, match="weights.safetensors"):
        pipe.load_lora_weights(tmp_path, weight_name="weights.safetensors", use_safetensors=True)
    pipe.load_lora_weights(tmp_path, weight_name="weights.bin", use_safetensors=False)
    assert pipe.get_list_adapters()


@pytest.mark.gpu
def test_lora_on_the_gpu(random_pipe, adapter):
    pipe = copy_of(random_pipe).to("cuda")
    pipe.load_lora_weights(adapter["folder"] / "diffusers", adapter_name="x")
    assert {parameter.device.type for parameter in pipe.transformer.parameters()} == {"cuda"}
    with torch.no_grad():
        logits = pipe.transformer(input_ids=torch.arange(4, 16, device="cuda")[None], logits_range=(0, 300)).logits
    torch.testing.assert_close(logits.cpu(), adapter["logits"], atol=1e-2, rtol=1e-2)
    pipe.set_lora_device(["x"], "cpu")
    pipe.set_lora_device(["x"], "cuda")
    pipe.unload_lora_weights()
    pipe.enable_model_cpu_offload()
    pipe.load_lora_weights(adapter["folder"] / "diffusers", adapter_name="x")
    codes_of(pipe)
