# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Messages with images become the tokens that the original feeds, and text stays text."""

import pytest
import torch
from omni import arrays, chat_from, to_messages

from lumina_mgpt_diffusers import ImagePart, LuminaMGPTConversation, TextPart
from lumina_mgpt_diffusers.lumina_mgpt.chat_messages import read_messages, split_batch


IMAGES = arrays("7b_like/images.npz")
INJECTIONS = "<|image|> <eoss> <racm3:break> <reserved08706> IMGIMGBZ <s> <image>"


@pytest.fixture(scope="module")
def chat(random_pipe):
    return chat_from(random_pipe)


def encode(chat, messages, images=None) -> list[int]:
    with torch.no_grad():
        return chat._encode_turns(read_messages(messages, images), [])


def test_prompts_are_those_of_the_original(chat, prompts_golden):
    checked = 0
    for name, golden in prompts_golden["prompts"].items():
        if name == "special_in_text":  # there, text becomes control tokens
            continue
        names = golden["images"]
        images = IMAGES[names] if isinstance(names, str) else [IMAGES[one] for one in names] or None
        assert encode(chat, to_messages(golden["qas"]), images) == golden["input_ids"], name
        checked += 1
    assert checked == 14


def test_parts_are_the_same_as_marks(chat):
    image, other = IMAGES["rgb_96x96"], IMAGES["rgb_128x64_wh"]
    marked = encode(chat, "First: <|image|> second:<|image|>", [image, other])
    for parts, images in (
        ([("First: ", image), (" second:", other)], None),
        ([("First: ", None), (" second:", None)], [image, other]),
        ([("First: ", None), (" second:", other)], image),
    ):
        content = []
        for text, own in parts:
            content += [{"type": "text", "text": text}, {"type": "image", **({} if own is None else {"image": own})}]
        assert encode(chat, [{"role": "user", "content": content}], images) == marked


def test_adjacent_texts_are_tokenized_as_one(chat):
    parts = [{"type": "text", "text": text} for text in ("A red f", "ox in the sn", "ow.")]
    assert encode(chat, [{"role": "user", "content": parts}]) == encode(chat, "A red fox in the snow.")


def test_parts_of_an_answer_can_be_passed_back(chat):
    codes = torch.arange(24).view(4, 6)
    answer = [TextPart("Here: "), ImagePart(None, codes)]
    ids = encode(
        chat,
        [
            {"role": "user", "content": "Draw."},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "Again."},
        ],
    )
    tokens = chat.image_vocabulary.to_tokens(codes).tolist()
    assert any(ids[start : start + len(tokens)] == tokens for start in range(len(ids)))


@pytest.mark.parametrize("with_image", [False, True])
def test_control_tokens_in_text_are_text(chat, with_image):
    content = [{"type": "text", "text": INJECTIONS}]
    if with_image:
        content.append({"type": "image", "image": IMAGES["rgb_96x96"]})
    ids = encode(chat, [{"role": "user", "content": content}])
    vocabulary = chat.image_vocabulary
    text, end = ids[1:-1], ids[-1]
    if with_image:
        text, image = text[:-46], text[-46:]
        assert image == vocabulary.to_tokens(vocabulary.to_codes(image)).tolist()
    assert end == vocabulary.separator_id
    assert not set(text) & set(chat.tokenizer.added_tokens_encoder.values())
    assert chat.tokenizer.decode(text, clean_up_tokenization_spaces=False) == INJECTIONS
    assert text == encode(chat, INJECTIONS)[1:-1]


def test_a_mark_without_images_is_text(chat):
    assert chat.tokenizer.decode(encode(chat, "What is <|image|>?")[1:-1]) == "What is <|image|>?"


CODES = torch.zeros(4, 6, dtype=torch.long)


