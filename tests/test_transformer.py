# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

import shutil
import warnings

import numpy as np
import pytest
import torch
from conftest import CHECKPOINT
from reference import load_stock, make_34b_like
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration
from transformers.utils import logging

from lumina_mgpt_diffusers import LuminaMGPTTransformer
from lumina_mgpt_diffusers.lumina_mgpt.kv_cache import SlotCache


CODES = (4, 8196)


@pytest.fixture(scope="module")
def golden(fixtures):
    return np.load(fixtures / "7b_like" / "logits.npz")


@pytest.fixture(scope="module")
def ids(golden):
    return torch.from_numpy(golden["input_ids"])[None]


@pytest.fixture(scope="module")
def model():
    return LuminaMGPTTransformer.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory):
    return make_34b_like(tmp_path_factory.mktemp("34b") / "ckpt", CHECKPOINT)


@torch.no_grad()
def test_float32_logits_are_the_originals(model, golden, ids):
    logits = model(ids).logits[0]
    torch.testing.assert_close(
        logits[golden["positions"]], torch.from_numpy(golden["logits_fp32_at_positions"]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(logits.logsumexp(-1), torch.from_numpy(golden["logsumexp_fp32"]), atol=1e-4, rtol=0)
    assert torch.equal(logits.topk(8).indices, torch.from_numpy(golden["top8_ids"]))


@torch.no_grad()
def test_left_padded_batch_is_the_originals(model, golden):
    ids, mask = torch.from_numpy(golden["leftpad_ids"]), torch.from_numpy(golden["leftpad_mask"])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits[:, -1]
    torch.testing.assert_close(logits, torch.from_numpy(golden["leftpad_last_logits"]), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("cast", ["load", "to"])
def test_bfloat16_logits_are_the_originals(golden, ids, cast):
    # Frequencies rounded to bfloat16 would move the logits by about 1.
    if cast == "load":
        model = LuminaMGPTTransformer.from_pretrained(CHECKPOINT, dtype=torch.bfloat16)
    else:
        model = LuminaMGPTTransformer.from_pretrained(CHECKPOINT, dtype=torch.float32).to(torch.bfloat16)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    logits = model(ids).logits[0, golden["positions"]].float()
    assert torch.equal(logits, torch.from_numpy(golden["logits_bf16_at_positions"]))


@pytest.mark.parametrize(
    "cast", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.double(), lambda m: m.model.half()]
)
def test_frequencies_stay_exact_through_casts(model, cast):
    copy = LuminaMGPTTransformer.from_pretrained(CHECKPOINT, dtype=torch.float32)
    cast(copy)
    assert torch.equal(copy.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


@torch.no_grad()
def test_swin_norm_grouped_heads_and_two_norm_rows(large_checkpoint, ids):
    stock = load_stock(large_checkpoint)
    model = LuminaMGPTTransformer.from_pretrained(large_checkpoint, dtype=torch.float32).eval()
    assert model.config.swin_norm and model.config.num_key_value_heads == 2
    assert model.config.rope_parameters["rope_theta"] == 123456.0
    q_norm = model.model.layers[0].self_attn.q_norm.weight
    assert torch.equal(q_norm[0], q_norm[3]) and not torch.equal(q_norm[3], q_norm[4])
    expected = stock.lm_head(stock.model(ids).last_hidden_state)
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_save_and_load(model, ids, tmp_path):
    model.save_pretrained(tmp_path)
    again = LuminaMGPTTransformer.from_pretrained(tmp_path, dtype=torch.float32)
    for (name, before), (_, after) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(before, after), name
    assert torch.equal(model(ids).logits, again(ids).logits)


@torch.no_grad()
def test_stock_transformers_reads_what_is_saved(model, ids, tmp_path):
    model.save_pretrained(tmp_path)
    stock = ChameleonForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    logits = stock.lm_head(stock.model(ids).last_hidden_state)
    assert torch.equal(logits, model(ids).logits)


@pytest.mark.parametrize("which", ["small", "large", "saved"])
def test_loading_warns_of_nothing(which, model, large_checkpoint, tmp_path, caplog):
    folder = {"small": CHECKPOINT, "large": large_checkpoint, "saved": tmp_path}[which]
    if which == "saved":
        model.save_pretrained(tmp_path)
    logging.enable_propagation()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, info = LuminaMGPTTransformer.from_pretrained(folder, output_loading_info=True)
    finally:
        logging.disable_propagation()
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert not caplog.records


def test_norm_rows_that_do_not_divide_the_heads_are_an_error(large_checkpoint, tmp_path):
    folder = shutil.copytree(large_checkpoint, tmp_path / "ckpt")
    for shard in folder.glob("*.safetensors"):
        state = load_file(shard)
        state = {k: torch.ones(3, v.shape[1]) if "q_norm" in k else v for k, v in state.items()}
        save_file(state, shard, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"6 of another shape .*q_norm.bias \(3, 8\) instead of \(8, 8\)"):
        LuminaMGPTTransformer.from_pretrained(folder)


COMPILED = pytest.param("flex_attention", "default", marks=pytest.mark.slow)


@torch.no_grad()
@pytest.mark.parametrize(
    ("implementation", "stance"),
    [("sdpa", "default"), ("eager", "default"), ("flex_attention", "force_eager"), COMPILED],
)
def test_slot_cache_equals_no_cache(model, ids, implementation, stance):
    before = model.config._attn_implementation
    expected = model(ids).logits
    try:
        model.set_attn_implementation(implementation)
        cache = SlotCache(model.config.num_hidden_layers, 96)
        pieces, start = [], 0
        for end in (50, 51, 60, ids.shape[1]):
            positions = torch.arange(start, end)[None]
            cache.limit(96 if end < 60 else ids.shape[1], torch.device("cpu"))
            with torch.compiler.set_stance(stance):
                pieces.append(model(ids[:, start:end], position_ids=positions, past_key_values=cache).logits)
            start = end
    finally:
        model.set_attn_implementation(before)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_rows_of_a_slot_cache_are_ragged_and_rejected_tokens_leave_no_trace(model, ids):
    expected = model(ids).logits[0]
    lengths = [20, 41]
    cache = SlotCache(model.config.num_hidden_layers, 80)
    # Both rows are padded with tokens that are not theirs; those lie in slots that nobody sees before they are
    # written again.
    rows = torch.stack([torch.cat([ids[0, :n], ids[0, :1].expand(48 - n)]) for n in lengths])
    model(rows, position_ids=torch.arange(48).expand(2, -1), past_key_values=cache)
    positions = torch.tensor(lengths)[:, None] + torch.arange(5)
    wrong = model(ids[0, positions].flip(1), position_ids=positions, past_key_values=cache).logits
    right = model(ids[0, positions], position_ids=positions, past_key_values=cache).logits
    torch.testing.assert_close(right, expected[positions], atol=1e-4, rtol=0)
    assert not torch.allclose(wrong, right, atol=1e-2)


@torch.no_grad()
def test_logits_of_a_range_of_ids(model, ids):
    full = model(ids).logits
    torch.testing.assert_close(model(ids, logits_range=CODES).logits, full[..., slice(*CODES)], atol=1e-5, rtol=0)
    last = model(ids, logits_range=CODES, logits_to_keep=1).logits
    torch.testing.assert_close(last, full[:, -1:, slice(*CODES)], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_head_that_is_more_than_its_weight_is_called(ids):
    # As with quantisation, LoRA and offload hooks, where rows of the weight would silently give other logits.
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = LuminaMGPTTransformer.from_pretrained(CHECKPOINT, dtype=torch.float32)
    plain = model(ids, logits_range=CODES).logits
    doubled = Doubled(model.config.hidden_size, model.config.vocab_size, bias=False)
    doubled.load_state_dict(model.lm_head.state_dict())
    hooked = model.lm_head.forward
    model.lm_head.forward = lambda x: 3 * hooked(x)
    torch.testing.assert_close(model(ids, logits_range=CODES).logits, 3 * plain)
    model.lm_head = doubled
    torch.testing.assert_close(model(ids, logits_range=CODES).logits, 2 * plain)


@torch.no_grad()
def test_compiles_to_one_graph_that_serves_every_step(model, ids):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected = model(ids).logits
    cache = SlotCache(model.config.num_hidden_layers, 80, num_rows=1)
    model(ids[:, :2], position_ids=torch.arange(2)[None], past_key_values=cache.rows(0, 1))
    cache = cache.rows(0, 1)
    counts = torch._dynamo.utils.counters
    counts.clear()
    for position in range(2, 8):
        here = torch.tensor([[position]])
        logits = compiled(ids[:, here[0]], position_ids=here, past_key_values=cache, logits_range=CODES).logits
        torch.testing.assert_close(logits[0, 0], expected[0, position, slice(*CODES)], atol=1e-4, rtol=0)
    assert counts["stats"]["unique_graphs"] == 1
    assert not counts["graph_break"]


def test_generate_of_transformers_works(random_pipe):
    ids = torch.arange(8910, 8914)[None]
    output = random_pipe.transformer.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=1)
    assert output.shape == (1, 7)
