# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The transformer as it is trained: it returns its loss instead of logits, has residual dropout, and the heads of a shard
share one row of their q- and k-norms, as in the original.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers.models.chameleon.modeling_chameleon import ChameleonLayerNorm, ChameleonSwinDecoderLayer
from transformers.utils import ModelOutput

from ..lumina_mgpt.transformer_lumina_mgpt import LuminaMGPTTransformer
from .objective import next_token_loss


@dataclass
class TrainingOutput(ModelOutput):
    """
    What [`TrainableTransformer`] returns for tokens with labels.

    Args:
        loss (`torch.Tensor` of shape `(1,)`): What is minimised: `cross_entropy + z_loss_weight * z_loss`.
        cross_entropy (`torch.Tensor` of shape `(1,)`): Of the learnt tokens, without gradient.
        z_loss (`torch.Tensor` of shape `(1,)`): Squared logarithm of the partition function, without gradient.
    """

    loss: torch.Tensor | None = None
    cross_entropy: torch.Tensor | None = None
    z_loss: torch.Tensor | None = None


class SharedHeadNorm(ChameleonLayerNorm):
    """
    A q- or k-norm of which the heads of a shard share one row.

    Args:
        norm ([`ChameleonLayerNorm`]): The norm with a row for each head, `(num_heads, head_dim)`.
        rows (`int`): Number of shards.
    """

    def __init__(self, norm: ChameleonLayerNorm, rows: int) -> None:
        super().__init__((rows, norm.weight.shape[1]), device=norm.weight.device, dtype=norm.weight.dtype)
        self.heads_per_row = len(norm.weight) // rows
        self.weight.data = norm.weight.data[:: self.heads_per_row].clone()
        self.bias.data = norm.bias.data[:: self.heads_per_row].clone()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normalized = F.layer_norm(hidden_states, self.normalized_shape, None, None, eps=1e-5)
        weight, bias = (row.repeat_interleave(self.heads_per_row, dim=0) for row in (self.weight, self.bias))
        return normalized * weight + bias

    @staticmethod
    def can_replace(norm: ChameleonLayerNorm, rows: int) -> bool:
        """Whether the heads of each shard have the same row already."""
        if len(norm.weight) % rows:
            return False
        shards = [tensor.unflatten(0, (rows, -1)) for tensor in (norm.weight, norm.bias)]
        return all(torch.equal(shard, shard[:, :1].expand_as(shard)) for shard in shards)


class TrainableTransformer(LuminaMGPTTransformer):
    """
    [`LuminaMGPTTransformer`] with the objective of its training. Called without labels it is that model, so that the
    pipelines run on it in between. Make one with [`make_trainable`].
    """

    z_loss_weight: float = 0.0

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cu_seq_lens_q: torch.IntTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> ModelOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, length)`): Token ids.
            labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*):
                The token ids where they are learnt, -100 elsewhere.
            position_ids (`torch.LongTensor` of shape `(batch_size, length)`, *optional*):
                Positions, which restart with each sample of a row.
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*):
                Not needed for padding on the right, which no token before it can see.
            cu_seq_lens_q (`torch.IntTensor` of shape `(samples + 1,)`, *optional*):
                Where each sample of one row starts, and where the last one ends.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Learnt tokens of the global batch, by default of this one.

        Returns:
            [`TrainingOutput`]: The loss; without labels what [`LuminaMGPTTransformer`] returns.
        """
        kwargs |= {"position_ids": position_ids, "attention_mask": attention_mask}
        if labels is None:
            return super().forward(input_ids=input_ids, **kwargs)
        if cu_seq_lens_q is not None:
            kwargs["segment_lengths"] = tuple(cu_seq_lens_q.diff().tolist())
            kwargs["cu_seq_lens_q"] = cu_seq_lens_q
        hidden_states = self.model(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state
        is_learnt = labels[:, 1:] != -100
        targets = labels[:, 1:][is_learnt]
        num_items = len(targets) if num_items_in_batch is None else num_items_in_batch
        return TrainingOutput(
            *next_token_loss(hidden_states[:, :-1][is_learnt], self.lm_head, targets, self.z_loss_weight, num_items)
        )


def make_trainable(
    transformer: LuminaMGPTTransformer, z_loss_weight: float = 1e-5, dropout: float = 0.05
) -> TrainableTransformer:
    """
    Make a transformer one that is trained, in place.

    Args:
        transformer ([`LuminaMGPTTransformer`]): The model.
        z_loss_weight (`float`, defaults to 1e-5): Weight of the z-loss.
        dropout (`float`, defaults to 0.05): Probability of the residual dropout, after attention and after the MLP.
    """
    transformer.__class__ = TrainableTransformer
    transformer.z_loss_weight = z_loss_weight
    # FSDP wraps each layer, but fails over the class of layers that this model does not have.
    transformer._no_split_modules = sorted({type(layer).__name__ for layer in transformer.model.layers})
    rows = transformer.config.model_parallel_size or 1
    for layer in transformer.model.layers:
        attention = layer.self_attn
        for name in ("q_norm", "k_norm"):
            norm = getattr(attention, name)
            if SharedHeadNorm.can_replace(norm, rows):
                setattr(attention, name, SharedHeadNorm(norm, rows))
        if dropout:
            # What the residual connections add: in the 34B model that has been through a norm.
            is_swin = isinstance(layer, ChameleonSwinDecoderLayer)
            for name in ("input_layernorm", "post_attention_layernorm") if is_swin else ("self_attn", "mlp"):
                getattr(layer, name).register_forward_hook(_dropout_hook(dropout))
    return transformer


def plain_transformer(
    transformer: TrainableTransformer, state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> LuminaMGPTTransformer:
    """
    The model of a pipeline with the weights of one that is trained, to be saved.

    Args:
        transformer ([`TrainableTransformer`]): The model, sharded or not.
        state_dict (`Mapping[str, torch.Tensor]`): All its weights.
        dtype (`torch.dtype`): The type to save.
    """
    config = copy.deepcopy(transformer.config)
    config.dtype = dtype
    config.use_cache = True  # which the trainer turned off
    with torch.device("meta"):
        plain = LuminaMGPTTransformer(config)
    weights = {}
    for name, expected in plain.state_dict().items():
        weight = state_dict[name].to(dtype)
        if weight.shape != expected.shape:
            weight = weight.repeat_interleave(len(expected) // len(weight), dim=0)
        weights[name] = weight
    plain.load_state_dict(weights, assign=True)
    return plain


def _dropout_hook(probability: float) -> Callable:
    def drop(module: nn.Module, args: tuple, output: torch.Tensor | tuple) -> torch.Tensor | tuple | None:
        if not module.training:
            return None
        if isinstance(output, tuple):
            return (F.dropout(output[0], probability), *output[1:])
        return F.dropout(output, probability)

    return drop
