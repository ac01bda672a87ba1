# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What `save_pretrained` writes: the same bytes every time, nothing of this machine, readable by others."""

import inspect
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import CHECKPOINT
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from transformers import AutoTokenizer, ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from lumina_mgpt_diffusers import (
    LuminaMGPTChatPipeline,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTInpaintPipeline,
    LuminaMGPTPipeline,
    LuminaMGPTScheduler,
    LuminaMGPTTransformer,
)
from lumina_mgpt_diffusers.files import staging_folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FILES = {
    "README.md",
    "model_index.json",
    "pipeline.py",
    "scheduler/lumina_mgpt.py",
    "scheduler/scheduler_config.json",
    "tokenizer/chat_template.jinja",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/generation_config.json",
    "transformer/lumina_mgpt.py",
    "transformer/model.safetensors",
    "vqvae/config.json",
    "vqvae/diffusion_pytorch_model.safetensors",
}


@pytest.mark.parametrize("loader", [LuminaMGPTPipeline, DiffusionPipeline])
def test_saved_loaded_and_saved_again_it_is_the_same(saved_folder, tmp_path, loader):
    before = contents(saved_folder)
    assert before.keys() == FILES
    loader.from_pretrained(saved_folder).save_pretrained(tmp_path)
    assert contents(tmp_path) == before


def test_nothing_of_this_machine_is_saved(saved_folder):
    places = [str(saved_folder.parent), str(CHECKPOINT), str(Path.home()), "/tmp", "_name_or_path"]
    for name, content in contents(saved_folder).items():
        if not name.endswith("tokenizer.json"):  # whose vocabulary has every string
            assert [place for place in places if place.encode() in content] == [], name


def test_the_index_names_portable_classes(saved_folder):
    index = json.loads((saved_folder / "model_index.json").read_text())
    assert index.pop("_diffusers_version")
    assert index == {
        "_class_name": "LuminaMGPTPipeline",
        "scheduler": ["lumina_mgpt", "LuminaMGPTScheduler"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["lumina_mgpt", "LuminaMGPTTransformer"],
        "vqvae": ["diffusers", "VQModel"],
    }


def test_others_read_the_components(saved_folder, prompts_golden):
    config = json.loads((saved_folder / "transformer" / "config.json").read_text())
    assert config["architectures"] == ["ChameleonForConditionalGeneration"]
    assert config["model_type"] == "chameleon"
    stock, info = ChameleonForConditionalGeneration.from_pretrained(
        saved_folder / "transformer", output_loading_info=True
    )
    assert all(".vqmodel." in name for name in info["missing_keys"]) and not info["mismatched_keys"]
    ours = LuminaMGPTTransformer.from_pretrained(saved_folder / "transformer")
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        expected = ours(input_ids=ids).logits
        logits = stock.lm_head(stock.model(input_ids=ids).last_hidden_state)
    torch.testing.assert_close(logits, expected)

    tokenizer = AutoTokenizer.from_pretrained(saved_folder / "tokenizer")
    assert type(tokenizer) is PreTrainedTokenizerFast


def test_the_transformer_alone(random_pipe, tmp_path):
    random_pipe.transformer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ChameleonForConditionalGeneration"]
    assert type(LuminaMGPTTransformer.from_pretrained(tmp_path)) is LuminaMGPTTransformer


@pytest.mark.parametrize(
    "pipeline_class",
    [LuminaMGPTPipeline, LuminaMGPTImg2ImgPipeline, LuminaMGPTInpaintPipeline, LuminaMGPTChatPipeline],
)
def test_every_pipeline_leads_to_its_own_class(random_pipe, tmp_path, pipeline_class):
    pipeline_class(**random_pipe.components).save_pretrained(tmp_path)
    assert f"import {pipeline_class.__name__} as Pipeline\n" in (tmp_path / "pipeline.py").read_text()
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is pipeline_class
    loaded = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=str(tmp_path), trust_remote_code=True)
    assert type(loaded) is pipeline_class


def test_shards_and_variants(random_pipe, tmp_path):
    random_pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size="1MB")
    shards = [path.name for path in (tmp_path / "transformer").glob("*.safetensors")]
    assert len(shards) > 1 and all("fp16" in name for name in shards)
    loaded = LuminaMGPTPipeline.from_pretrained(tmp_path, variant="fp16")
    for ours, theirs in zip(random_pipe.transformer.parameters(), loaded.transformer.parameters()):
        assert torch.equal(ours, theirs)


# The model card


