# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The estimate of the memory of training against the peak of a step."""

import importlib

import pytest
from training_helpers import ROOT
from transformers import ChameleonConfig

from lumina_mgpt_diffusers.training import estimate_training_memory


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_estimate_is_near_the_peak_and_not_below_it(monkeypatch, checkpointing):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    training = importlib.import_module("training")

    shape = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 6, "num_attention_heads": 4}
    measured, estimate = training.measured_peak(shape, [200, 200], checkpointing, vocab_size=512)
    assert 0.95 < estimate / measured < 1.35


def test_what_is_shared_and_what_is_frozen_takes_less():
    config = ChameleonConfig()
    full = estimate_training_memory(config, 2450)
    shared = estimate_training_memory(config, 2450, num_devices=8)
    lora = estimate_training_memory(config, 2450, method="lora")
    qlora = estimate_training_memory(config, 2450, method="qlora")
    assert full.optimizer == 8 * shared.optimizer == 2 * full.gradients
    assert full.total > 16 * 7e9
    assert qlora.total < 24e9 < full.total
    assert qlora.weights < lora.weights / 2.5 and lora.gradients < full.gradients / 100
    more = estimate_training_memory(config, 2450, gradient_checkpointing=False)
    assert more.activations > 5 * full.activations
    with pytest.raises(ValueError, match="`method` has to be one of .* but is 'dora'"):
        estimate_training_memory(config, 1, method="dora")
