# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Cross-entropy and z-loss of next tokens, without the logits of a whole batch.

With logits `l` and the token `t` to learn, a position costs `lse(l) - l[t] + z_loss_weight * lse(l)²`; the loss is the
sum over the learnt positions divided by their number in the global batch.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


LOGITS_PER_CHUNK = {"cpu": 2**25}
"""Logits that are held at once, by kind of device."""

DEFAULT_LOGITS_PER_CHUNK = 2**26


def next_token_loss(
    hidden_states: torch.Tensor, head: nn.Module, targets: torch.LongTensor, z_loss_weight: float, num_items: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Loss of the learnt positions of a batch.

    Args:
        hidden_states (`torch.Tensor` of shape `(positions, hidden_size)`): What the head is given.
        head (`nn.Module`):
            The output layer. Of a plain `nn.Linear` the gradients are computed along with the loss, from one product;
            any other, such as a LoRA or a quantised layer, is called on chunks that are computed again on the way
            back.
        targets (`torch.LongTensor` of shape `(positions,)`): The token that follows each position.
        z_loss_weight (`float`): Weight of the squared logarithm of the partition function.
        num_items (`float` or `torch.Tensor`): Learnt positions of the global batch.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: The loss, float32, and without gradient its cross-entropy
        and its z-loss before the weight; each a sum divided by `num_items`.
    """
    scale = 1.0 / num_items
    if _is_plain(head):
        loss, cross_entropy, z_loss = _PlainHeadLoss.apply(
            hidden_states, head.weight, head.bias, targets, z_loss_weight, scale, _compute_dtype(hidden_states)
        )
        return loss, cross_entropy, z_loss

    cross_entropy = hidden_states.new_zeros((), dtype=torch.float32)
    z_loss = torch.zeros_like(cross_entropy)
    rows = _chunk_rows(hidden_states, head.out_features)
    for chunk, wanted in zip(hidden_states.split(rows), targets.split(rows)):
        sums = checkpoint(_chunk_sums, head, chunk, wanted, use_reentrant=False)
        cross_entropy, z_loss = cross_entropy + sums[0] * scale, z_loss + sums[1] * scale
    return cross_entropy + z_loss_weight * z_loss, cross_entropy.detach(), z_loss.detach()


def _is_plain(head: nn.Module) -> bool:
    """Whether calling the head is just a product with its weight, which is there: not sharded, not quantised."""
    return isinstance(head, nn.Linear) and type(head.weight) is nn.Parameter and head.weight.shape[0] > 0


def _compute_dtype(hidden_states: torch.Tensor) -> torch.dtype:
    kind = hidden_states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_states.dtype


def _chunk_rows(hidden_states: torch.Tensor, vocab_size: int) -> int:
    return max(1, LOGITS_PER_CHUNK.get(hidden_states.device.type, DEFAULT_LOGITS_PER_CHUNK) // vocab_size)


def _chunk_sums(head: nn.Module, hidden_states: torch.Tensor, targets: torch.LongTensor) -> tuple[torch.Tensor, ...]:
    logits = head(hidden_states).float()
    log_partition = logits.logsumexp(dim=-1)
    return F.cross_entropy(logits, targets, reduction="sum"), log_partition.square().sum()


class _PlainHeadLoss(torch.autograd.Function):
    # `torch.nn.functional.linear_cross_entropy` gives the logarithm of the partition function only with
    # `reduction="none"`, which computes the logits twice. On CPUs that is three to eight times slower than this.

    @staticmethod
    def forward(
        ctx,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.LongTensor,
        z_loss_weight: float,
        scale: float,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        ctx.grad_input = torch.empty_like(hidden_states) if needs_input else None
        ctx.grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        ctx.grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        cross_entropy = torch.zeros((), dtype=torch.float32, device=hidden_states.device)
        z_loss = torch.zeros_like(cross_entropy)
        with torch.autocast(hidden_states.device.type, enabled=False):
            cast_weight = weight.to(dtype)
            rows = _chunk_rows(hidden_states, len(weight))
            for first in range(0, len(hidden_states), rows):
                chunk = hidden_states[first : first + rows].to(dtype)
                wanted = targets[first : first + rows, None]
                logits = (chunk @ cast_weight.T).float()
                if bias is not None:
                    logits += bias.float()
                # Row by row, which stays in the caches of a CPU, unlike `logsumexp` and what would follow it.
                log_probabilities = F.log_softmax(logits, dim=-1)
                of_wanted = log_probabilities.gather(1, wanted)
                log_partition = logits.gather(1, wanted) - of_wanted
                del logits
                cross_entropy -= of_wanted.sum()
                z_loss += log_partition.square().sum()
                if not (needs_input or needs_weight or needs_bias):
                    continue
                # d loss / d logits = scale * (softmax * (1 + 2 * z_loss_weight * lse) - one_hot)
                grad = log_probabilities.exp_().mul_(scale * (1 + 2 * z_loss_weight * log_partition))
                grad.scatter_add_(1, wanted, -scale * torch.ones_like(log_partition))
                if needs_bias:
                    ctx.grad_bias += grad.sum(dim=0)
                grad = grad.to(dtype)
                if needs_input:
                    ctx.grad_input[first : first + rows] = grad @ cast_weight
                if needs_weight and dtype == torch.float32:
                    ctx.grad_weight.addmm_(grad.T, chunk)
                elif needs_weight:
                    ctx.grad_weight += grad.T @ chunk
        cross_entropy *= scale
        z_loss *= scale
        ctx.mark_non_differentiable(cross_entropy, z_loss)
        return cross_entropy + z_loss_weight * z_loss, cross_entropy, z_loss

    @staticmethod
    def backward(ctx, grad_loss: torch.Tensor, *unused: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = (ctx.grad_input, ctx.grad_weight, ctx.grad_bias)
        ctx.grad_input = ctx.grad_weight = ctx.grad_bias = None
        scaled = [None if grad is None else grad.mul_(grad_loss) for grad in grads]
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            scaled[0],
            None if scaled[1] is None else scaled[1].to(weight_dtype),
            None if scaled[2] is None else scaled[2].to(bias_dtype),
            *[None] * 4,
        )
