# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The training of the pocket model's VQ model: its codebook stays in use, and it goes on where it was stopped."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch


POCKET = Path(__file__).parents[1] / "examples" / "pocket"


@pytest.fixture(scope="module", autouse=True)
def pocket_modules():
    before = set(sys.modules)
    sys.path.insert(0, str(POCKET))
    yield
    sys.path.remove(str(POCKET))
    for name in set(sys.modules) - before:
        if str(POCKET) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@torch.no_grad()
def test_the_structure_is_the_released_one():
    from train_vq import build_vq

    vqvae = build_vq(32, (4, 4, 8, 8, 16))
    latents = vqvae.encode(torch.zeros(1, 3, 64, 96)).latents
    assert latents.shape[2:] == (4, 6)
    assert vqvae.config.lookup_from_codebook and vqvae.config.mid_block_add_attention
    hidden = torch.randn(2, 16, 4, 4)
    assert torch.equal(vqvae.encoder.mid_block.resnets[0](hidden, None), hidden)
    halved = vqvae.encoder.down_blocks[0].downsamplers[0](torch.ones(1, 4, 8, 8))
    assert halved.mean() == pytest.approx(1, abs=0.2)


def test_codes_that_nothing_uses_start_again_at_latents():
    from train_vq import MovingCodebook

    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 10.0], [10.0, 0.0], [-10.0, 0.0], [0.0, -10.0]])
    latents = centres.repeat(50, 1) + 0.1 * torch.randn(200, 2)
    codebook = MovingCodebook(torch.nn.Parameter(torch.full((4, 2), 99.0)))
    for _ in range(400):
        chosen = torch.cdist(latents, codebook.codebook).argmin(dim=1)
        codebook.update(latents, chosen)
    assert len(torch.cdist(latents, codebook.codebook).argmin(dim=1).unique()) == 4
    assert codebook.codebook.abs().max() < 11


def test_a_checkpoint_that_was_not_finished_is_removed(tmp_path):
    from train_vq import COMPLETE, newest_checkpoint

    assert newest_checkpoint(tmp_path) is None
    for number in (9, 10, 11):
        (tmp_path / "checkpoints" / f"checkpoint_{number}").mkdir(parents=True)
    for number in (9, 10):
        (tmp_path / "checkpoints" / f"checkpoint_{number}" / COMPLETE).touch()
    assert newest_checkpoint(tmp_path).name == "checkpoint_10"
    assert not (tmp_path / "checkpoints" / "checkpoint_11").exists()


@pytest.mark.slow
def test_training_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    flags = "--num_codes 64 --widths 4 8 8 8 16 --max_train_steps 8 --plain_steps 3 --crop 32 --train_batch_size 4"
    flags += " --checkpointing_steps 2 --validation_steps 4 --num_validation_images 1"

    def train(output: Path) -> bytes:
        command = [sys.executable, str(POCKET / "train_vq.py"), "--output", str(output), *flags.split()]
        subprocess.run(command, check=True, capture_output=True)
        return (output / "vqvae" / "diffusion_pytorch_model.safetensors").read_bytes()

    whole = train(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "stopped" / "checkpoints")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "checkpoint_3")
    (tmp_path / "stopped" / "checkpoints" / "checkpoint_2" / "complete").unlink()
    assert train(tmp_path / "stopped") == whole
