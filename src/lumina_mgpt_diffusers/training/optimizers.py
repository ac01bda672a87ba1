# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Muon for the matrices of the layers, AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
from torch.optim import AdamW, Muon, Optimizer


MUON = "muon"


class MuonWithAdamW(Optimizer):
    """
    [`torch.optim.Muon`] for the weights of the linear layers, [`torch.optim.AdamW`] for the embeddings, the output
    layer and the norms, to which orthogonal updates do not apply. Muon's updates are scaled to the size of AdamW's, so
    both share one learning rate.

    Args:
        model (`nn.Module`): The model. Parameters that need no gradient are left out.
        lr (`float`): Learning rate.
        betas (`tuple[float, float]`), eps (`float`): Of AdamW.
        weight_decay (`float`): For the weights of the linear layers; the others have none.
    """

    def __init__(
        self, model: nn.Module, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        head = model.get_output_embeddings()
        matrices = {
            layer.weight
            for layer in model.modules()
            if isinstance(layer, nn.Linear) and layer is not head and layer.weight.requires_grad
        }
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._muon = Muon(
            [one for one in parameters if one in matrices],
            lr=lr,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = AdamW(
            [one for one in parameters if one not in matrices],
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=0.0,
            fused=True,
        )
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """See [`~torch.optim.Optimizer.step`]."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer, group in zip((self._muon, self._adamw), self.param_groups):
            # The groups and the state are this optimizer's, which schedulers change and checkpoints hold.
            optimizer.param_groups, optimizer.state = [group], self.state
            optimizer.step()
        return loss