def test_the_card_says_what_the_model_is(saved_folder):
    card = ModelCard.load(saved_folder / "README.md")
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "text-to-image"
    assert (card.data.license, card.data.license_name) == ("other", "chameleon-research-license")
    assert "| `guidance_scale` | 4.0 |" in card.text and "| `resolution` | 96 |" in card.text
    assert "| 1 : 1 | 96 | 96 |" in card.text


def test_the_usage_of_the_card_runs(saved_folder, monkeypatch, tmp_path):
    text = (saved_folder / "README.md").read_text()
    first, second = re.findall(r"```py\n(.*?)```", text, flags=re.DOTALL)
    # In the folder itself, as the card has it, with a size that is quick.
    monkeypatch.chdir(saved_folder)
    first = first.replace("height=96, width=96", "height=32, width=32").replace(
        '"fox.png"', repr(f"{tmp_path}/fox.png")
    )
    namespace: dict = {}
    exec(first, namespace)
    assert (tmp_path / "fox.png").is_file()
    exec(second, namespace)
    assert type(namespace["pipe"]).__name__ == "LuminaMGPTPipeline"


@pytest.mark.parametrize(
    ("pipeline_class", "tag"),
    [
        (LuminaMGPTImg2ImgPipeline, "image-to-image"),
        (LuminaMGPTInpaintPipeline, "image-to-image"),
        (LuminaMGPTChatPipeline, "any-to-any"),
    ],
)
def test_the_card_shows_the_class_that_was_saved(random_pipe, tmp_path, monkeypatch, pipeline_class, tag):
    pipeline_class(**random_pipe.components).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert f"pipeline_tag: {tag}\n" in text and "pip install" not in text
    usage = re.search(r"```py\n(.*?)```", text, flags=re.DOTALL)[1]
    assert f"pipe = {pipeline_class.__name__}.from_pretrained" in usage
    (call,) = re.findall(r"= pipe\((.*)\)", usage)
    # The arguments are those of the class; an untrained model may talk for long.
    inspect.signature(pipeline_class.__call__).bind(None, *eval(f"(lambda *a, **k: a)({call})", {"generator": None}))
    names = re.findall(r"(\w+)=", call)
    assert {*names} <= {*inspect.signature(pipeline_class.__call__).parameters}


def test_an_edited_card_stays(random_pipe, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    random_pipe.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_card_follows_the_scheduler(random_pipe, with_sampler, tmp_path):
    with_sampler(random_pipe, resolution=512, top_k=7)
    random_pipe.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| `top_k` | 7 |" in card and "49 sizes" in card and "height=512, width=512" in card
    assert LuminaMGPTScheduler.from_pretrained(tmp_path, subfolder="scheduler").config.top_k == 7


# Complete or not there


def test_a_save_over_another_pipeline_leaves_nothing_of_it(random_pipe, saved_folder, tmp_path):
    random_pipe.save_pretrained(tmp_path, max_shard_size="1MB")
    random_pipe.save_pretrained(tmp_path, variant="bf16", max_shard_size="1MB")
    assert (tmp_path / "transformer" / "model.safetensors.index.bf16.json").is_file()
    others = {name: content for name, content in contents(tmp_path).items() if "bf16" in name}
    (tmp_path / "notes.txt").write_text("mine")
    random_pipe.save_pretrained(tmp_path)
    expected = {**contents(saved_folder), **others, "notes.txt": b"mine"}
    assert contents(tmp_path) == expected


def test_a_failure_leaves_the_pipeline_that_was_there(random_pipe, tmp_path, monkeypatch):
    random_pipe.save_pretrained(tmp_path)
    before = contents(tmp_path)

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as context:
        context.setattr(type(random_pipe.vqvae), "save_pretrained", fail)
        with pytest.raises(OSError, match="No space left"):
            random_pipe.save_pretrained(tmp_path, max_shard_size="1MB")
    assert contents(tmp_path) == before


def test_of_two_who_save_one_waits(random_pipe, saved_folder, tmp_path):
    with ThreadPoolExecutor() as executor:
        with staging_folder(tmp_path):
            saving = executor.submit(random_pipe.save_pretrained, tmp_path)
            with pytest.raises(TimeoutError):
                saving.result(timeout=0.5)
        saving.result(timeout=60)
    assert contents(tmp_path) == contents(saved_folder)


# Killed


def kill(tmp_path: Path, *wanted: str) -> int:
    command = [sys.executable, Path(__file__).with_name("kill_points.py"), tmp_path, *wanted]
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return int(result.stdout.splitlines()[-1])


def test_killed_it_looks_unfinished(tmp_path):
    assert kill(tmp_path, "replace:-8") == 1


@pytest.mark.slow
def test_killed_at_every_change_it_looks_unfinished(tmp_path):
    assert kill(tmp_path, "convert", "back", "save", "replace") >= 200
