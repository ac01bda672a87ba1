# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Arguments are accepted in every form that says the same, and refused with their name and value otherwise."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from lumina_mgpt_diffusers.lumina_mgpt.unirep import ImageVocabulary
from lumina_mgpt_diffusers.lumina_mgpt.validation import (
    LEAST_TEMPERATURE,
    MAX_TOP_K,
    check_callback,
    check_callback_outputs,
    check_flag,
    check_generator,
    check_guidance_scale,
    check_integer,
    check_latents,
    check_prompts,
    check_resolution,
    check_size,
    check_temperature,
    check_text,
    check_token_ids,
    check_top_k,
    shown,
)


VOCABULARY = ImageVocabulary(torch.arange(8), tuple(range(8, 108)), 108, 109, 110, 111, patch_size=16)


def same(value, expected) -> bool:
    return value == expected and type(value) is type(expected)


@pytest.mark.parametrize("eight", [8, 8.0, np.int64(8), np.uint8(8), np.float32(8), np.float64(8), Fraction(16, 2)])
def test_whole_numbers_of_every_type_are_integers(eight):
    assert same(check_integer("count", eight, least=1, most=8), 8)
    assert same(check_top_k(eight), 8)
    assert same(check_guidance_scale(eight), 8.0) and same(check_temperature(eight), 8.0)
    assert check_size(eight * 8, eight * 12, 96, VOCABULARY) == (64, 96)
    assert same(check_resolution(eight * 96 / 8 if isinstance(eight, Fraction) else eight * 12), 96)


NO_NUMBERS = [True, np.True_, "8", None, float("nan"), float("inf"), -1, [8], 8j, Decimal(8), -(10**400)]


@pytest.mark.parametrize("value", [*NO_NUMBERS, 8.5, Fraction(1, 3), 10**400], ids=lambda value: shown(value)[:20])
def test_what_is_no_integer_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"`count` has to be an integer >= 0 and <= 1024 but is "):
        check_integer("count", value, least=0, most=1024)
    with pytest.raises(ValueError, match="`resolution` has to be a positive number of pixels, .* but is "):
        check_resolution(value)
    with pytest.raises(ValueError, match="`height` and `width` have to be "):
        check_size(value, 64, 96, VOCABULARY)
    if value is not None and not (isinstance(value, int) and value > 1):
        with pytest.raises(ValueError, match="`top_k` has to be an integer >= 0, or None, but is "):
            check_top_k(value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 10**400], ids=lambda value: shown(value)[:20])
def test_what_is_no_number_is_refused_by_name(value):
    with pytest.raises(ValueError, match="`guidance_scale` has to be a finite number >= 0 but is "):
        check_guidance_scale(value)
    with pytest.raises(ValueError, match="`text_temperature` has to be a finite number >= 0 but is "):
        check_temperature(value, "text_temperature")


def test_numbers_beyond_float32_are_refused():
    for value in (10**30, 1e30):
        with pytest.raises(
            ValueError, match=r"`guidance_scale` has to be a finite number >= 0 and <= 1e\+06 but is 1"
        ):
            check_guidance_scale(value)
    for value in (320000, 4128):
        with pytest.raises(ValueError, match=f"but is {value}. The greatest is 4096"):
            check_resolution(value)
    with pytest.raises(ValueError, match="at most 3200, for which .* but are an integer of 1329 bits and 64"):
        check_size(10**400, 64, 96, VOCABULARY)


def test_flags_are_true_or_false():
    assert check_flag("return_dict", True) is True and check_flag("return_dict", np.bool_(False)) is False
    for value in (None, 1, "yes", np.zeros(2), torch.tensor(True)):
        with pytest.raises(ValueError, match="`return_dict` has to be True or False but is"):
            check_flag("return_dict", value)


def test_more_codes_than_there_can_be_are_refused():
    assert check_top_k(MAX_TOP_K) == MAX_TOP_K
    for value in (2**31, 2**64, 10**5000):
        with pytest.raises(ValueError, match="`top_k` has to be an integer >= 0 and <= 2147483647, or None, but is"):
            check_top_k(value)


def test_a_temperature_that_float32_cannot_divide_by_is_greedy():
    assert check_temperature(1e-38) == check_temperature(5e-324) == check_temperature(0) == 0.0
    assert check_temperature(LEAST_TEMPERATURE) == LEAST_TEMPERATURE
    # The greatest guided logits there can be stay finite.
    assert torch.isfinite(torch.tensor(1e10) / LEAST_TEMPERATURE)


def test_tuples_are_accepted():
    assert check_prompts("prompt", ("a", "b"), None, None) == 2
    generators = (torch.Generator(), torch.Generator())
    assert check_generator(generators, 2) == list(generators)
    assert check_generator(generators[0], 2) is generators[0] and check_generator(None, 2) is None
    with pytest.raises(ValueError, match="list of generators of length 2, but requested .* of 3"):
        check_generator(generators, 3)
    with pytest.raises(ValueError, match="`generator` has to be a `torch.Generator` or a list of them but is"):
        check_generator({0: generators[0]}, 1)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ((), r"`prompt` has to be a string or a non-empty list of strings but is \(\)"),
        (["a", b"b"], "`prompt` has to be a string or a non-empty list"),
        ("a\ud800", r"`prompt` has to be Unicode text but holds a lone surrogate, '\\ud800', at index 1: 'a\\ud800'"),
        (["a", "\udfff"], r"`prompt\[1\]` has to be Unicode text"),
    ],
)
def test_prompts_that_are_no_text_are_refused_by_name(prompt, message):
    with pytest.raises(ValueError, match=message):
        check_prompts("prompt", prompt, None, None)


