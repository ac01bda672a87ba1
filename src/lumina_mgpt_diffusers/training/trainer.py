# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""transformers' `Trainer`, with checkpoints that survive being killed, and the parts of the loss in the log."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .optimizers import MuonWithAdamW


TRAINER_STATE_NAME = "trainer_state.json"

PARTS = ("cross_entropy", "z_loss")


class LuminaMGPTTrainer(Trainer):
    """
    [`~transformers.Trainer`] for a [`TrainableTransformer`]. Takes the same arguments, and:

    Args:
        muon (`bool`, defaults to `False`): Whether to train with [`MuonWithAdamW`], not with what `args` name.
    """

    def __init__(self, *args, muon: bool = False, **kwargs) -> None:
        self._muon = muon
        super().__init__(*args, **kwargs)
        self._sums = dict.fromkeys(PARTS, 0.0)
        self._logged_step = 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """See [`~transformers.Trainer.create_optimizer`]."""
        if self._muon and self.optimizer is None:
            args = self.args
            betas = (args.adam_beta1, args.adam_beta2)
            self.optimizer = MuonWithAdamW(
                model or self.model, args.learning_rate, betas, args.adam_epsilon, args.weight_decay
            )
        return super().create_optimizer(model)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """See [`~transformers.Trainer.compute_loss`]."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            for name in PARTS:
                self._sums[name] = self._sums[name] + outputs[name]
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See [`~transformers.Trainer.log`]."""
        if "loss" in logs:
            steps = max(self.state.global_step - self._logged_step, 1)
            for name, value in self._sums.items():
                if isinstance(value, torch.Tensor):
                    # Each process has its share of the sum over the global batch.
                    logs[name] = self.accelerator.reduce(value, "sum").item() / steps
                self._sums[name] = 0.0
            self._logged_step = self.state.global_step
        super().log(logs, start_time)

    def _run_epoch(self, *args, **kwargs) -> None:
        # A run that goes on from its last step is over; the loop would look at that after one step more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The state of the trainer, which comes next and last, says that the files of all processes are there.
        self.accelerator.wait_for_everyone()


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The newest checkpoint of a run that was written to the end.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.

    Returns:
        `str`: The folder of the checkpoint, or None if there is none.
    """
    for step, folder in sorted(_checkpoints(output_dir), reverse=True):
        if _is_complete(folder, step):
            return str(folder)
    return None


def remove_incomplete_checkpoints(output_dir: str | os.PathLike) -> None:
    """
    Remove checkpoints that were not written to the end.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.
    """
    for step, folder in _checkpoints(output_dir):
        if not _is_complete(folder, step):
            shutil.rmtree(folder)


def _checkpoints(output_dir: str | os.PathLike) -> list[tuple[int, Path]]:
    found = []
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
        if match and folder.is_dir():
            found.append((int(match[1]), folder))
    return found


def _is_complete(folder: Path, step: int) -> bool:
    # Trainer writes its state after everything else.
    try:
        return json.loads((folder / TRAINER_STATE_NAME).read_text())["global_step"] == step
    except (OSError, ValueError, KeyError):
        return False
