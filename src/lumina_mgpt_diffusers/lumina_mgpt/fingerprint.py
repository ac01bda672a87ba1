# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Whether a model still makes the keys and values that it made before: it is asked.

Weights tell too little. Merging an adapter changes neither a parameter nor its version, adapters have scales and are
switched, and weights that are quantised, sharded or elsewhere have no common form.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn as nn

from .evaluation import evaluating
from .kv_cache import SlotCache
from .slots import eager_call


NUM_TOKENS = 8


@torch.no_grad()
def fingerprint(transformer: nn.Module, device: torch.device, logits_range: tuple[int, int]) -> bytes:
    """
    A hash of the keys and values of a few tokens in the last layer, which all that makes a KV cache goes into.

    It takes one short forward. In another dtype, or where kernels do not always round alike, it is another one.

    Args:
        transformer ([`LuminaMGPTTransformer`]): The model.
        device (`torch.device`): Where it runs.
        logits_range (`tuple[int, int]`): Token ids of codes, since a forward computes some logits.
    """
    config = transformer.config
    # As prompts are fed: layers that are compiled one by one need no other code for it.
    cache = SlotCache(config.num_hidden_layers, NUM_TOKENS + 1, num_rows=1)
    view = cache.rows(0, 1)
    view.limit(NUM_TOKENS, device)
    ids = torch.linspace(0, config.vocab_size - 1, NUM_TOKENS, device="cpu").long()
    with evaluating(transformer):
        eager_call(transformer)(
            input_ids=ids[None].to(device),
            position_ids=torch.arange(NUM_TOKENS, device="cpu")[None].to(device),
            past_key_values=view,
            logits_to_keep=1,
            logits_range=logits_range,
        )
    layer = cache.layers[-1]
    states = torch.cat([layer.keys, layer.values])[:, :, :NUM_TOKENS].contiguous().view(torch.uint8).cpu()
    return hashlib.sha256(states.numpy().tobytes()).digest()