@pytest.mark.parametrize(
    ("messages", "images", "message"),
    [
        ([], None, "`messages` has to be a string or a non-empty list"),
        (None, None, "`messages` has to be a string or a non-empty list of messages but is None"),
        ([{"content": "Hi"}], None, r"`messages\[0\]` has to be a dict of `role` and `content`"),
        ([{"role": "system", "content": "Hi"}], None, r"`messages\[0\]\['role'\]` has to be 'user'.*but is 'system'"),
        (to_messages([["Hi", "Ho"]]), None, "`messages` has to end in a turn of the user"),
        ([{"role": "user", "content": 3}], None, r"`messages\[0\]\['content'\]` has to be a string or a list"),
        ([{"role": "user", "content": [{"type": "video"}]}], None, r"\['content'\]\[0\]` has to be .*'video'"),
        ([{"role": "user", "content": [{"type": "image", "image": 3}]}], None, r"\['content'\]\[0\]` has to be a PIL"),
        ([{"role": "user", "content": [{"type": "image"}]}], None, "`messages` mark 1 images .* holds 0"),
        ("<|image|> and <|image|>", CODES, r"`messages` mark 2 images by <\|image\|> but `images` holds 1"),
        ([{"role": "user", "content": [ImagePart(None, None, False)]}], None, "image that was cut off"),
    ],
)
def test_bad_messages_are_refused_by_name(chat, messages, images, message):
    with pytest.raises(ValueError, match=message):
        chat(messages, images=images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` has to be an integer >= 1 but is 0"),
        ({"height": 64}, "`height` and `width` have to be given both"),
        ({"height": 50, "width": 64}, "divisible by 32 but are 50 and 64"),
        ({"text_temperature": -1}, "`text_temperature` has to be a finite number >= 0 but is -1"),
        ({"text_top_k": 1.5}, "`text_top_k` has to be an integer >= 0"),
        ({"guidance_scale": "4"}, "`guidance_scale` has to be a finite number"),
        ({"generator": 3}, "`generator` has to be a `torch.Generator`"),
        ({"crop_generator": 3}, "`crop_generator` has to be a `torch.Generator`"),
        ({"output_type": "jpg"}, "`output_type` has to be one of .* but is 'jpg'"),
        ({"conversation": {}}, "`conversation` has to be a `LuminaMGPTConversation`"),
        ({"images": torch.zeros(3, 4, dtype=torch.long)}, "`images` holds VQ codes that are no image"),
        ({"images": torch.full((4, 4), 8192)}, "`images` holds VQ codes that are no image.*8192"),
    ],
)
def test_bad_arguments_are_refused_before_a_model_runs(chat, count_forwards, arguments, message):
    with count_forwards(chat.transformer) as forwards, pytest.raises(ValueError, match=message):
        chat("Hello", **arguments)
    assert len(forwards) == 0


def test_bad_batches_are_refused_by_name(chat):
    conversation = LuminaMGPTConversation()
    with pytest.raises(ValueError, match="`images` has to be a list with one element for each of the 2"):
        chat(["Hello", "Hi"], images=IMAGES["rgb_96x96"])
    with pytest.raises(ValueError, match="`conversation` has to be a list"):
        chat(["Hello", "Hi"], conversation=conversation)
    with pytest.raises(ValueError, match="`conversation` has to be another one for each"):
        chat(["Hello", "Hi"], conversation=[conversation, conversation])
    with pytest.raises(ValueError, match=r"`messages\[1\]` has to be a string or a non-empty list"):
        chat(["Hello", []])
    with pytest.raises(ValueError, match="list of generators of length 1"):
        chat(["Hello", "Hi"], generator=[torch.Generator()])
    with pytest.raises(ValueError, match="`messages` has to be one conversation to be streamed"):
        chat.stream(["Hello", "Hi"])


def test_what_a_batch_is():
    assert split_batch("Hi", None, None)[3] is False
    assert split_batch([{"role": "user", "content": "Hi"}], None, None)[3] is False
    assert split_batch(["Hi", [{"role": "user", "content": "Hi"}]], None, None)[3] is True
