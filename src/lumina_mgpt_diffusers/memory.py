# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""How much memory a text-to-image call needs, before it is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import ChameleonConfig

from .lumina_mgpt.engine import MAX_RUN
from .lumina_mgpt.families import find_family
from .lumina_mgpt.slots import slots_needed
from .lumina_mgpt.windows import MAX_WINDOW


# Values of 4 bytes for each code that sampling takes at most, which it does with top-p: the logits that top-k leaves,
# by size, their order in int64, and what sorting takes or the probabilities and their sums; on CPUs also the noise of
# the last places.
SAMPLER_VALUES = 9


@dataclass(frozen=True)
class MemoryEstimate:
    """
    Bytes that a call needs at its peak, by what they hold.

    Args:
        weights (`int`): Transformer and VQ model.
        kv_cache (`int`): Keys and values of every row, both branches of guidance.
        drafts (`int`): Logits of one row of codes of each image, float32, from which drafts are guessed.
        activations (`int`):
            The greatest of those of a step, of the prompt, and of what decoding one image to pixels takes beyond the
            cache and the drafts, which are freed before.
    """

    weights: int
    kv_cache: int
    drafts: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.drafts + self.activations


def estimate_memory(
    config: ChameleonConfig,
    height: int,
    width: int,
    num_images: int = 1,
    *,
    dtype: torch.dtype = torch.bfloat16,
    vqvae_dtype: torch.dtype | None = None,
    weight_bits: int | None = None,
    guidance: bool = True,
    prompt_length: int = 64,
    num_draft_tokens: int | str = "auto",
    num_codes: int | None = None,
    patch_size: int | None = None,
    vqvae_parameters: int | None = None,
    keeps_cache: bool = False,
) -> MemoryEstimate:
    """
    Estimate the memory of a text-to-image call on the device that runs it.

    Args:
        config ([`~transformers.ChameleonConfig`]): Configuration of the transformer.
        height (`int`), width (`int`): Size of the images in pixels.
        num_images (`int`, defaults to 1): Images at once, prompts times images per prompt.
        dtype (`torch.dtype`, defaults to `torch.bfloat16`): Type of weights, cache and activations.
        vqvae_dtype (`torch.dtype`, *optional*): That of the VQ model, by default `dtype`.
        weight_bits (`int`, *optional*): Bits of a weight of the decoder layers if they are quantised, such as 8.
        guidance (`bool`, defaults to `True`): Whether classifier-free guidance is on, which doubles the rows.
        prompt_length (`int`, defaults to 64): Longest prompt in tokens.
        num_draft_tokens (`int` or `"auto"`, defaults to `"auto"`): Draft tokens of a forward, at most.
        num_codes (`int`, *optional*): Size of the codebook.
        patch_size (`int`, *optional*): Pixels per code, the stride of the VQ model.
        vqvae_parameters (`int`, *optional*): Parameters of the VQ model. By default all three are those of the VQ
            model that was released for the family that `config` states or names.
        keeps_cache (`bool`, defaults to `False`):
            Whether the cache stays for the next call, as that of a compiled transformer on a GPU does.

    Returns:
        [`MemoryEstimate`]: In bytes. The CUDA context and what the allocator holds back come on top, about 1 GiB.

    Example:

    ```py
    >>> from transformers import ChameleonConfig
    >>> from lumina_mgpt_diffusers import estimate_memory

    >>> estimate_memory(ChameleonConfig(), 768, 768).total / 2**30  # 7B, one image
    ```
    """
    family = find_family(config, config.vocabulary_map or {})
    num_codes = family.num_codes if num_codes is None else num_codes
    patch_size = family.stride if patch_size is None else patch_size
    vqvae_parameters = family.vq_parameters if vqvae_parameters is None else vqvae_parameters
    element = torch.finfo(dtype).bits // 8
    vqvae_element = element if vqvae_dtype is None else torch.finfo(vqvae_dtype).bits // 8
    head_dim = config.hidden_size // config.num_attention_heads
    kv_size = config.num_key_value_heads * head_dim
    rows = num_images * (2 if guidance else 1)

    attention = config.hidden_size * (2 * config.hidden_size + 2 * kv_size)
    mlp = 3 * config.hidden_size * config.intermediate_size
    norms = 2 * config.hidden_size + 2 * (config.hidden_size + kv_size)
    layer = (attention + mlp) * (weight_bits / 8 if weight_bits else element) + norms * element
    num_matrices = 1 if config.tie_word_embeddings else 2
    embeddings = num_matrices * config.vocab_size * config.hidden_size * element
    weights = int(config.num_hidden_layers * layer) + embeddings + vqvae_parameters * vqvae_element

    num_rows, num_columns = height // patch_size, width // patch_size
    window = MAX_WINDOW if num_draft_tokens == "auto" else max(num_draft_tokens, MAX_RUN) + 1
    prefix = 1 if family.size_tag_token is None else 3
    row_end = 0 if family.row_end_token is None else 1
    # The prompt, start and size tags, and the codes with row ends but the last.
    slots = slots_needed(prompt_length + prefix + num_rows * (num_columns + row_end) - row_end, window)
    kv_cache = 2 * config.num_hidden_layers * kv_size * slots * rows * element
    drafts = num_images * (num_columns + row_end + 1) * num_codes * 4 if num_draft_tokens else 0

    # A step: residual, normed input, gate, up and product of each token.
    window = window if num_draft_tokens else 1
    per_token = (4 * config.hidden_size + 3 * config.intermediate_size) * element
    # In float32 for each code: logits of the branches, guided if there are two, noise, and what the sampler takes.
    per_code = 4 * (rows + (num_images if guidance else 0) + num_images * (1 + SAMPLER_VALUES))
    step = window * (rows * per_token + per_code * num_codes)
    # The prompts run through once, against a mask of float attention scores for every head.
    prompt = rows * prompt_length * (per_token + 4 * config.num_attention_heads * prompt_length)
    # One image on its way to pixels (measured).
    pixels = family.vq_values_per_pixel * height * width * vqvae_element
    beyond = pixels - drafts - (0 if keeps_cache else kv_cache)
    return MemoryEstimate(weights, kv_cache, drafts, max(step, prompt, beyond))


def largest_batch(memory: int, config: ChameleonConfig, height: int, width: int, **kwargs) -> int:
    """
    The most images at once that fit `memory` bytes.

    Args:
        memory (`int`): Free bytes of the device.
        config ([`~transformers.ChameleonConfig`]): Configuration of the transformer.
        height (`int`), width (`int`): Size of the images in pixels.
        kwargs: The further arguments of [`estimate_memory`].

    Returns:
        `int`: Number of images, 0 if not even one fits.
    """
    number = 0
    while estimate_memory(config, height, width, number + 1, **kwargs).total <= memory:
        number += 1
    return number
