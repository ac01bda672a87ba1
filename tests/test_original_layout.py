# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""An original checkpoint presented as the folder of a diffusers pipeline, and finding its files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from lumina_mgpt_diffusers import LUMINA_MGPT
from lumina_mgpt_diffusers.lumina_mgpt.prompts import chat_template
from lumina_mgpt_diffusers.lumina_mgpt.scheduling_lumina_mgpt import LuminaMGPTScheduler
from lumina_mgpt_diffusers.lumina_mgpt.transformer_lumina_mgpt import LuminaMGPTTransformer
from lumina_mgpt_diffusers.lumina_mgpt.vocabulary import from_names, read_vocabulary
from lumina_mgpt_diffusers.original.files import base_size_from_name, find_checkpoint, find_tokenizer
from lumina_mgpt_diffusers.original.layout import load_tokenizer, original_as_diffusers


FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINT = FIXTURES / "7b_like" / "ckpt"
VQGAN = FIXTURES / "vqgan"


@pytest.fixture(scope="module")
def folder():
    with original_as_diffusers(CHECKPOINT, original_vqgan=VQGAN, base_size=96) as folder:
        yield Path(folder)


def text_files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def shard_checkpoint(folder: Path) -> Path:
    """The fixture in two shards."""
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    tensors = load_file(CHECKPOINT / "model.safetensors")
    weight_map = {name: f"model-0000{1 + ('layers.1' in name)}-of-00002.safetensors" for name in tensors}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def hub_cache(cache_dir: Path, repository: str, folder: Path) -> Path:
    """The cache of huggingface_hub after all files of a repository were downloaded."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = cache_dir / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    return root / "snapshots" / commit


def test_model_index(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index.pop("_diffusers_version")
    assert index == {
        "_class_name": "LuminaMGPTPipeline",
        "scheduler": ["lumina_mgpt", "LuminaMGPTScheduler"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["lumina_mgpt", "LuminaMGPTTransformer"],
        "vqvae": ["diffusers", "VQModel"],
    }


def test_every_component_loads_and_gives_the_original_logits(folder):
    scheduler = LuminaMGPTScheduler.from_pretrained(folder / "scheduler")
    assert scheduler.config.resolution == 96
    assert VQModel.from_pretrained(folder / "vqvae").config.num_vq_embeddings == 8192
    ids = torch.tensor([[0, 8943, 9322, 8710]])
    transformer = LuminaMGPTTransformer.from_pretrained(folder / "transformer", dtype=torch.float32)
    direct = LuminaMGPTTransformer.from_pretrained(CHECKPOINT, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(transformer(ids).logits, direct(ids).logits)


def test_tokenizer(folder):
    saved = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    golden = json.loads((FIXTURES / "7b_like" / "prompts.json").read_text())
    for cls in (PreTrainedTokenizerFast, AutoTokenizer):
        tokenizer = cls.from_pretrained(folder / "tokenizer")
        assert tokenizer.chat_template == chat_template(tokenizer, LUMINA_MGPT)
        assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<s>", "<reserved08706>")
        for text, ids in golden["encode_no_special"].items():
            if "<|image|>" not in text:
                assert tokenizer.encode(text, add_special_tokens=False) == ids, text
        for text, ids in golden["hf_encode_with_special"].items():
            if "<|image|>" not in text:
                assert tokenizer.encode(text) == ids, text


def test_config(folder):
    config = ChameleonConfig.from_pretrained(folder / "transformer")
    assert config.architectures == ["ChameleonForConditionalGeneration"]
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 8710, 1)
    generation = json.loads((folder / "transformer" / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (0, 8710, 1)
    original = json.loads((CHECKPOINT / "config.json").read_text())
    for name in ("model_parallel_size", "swin_norm", "dropout", "z_loss_weight", "mask_image_logits"):
        assert getattr(config, name) == original[name]
    assert config.rope_parameters == {"rope_theta": original["rope_theta"], "rope_type": "default"}

    vocabulary = config.vocabulary_map
    assert vocabulary.items() <= original["vocabulary_map"].items()
    assert len(vocabulary) < 8192 + 210
    assert {"<eoss>", "<racm3:break>", "<image>", "<reserved08706>", "<reserved08799>", "<reserved08824>"} < {
        *vocabulary
    }
    of_names = from_names(vocabulary, 8192, 16, LUMINA_MGPT)
    from_tokenizer = read_vocabulary(load_tokenizer(CHECKPOINT), 8192, 16)
    assert torch.equal(of_names.code_ids, from_tokenizer.code_ids)
    assert of_names.size_tag_ids == from_tokenizer.size_tag_ids


def test_stock_transformers_reads_the_config(folder):
    config = ChameleonConfig.from_pretrained(folder / "transformer")
    with torch.device("meta"):
        ChameleonForConditionalGeneration(config)


def test_same_bytes_every_time_and_nothing_of_this_machine(folder, tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path / "elsewhere")
    shutil.copytree(folder / "vqvae", tmp_path / "vqgan")  # in another form, too
    with original_as_diffusers(tmp_path / "elsewhere", original_vqgan=tmp_path / "vqgan", base_size=96) as again:
        assert text_files(Path(again)) == text_files(folder)
        weights = Path("vqvae/diffusion_pytorch_model.safetensors")
        assert (Path(again) / weights).read_bytes() == (folder / weights).read_bytes()
    for name, content in text_files(folder).items():
        assert not any(place in content for place in (b"/tmp", b"/home", str(FIXTURES).encode(), b"_name_or_path")), (
            name
        )


def test_it_holds_the_code_of_a_saved_pipeline(folder, saved_folder):
    code = {path.relative_to(saved_folder).as_posix(): path.read_bytes() for path in saved_folder.rglob("*.py")}
    assert {name: content for name, content in text_files(folder).items() if name.endswith(".py")} == code != {}


def test_it_loads_where_the_package_was_not_imported(folder, tmp_path):
    code = (
        "import sys\n"
        "from diffusers import DiffusionPipeline\n"
        "folder = sys.argv[1]\n"
        "pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)\n"
        "print(type(pipe).__name__, type(pipe.scheduler).__name__, type(pipe.transformer).__name__)\n"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(folder)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.split() == ["LuminaMGPTPipeline", "LuminaMGPTScheduler", "LuminaMGPTTransformer"], (
        result.stderr
    )


def test_nothing_is_copied_and_nothing_left(tmp_path):
    checkpoint = shard_checkpoint(tmp_path / "sharded")
    with original_as_diffusers(checkpoint, original_vqgan=VQGAN) as folder:
        shards = sorted(Path(folder, "transformer").glob("*.safetensors"))
        assert [shard.resolve() for shard in shards] == sorted(checkpoint.glob("*.safetensors"))
        LuminaMGPTTransformer.from_pretrained(Path(folder, "transformer"))
    assert not Path(folder).exists()
    assert len(list(checkpoint.glob("*.safetensors"))) == 2


def test_links_without_the_privilege(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with original_as_diffusers(shard_checkpoint(tmp_path), original_vqgan=VQGAN) as folder:
        assert not list(Path(folder, "transformer").glob("*.safetensors"))
        transformer = LuminaMGPTTransformer.from_pretrained(Path(folder, "transformer"))
    direct = LuminaMGPTTransformer.from_pretrained(CHECKPOINT)
    assert torch.equal(transformer.lm_head.weight, direct.lm_head.weight)


def test_components_of_the_caller_need_no_files(tmp_path):
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(CHECKPOINT / name, tmp_path / "bare")
    components = {"tokenizer": load_tokenizer(CHECKPOINT), "vqvae": VQModel(), "scheduler": LuminaMGPTScheduler()}
    with original_as_diffusers(tmp_path / "bare", **components) as folder:
        assert not Path(folder, "vqvae").exists()
        assert Path(folder, "transformer", "config.json").exists()
    (tmp_path / "bare" / "model.safetensors").unlink()
    transformer = LuminaMGPTTransformer.from_pretrained(CHECKPOINT)
    with original_as_diffusers(tmp_path / "bare", transformer=transformer, **components) as folder:
        assert Path(folder, "model_index.json").exists()


def test_base_size(tmp_path):
    checkpoint = tmp_path / "Lumina-mGPT-7B-512"
    shutil.copytree(CHECKPOINT, checkpoint)
    for base_size, resolution in ((None, 512), (1024, 1024)):
        with original_as_diffusers(checkpoint, original_vqgan=VQGAN, base_size=base_size) as folder:
            assert LuminaMGPTScheduler.from_pretrained(folder, subfolder="scheduler").config.resolution == resolution
    with original_as_diffusers(CHECKPOINT, original_vqgan=VQGAN) as folder:
        default = LuminaMGPTScheduler().config.resolution
        assert LuminaMGPTScheduler.from_pretrained(folder, subfolder="scheduler").config.resolution == default


@pytest.mark.parametrize(
    ("name", "base_size"),
    [
        ("Alpha-VLLM/Lumina-mGPT-7B-768-Omni", 768),
        ("Alpha-VLLM/Lumina-mGPT-7B-1024", 1024),
        ("Alpha-VLLM/Lumina-mGPT-34B-512", 512),
        ("Alpha-VLLM/Lumina-mGPT-7B-768-bnb-int4", 768),
        ("Alpha-VLLM/Lumina-mGPT-7B-512-MultiImage", 512),
        ("/data/models/Lumina-mGPT-7B-768/", 768),
        ("/cache/models--Alpha-VLLM--Lumina-mGPT-7B-768/snapshots/512a0d1f768c", 768),
        ("/data/768/my-model", None),
        ("Alpha-VLLM/Lumina-mGPT-34B-512-Omni", 512),
        ("runs/epoch-1024", None),
        ("runs/checkpoint-512", None),
        ("someone/original-512", None),
        ("Lumina-mGPT-7B-768-my-run-512", None),
        ("someone/chameleon-7b", None),
        ("someone/model-17680", None),
    ],
)
def test_base_size_from_name(name, base_size):
    assert base_size_from_name(name) == base_size
    assert base_size_from_name(Path(name)) == base_size


def test_a_folder_given_by_a_relative_path(tmp_path, monkeypatch):
    (tmp_path / "Lumina-mGPT-7B-768").mkdir()
    monkeypatch.chdir(tmp_path / "Lumina-mGPT-7B-768")
    assert base_size_from_name(".") == 768


def test_hub_ids_without_network(tmp_path):
    hub_cache(tmp_path, "Alpha-VLLM/Lumina-mGPT-7B-512", shard_checkpoint(tmp_path / "sharded"))
    hub_cache(tmp_path, "Alpha-VLLM/Chameleon_7B_mGPT", VQGAN)
    kwargs = {"cache_dir": tmp_path, "local_files_only": True}
    with original_as_diffusers(
        "Alpha-VLLM/Lumina-mGPT-7B-512", original_vqgan="Alpha-VLLM/Chameleon_7B_mGPT", revision="main", **kwargs
    ) as folder:
        assert LuminaMGPTScheduler.from_pretrained(folder, subfolder="scheduler").config.resolution == 512
        transformer = LuminaMGPTTransformer.from_pretrained(Path(folder, "transformer"))
    direct = LuminaMGPTTransformer.from_pretrained(CHECKPOINT)
    assert torch.equal(transformer.lm_head.weight, direct.lm_head.weight)


def test_where_the_tokenizer_comes_from(tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(CHECKPOINT / "config.json", bare)
    kwargs = {"cache_dir": tmp_path, "local_files_only": True}
    with pytest.raises(OSError, match="there is no such folder.*/Lumina-mGPT-7B-768' has no `tokenizer.json`"):
        find_tokenizer(bare, LUMINA_MGPT, **kwargs)
    family = hub_cache(tmp_path, "Alpha-VLLM/Lumina-mGPT-7B-768", CHECKPOINT)
    assert find_tokenizer(bare, LUMINA_MGPT, **kwargs, revision="a-branch-of-another-repository") == family
    assert find_tokenizer(CHECKPOINT, LUMINA_MGPT, **kwargs) == CHECKPOINT
    assert find_tokenizer(bare, LUMINA_MGPT, CHECKPOINT, **kwargs) == CHECKPOINT
    with pytest.raises(OSError, match=f"`original_tokenizer`: the folder '{bare}' has no `tokenizer.json`"):
        find_tokenizer(CHECKPOINT, LUMINA_MGPT, bare, **kwargs)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_files_of_a_checkpoint(tmp_path, missing):
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    (tmp_path / missing).unlink()
    with pytest.raises(OSError, match=f"`checkpoint`: the folder .* has no `{missing}`.*Alpha-VLLM/Lumina-mGPT"):
        find_checkpoint(tmp_path)


def test_missing_shard(tmp_path):
    shard_checkpoint(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(OSError, match="has no `model-00002-of-00002.safetensors`"):
        find_checkpoint(tmp_path)


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="`model_type` in .*config.json' has to be 'chameleon' but is 'llama'"):
        find_checkpoint(tmp_path)


def test_the_tokenizer_of_another_model(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    config = json.loads((CHECKPOINT / "config.json").read_text())
    config["vocabulary_map"]["IMGIMGBZ"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'IMGIMGBZ' is 5 in `tokenizer` but 6 in the `vocabulary_map`"):
        with original_as_diffusers(tmp_path, original_vqgan=VQGAN):
            pass


def test_vqgan_is_asked_for():
    with pytest.raises(ValueError, match="holds no VQ model: pass `original_vqgan`.*Chameleon_7B_mGPT"):
        with original_as_diffusers(CHECKPOINT):
            pass