IDS = torch.tensor([[0, 5, 9], [0, 7, 1]])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int16])
def test_token_ids_of_every_integer_type_are_accepted(dtype):
    for mask in (None, torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([[True, False, True]] * 2)):
        assert check_token_ids("prompt", IDS.to(dtype), mask, vocab_size=10) == 2


def test_ids_that_are_padding_may_be_anything():
    assert check_token_ids("prompt", torch.tensor([[0, -100]]), torch.tensor([[1, 0]]), vocab_size=10) == 1


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (IDS.float(), None, "`prompt_token_ids` has to be an integer tensor .* torch.float32"),
        (IDS.bool(), None, "`prompt_token_ids` has to be an integer tensor .* torch.bool"),
        (IDS.to(torch.complex64), None, "`prompt_token_ids` has to be an integer tensor .* torch.complex64"),
        (IDS[0], None, r"`prompt_token_ids` has to be an integer tensor .* of shape \(3,\)"),
        (IDS[:, :0], None, r"`prompt_token_ids` has to be an integer tensor .* of shape \(2, 0\)"),
        (IDS.to("meta"), None, "`prompt_token_ids` has to be .* on meta"),
        (IDS.to_sparse(), None, "`prompt_token_ids` has to be .* torch.sparse_coo"),
        (IDS.tolist(), None, "`prompt_token_ids` has to be .* <class 'list'>"),
        (IDS.numpy(), None, "`prompt_token_ids` has to be .* int64 of shape"),
        (IDS + 1, None, r"`prompt_token_ids` have to be in \[0, 10\) but range from 1 to 10"),
        (IDS - 1, None, r"`prompt_token_ids` have to be in \[0, 10\) but range from -1 to 8"),
        (IDS, IDS[:1], r"`prompt_attention_mask` has to be of the shape of `prompt_token_ids`, \(2, 3\)"),
        (IDS, torch.ones(2, 3), "`prompt_attention_mask` has to be an integer tensor .* torch.float32"),
        (IDS, IDS, r"`prompt_attention_mask` has to be 1 for tokens .* but is \[\[0, 5, 9\]"),
        (IDS, torch.tensor([[1, 1, 1], [0, 0, 0]]), "`prompt_attention_mask` .* with a token in every row"),
    ],
)
def test_token_ids_that_are_no_prompts_are_refused_by_name(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        check_prompts("prompt", None, ids, mask, vocab_size=10)


SHAPE = (1, 2, 2)


def test_what_a_callback_returns_is_read_on_the_host():
    latents = torch.tensor([[[0, -1], [7, 3]]])
    assert torch.equal(check_callback_outputs({"latents": latents}, SHAPE, 8), latents)
    for nothing in (None, {}, {"latents": None}, {"other": 3}):
        assert check_callback_outputs(nothing, SHAPE, 8) is None


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(SHAPE), r"torch.int64 of shape \(1, 2, 2\), but are torch.float32 of shape \(1, 2, 2\)"),
        (torch.zeros(SHAPE, dtype=torch.int32), "torch.int64 .* but are torch.int32"),
        (torch.zeros(2, 2, dtype=torch.long), r"but are torch.int64 of shape \(2, 2\)"),
        (torch.full(SHAPE, 8), r"in \[0, 8\), or -1 .* range from 8 to 8"),
        (torch.full(SHAPE, -2), r"in \[0, 8\), or -1 .* range from -2 to -2"),
        (torch.zeros(SHAPE, dtype=torch.long, device="meta"), "on meta"),
        (torch.zeros(SHAPE, dtype=torch.long).to_sparse(), "torch.sparse_coo"),
        (np.zeros(SHAPE, dtype=np.int64), "but are int64 of shape"),
        ([[[0, 0], [0, 0]]], "but are <class 'list'>"),
    ],
)
def test_latents_that_are_no_codes_are_refused_by_name(latents, message):
    with pytest.raises(ValueError, match=f"`latents` have to be VQ codes.*{message}"):
        check_latents(latents, SHAPE, 8)
    with pytest.raises(ValueError, match=f"`latents` returned by `callback_on_step_end` have to be .*{message}"):
        check_callback_outputs({"latents": latents}, SHAPE, 8)


def test_what_a_callback_may_be():
    class Ready(PipelineCallback):
        tensor_inputs = ["latents"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            return callback_kwargs

    ready = Ready(cutoff_step_ratio=1.0)
    for callback in (ready, MultiPipelineCallbacks([ready])):
        assert check_callback(callback, None, ["latents"]) == ["latents"]
    assert check_callback(print, ("latents",), ["latents"]) == ["latents"]
    assert check_callback(None, None, ["latents"]) == []
    for callback in (3, "print", [print]):
        with pytest.raises(ValueError, match="`callback_on_step_end` has to be callable, or None, but is"):
            check_callback(callback, ["latents"], ["latents"])
    for names in (["prompt"], "latents", 3, False, "", np.zeros(2), [np.zeros(2)]):
        with pytest.raises(ValueError, match=r"`callback_on_step_end_tensor_inputs` has to be in \['latents'\]"):
            check_callback(print, names, ["latents"])
    with pytest.raises(ValueError, match="`callback_on_step_end` has to return a dict, or None, but returned 3"):
        check_callback_outputs(3, SHAPE, 8)


def test_values_in_messages_are_short_and_without_errors_of_their_own():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    cyclic = []
    cyclic.append(cyclic)

    class Unprintable:
        def __repr__(self):
            raise RuntimeError

    for value in (deep, cyclic, 10**5000, "x" * 10**6, ["\ud800"] * 100, Unprintable(), torch.zeros(1000)):
        assert len(shown(value)) < 800
        shown(value).encode()
    with pytest.raises(ValueError, match="Unicode text") as error:
        check_text("prompt", "x" * 10**6 + "\ud800")
    assert len(str(error.value)) < 400
