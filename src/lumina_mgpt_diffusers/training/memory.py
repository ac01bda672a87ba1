# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""How much memory training needs on each device, before it is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import ChameleonConfig

from .objective import DEFAULT_LOGITS_PER_CHUNK


METHODS = ("full", "lora", "qlora")

DEFAULT_LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

NF4_BITS = 4.127
"""Bits of a weight in nf4 with doubly quantised scales: 4, 8 / 64 and 32 / 16384."""


@dataclass(frozen=True)
class TrainingMemoryEstimate:
    """
    Bytes that a device needs at the peak of a training step, by what they hold. Without accumulation it needs less,
    since there are no gradients yet when the activations are most.

    Args:
        weights (`int`): Its share of the weights.
        gathered (`int`): The layers that are gathered to be computed, if the weights are sharded.
        gradients (`int`): Its share of the gradients.
        optimizer (`int`): Its share of the two moments of AdamW.
        activations (`int`): What the way back needs, and the work space of a layer.
        head (`int`): A chunk of the logits, and the gradient of the output layer.
    """

    weights: int
    gathered: int
    gradients: int
    optimizer: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        return sum((self.weights, self.gathered, self.gradients, self.optimizer, self.activations, self.head))


def estimate_training_memory(
    config: ChameleonConfig,
    tokens: int,
    *,
    method: str = "full",
    num_devices: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    gradient_checkpointing: bool = True,
    rank: int = 16,
    lora_layers: Sequence[str] = DEFAULT_LORA_LAYERS,
    logits_per_chunk: int = DEFAULT_LOGITS_PER_CHUNK,
) -> TrainingMemoryEstimate:
    """
    Estimate the memory of each device in training.

    Args:
        config ([`~transformers.ChameleonConfig`]): Configuration of the transformer.
        tokens (`int`): Tokens of the batch of a device: samples times tokens of a sample.
        method (`str`, defaults to `"full"`):
            `"full"` for float32 weights, gradients and moments; `"lora"` for an adapter beside weights of `dtype`;
            `"qlora"` for one beside layers in nf4.
        num_devices (`int`, defaults to 1): Devices that share weights, gradients and moments by FSDP2.
        dtype (`torch.dtype`, defaults to `torch.bfloat16`): Type that is computed in, float32 without autocast.
        gradient_checkpointing (`bool`, defaults to `True`): Whether activations of a layer are computed again.
        rank (`int`, defaults to 16), lora_layers (`Sequence[str]`): The adapter.
        logits_per_chunk (`int`): Logits that are held at once.

    Returns:
        [`TrainingMemoryEstimate`]: In bytes. The CUDA context and what the allocator holds back come on top, about
        2 GiB.

    Example:

    ```py
    >>> from transformers import ChameleonConfig
    >>> from lumina_mgpt_diffusers.training import estimate_training_memory

    >>> estimate_training_memory(ChameleonConfig(), 4 * 2450, num_devices=8).total / 2**30  # 7B on 8 GPUs, 768 px
    ```
    """
    if method not in METHODS:
        raise ValueError(f"`method` has to be one of {list(METHODS)} but is {method!r}.")
    element = torch.finfo(dtype).bits // 8
    width, inner = config.hidden_size, config.intermediate_size
    kv_width = config.num_key_value_heads * (width // config.num_attention_heads)
    shapes = {
        "q_proj": (width, width),
        "k_proj": (width, kv_width),
        "v_proj": (width, kv_width),
        "o_proj": (width, width),
        "gate_proj": (width, inner),
        "up_proj": (width, inner),
        "down_proj": (inner, width),
    }
    layers = config.num_hidden_layers
    of_layer = sum(rows * columns for rows, columns in shapes.values()) + 2 * width
    embedding = config.vocab_size * width
    parameters = layers * of_layer + 2 * embedding
    adapter = layers * sum(rank * sum(shapes[name]) for name in lora_layers if name in shapes)
    adapter += rank * (width + config.vocab_size) if "lm_head" in lora_layers else 0
    trained = parameters if method == "full" else adapter

    # Master weights, gradients and moments are float32, of an adapter too.
    if method == "full":
        weights = 4 * parameters
    elif method == "lora":
        weights = element * parameters + 4 * adapter
    else:
        weights = int(layers * of_layer * NF4_BITS / 8) + 2 * embedding * element + 4 * adapter
    gathered = 0
    if num_devices > 1:
        # The layer that runs and the next one, the embedding, and the head; gradients of the one that goes back.
        gathered = element * (3 * of_layer + 2 * embedding)
    elif method == "full" and element < 4:
        gathered = element * parameters  # autocast keeps a copy of each weight until the way back is done
    elif method == "qlora":
        gathered = element * max(rows * columns for rows, columns in shapes.values())

    # A layer holds, for each token, what its products and norms need on the way back (in `dtype`): inputs of the two
    # norms and their results, queries, keys and values before and after norm and rotation, the output of attention,
    # gate, up, the activated gate and the product. Norms and residuals are float32 under autocast.
    per_layer = element * (8 * width + 6 * kv_width + 4 * inner) + 4 * 4 * width
    if method != "full":
        per_layer += element * 2 * rank * len(lora_layers)
    kept = layers * 4 * width if gradient_checkpointing else layers * per_layer
    working = per_layer if gradient_checkpointing else element * 3 * inner
    activations = tokens * (kept + working + 3 * 4 * width)

    chunk = min(logits_per_chunk, tokens * config.vocab_size)
    half = element if element < 4 else 0  # copies of what is float32
    head = chunk * (4 + 4 + half) + ((4 + half) * embedding if method == "full" else 0)
    share = num_devices
    return TrainingMemoryEstimate(
        weights // share, gathered, 4 * trained // share, 8 * trained // share, activations, head
    )
