# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The original files of Lumina-mGPT 2.0 read in every form, written as a pipeline, and back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CHECKPOINT_2, FIXTURES, MOVQGAN, write_checkpoint_2
from diffusers import DiffusionPipeline, VQModel
from diffusers.utils import logging
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from lumina_mgpt_diffusers import LUMINA_MGPT_2, LuminaMGPTPipeline, LuminaMGPTScheduler
from lumina_mgpt_diffusers.lumina_mgpt.prompts import encode_text
from lumina_mgpt_diffusers.original import (
    base_size_from_name,
    convert_diffusers_to_original,
    convert_original_to_diffusers,
    load_vqvae,
)
from lumina_mgpt_diffusers.original.files import find_tokenizer
from lumina_mgpt_diffusers.original.layout import load_tokenizer, original_as_diffusers
from lumina_mgpt_diffusers.original.vqgan import original_vqgan_files


FIRST_IDS = {"<|im_end|>": 514, "<|endoftext|>": 512}


@pytest.fixture(scope="module")
def converted(checkpoint_2, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "out"
    return convert_original_to_diffusers(checkpoint_2, output, original_vqgan=MOVQGAN, base_size=96)


@pytest.fixture(scope="module")
def returned(converted, tmp_path_factory):
    return convert_diffusers_to_original(converted, tmp_path_factory.mktemp("returned") / "out")


def original_vq() -> dict[str, torch.Tensor]:
    return torch.load(MOVQGAN / "movqgan_270M.ckpt", weights_only=True)


def codes_of(pipe) -> torch.LongTensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe("a fox", height=32, width=32, guidance_scale=2.0, top_k=1, output_type="latent").images


def edit(path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_pipeline_is_written(converted, pipe_2):
    pipe = DiffusionPipeline.from_pretrained(converted, dtype=torch.float32)
    assert isinstance(pipe, LuminaMGPTPipeline)
    assert torch.equal(codes_of(pipe), codes_of(pipe_2))
    assert pipe.family is LUMINA_MGPT_2
    config = json.loads((converted / "transformer" / "config.json").read_text())
    assert (config["model_family"], config["base_size"]) == ("lumina-mgpt-2", 96)
    assert len(config["vocabulary_map"]) < 16384 + 210
    assert pipe.scheduler.config.top_k == 4096 and pipe.scheduler.config.text_top_k == 10
    assert pipe.scheduler.config.guidance_schedule == "constant"
    assert pipe.vqvae.config.norm_type == "spatial" and pipe.vae_scale_factor == 8
    without_tokenizer = LuminaMGPTPipeline(**{**pipe.components, "tokenizer": None})
    assert torch.equal(without_tokenizer.image_vocabulary.code_ids, pipe.image_vocabulary.code_ids)


def test_the_model_card_is_that_of_the_family(converted):
    card = (converted / "README.md").read_text()
    assert "license: apache-2.0\n" in card and "# Lumina-mGPT 2.0, base size 96" in card
    assert "Chameleon Research License" not in card and "| `top_k` | 4096 |" in card


def test_the_original_is_written_again(converted, returned, checkpoint_2):
    weights = load_file(returned / "model.safetensors")
    before = load_file(checkpoint_2 / "model.safetensors")
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], before[name]) for name in before)
    written = torch.load(returned / LUMINA_MGPT_2.vq_file, weights_only=True)
    assert written.keys() == original_vq().keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in original_vq().items())
    config, original = (json.loads((folder / "config.json").read_text()) for folder in (returned, checkpoint_2))
    assert original["vocabulary_map"].items() - config["vocabulary_map"].items() == {("<|image|>", 17144)}
    tokenizer = json.loads((returned / "tokenizer_config.json").read_text())
    assert (tokenizer.get("bos_token"), tokenizer["eos_token"]) == (None, "<|im_end|>")


