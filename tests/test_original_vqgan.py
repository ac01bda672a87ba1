# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The VQ model read from every form it is distributed in, against what the original code answers."""

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import VQModel
from safetensors.torch import save_file
from transformers import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from lumina_mgpt_diffusers.original.vqgan import load_vqvae, original_vqgan_files, vqvae_to_original


FIXTURES = Path(__file__).parent / "fixtures"
VQGAN = FIXTURES / "vqgan"


@pytest.fixture(scope="module")
def vqvae() -> VQModel:
    return load_vqvae(VQGAN)


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    state_dict = torch.load(VQGAN / "vqgan.ckpt", weights_only=True)["state_dict"]
    return {name: tensor for name, tensor in state_dict.items() if not name.startswith("loss.")}


def assert_same(first: VQModel, second: VQModel) -> None:
    configs = [{key: value for key, value in vqvae.config.items() if key[0] != "_"} for vqvae in (first, second)]
    assert json.dumps(configs[0]) == json.dumps(configs[1])
    tensors = second.state_dict()
    assert first.state_dict().keys() == tensors.keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name


def write_vqgan(folder: Path, state_dict: dict[str, torch.Tensor], **ddconfig) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state_dict}, folder / "vqgan.ckpt")
    config = yaml.safe_load((VQGAN / "vqgan.yaml").read_text())
    config["model"]["params"]["ddconfig"].update(ddconfig)
    (folder / "vqgan.yaml").write_text(yaml.safe_dump(config))
    return folder


