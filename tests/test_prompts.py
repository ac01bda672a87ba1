# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.

import pytest
import torch

from lumina_mgpt_diffusers import LUMINA_MGPT, Task
from lumina_mgpt_diffusers.lumina_mgpt.prompts import encode_conversation, encode_text, unpad


CONTROL = "<eoss> <racm3:break> IMGIMGBZ <|image|> <reserved08706> <reserved08799> <s></s><pad><unk> <image>"

TEXT_CONVERSATIONS = ["t2i_64x96", "t2i_64x64", "t2i_96x64", "unicode", "long", "empty", "two_turns_text"]


def as_messages(golden: dict) -> list[dict]:
    messages = []
    for question, answer in golden["qas"]:
        messages.append({"role": "user", "content": question})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return messages


@pytest.fixture(scope="module")
def tokenizer(random_pipe):
    return random_pipe.tokenizer


@pytest.mark.parametrize("name", TEXT_CONVERSATIONS)
def test_conversations_are_the_originals(tokenizer, prompts_golden, name):
    golden = prompts_golden["prompts"][name]
    assert encode_conversation(tokenizer, as_messages(golden)) == golden["input_ids"]


@pytest.mark.parametrize("name", TEXT_CONVERSATIONS)
def test_chat_template_says_the_same(tokenizer, prompts_golden, name):
    golden = prompts_golden["prompts"][name]
    ids = tokenizer.apply_chat_template(as_messages(golden), tokenize=True, return_dict=False)
    assert ids == golden["input_ids"]


def test_text_to_image_prompt_is_the_originals(tokenizer, prompts_golden):
    content = LUMINA_MGPT.text_to_image_prompt("A red fox in the snow.", height=96, width=64)
    ids = encode_conversation(tokenizer, [{"role": "user", "content": content}])
    assert ids == prompts_golden["prompts"]["t2i_64x96"]["input_ids"]


def test_plain_text_encodes_and_decodes_as_in_the_original(tokenizer, prompts_golden):
    special = ("<", "IMGIMG")
    compared = 0
    for text, ids in prompts_golden["encode_no_special"].items():
        if not any(part in text for part in special):
            assert encode_text(tokenizer, text) == ids
            assert tokenizer.decode(ids) == prompts_golden["decode"][text]
            compared += 1
    assert compared >= 6


def test_control_tokens_in_text_stay_text(tokenizer):
    ids = encode_text(tokenizer, CONTROL)
    assert tokenizer.decode(ids) == CONTROL
    assert not set(ids) & set(tokenizer.added_tokens_encoder.values())


def test_original_is_injectable_where_this_is_not(tokenizer, prompts_golden):
    golden = prompts_golden["prompts"]["special_in_text"]
    ids = encode_conversation(tokenizer, as_messages(golden))
    assert 8196 in golden["input_ids"]
    assert not set(ids[1:-1]) & set(tokenizer.added_tokens_encoder.values())
    assert (ids[0], ids[-1]) == (0, 8710)
    assert tokenizer.decode(ids[1:-1]) == golden["qas"][0][0]


@pytest.mark.parametrize("text", CONTROL.split())
def test_chat_template_refuses_control_tokens(tokenizer, text):
    for content in (f"a {text} b", [{"type": "text", "text": f"a {text} b"}]):
        with pytest.raises(Exception, match="must not contain the control token"):
            tokenizer.apply_chat_template([{"role": "user", "content": content}])


@pytest.mark.parametrize("stubborn", [False, True])
def test_control_tokens_that_tokenizers_match_all_the_same(tokenizer, stubborn):
    class Matching:
        added_tokens_encoder = tokenizer.added_tokens_encoder
        convert_ids_to_tokens = tokenizer.convert_ids_to_tokens

        def __len__(self):
            return len(tokenizer)

        def __call__(self, text, **kwargs):
            return {"input_ids": [8196]} if stubborn else tokenizer(text, add_special_tokens=False)

    if stubborn:
        with pytest.raises(ValueError, match="control token '<eoss>'"):
            encode_text(Matching(), "a <eoss> b")
    else:
        ids = encode_text(Matching(), CONTROL)
        assert not set(ids) & set(tokenizer.added_tokens_encoder.values())
        assert tokenizer.decode(ids).replace(" ", "") == CONTROL.replace(" ", "")


def test_images_go_where_they_are_marked(tokenizer):
    image = [8197, 8805, 8805, 4, 5, 8803, 6, 7, 8803, 8196]
    content = [{"type": "text", "text": "Look at "}, {"type": "image"}, {"type": "text", "text": " now"}]
    ids = encode_conversation(tokenizer, [{"role": "user", "content": content}], [image])
    before, after = encode_text(tokenizer, "Look at "), encode_text(tokenizer, " now")
    assert ids == [0, *before, *image, *after, 8710]


@pytest.mark.parametrize(
    "marks, images, message", [(2, 1, "mark more images than the 1"), (1, 2, "2 images were given .* mark only 1")]
)
def test_image_count_has_to_match(tokenizer, marks, images, message):
    with pytest.raises(ValueError, match=message):
        encode_conversation(tokenizer, [{"role": "user", "content": [{"type": "image"}] * marks}], [[8197]] * images)


def test_unpad_repeats_rows_in_order():
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert unpad(ids, mask, repeats=2) == [[1, 2, 3], [1, 2, 3], [4, 5], [4, 5]]
    assert unpad(ids, None) == [[1, 2, 3], [4, 5, 0]]


def test_a_lone_surrogate_is_refused_by_name(tokenizer):
    with pytest.raises(
        ValueError, match=r"`text` has to be Unicode text but holds a lone surrogate, '\\udc80', at index 2"
    ):
        encode_text(tokenizer, "a \udc80")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template": 3}, "`template` has to be a string but is 3"),
        ({"template": "<|image|> \ud800"}, "`template` has to be Unicode text"),
        ({"template": "<|image|>", "to_array": "depth"}, "`to_array` has to be callable, or None, but is 'depth'"),
    ],
)
def test_bad_tasks_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        Task(**arguments)