def test_what_is_written_again_loads_as_the_original(returned, pipe_2):
    scheduler = LuminaMGPTScheduler(resolution=96)
    pipe = LuminaMGPTPipeline.from_pretrained(
        returned, original_vqgan=returned, scheduler=scheduler, dtype=torch.float32
    )
    assert torch.equal(codes_of(pipe), codes_of(pipe_2))
    assert pipe.encode_prompt("a", height=32, width=32)[0][0, 0] == 514


@pytest.mark.parametrize(
    ("name", "base_size"),
    [
        ("Alpha-VLLM/Lumina-mGPT-2.0", 768),
        ("models--Alpha-VLLM--Lumina-mGPT-2.0-Omni/snapshots/0123", 512),
        ("Lumina-mGPT-2.1", None),
    ],
)
def test_names_of_released_checkpoints(name, base_size):
    assert base_size_from_name(name) == base_size


@pytest.mark.parametrize("first", FIRST_IDS)
@pytest.mark.parametrize("as_bos", [False, True])
def test_the_first_token_is_that_of_the_files(tmp_path, first, as_bos):
    write_checkpoint_2(tmp_path)
    names = {"bos_token": first, "eos_token": "<|fim_pad|>"} if as_bos else {"bos_token": None, "eos_token": first}
    edit(tmp_path / "tokenizer_config.json", **names)
    (tmp_path / "special_tokens_map.json").unlink()
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.bos_token_id == FIRST_IDS[first] and len(tokenizer) == 17144


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token": None}, "neither `bos_token` nor `eos_token` in its `tokenizer_config.json`, the `bos_token`"),
        ({"eos_token": "</s>", "pad_token": None}, "it has no '</s>', the `bos_token` of a pipeline"),
    ],
)
def test_a_first_token_that_is_missing_is_named(tmp_path, values, message):
    write_checkpoint_2(tmp_path)
    edit(tmp_path / "tokenizer_config.json", **values)
    (tmp_path / "special_tokens_map.json").unlink()
    # The tokenizers library adds what a configuration names.
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def write_bpe_files(folder: Path, added_in: str) -> None:
    """The tokenizer of a checkpoint in the files of a slow tokenizer, instead of `tokenizer.json`."""
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    added = content["added_tokens"]
    if added_in == "added_tokens.json":
        (folder / added_in).write_text(json.dumps({token["content"]: token["id"] for token in added}))
    else:
        edit(folder / added_in, added_tokens_decoder={str(token.pop("id")): token for token in added})


@pytest.mark.parametrize("added_in", ["added_tokens.json", "tokenizer_config.json"])
def test_a_tokenizer_of_vocabulary_and_merges(tmp_path, pipe_2, added_in):
    write_bpe_files(write_checkpoint_2(tmp_path), added_in)
    with original_as_diffusers(
        tmp_path, vqvae=pipe_2.vqvae, transformer=pipe_2.transformer, scheduler=pipe_2.scheduler
    ) as folder:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(Path(folder, "tokenizer"))
    assert tokenizer.get_vocab() == pipe_2.tokenizer.get_vocab()
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert special == ("<|im_end|>", "<eoss>", "<|endoftext|>")
    pipe = LuminaMGPTPipeline(**{**pipe_2.components, "tokenizer": tokenizer})
    for prompt in json.loads((FIXTURES / "7b2_like" / "prompts.json").read_text()).values():
        if prompt["task"] == "t2i":
            ids = pipe.encode_prompt(prompt["text"], height=prompt["height"], width=prompt["width"])[0]
            assert ids.tolist() == [prompt["input_ids"]]
        assert encode_text(tokenizer, prompt["question"]) == encode_text(pipe_2.tokenizer, prompt["question"])
    for pair in json.loads((FIXTURES / "7b2_like" / "tokenizer_pairs.json").read_text()):
        assert encode_text(tokenizer, pair["text"]) == encode_text(pipe_2.tokenizer, pair["text"])


def test_vocabulary_and_merges_belong_together(tmp_path):
    write_bpe_files(write_checkpoint_2(tmp_path), "added_tokens.json")
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(OSError, match="`vocab.json` and `merges.txt`"):
        find_tokenizer(tmp_path, LUMINA_MGPT_2, tmp_path)