def hub_cache(cache_dir: Path, repository: str, files: dict[str, Path]) -> Path:
    """The cache of huggingface_hub after those files of a repository were downloaded."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = cache_dir / f"models--{repository.replace('/', '--')}"
    for name, path in files.items():
        target = root / "snapshots" / commit / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    return cache_dir


@pytest.mark.parametrize("size", ["64x64", "64x96", "96x64", "128x32"])
def test_decodes_like_the_original(vqvae, size):
    golden = np.load(FIXTURES / "7b_like" / "decode.npz")
    width, height = map(int, size.split("x"))
    codes = torch.from_numpy(golden[f"img_idx/{size}"])[None]
    with torch.no_grad():
        pixels = vqvae.decode(codes, force_not_quantize=True, shape=(1, height // 16, width // 16, 32)).sample[0]
    assert np.abs(pixels.numpy() - golden[f"pixels_float/{size}"]).max() <= 1e-4
    image = ((pixels.clamp(-1, 1) + 1) / 2 * 255).permute(1, 2, 0).numpy().astype(np.uint8)
    assert np.abs(image.astype(int) - golden[f"image/{size}"].astype(int)).max() <= 1


def encoder_inputs() -> list[tuple[str, str]]:
    exact = [("images", name) for name in ("rgb_96x96", "rgb_64x128_wh", "rgb_128x64_wh")]
    names = np.load(FIXTURES / "7b_like" / "encode.npz").files
    return exact + [tuple(name.split("/")) for name in names if name.startswith(("cropped_seed7/", "whitened/"))]


@pytest.mark.parametrize(("kind", "name"), encoder_inputs())
def test_encodes_like_the_original(vqvae, kind, name):
    golden = np.load(FIXTURES / "7b_like" / "encode.npz")
    image = np.load(FIXTURES / "7b_like" / "images.npz")[name] if kind == "images" else golden[f"{kind}/{name}"]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    with torch.no_grad():
        codes = vqvae.quantize(vqvae.encode(pixels).latents)[2][2]
    assert np.array_equal(codes.flatten().numpy(), golden[f"img_idx_seed7/{name}"])


def test_is_float32_unless_asked_and_says_nothing(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vqvae = load_vqvae(VQGAN)
        half = load_vqvae(VQGAN, dtype=torch.bfloat16)
    assert (vqvae.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert not vqvae.training
    assert vqvae.config.scaling_factor == 1.0 and vqvae.config.lookup_from_codebook
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("place", ["", "tokenizer", "original_tokenizers"])
def test_finds_the_files_where_repositories_have_them(vqvae, tmp_path, place):
    shutil.copytree(VQGAN, tmp_path / place, dirs_exist_ok=True)
    assert_same(load_vqvae(tmp_path), vqvae)
    assert_same(load_vqvae(str(tmp_path / place / "vqgan.ckpt")), vqvae)


@pytest.mark.parametrize("place", ["", "vqvae"])
def test_diffusers_folders(vqvae, tmp_path, place):
    vqvae.save_pretrained(tmp_path / place)
    assert_same(load_vqvae(tmp_path), vqvae)


@pytest.mark.parametrize("prefix", ["", "model.vqmodel."])
@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded"])
def test_transformers_naming(vqvae, original, tmp_path, prefix, form):
    state_dict = {prefix + name: tensor.float().clone() for name, tensor in original.items()}
    if form == "safetensors":
        save_file(state_dict, tmp_path / "model.safetensors")
    elif form == "bin":
        torch.save(state_dict, tmp_path / "pytorch_model.bin")
    else:
        # As in a whole model: a shard that has nothing to do with the VQ model need not even be there.
        names = sorted(state_dict)
        shards = {"model-1.safetensors": names[:100], "model-2.safetensors": names[100:]}
        for file, shard in shards.items():
            save_file({name: state_dict[name] for name in shard}, tmp_path / file)
        weight_map = {name: file for file, shard in shards.items() for name in shard}
        weight_map["model.embed_tokens.weight"] = "model-3.safetensors"
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(load_vqvae(tmp_path), vqvae)


def test_the_naming_is_that_of_transformers(original):
    config = ChameleonVQVAEConfig(base_channels=32, latent_channels=32, embed_dim=32)
    original = {name: tensor.float() for name, tensor in original.items() if not name.startswith("decoder.")}
    ChameleonVQVAE(config).load_state_dict(original, strict=True)


def test_back_to_the_original(vqvae, original, tmp_path):
    state_dict, config = vqvae_to_original(vqvae)
    assert state_dict.keys() == original.keys()
    for name, tensor in state_dict.items():
        assert torch.equal(tensor, original[name].float()), name
    released = yaml.safe_load((VQGAN / "vqgan.yaml").read_text())["model"]["params"]
    assert config["model"]["params"] == {key: released[key] for key in config["model"]["params"]}
    for name, content in original_vqgan_files(vqvae).items():
        (tmp_path / name).write_bytes(content)
    assert_same(load_vqvae(tmp_path), vqvae)


def test_norms_that_the_original_does_not_have():
    """They would be read back with other groups, and decode to other images."""
    halves = VQModel(block_out_channels=(32,), latent_channels=4, num_vq_embeddings=8, norm_num_groups=16)
    with pytest.raises(
        ValueError, match=r"norms of 16 groups \(`norm_num_groups`\), but the original's always have 32"
    ):
        original_vqgan_files(halves)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    shutil.copy(VQGAN / "vqgan.yaml", tmp_path)
    torch.save({"state_dict": Evil(tmp_path / "executed")}, tmp_path / "vqgan.ckpt")
    with pytest.raises(ValueError, match="`original_vqgan`.*vqgan.ckpt.*runs code.*refused.*only tensors"):
        load_vqvae(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_missing_yaml(tmp_path):
    shutil.copy(VQGAN / "vqgan.ckpt", tmp_path)
    with pytest.raises(OSError, match="`original_vqgan`.*vqgan.yaml.*Chameleon_7B_mGPT"):
        load_vqvae(tmp_path)
    with pytest.raises(OSError, match="`original_vqgan`.*vqgan.yaml.*Chameleon_7B_mGPT"):
        load_vqvae(tmp_path / "vqgan.ckpt")


@pytest.mark.parametrize("content", ["model: [", "model: {}", "just text", ""])
def test_a_yaml_that_is_none(tmp_path, content):
    shutil.copytree(VQGAN, tmp_path, dirs_exist_ok=True)
    (tmp_path / "vqgan.yaml").write_text(content)
    with pytest.raises(ValueError, match="`original_vqgan`.*vqgan.yaml.*not the configuration of a VQGAN"):
        load_vqvae(tmp_path)


def test_what_a_diffusers_model_cannot_hold(tmp_path, original):
    with pytest.raises(ValueError, match="attn_resolutions"):
        load_vqvae(write_vqgan(tmp_path, original, attn_resolutions=[16]))


def test_missing_and_unexpected_tensors(tmp_path, original):
    fewer = {name: tensor for name, tensor in original.items() if name != "decoder.conv_in.bias"}
    with pytest.raises(ValueError, match=r"1 missing \(decoder.conv_in.bias\)"):
        load_vqvae(write_vqgan(tmp_path, fewer))
    with pytest.raises(ValueError, match=r"1 unexpected \(decoder.extra\)"):
        load_vqvae(write_vqgan(tmp_path, {**original, "decoder.extra": torch.zeros(1)}))


def test_a_configuration_of_other_shapes(tmp_path, original):
    with pytest.raises(ValueError, match=r"of another shape.* decoder.conv_in.weight \(128, 32, 3, 3\) instead of"):
        load_vqvae(write_vqgan(tmp_path, original, ch=64))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x80\x02X\x02\x00\x00\x00\xaa\xaa.",  # text that is none
        b"\x80\x02j\x07\x00\x00\x00.",  # a reference to nothing
    ],
)
def test_a_damaged_file(tmp_path, content):
    shutil.copy(VQGAN / "vqgan.yaml", tmp_path)
    (tmp_path / "vqgan.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match="`original_vqgan`.*vqgan.ckpt.*damaged"):
        load_vqvae(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"epoch": 3}}])
def test_a_file_without_tensors(tmp_path, content):
    shutil.copy(VQGAN / "vqgan.yaml", tmp_path)
    torch.save(content, tmp_path / "vqgan.ckpt")
    with pytest.raises(ValueError, match="holds no `state_dict` of tensors"):
        load_vqvae(tmp_path)


def test_an_encoder_alone(tmp_path, original):
    encoder = {name: tensor.clone() for name, tensor in original.items() if not name.startswith("decoder.")}
    save_file(encoder, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not a VQ model's with encoder and decoder: there is no 'decoder.conv_out"):
        load_vqvae(tmp_path)


def test_places_without_a_vq_model(tmp_path):
    with pytest.raises(OSError, match="`original_vqgan`: the folder .* has no VQ model.*It takes.*Anole"):
        load_vqvae(tmp_path)
    with pytest.raises(OSError, match="`original_vqgan`: the folder .* has no VQ model"):
        load_vqvae(FIXTURES / "7b_like")
    with pytest.raises(ValueError, match="`original_vqgan` is '/no/such/folder', which is neither a folder nor a Hub"):
        load_vqvae("/no/such/folder")


def test_hub_id_without_network(vqvae, tmp_path):
    files = {f"tokenizer/{name}": VQGAN / name for name in ("vqgan.ckpt", "vqgan.yaml")}
    cache_dir = hub_cache(tmp_path, "someone/chameleon", files)
    assert_same(load_vqvae("someone/chameleon", cache_dir=cache_dir, local_files_only=True), vqvae)
    with pytest.raises(OSError, match="`original_vqgan`: there is no such folder.* of 'someone/else' has no VQ"):
        load_vqvae("someone/else", cache_dir=cache_dir, local_files_only=True)


def test_diffusers_model_by_hub_id_without_network(vqvae, tmp_path):
    vqvae.save_pretrained(tmp_path / "saved")
    files = {f"vqvae/{path.name}": path for path in (tmp_path / "saved").iterdir()}
    cache_dir = hub_cache(tmp_path / "cache", "someone/pipeline", files)
    assert_same(load_vqvae("someone/pipeline", cache_dir=cache_dir, local_files_only=True), vqvae)
