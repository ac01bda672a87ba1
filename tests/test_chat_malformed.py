# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whatever a model says, the answer is well formed, and what it said until it was cut off is kept."""

import copy
import logging

import pytest
import torch
from omni import GREEDY, Playback, chat_from

from lumina_mgpt_diffusers import ImagePart, LuminaMGPTConversation, TextPart, contact_sheet, multiview_prompt


@pytest.fixture
def say(random_pipe, text_ids):
    """The answer of a model that wants to say the given tokens, and `default` from then on."""
    vocabulary = random_pipe.image_vocabulary

    def answer(script, default=None, chat=None, **arguments):
        default = vocabulary.separator_id if default is None else default
        transformer = Playback(random_pipe.transformer.config, script, default, text_ids[-1])
        pipe = chat_from(random_pipe, transformer=transformer, **(chat or {}))
        arguments = {"max_new_tokens": 100, "guidance_scale": 1.0, **GREEDY, **arguments}
        return pipe("Hello", **arguments)

    return answer


@pytest.fixture
def vocabulary(random_pipe):
    return random_pipe.image_vocabulary


@pytest.fixture
def text_ids(random_pipe):
    return random_pipe.tokenizer("I see", add_special_tokens=False)["input_ids"]


def kinds(output) -> list[str]:
    return ["text" if isinstance(part, TextPart) else "image" for part in output.parts]


def test_what_is_well_formed_is_played_back(say, vocabulary, text_ids):
    codes = torch.arange(16).view(4, 4) + 7
    image = vocabulary.to_tokens(codes).tolist()
    output = say([*text_ids, *image, *text_ids, *image])
    assert output.token_ids == [*text_ids, *image, *text_ids, *image]
    assert kinds(output) == ["text", "image", "text", "image"]
    assert output.text == "I see<|image|>I see<|image|>" and output.finish_reason == "stop"
    assert torch.equal(output.parts[1].codes, codes) and output.parts[1].is_complete
    assert output.conversation.token_ids[-1] == vocabulary.separator_id


@pytest.mark.parametrize("num_draft_tokens", [0, 10])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_an_image_that_is_cut_off_keeps_what_it_has(say, vocabulary, text_ids, guidance_scale, num_draft_tokens):
    codes = torch.arange(8).view(2, 4) + 7
    image = vocabulary.to_tokens(codes).tolist()
    script = [*text_ids, *image]
    for budget in range(1, len(script) + 3):
        output = say(
            script,
            chat={"num_draft_tokens": num_draft_tokens},
            max_new_tokens=budget,
            guidance_scale=guidance_scale,
            output_type="latent",
        )
        assert output.token_ids == script[:budget]
        assert output.finish_reason == ("length" if budget <= len(script) else "stop")
        said = script[len(text_ids) : budget]
        places = said[3:]
        num_codes = sum(id not in (vocabulary.row_end_id, vocabulary.end_id) for id in places)
        if not said:
            assert kinds(output) == ["text"]
            continue
        assert kinds(output) == ["text", "image"]
        part = output.parts[1]
        assert part.is_complete == (num_codes == 8)
        if len(said) < 3:
            assert part.codes is None and part.image is None
        else:
            expected = torch.where(torch.arange(8).view(2, 4) < num_codes, codes, -1)
            assert torch.equal(part.codes, expected)
            assert (part.image is None) == (num_codes == 0)
        assert len(output.images) == (num_codes > 0)


@pytest.mark.parametrize("num_draft_tokens", [0, 10])
def test_a_conversation_goes_on_after_every_cut(say, vocabulary, num_draft_tokens):
    # Alike, so that drafts are accepted beyond the cut.
    codes = torch.full((2, 4), 7)
    image = vocabulary.to_tokens(codes).tolist()
    for budget in range(1, len(image) + 1):
        conversation = LuminaMGPTConversation()
        say(
            image,
            chat={"num_draft_tokens": num_draft_tokens},
            max_new_tokens=budget,
            conversation=conversation,
            output_type="latent",
        )
        assert conversation.token_ids[-1] == vocabulary.separator_id
        question = conversation.token_ids.index(vocabulary.separator_id) + 1
        held = conversation.token_ids[question:-1]
        assert conversation.num_cached_tokens <= question + min(budget, len(held))
        if budget <= 3:
            assert held == []  # nothing of the image had been said
        else:
            kept = vocabulary.to_codes(held)  # whole: what was missing repeats the codes above
            num_codes = min(sum(id != vocabulary.row_end_id for id in image[3:budget]), 8)
            assert kept.flatten()[:num_codes].tolist() == codes.flatten()[:num_codes].tolist()


def test_a_real_model_goes_on_from_a_cut_as_from_scratch(trained_pipe):
    chat = chat_from(trained_pipe, num_draft_tokens=5)
    for budget in (1, 2, 3, 4, 9, 12, 22, 23, 24, 25):
        conversations = [LuminaMGPTConversation(), LuminaMGPTConversation()]
        answers = []
        for conversation, keep in zip(conversations, (True, False)):
            chat(
                "Generate an image of 64x64 according to the following prompt:\nA red fox in the snow.",
                conversation=conversation,
                guidance_scale=3.0,
                max_new_tokens=budget,
                output_type="latent",
                **GREEDY,
            )
            if not keep:
                conversation.drop_cache()
            answer = chat("And now?", conversation=conversation, max_new_tokens=9, output_type="latent", **GREEDY)
            answers.append(answer.token_ids)
        assert answers[0] == answers[1], budget
        assert conversations[0].token_ids == conversations[1].token_ids


