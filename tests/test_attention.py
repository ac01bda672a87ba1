# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Attention implementations give the same codes, and xformers reaches every module that can use it.

xformers runs on CUDA only. Its mathematics is checked anywhere by putting a reference in the place of its kernel.
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import CHECKPOINT, copy_of, load_pipeline
from diffusers.models.attention_processor import XFormersAttnProcessor
from emulated_cuda import emulated_cuda
from torch.nn.functional import scaled_dot_product_attention
from transformers.utils import logging as transformers_logging

from lumina_mgpt_diffusers.lumina_mgpt import attention, slot_attention
from lumina_mgpt_diffusers.lumina_mgpt.kv_cache import SlotCache


PROMPTS = ["a red fox in the snow", "a cat"]


def codes_of(pipe, **kwargs) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    return pipe(PROMPTS, height=32, width=64, generator=generators, output_type="latent", **kwargs).images


class PaddedKeysBias:
    """What `BlockDiagonalCausalWithOffsetPaddedKeysMask` says in its documentation, written out."""

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_padding, kv_seqlen, *, device=None) -> "PaddedKeysBias":
        bias = cls()
        (bias.query_length,), bias.kv_padding = set(q_seqlen), kv_padding
        # (A tensor made of a list would make the host wait, which is not of interest here.)
        lengths = torch.tensor(kv_seqlen, dtype=torch.int32).to(device, non_blocking=True)
        bias.k_seqinfo = SimpleNamespace(seqlen=lengths, max_seqlen=max(kv_seqlen))
        return bias

    @property
    def tensor(self) -> torch.Tensor:
        lengths = self.k_seqinfo.seqlen
        keys, queries = (torch.arange(size, device=lengths.device) for size in (self.kv_padding, self.query_length))
        # A query may not see a key that is nearer to the last key than it is to the last query.
        seen = keys <= (lengths[:, None, None] - self.query_length + queries[:, None])
        is_own = torch.eye(len(lengths), device=lengths.device).bool()[:, None, :, None]
        return torch.where(is_own & seen[:, :, None], 0.0, -torch.inf).flatten(2).flatten(0, 1)


class Kernel:
    """`xformers.ops.memory_efficient_attention`, and what it was called with."""

    def __init__(self) -> None:
        self.biases, self.ops = [], []

    def __call__(self, query, key, value, attn_bias, p=0.0, scale=None, op=None) -> torch.Tensor:
        self.biases.append(attn_bias)
        self.ops.append(op)
        is_padded = isinstance(attn_bias, PaddedKeysBias)
        bias = attn_bias.tensor if is_padded else attn_bias
        # (batch, length, heads, …, head_dim) -> (batch, heads, …, length, head_dim)
        query, key, value = (states.movedim(1, -2) for states in (query, key, value))
        return scaled_dot_product_attention(query, key, value, bias.to(query.dtype), p, scale=scale).movedim(-2, 1)


