# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Messages with images become the tokens that the original feeds, and text stays text."""

import base64
import io

import numpy as np
import PIL.Image
import pytest
import requests
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


def user(*content) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


def deep(depth: int = 100_000) -> list:
    nested: list = []
    for _ in range(depth):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("a\ud800b", r"`messages\[0\]\['content'\]` has to be Unicode text but holds a lone surrogate, '\\ud800'"),
        (user({"type": "text", "text": "\udfff"}), r"`messages\[0\]\['content'\]\[0\]` has to be Unicode text"),
        (user(TextPart("\udfff")), r"`messages\[0\]\['content'\]\[0\]` has to be Unicode text"),
        (user(TextPart(3)), r"`messages\[0\]\['content'\]\[0\]` has to be .* TextPart\(text=3\)"),
        (user(ImagePart(None, [[1]])), r"`messages\[0\]\['content'\]\[0\]` is an image that was cut off"),
        (user(ImagePart(None, torch.zeros(4, 6))), r"`messages\[0\]\['content'\]\[0\]` is an image that was cut off"),
        (user({"type": "text", "text": b"a"}), r"\['content'\]\[0\]` has to be .*b'a'"),
        (user({"type": ["text"], "text": "a"}), r"\['content'\]\[0\]` has to be .*\['text'\]"),
        (user({"type": np.array(["text", "image"])}), r"\['content'\]\[0\]` has to be"),
        (user({"type": "image_url", "image_url": {"url": "a"}}), r"\['content'\]\[0\]` has to be .*image_url"),
        (user({"text": "a"}), r"\['content'\]\[0\]` has to be"),
        (user({"type": "image", "image": [CODES]}), r"\['content'\]\[0\]` has to be .* with one image"),
        (user({"type": "image", "image": ["/etc/passwd"]}), r"\['content'\]\[0\]` has to be .* with one image"),
        (user({"type": "image", "image": CODES, "url": "a"}), r"\['content'\]\[0\]` has to be .* with one image"),
        (user({"type": "image", "image": torch.stack([CODES, CODES])}), r"\['content'\]\[0\]` has to be .* with one"),
        (user({"type": "image", "image": {"url": "a"}}), r"\['content'\]\[0\]` has to be a PIL image"),
        (user({"type": "image", "image": deep()}), r"\['content'\]\[0\]` has to be .* with one image"),
        (user({"type": "image", "base64": "AAAA"}), r"\['content'\]\[0\]` is .* cannot be opened"),
        (user({"type": "image", "base64": b"AAAA"}), r"\['content'\]\[0\]` has to be a PIL image"),
        (user(deep()), r"\['content'\]\[0\]` has to be"),
        (user(["text", {"type": "text", "text": "a"}]), r"\['content'\]\[0\]` has to be"),
        (deep(), r"`messages\[0\]` has to be"),
        ([{"role": "user", "content": deep()}], r"`messages\[0\]\['content'\]\[0\]` has to be"),
        ([{"role": deep(), "content": "a"}], r"`messages\[0\]\['role'\]` has to be 'user'"),
        ([{"role": np.array(["user", "user"]), "content": "a"}], r"`messages\[0\]\['role'\]` has to be 'user'"),
        ([{"role": "user\ud800", "content": "a"}], r"`messages\[0\]\['role'\]` has to be 'user'"),
    ],
)
def test_malformed_messages_are_refused_by_place(messages, message):
    with pytest.raises(ValueError, match=message) as error:
        read_messages(messages)
    assert len(str(error.value)) < 1200 and str(error.value).encode()


def as_base64(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_images_that_are_written_out_in_messages_are_read():
    pixels = IMAGES["rgb_96x96"]
    encoded = as_base64(pixels)
    data_url = f"data:image/png;base64,{encoded}"
    for part in (
        {"image": data_url},
        {"url": data_url},
        {"base64": data_url},
        {"base64": encoded},
        {"base64": "\n".join(encoded[i : i + 76] for i in range(0, len(encoded), 76))},
    ):
        (image,) = read_messages(user({"type": "image", **part})).images
        assert np.array_equal(image, pixels)


@pytest.mark.parametrize("key", ["image", "url", "path"])
def test_nothing_that_messages_name_is_read_unless_asked(key, tmp_path, monkeypatch):
    PIL.Image.fromarray(IMAGES["rgb_96x96"]).save(tmp_path / "image.png")
    response = requests.Response()
    response.status_code, response.raw = 200, io.BytesIO((tmp_path / "image.png").read_bytes())
    fetched = []
    monkeypatch.setattr(requests, "get", lambda url, **kwargs: fetched.append(url) or response)
    for source, kind, other in (
        (str(tmp_path / "image.png"), "files", "urls"),
        (tmp_path / "image.png", "files", "urls"),
        ("https://example.com/image.png", "urls", "files"),
    ):
        messages = user({"type": "image", key: source})
        for load_from in ((), (other,)):
            with pytest.raises(ValueError, match=rf"`messages\[0\].* is .* pass `load_from=\('{kind}',\)`"):
                read_messages(messages, load_from=load_from)
        assert not fetched
        assert np.array_equal(read_messages(messages, load_from=(kind,)).images[0], IMAGES["rgb_96x96"])
    assert len(fetched) == 1


def test_what_images_name_is_read_as_always(tmp_path):
    PIL.Image.fromarray(IMAGES["rgb_96x96"]).save(tmp_path / "image.png")
    turns = read_messages("What is it? <|image|>", str(tmp_path / "image.png"))
    assert np.array_equal(turns.images[0], IMAGES["rgb_96x96"])


@pytest.mark.parametrize("load_from", ["files", ("disk",), [3], None, 3])
def test_bad_sources_are_refused_by_name(load_from):
    with pytest.raises(ValueError, match=r"`load_from` has to be a tuple of some of \['files', 'urls'\] but is"):
        read_messages("Hello", load_from=load_from)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` has to be an integer >= 1"),
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


@pytest.mark.parametrize("generator", [0, "cpu", [torch.Generator()], torch.Generator])
def test_generators_of_conversations_are_checked(generator):
    with pytest.raises(ValueError, match="`generator` has to be a `torch.Generator`, or None, but is"):
        LuminaMGPTConversation(generator)
