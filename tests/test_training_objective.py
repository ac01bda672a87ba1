# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The objective of training against the recorded values of the original code."""

import copy
import json

import pytest
import torch
from conftest import FIXTURES
from peft import LoraConfig, get_peft_model

from lumina_mgpt_diffusers.training import make_trainable, objective
from lumina_mgpt_diffusers.training.data_collator import PackedCollator, PaddedCollator
from lumina_mgpt_diffusers.training.packed_attention import PACKED_SDPA


LOSS = json.loads((FIXTURES / "7b_like" / "loss.json").read_text())
RECORDED_CROSS_ENTROPY = LOSS["z1e-05_maskFalse"]["c_loss"]
RECORDED_Z_LOSS = LOSS["z1e-05_maskFalse"]["extra"]["z_loss"][0]
PAD_ID = 1


@pytest.fixture
def model(random_pipe):
    return make_trainable(trainable_copy(random_pipe), z_loss_weight=1e-5, dropout=0.0).train()


def trainable_copy(pipe) -> torch.nn.Module:
    # Tests of adapters freeze the weights that they share.
    return copy.deepcopy(pipe.transformer).requires_grad_(True)


def samples() -> list[dict]:
    return [
        {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
        for ids, labels in zip(LOSS["batch_tokens"], LOSS["batch_labels"])
    ]


def batch(packed: bool) -> dict:
    return PackedCollator()([samples()]) if packed else PaddedCollator(PAD_ID)(samples())


def grad_norms(model: torch.nn.Module) -> dict[str, float]:
    return {name: float(weight.grad.norm()) for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("layout", ["padded", PACKED_SDPA, "packed sdpa of transformers"])
def test_loss_and_gradients_are_those_of_the_original(model, monkeypatch, chunk, layout):
    if chunk:
        monkeypatch.setitem(objective.LOGITS_PER_CHUNK, "cpu", chunk * model.config.vocab_size)
    if layout == PACKED_SDPA:
        model.set_attn_implementation(PACKED_SDPA)
    output = model(**batch(layout != "padded"))
    output.loss.backward()

    assert float(output.cross_entropy) == pytest.approx(RECORDED_CROSS_ENTROPY, rel=1e-5)
    assert float(output.z_loss) == pytest.approx(RECORDED_Z_LOSS, rel=1e-5)
    assert output.loss.item() == pytest.approx(RECORDED_CROSS_ENTROPY + 1e-5 * RECORDED_Z_LOSS, rel=1e-5)
    assert grad_norms(model) == pytest.approx(LOSS["grad_norms_total_loss_z1e-5"], rel=1e-4)


def test_truncated_samples_have_the_recorded_loss(model):
    cut = [{name: tensor[:50] for name, tensor in sample.items()} for sample in samples()]
    output = model(**PaddedCollator(PAD_ID)(cut))
    assert float(output.cross_entropy) == pytest.approx(LOSS["truncated_to_50"], rel=1e-5)


def test_packed_samples_do_not_see_each_other(model):
    model.set_attn_implementation(PACKED_SDPA)
    first, second, third = samples()
    packed = PackedCollator()([[first, second, third]])
    assert packed["position_ids"][0, len(first["input_ids"])] == 0
    hidden = model.model(
        input_ids=packed["input_ids"],
        position_ids=packed["position_ids"],
        segment_lengths=tuple(len(one["input_ids"]) for one in (first, second, third)),
    ).last_hidden_state[0]
    alone = torch.cat([model.model(input_ids=one["input_ids"][None]).last_hidden_state[0] for one in (first, second)])
    assert torch.allclose(hidden[: len(alone)], alone, atol=1e-5)


def test_without_learnt_tokens_the_gradients_are_zero(model):
    sample = samples()[1] | {"labels": torch.full((29,), -100)}
    output = model(**PaddedCollator(PAD_ID)([sample]), num_items_in_batch=torch.tensor(5))
    output.loss.backward()
    assert output.loss.item() == 0.0
    assert not any(grad_norms(model).values())


@pytest.mark.parametrize("chunk", [3, 1000])
def test_a_lora_head_is_computed_in_chunks_exactly(model, monkeypatch, chunk):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    lora = get_peft_model(model, config)
    inputs = batch(packed=False)
    monkeypatch.setitem(objective.LOGITS_PER_CHUNK, "cpu", chunk * model.config.vocab_size)
    output = lora(**inputs)
    output.loss.backward()
    norms = grad_norms(lora)
    lora.zero_grad()

    logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].flatten(0, 1)
    targets = inputs["labels"][:, 1:].flatten()
    z_loss = logits.logsumexp(-1)[targets != -100].square().mean()
    loss = torch.nn.functional.cross_entropy(logits, targets) + 1e-5 * z_loss
    loss.backward()
    assert output.loss.item() == pytest.approx(float(loss), rel=1e-5)
    assert norms == pytest.approx(grad_norms(lora), rel=1e-4)
    assert any("lm_head" in name for name in norms)


def test_bfloat16_autocast_keeps_float32_gradients(model):
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch(packed=False))
    output.loss.backward()
    assert model.lm_head.weight.grad.dtype == torch.float32
    assert output.loss.item() == pytest.approx(RECORDED_CROSS_ENTROPY, rel=0.02)


def test_residual_dropout_only_in_training_and_the_same_when_checkpointed(random_pipe):
    model = make_trainable(trainable_copy(random_pipe), dropout=0.5)
    inputs = batch(packed=False)

    def run(seed: int) -> tuple[float, dict[str, float]]:
        torch.manual_seed(seed)
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        return float(loss.detach()), grad_norms(model)

    model.eval()
    plain = run(0)[0]
    assert plain == pytest.approx(RECORDED_CROSS_ENTROPY + 1e-5 * RECORDED_Z_LOSS, rel=1e-5)
    model.train()
    loss, norms = run(0)
    assert loss != pytest.approx(plain, rel=1e-3)
    assert run(1)[0] != loss
    model.gradient_checkpointing_enable()
    checkpointed_loss, checkpointed_norms = run(0)
    assert checkpointed_loss == loss
    assert checkpointed_norms == pytest.approx(norms, rel=1e-5)
