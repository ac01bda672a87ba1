# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The commands of `examples/training` as a user runs them: learnt by heart, killed at any time, on two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import BASE_SIZE
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from hub_server import HubServer
from safetensors.torch import load_file
from training_helpers import CAPTIONS, ROOT, SIZES, command, environment, make_photos, run, weights_of

from lumina_mgpt_diffusers import LuminaMGPTPipeline


pytestmark = pytest.mark.slow


def learnt_by_heart(pipe: LuminaMGPTPipeline, data: Path) -> float:
    """Share of the codes of the training images that greedy decoding gives for their captions."""
    vocabulary = pipe.image_vocabulary
    right = total = 0
    for index, row in enumerate(datasets.load_from_disk(str(data))):
        ids = row["input_ids"]
        tokens = ids[ids.index(vocabulary.start_id) : ids.index(vocabulary.end_id) + 1]
        height, width = SIZES[index % 2]
        codes = pipe(
            CAPTIONS[index], height=height, width=width, top_k=1, guidance_scale=1.0, output_type="latent"
        ).images[0]
        right += int((codes == vocabulary.to_codes(tokens)).sum())
        total += codes.numel()
    return right / total


def load(folder: Path, **kwargs) -> LuminaMGPTPipeline:
    pipe = LuminaMGPTPipeline.from_pretrained(folder, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


BY_HEART = {
    "resolution": BASE_SIZE,
    "train_batch_size": 8,
    "dropout": 0,
    "lr_warmup_steps": 10,
    "report_to": "none",
    "logging_steps": 50,
    "use_cpu": True,
    "checkpointing_steps": 1000,
}


def test_a_folder_of_images_is_learnt_by_heart(saved_folder, tmp_path):
    photos = make_photos(tmp_path / "photos")
    run(
        command(
            "train_fp_sft.py",
            pretrained_model_name_or_path=saved_folder,
            train_data_dir=photos,
            output_dir=tmp_path / "out",
            max_train_steps=250,
            learning_rate=3e-3,
            packing=True,
            **BY_HEART,
        )
    )
    stage = tmp_path / "out" / str(BASE_SIZE)
    assert learnt_by_heart(load(stage / "pipeline"), stage / "data") >= 0.95


def test_an_adapter_learns_a_folder_of_images_by_heart(saved_folder, tmp_path):
    photos = make_photos(tmp_path / "photos")
    run(
        command(
            "train_lora.py",
            pretrained_model_name_or_path=saved_folder,
            train_data_dir=photos,
            output_dir=tmp_path / "out",
            max_train_steps=500,
            learning_rate=1e-2,
            rank=32,
            lora_layers=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"],
            **BY_HEART,
        )
    )
    pipe = load(saved_folder)
    pipe.load_lora_weights(tmp_path / "out")
    assert learnt_by_heart(pipe, tmp_path / "out" / "data") >= 0.95


def kill_when(line: list[str], is_time) -> None:
    """Start a command and kill it, with all its children, as soon as a condition holds."""
    process = subprocess.Popen(
        line, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while process.poll() is None and not is_time():
            time.sleep(0.01)
        assert process.poll() is None, "the command was over before it could be killed"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pretokenization_killed_twice_gives_the_same_folder(saved_folder, tmp_path, num_workers):
    photos = make_photos(tmp_path / "photos", 400)
    (photos / "7.png").write_bytes(b"corrupt")

    def line(output):
        return command(
            "pretokenize.py",
            pretrained_model_name_or_path=saved_folder,
            train_data_dir=photos,
            output_dir=output,
            block_size=40,
            encoding_batch_size=4,
            preprocessing_num_workers=num_workers,
        )

    run(line(tmp_path / "undisturbed"))
    killed = tmp_path / "killed"
    for blocks in (2, 5):
        kill_when(line(killed), lambda blocks=blocks: len(list(killed.glob("data-*.arrow"))) >= blocks)
    assert len(list(killed.glob("data-*.arrow"))) < 10
    run(line(killed))
    assert content(killed) == content(tmp_path / "undisturbed")
    rows = datasets.load_from_disk(str(killed))
    assert rows["id"][:] == [f"metadata.jsonl:{number}" for number in range(1, 401) if number != 8]


def test_training_killed_in_and_between_stages_gives_the_same_weights(saved_folder, tmp_path):
    photos = make_photos(tmp_path / "photos")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
pretrained_model_name_or_path: {saved_folder}
train_data_dir: {photos}
train_batch_size: 4
checkpointing_steps: 5
dropout: 0.1
report_to: none
use_cpu: true
packing: true
learning_rate: 1e-3
stages:
- {{resolution: 64, max_train_steps: 23}}
- {{resolution: 96, max_train_steps: 23}}
"""
    )

    def line(output):
        return command("train_fp_sft.py", config=recipe, output_dir=output)

    run(line(tmp_path / "undisturbed"))
    killed = tmp_path / "killed"
    for sign in (
        "64/checkpoint-10/model.safetensors",
        "64/pipeline",
        "96/checkpoint-5",
        "96/checkpoint-15/optimizer.pt",
    ):
        kill_when(line(killed), (killed / sign).exists)
    run(line(killed))
    for stage in ("64", "96"):
        first, second = (weights_of(tmp_path / name / stage / "pipeline") for name in ("undisturbed", "killed"))
        assert all(torch.equal(first[name], second[name]) for name in first)


def losses(folder: Path, last_step: int) -> np.ndarray:
    state = json.loads((folder / f"checkpoint-{last_step}" / "trainer_state.json").read_text())
    return np.array([entry["loss"] for entry in state["log_history"] if "loss" in entry])


def on_two(line: list[str], kind: str) -> list[str]:
    """A command line of `examples/training` on two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    _, script, *flags = line
    return [*launcher, str(ROOT / "tests" / "fsdp_on_cpu.py") if kind == "fsdp2" else script, *flags]


def short_flags(pipeline: Path, photos: Path, output: Path, **values) -> dict:
    return {
        "pretrained_model_name_or_path": pipeline,
        "train_data_dir": photos,
        "output_dir": output,
        "resolution": BASE_SIZE,
        "max_train_steps": 8,
        "checkpointing_steps": 8,
        "learning_rate": 1e-3,
        "train_batch_size": 4,
        "dropout": 0,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        **values,
    }


@pytest.mark.parametrize(
    "kind, packing",
    [
        ("ddp", False),
        ("ddp", True),
        ("fsdp2", False),
        ("fsdp2", True),
        ("deepspeed_zero2", False),
        ("deepspeed_zero3", True),
    ],
)
def test_two_processes_have_the_loss_curve_of_one(saved_folder, tmp_path, kind, packing):
    photos = make_photos(tmp_path / "photos", 16)
    values = {"packing": packing, "validation_prompts": "red fox", "validation_steps": 4}
    one, two = (short_flags(saved_folder, photos, tmp_path / name, **values) for name in ("one", "two"))
    run(command("train_omni_sft.py", **one, gradient_accumulation_steps=2))
    if kind.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
        two["deepspeed"] = ROOT / "examples" / "training" / "configs" / f"{kind}.json"
    run(on_two(command("train_omni_sft.py", **two), kind), DS_ACCELERATOR="cpu")
    one, two = losses(tmp_path / "one", 8), losses(tmp_path / "two", 8)
    assert len(one) == 8 and one[-1] < one[0] - 0.5
    assert np.allclose(one, two, rtol=1e-4)
    first, second = (weights_of(tmp_path / name / "pipeline") for name in ("one", "two"))
    assert all(torch.allclose(first[name], second[name], atol=1e-3) for name in first)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_an_adapter_is_trained_on_two_processes_as_on_one(saved_folder, tmp_path, kind):
    photos = make_photos(tmp_path / "photos", 16)
    values = {"rank": 4, "lora_layers": ["q_proj", "lm_head"]}
    one, two = (short_flags(saved_folder, photos, tmp_path / name, **values) for name in ("one", "two"))
    run(command("train_lora.py", **one, gradient_accumulation_steps=2))
    run(on_two(command("train_lora.py", **two), kind))
    assert np.allclose(losses(tmp_path / "one", 8), losses(tmp_path / "two", 8), rtol=1e-4)
    first, second = (load_file(tmp_path / name / LORA_WEIGHT_NAME_SAFE) for name in ("one", "two"))
    assert first.keys() == second.keys() and all(torch.allclose(first[key], second[key], atol=1e-3) for key in first)


def test_a_result_is_uploaded_and_an_upload_that_failed_is_tried_again(saved_folder, tmp_path):
    photos = make_photos(tmp_path / "photos")
    flags = {"push_to_hub": True, "hub_model_id": "user/fox-style", "max_train_steps": 1, "rank": 2}
    line = command("train_lora.py", **short_flags(saved_folder, photos, tmp_path / "out", **flags))
    with HubServer({}, storage=tmp_path / "hub") as server:
        variables = server.environment(tmp_path / "cache")
        failed = subprocess.run(
            line, env={**environment(), **variables, "HF_ENDPOINT": "http://127.0.0.1:9"}, capture_output=True
        )
        assert failed.returncode != 0 and (tmp_path / "out" / LORA_WEIGHT_NAME_SAFE).exists()
        run(line, **variables)
        files = server.files(server.repositories["user/fox-style"]["main"])
    assert set(files) >= {"README.md", "training.json", LORA_WEIGHT_NAME_SAFE}


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_validation_images_are_in_the_log(saved_folder, tmp_path, tracker):
    pytest.importorskip(tracker)
    flags = {"report_to": tracker, "validation_prompts": "red fox", "validation_steps": 4}
    photos = make_photos(tmp_path / "photos")
    line = command("train_omni_sft.py", **short_flags(saved_folder, photos, tmp_path / "out", **flags))
    run(line, WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    if tracker == "wandb":
        assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/*.png"))
    else:
        (events,) = (tmp_path / "out").rglob("events.out.tfevents.*")
        assert b"\x89PNG" in events.read_bytes()