NEW = {"content": "<|new|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.mark.parametrize(
    ("values", "as_bpe"),
    [
        ({"additional_special_tokens": ["<|new|>"]}, False),
        ({"additional_special_tokens": ["<|new|>"]}, True),
        ({"added_tokens_decoder": {"17200": NEW | {"special": True}}}, False),
    ],
)
def test_tokens_that_a_configuration_adds_are_named(tmp_path, values, as_bpe):
    write_checkpoint_2(tmp_path)
    if as_bpe:
        write_bpe_files(tmp_path, "added_tokens.json")
    edit(tmp_path / "tokenizer_config.json", **values)
    (tmp_path / "special_tokens_map.json").unlink()
    with pytest.raises(ValueError, match=r"names \d+ tokens that its vocabulary .* '<\|new\|>': they would be added"):
        load_tokenizer(tmp_path)


def test_a_token_that_the_configuration_of_the_model_has_may_be_added(tmp_path):
    write_checkpoint_2(tmp_path)
    edit(tmp_path / "tokenizer_config.json", additional_special_tokens=["<|image|>"])
    (tmp_path / "special_tokens_map.json").unlink()
    config = json.loads((CHECKPOINT_2 / "config.json").read_text())
    config["vocabulary_map"]["<|image|>"] = 17144
    assert load_tokenizer(tmp_path, config).convert_tokens_to_ids("<|image|>") == 17144


def test_codes_that_only_the_configuration_names(tmp_path, checkpoint_2, pipe_2):
    shutil.copytree(checkpoint_2, tmp_path, dirs_exist_ok=True)
    shutil.copy(CHECKPOINT_2 / "tokenizer.json", tmp_path)
    pipe = LuminaMGPTPipeline.from_pretrained(
        tmp_path, original_vqgan=MOVQGAN, scheduler=LuminaMGPTScheduler(resolution=96), dtype=torch.float32
    )
    assert pipe.family is LUMINA_MGPT_2 and len(pipe.tokenizer) == 760
    assert torch.equal(codes_of(pipe), codes_of(pipe_2))


def test_another_number_of_codes_is_said(tmp_path, checkpoint_2):
    shutil.copytree(checkpoint_2, tmp_path, dirs_exist_ok=True)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["added_tokens"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="names 16383 codes, by '<MOVQGAN' .*but the VQ model has 16384"):
        convert_original_to_diffusers(tmp_path, tmp_path / "out", original_vqgan=MOVQGAN, base_size=96)


def without(folder: Path, name: str, other: str) -> Path:
    """A checkpoint in which a name is another."""
    write_checkpoint_2(folder)
    for path in (folder / "tokenizer.json", folder / "config.json"):
        path.write_text(path.read_text().replace(name, other))
    return folder


@pytest.mark.parametrize("missing", [*LUMINA_MGPT_2.control_tokens, "<reserved08801>"])
def test_control_tokens_that_are_missing_are_named(tmp_path, missing):
    checkpoint = without(tmp_path / "ckpt", missing, "<other>")
    with pytest.raises(ValueError, match=f"not that of a Lumina-mGPT 2.0 checkpoint: it .*{missing}"):
        convert_original_to_diffusers(checkpoint, tmp_path / "out", original_vqgan=MOVQGAN, base_size=96)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Lumina-mGPT-2.0", "names 0 codes, by '<MOVQGAN' and what follows, but the VQ model has 16384"),
        ("any", "it has no '<s>', the `bos_token` of a pipeline. If it is of another family, pass that as `family`"),
    ],
)
def test_codes_of_other_names_are_said(tmp_path, name, message):
    checkpoint = without(tmp_path / name, "<MOVQGAN", "<VQGAN")
    with pytest.raises(ValueError, match=message):
        convert_original_to_diffusers(checkpoint, tmp_path / "out", original_vqgan=MOVQGAN, base_size=96)