@pytest.fixture
def kernel(monkeypatch) -> Kernel:
    kernel = Kernel()
    bias_module = SimpleNamespace(BlockDiagonalCausalWithOffsetPaddedKeysMask=PaddedKeysBias)
    ops = SimpleNamespace(memory_efficient_attention=kernel, fmha=SimpleNamespace(attn_bias=bias_module))
    for name, module in {
        "xformers": SimpleNamespace(ops=ops),
        "xformers.ops": ops,
        "xformers.ops.fmha": ops.fmha,
        "xformers.ops.fmha.attn_bias": bias_module,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(attention, "is_xformers_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return kernel


@pytest.fixture
def pipe(random_pipe):
    yield random_pipe
    random_pipe.transformer.set_attn_implementation("sdpa")


COMPILED = pytest.param("flex_attention", "default", marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("implementation", "stance"), [("eager", "default"), ("flex_attention", "force_eager"), COMPILED]
)
def test_implementations_give_the_codes_of_sdpa(pipe, implementation, stance, with_sampler):
    with_sampler(pipe, num_draft_tokens=3)
    expected = codes_of(pipe)
    pipe.transformer.set_attn_implementation(implementation)
    assert pipe.transformer.config._attn_implementation == implementation
    with torch.compiler.set_stance(stance):
        torch.testing.assert_close(codes_of(pipe), expected, rtol=0, atol=0)


def test_setting_an_implementation_warns_of_nothing(pipe, caplog):
    transformers_logging.get_logger().propagate = True
    try:
        for implementation in ("eager", "sdpa"):
            pipe.transformer.set_attn_implementation(implementation)
    finally:
        transformers_logging.get_logger().propagate = False
    assert caplog.text == ""


def test_an_implementation_that_cannot_sample_says_which_can(pipe, monkeypatch):
    monkeypatch.setattr(pipe.transformer.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match="'flash_attention_2' cannot read the slots .* 'slot_sdpa'"):
        codes_of(pipe)


@pytest.mark.parametrize("num_draft_tokens", [0, 5])
def test_xformers_gives_the_codes_of_sdpa(pipe, kernel, num_draft_tokens, with_sampler):
    with_sampler(pipe, num_draft_tokens=num_draft_tokens)
    expected = codes_of(pipe)
    pipe.transformer.set_use_memory_efficient_attention_xformers(True)
    codes = codes_of(pipe)
    torch.testing.assert_close(codes, expected, rtol=0, atol=0)
    assert kernel.biases and all(isinstance(bias, PaddedKeysBias) for bias in kernel.biases)


def test_xformers_reads_the_cache_where_it_lies(pipe, kernel):
    pipe.transformer.set_attn_implementation("xformers")
    cache = SlotCache(pipe.transformer.config.num_hidden_layers, 16)
    positions = torch.tensor([[0, 1, 2], [0, 1, 2]])
    with torch.no_grad():
        pipe.transformer(input_ids=positions + 9, position_ids=positions, past_key_values=cache)
    assert cache.visible_length == 16
    assert cache.layers[0].keys.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("num_draft_tokens", [0, 5])
def test_xformers_does_not_wait_for_the_device(trained_pipe, kernel, num_draft_tokens, with_sampler):
    with_sampler(trained_pipe, num_draft_tokens=num_draft_tokens)
    expected = codes_of(trained_pipe)
    with emulated_cuda() as device:
        pipe = device.move(trained_pipe)
        pipe.transformer.set_attn_implementation("xformers")
        assert torch.equal(codes_of(pipe).cpu(), expected)
    waits = [sync for sync in device.syncs if sync.startswith("attention.py")]
    assert len(waits) == 1  # for the prompts
    assert all(isinstance(bias, PaddedKeysBias) for bias in kernel.biases)
    # The kernels are told of no more slots than may be in use.
    assert kernel.biases[-1].k_seqinfo.max_seqlen < kernel.biases[-1].kv_padding


def test_xformers_at_scattered_positions(pipe, kernel):
    cache_of = {}
    logits = {}
    ids = torch.tensor([[9, 8, 7], [6, 5, 4]])
    for implementation in ("sdpa", "xformers"):
        pipe.transformer.set_attn_implementation(implementation)
        cache = cache_of[implementation] = SlotCache(pipe.transformer.config.num_hidden_layers, 16)
        with torch.no_grad():
            first = torch.arange(8).expand(2, -1)
            pipe.transformer(input_ids=first + 9, position_ids=first, past_key_values=cache)
            scattered = torch.tensor([[2, 5, 7], [8, 9, 11]])
            logits[implementation] = pipe.transformer(
                input_ids=ids, position_ids=scattered, past_key_values=cache
            ).logits
    torch.testing.assert_close(logits["xformers"], logits["sdpa"])
    assert isinstance(kernel.biases[-1], torch.Tensor)


@pytest.mark.parametrize("has_padding", [False, True])
def test_xformers_without_a_slot_cache(pipe, kernel, has_padding):
    ids = torch.arange(22).view(2, 11) + 9
    mask = torch.ones_like(ids)
    if has_padding:
        mask[1, 7:] = 0
    logits = []
    for implementation in ("sdpa", "xformers"):
        pipe.transformer.set_attn_implementation(implementation)
        with torch.no_grad():
            logits.append(pipe.transformer(input_ids=ids, attention_mask=mask).logits[mask.bool()])
    torch.testing.assert_close(logits[1], logits[0])
    assert kernel.biases[-1].stride(-2) % attention.BIAS_ALIGNMENT == 0


@pytest.mark.parametrize("is_slots", [False, True])
def test_xformers_with_grouped_heads(kernel, is_slots):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 8, 3, 16, generator=generator)
    key, value = torch.randn(2, 2, 2, 24, 16, generator=generator)
    cache = SlotCache(1, 24)
    cache.positions = torch.tensor([[4, 5, 6], [19, 20, 21]])
    mask = cache.visibility()
    output, _ = attention.xformers_attention(
        None, query, key, value, mask, scaling=0.3, slot_bias=attention.slot_bias(cache) if is_slots else None
    )
    expected = scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(output, expected.transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_queries, groups", [(1, 8), (2, 2), (4, 8), (5, 4)])
def test_heads_that_share_keys_share_them_in_memory(monkeypatch, dtype, num_queries, groups):
    seen = []

    def spy(query, key, value, *args, **kwargs):
        seen.append(key)
        return scaled_dot_product_attention(query, key, value, *args, **kwargs)

    monkeypatch.setattr(slot_attention.F, "scaled_dot_product_attention", spy)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 2 * groups, num_queries, 16, generator=generator).to(dtype)
    key, value = torch.randn(2, 2, 2, 24, 16, generator=generator).to(dtype)
    cache = SlotCache(1, 24)
    cache.positions = torch.tensor([[4], [9]]) + torch.arange(num_queries)
    mask = slot_attention.slot_mask(cache.visibility())
    output, _ = slot_attention.slot_sdpa(None, query, key, value, mask, scaling=0.3)
    assert seen[0].data_ptr() == key.data_ptr() and seen[0].shape == key.shape
    copies = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    expected, _ = slot_attention.slot_sdpa(None, query, *copies, mask, scaling=0.3)
    assert torch.equal(output, expected)


def test_on_cuda_heads_share_keys_in_the_longest_window():
    seen = []

    def spy(query, key, value, *args, **kwargs):
        seen.append(key.shape[1])
        return scaled_dot_product_attention(query, key, value, *args, **kwargs)

    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, 64, 16, generator=generator) for heads in (16, 2))
    cache = SlotCache(1, 64)
    cache.positions = torch.arange(64)[None]
    module = SimpleNamespace(num_key_value_groups=8)
    expected, _ = slot_attention.slot_sdpa(module, query, key, key, slot_attention.slot_mask(cache.visibility()))
    with emulated_cuda(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(slot_attention.F, "scaled_dot_product_attention", spy)
        cache.positions = cache.positions.to("cuda")
        mask = slot_attention.slot_mask(cache.visibility())
        output, _ = slot_attention.slot_sdpa(module, query.to("cuda"), key.to("cuda"), key.to("cuda"), mask)
        output = output.cpu()
    assert seen == [2]
    torch.testing.assert_close(output, expected)


def test_the_bias_of_xformers_itself():
    attn_bias = pytest.importorskip("xformers.ops.fmha.attn_bias")
    cache = SlotCache(1, 8)
    cache.positions = torch.tensor([[3, 4], [1, 2]])
    bias = attention.slot_bias(cache)
    assert isinstance(bias, attn_bias.BlockDiagonalCausalWithOffsetPaddedKeysMask)
    expected = PaddedKeysBias.from_seqlens([2, 2], 8, [5, 3]).tensor
    torch.testing.assert_close(bias.materialize((4, 16)), expected)


def test_enabling_reaches_transformer_and_vqvae(kernel, random_pipe):
    pipe = copy_of(random_pipe)
    attentions = [module for module in pipe.vqvae.modules() if hasattr(module, "processor")]
    before = [type(module.processor) for module in attentions]
    assert attentions
    for module in attentions:  # diffusers tries the kernel on the GPU before it sets its processor
        module.set_use_memory_efficient_attention_xformers = lambda valid, op, module=module: module.set_processor(
            XFormersAttnProcessor(attention_op=op) if valid else before[0]()
        )
    pipe.transformer.set_attn_implementation("eager")

    operator = object()
    pipe.enable_xformers_memory_efficient_attention(attention_op=operator)
    assert pipe.transformer.config._attn_implementation == "xformers"
    assert all(isinstance(module.processor, XFormersAttnProcessor) for module in attentions)
    codes_of(pipe)
    assert kernel.ops and all(op is operator for op in kernel.ops)

    pipe.disable_xformers_memory_efficient_attention()
    assert pipe.transformer.config._attn_implementation == "eager"
    assert [type(module.processor) for module in attentions] == before


def test_enabling_without_xformers(pipe, monkeypatch):
    monkeypatch.setattr(attention, "is_xformers_available", lambda: False)
    with pytest.raises(ModuleNotFoundError, match="how to install xformers"):
        pipe.enable_xformers_memory_efficient_attention()
    assert pipe.transformer.config._attn_implementation == "slot_sdpa"


def test_enabling_without_cuda(pipe, monkeypatch):
    monkeypatch.setattr(attention, "is_xformers_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch.cuda.is_available"):
        pipe.enable_xformers_memory_efficient_attention()
    assert pipe.transformer.config._attn_implementation == "slot_sdpa"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_xformers_on_the_gpu(dtype):
    pytest.importorskip("xformers")
    pipe = load_pipeline(CHECKPOINT, dtype=dtype).to("cuda")
    expected = codes_of(pipe, temperature=0)
    pipe.enable_xformers_memory_efficient_attention()
    codes = codes_of(pipe, temperature=0)
    # Other kernels round otherwise: most codes are the same, and none is missing.
    assert (codes >= 0).all()
    assert (codes == expected).float().mean() > 0.5
    pipe(PROMPTS[0], height=64, width=96)