def test_start_at_the_very_end(say, vocabulary, text_ids):
    output = say([*text_ids, vocabulary.start_id], max_new_tokens=len(text_ids) + 1)
    assert kinds(output) == ["text", "image"] and output.finish_reason == "length"
    assert output.parts[1] == ImagePart(None, None, False)
    assert output.images == [] and output.text == "I see<|image|>"
    forced = say([vocabulary.start_id], max_new_tokens=1, height=64, width=96)
    assert forced.token_ids == [vocabulary.start_id] and (forced.parts[0].codes == -1).all()
    assert forced.parts[0].codes.shape == (4, 6)


def test_nothing_but_starts(say, vocabulary):
    # It wants a start everywhere: in place of size tags and codes the likeliest that may stand there is taken.
    output = say([], default=vocabulary.start_id, max_new_tokens=50)
    assert output.finish_reason == "length" and len(output.token_ids) == 50
    assert set(kinds(output)) == {"image"}
    assert all(part.is_complete for part in output.parts[:-1])


@pytest.mark.parametrize("tag", ["separator_id", "end_id", "row_end_id", "start_id"])
def test_nonsense_for_size_tags(say, vocabulary, tag):
    nonsense = getattr(vocabulary, tag)
    output = say([vocabulary.start_id, nonsense, nonsense], default=nonsense, max_new_tokens=60)
    rows, columns = output.parts[0].codes.shape
    assert rows * columns <= 36 and max(rows, columns) <= 4 * min(rows, columns)


def test_size_tags_of_an_image_too_large_or_too_narrow(say, vocabulary):
    tags = vocabulary.size_tag_ids
    for height, width in ((9, 9), (3, 4), (1, 5), (20, 1)):
        output = say([vocabulary.start_id, tags[height - 1], tags[width - 1]], max_new_tokens=60)
        rows, columns = output.parts[0].codes.shape
        assert (rows, columns) != (2 * height, 2 * width)
        assert rows * columns <= 36 and max(rows, columns) <= 4 * min(rows, columns)


def test_a_start_a_separator_or_text_inside_an_image(say, vocabulary, text_ids):
    tags = vocabulary.size_tag_ids
    for intruder in (vocabulary.start_id, vocabulary.separator_id, vocabulary.end_id, text_ids[0], tags[3]):
        image = vocabulary.to_tokens(torch.full((4, 4), 9)).tolist()
        image[8:12] = [intruder] * 4
        output = say(image)
        assert kinds(output) == ["image"] and output.finish_reason == "stop"
        assert output.parts[0].is_complete and output.parts[0].codes.shape == (4, 4)


def test_row_ends_codes_and_tags_in_text(say, vocabulary, text_ids, random_pipe):
    control = set(random_pipe.tokenizer.added_tokens_encoder.values())
    code, tag = int(vocabulary.code_ids[5]), vocabulary.size_tag_ids[2]
    strays = [vocabulary.row_end_id, vocabulary.end_id, code, tag, *random_pipe.tokenizer.all_special_ids]
    strays.remove(vocabulary.separator_id)
    assert set(strays) <= control
    output = say([text_ids[0], *strays, text_ids[1]], max_new_tokens=40)
    # The likeliest token of text stands where they would.
    assert output.token_ids == [text_ids[0], *[text_ids[-1]] * len(strays), text_ids[1]]


def test_an_empty_answer(say):
    output = say([])
    assert output.parts == [] and output.text == "" and output.images == [] and output.finish_reason == "stop"


def test_an_endless_answer_ends(say, text_ids):
    output = say([], default=text_ids[0], max_new_tokens=30)
    assert len(output.token_ids) == 30 and output.finish_reason == "length"


def test_multiview(say, random_pipe, vocabulary):
    prompt = multiview_prompt("a teapot")
    assert prompt == "Generate 16 object views of 384x384 according to the following prompt: a teapot"
    views = [vocabulary.to_tokens(torch.full((2, 2), view)).tolist() for view in range(16)]
    output = say([id for view in views for id in view], height=32, width=32, max_new_tokens=400)
    assert output.finish_reason == "stop"
    assert [int(part.codes[0, 0]) for part in output.parts] == list(range(16))
    sheet = contact_sheet(output.images)
    assert sheet.size == (128, 128)
    for view, image in enumerate(output.images):
        left, top = view % 4 * 32, view // 4 * 32
        assert sheet.crop((left, top, left + 32, top + 32)).tobytes() == image.tobytes()


def test_beyond_the_trained_length_there_is_one_warning(say, random_pipe, text_ids, monkeypatch, caplog):
    config = copy.deepcopy(random_pipe.transformer.config)
    config.max_position_embeddings = 37
    monkeypatch.setattr(random_pipe.transformer, "config", config)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            say([], default=text_ids[0], max_new_tokens=50)
    warnings = [record.message for record in caplog.records if "max_position_embeddings" in record.message]
    assert len(warnings) == 1 and "37 tokens" in warnings[0]
