# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import ChameleonConfig

from lumina_mgpt_diffusers import estimate_memory, largest_batch


@pytest.mark.parametrize("num_drafts, num_images, guidance_scale", [(0, 1, 4.0), (50, 3, 4.0), ("auto", 2, 1.0)])
def test_estimate_is_what_a_call_allocates(
    random_pipe, with_sampler, monkeypatch, num_drafts, num_images, guidance_scale
):
    with_sampler(random_pipe, num_draft_tokens=num_drafts)
    caches = []
    monkeypatch.setattr(
        type(random_pipe), "keep", lambda self, engine, requests: caches.append(engine.cache.num_bytes)
    )
    random_pipe(
        prompt_token_ids=torch.arange(8910, 8950)[None],
        height=128,
        width=64,
        guidance_scale=guidance_scale,
        num_images_per_prompt=num_images,
        output_type="latent",
    )
    estimate = estimate_memory(
        random_pipe.transformer.config,
        128,
        64,
        num_images,
        dtype=torch.float32,
        guidance=guidance_scale != 1.0,
        prompt_length=40,
        num_draft_tokens=num_drafts,
        vqvae_parameters=sum(p.numel() for p in random_pipe.vqvae.parameters()),
    )
    assert caches == [estimate.kv_cache]
    modules = (random_pipe.transformer, random_pipe.vqvae)
    weights = sum(parameter.nbytes for module in modules for parameter in module.parameters())
    assert abs(estimate.weights - weights) <= 1024


class PeakMemory(TorchDispatchMode):
    """Most bytes of tensors at once, of those that were made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        for one in tree_leaves(result):
            storage = one.untyped_storage() if isinstance(one, torch.Tensor) else None
            if storage is not None and storage._cdata not in given:
                self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._storages = {key: entry for key, entry in self._storages.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._storages.values()))
        return result


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("settings", [{"top_p": 0.9, "temperature": 0.7}, {"top_k": 0, "return_log_probs": True}])
def test_no_call_takes_more_than_estimated(random_pipe, with_sampler, guidance_scale, settings):
    with_sampler(random_pipe, num_draft_tokens=60)
    generator = torch.Generator().manual_seed(0)
    size = {"height": 32, "width": 64, "guidance_scale": guidance_scale, "output_type": "latent"}
    with PeakMemory() as memory:
        random_pipe("a cat", generator=generator, **size, **settings)
    estimate = estimate_memory(
        random_pipe.transformer.config,
        32,
        64,
        dtype=torch.float32,
        guidance=guidance_scale != 1.0,
        num_draft_tokens=60,
    )
    taken = estimate.kv_cache + estimate.drafts + estimate.activations
    assert taken / 3 < memory.peak < taken


def test_the_vq_model_may_have_a_type_of_its_own(pipe_2):
    config, vqvae = pipe_2.transformer.config, pipe_2.vqvae
    parameters = sum(parameter.numel() for parameter in vqvae.parameters())
    settings = {"vqvae_parameters": parameters, "keeps_cache": True}
    half, mixed, full = (
        estimate_memory(config, 96, 96, **dtypes, **settings)
        for dtypes in ({}, {"vqvae_dtype": torch.float32}, {"dtype": torch.float32})
    )
    assert mixed.weights - half.weights == 2 * parameters
    assert (mixed.kv_cache, mixed.drafts) == (half.kv_cache, half.drafts)
    assert mixed.activations == full.activations == 2564 * 96**2 * 4 - mixed.drafts
    assert estimate_memory(config, 96, 96, dtype=torch.float32, vqvae_dtype=torch.float32, **settings) == full


def test_seven_billion():
    estimate = estimate_memory(ChameleonConfig(), 768, 768)
    assert 13.0 < estimate.weights / 2**30 < 13.4
    assert 2.3 < estimate.kv_cache / 2**30 < 2.5
    eight_bit = estimate_memory(ChameleonConfig(), 768, 768, weight_bits=8)
    assert 0.5 < eight_bit.weights / estimate.weights < 0.6


def test_largest_batch_is_the_largest():
    config = ChameleonConfig()
    memory = 40 * 10**9
    number = largest_batch(memory, config, 768, 768)
    assert estimate_memory(config, 768, 768, number).total <= memory
    assert estimate_memory(config, 768, 768, number + 1).total > memory
    assert largest_batch(10**9, config, 768, 768) == 0


def test_decoding_takes_what_the_cache_has_freed():
    config = ChameleonConfig(model_family="lumina-mgpt-2", vocab_size=171385)
    estimate = estimate_memory(config, 768, 768)
    pixels = 2564 * 768**2 * 2
    assert estimate.kv_cache > pixels > estimate.activations
    assert 26.0 < (estimate.total) / 1e9 < 27.0
    kept = estimate_memory(config, 768, 768, keeps_cache=True)
    assert kept.activations == pixels - kept.drafts
    assert estimate_memory(config, 768, 768, guidance=False, num_draft_tokens=0).kv_cache < estimate.kv_cache / 1.9