@pytest.mark.parametrize("name", ["Lumina-mGPT-2.0", "Lumina-mGPT-2.0-Omni"])
def test_the_repository_of_a_tokenizer_follows_from_the_name(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text('{"model_type": "chameleon"}')
    with pytest.raises(OSError, match="of Lumina-mGPT 2.0 are in the repository `Alpha-VLLM/Lumina-mGPT-2.0`"):
        with original_as_diffusers(
            tmp_path / name, original_vqgan=MOVQGAN, transformer=torch.nn.Identity(), local_files_only=True
        ):
            pass


# The VQ model


def assert_is_the_vq_model(vqvae: VQModel, pipe) -> None:
    expected = pipe.vqvae.state_dict()
    assert vqvae.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in vqvae.state_dict().items())


@pytest.mark.parametrize("place", ["movqgan_270M.ckpt", "movqgan/270M/movqgan_270M.ckpt", "another_name.ckpt"])
def test_the_vq_model_is_found(pipe_2, tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(MOVQGAN / "movqgan_270M.ckpt", path)
    assert_is_the_vq_model(load_vqvae(path), pipe_2)
    if path.name == "movqgan_270M.ckpt":
        assert_is_the_vq_model(load_vqvae(tmp_path), pipe_2)


@pytest.mark.parametrize("nested", [False, True])
def test_what_training_left_is_dropped(pipe_2, tmp_path, nested):
    state = {**original_vq(), "loss.discriminator.weight": torch.ones(1), "ema_decoder.conv_in.weight": torch.ones(1)}
    torch.save({"state_dict": state, "epoch": 3} if nested else state, tmp_path / "movqgan_270M.ckpt")
    assert_is_the_vq_model(load_vqvae(tmp_path), pipe_2)


def test_unknown_tensors_are_dropped_with_one_warning(pipe_2, tmp_path, caplog):
    unknown = ["discriminator.weight", "encoder.extra", "quantize.cluster_size", "zz"]
    torch.save({**original_vq(), **dict.fromkeys(unknown, torch.ones(1))}, tmp_path / "movqgan_270M.ckpt")
    logging.enable_propagation()
    try:
        assert_is_the_vq_model(load_vqvae(tmp_path), pipe_2)
    finally:
        logging.disable_propagation()
    (warning,) = (record.message for record in caplog.records if "movqgan_270M.ckpt" in record.message)
    assert warning.startswith("4 tensors in ") and warning.endswith(f"such as {', '.join(unknown[:3])}.")


def test_latents_of_another_width_than_the_codebook_are_refused(tmp_path):
    state = original_vq()
    state["quantize.embedding.weight"] = state["quantize.embedding.weight"][:, :3].clone()
    torch.save(state, tmp_path / "movqgan_270M.ckpt")
    with pytest.raises(ValueError, match="`embed_dim` is equal to their `z_channels` .* but they are 3 and 4"):
        load_vqvae(tmp_path)


@pytest.mark.parametrize("name", ["decoder.conv_out.weight", "decoder.up.3.attn.1.norm.conv_y.weight"])
def test_a_vq_model_that_lacks_a_tensor(tmp_path, name):
    state = original_vq()
    del state[name]
    torch.save(state, tmp_path / "movqgan_270M.ckpt")
    with pytest.raises(ValueError, match=name):
        load_vqvae(tmp_path)


def test_other_channels_and_depths_are_read_from_the_tensors(tmp_path):
    config = {"block_out_channels": [32, 32, 64], "latent_channels": 4, "vq_embed_dim": 4, "num_vq_embeddings": 16}
    config |= {"down_block_types": ["DownEncoderBlock2D"] * 2 + ["AttnDownEncoderBlock2D"], "layers_per_block": 1}
    config |= {"up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 2, "norm_type": "spatial"}
    vqvae = VQModel(**config, lookup_from_codebook=True, scaling_factor=1.0)
    (content,) = original_vqgan_files(vqvae, "movqgan_270M.ckpt").values()
    (tmp_path / "movqgan_270M.ckpt").write_bytes(content)
    loaded = load_vqvae(tmp_path)
    assert all(torch.equal(tensor, vqvae.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    with pytest.raises(ValueError, match="spatial norms, which `vqgan.ckpt` cannot hold"):
        original_vqgan_files(vqvae)
