# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Conversations: the recorded answers, the sampling law, batches, turns and streams."""

import itertools

import numpy as np
import pytest
import torch
from conftest import CHECKPOINT, TRAINED_CHECKPOINT
from omni import GREEDY, arrays, chat_from, random_runs, slow_answer, to_messages, trained_runs
from reference import load_stock

from lumina_mgpt_diffusers import ImagePart, LuminaMGPTConversation, TextPart
from lumina_mgpt_diffusers.lumina_mgpt import engine, slots
from lumina_mgpt_diffusers.lumina_mgpt.chat_messages import read_messages
from lumina_mgpt_diffusers.lumina_mgpt.fingerprint import NUM_TOKENS
from lumina_mgpt_diffusers.lumina_mgpt.request import Grammar
from lumina_mgpt_diffusers.lumina_mgpt.row import SampledImage, SampledText


RUNS = trained_runs()
RANDOM_RUNS = random_runs()
IMAGES = arrays("7b_like/images.npz")
TRAINED_IMAGES = arrays("7b_like_trained/generated_images.npz")

SAMPLED = {"top_k": 50, "text_top_k": 3, "guidance_scale": 3.0, "text_temperature": 1.5}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def context_of(chat, messages, images=None) -> list[int]:
    with torch.no_grad():
        return chat._encode_turns(read_messages(messages, images), [])


def images_of(parts) -> list[torch.Tensor]:
    return [part.codes for part in parts if isinstance(part, ImagePart)]


@pytest.fixture
def forced_start(random_pipe):
    """Makes the random model begin its answer with an image."""
    start = random_pipe.image_vocabulary.start_id
    state = {"is_first": True}

    def nudge(module, args, output):
        if state["is_first"] and output.text_logits is None:
            return output  # the prompt
        if state["is_first"]:
            output.text_logits[:, start] += 1e4
        state["is_first"] = False
        return output

    hook = random_pipe.transformer.register_forward_hook(nudge)
    yield
    hook.remove()


# What the original answers


@pytest.mark.parametrize("num_draft_tokens", [0, 7])
@pytest.mark.parametrize("name", RUNS)
def test_answers_are_those_of_the_original(trained_pipe, name, num_draft_tokens):
    run = RUNS[name]
    # The recordings encoded their input images at a base size of 64.
    chat = chat_from(trained_pipe, resolution=64 if run["n_in"] else 96, num_draft_tokens=num_draft_tokens)
    output = chat(
        to_messages(run["qas"]),
        images=run["images"] or None,
        guidance_scale=run["cfg"],
        max_new_tokens=run["max_gen_len"],
        **GREEDY,
    )
    assert output.token_ids == run["tokens_without_eos"]
    assert output.text == run["text"]
    assert output.finish_reason == "stop"
    assert [list(image.size) for image in output.images] == run["image_sizes"]
    for index, image in enumerate(output.images):
        expected = TRAINED_IMAGES[f"{name}/out{index}"].astype(int)
        assert np.abs(np.asarray(image) - expected).max() <= 1


@pytest.mark.parametrize("name", ["greedy_overrun_64x64_cfg3.0", "greedy_truncated_64x64_cfg3.0"])
@pytest.mark.parametrize("num_draft_tokens", [0, 16])
def test_images_that_end_early_or_late(random_pipe, forced_start, prompts_golden, name, num_draft_tokens):
    run = RANDOM_RUNS[name]
    chat = chat_from(random_pipe, num_draft_tokens=num_draft_tokens)
    prompt = prompts_golden["prompts"][run["prompt"]]
    output = chat(
        to_messages(prompt["qas"]),
        height=64,
        width=64,
        guidance_scale=run["cfg"],
        max_new_tokens=3 + run["max_gen_len"],
        **GREEDY,
    )
    assert output.finish_reason == "length"
    assert len(output.token_ids) == 3 + run["max_gen_len"]
    image = 21  # the tokens of an image of 64x64 after its size tags
    assert output.token_ids[3:][:image] == run["tokens"][:image]
    part = output.parts[0]
    finished_rows = min(run["max_gen_len"], image) // 5
    vocabulary = chat.image_vocabulary
    assert (part.codes[:finished_rows] >= 0).all() and (part.codes[finished_rows:] == -1).all()
    assert part.is_complete == (finished_rows == 4)
    assert part.image.size == (64, 64)
    # In the original, text may hold codes: the recording goes on with them.
    assert not set(output.token_ids[3 + image :]) & set(vocabulary.code_ids.tolist())


@pytest.mark.parametrize("name", ["free_text_greedy", "free_text_greedy_imgprompt"])
def test_text_of_a_random_model_holds_no_image_tokens(random_pipe, prompts_golden, name):
    run = RANDOM_RUNS[name]
    prompt = prompts_golden["prompts"][run["prompt"]]
    chat = chat_from(random_pipe)
    images = [IMAGES[one] for one in prompt["images"]] or None
    output = chat(to_messages(prompt["qas"]), images=images, max_new_tokens=run["max_gen_len"], **GREEDY)
    control = set(chat.tokenizer.added_tokens_encoder.values())
    assert set(run["tokens"]) & control, "the recording would show nothing"
    assert not set(output.token_ids) & control
    assert output.token_ids == slow_answer(
        load_stock(CHECKPOINT), chat, prompt["input_ids"], run["max_gen_len"], guidance_scale=run["cfg"]
    )


# The sampling law


@pytest.mark.parametrize(
    ("name", "seed", "num_draft_tokens"),
    [("interleaved_cfg1.0", 0, 0), ("interleaved_cfg1.0", 0, 12), ("t2i_96x64_cfg3.0", 1, 0), ("two_turns", 2, 5)],
)
def test_samples_equal_a_slow_reference(trained_pipe, name, seed, num_draft_tokens):
    chat = chat_from(trained_pipe, num_draft_tokens=num_draft_tokens)
    messages = to_messages(RUNS[name]["qas"])
    output = chat(messages, generator=seeded(seed), max_new_tokens=70, **SAMPLED)
    context = context_of(chat, messages)
    assert output.token_ids == slow_answer(
        load_stock(TRAINED_CHECKPOINT), chat, context, 70, generator=seeded(seed), **SAMPLED
    )


def test_samples_follow_their_generator(trained_pipe):
    chat = chat_from(trained_pipe)
    question = to_messages(RUNS["interleaved_cfg1.0"]["qas"])
    answers = [chat(question, generator=seeded(seed), max_new_tokens=40, **SAMPLED).token_ids for seed in (0, 0, 1)]
    assert answers[0] == answers[1] != answers[2]
    before = torch.get_rng_state()
    chat(question, max_new_tokens=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_scheduler_sets_the_sampler(trained_pipe):
    question = to_messages(RUNS["interleaved_cfg1.0"]["qas"])
    arguments = {"max_new_tokens": 40, "generator": seeded(4)}
    expected = chat_from(trained_pipe)(question, **arguments, **SAMPLED).token_ids
    arguments["generator"].manual_seed(4)
    assert chat_from(trained_pipe, **SAMPLED)(question, **arguments).token_ids == expected


def test_forced_sizes(trained_pipe):
    chat = chat_from(trained_pipe)
    output = chat(to_messages(RUNS["interleaved_cfg1.0"]["qas"]), height=32, width=96, max_new_tokens=100, **GREEDY)
    assert output.images and {image.size for image in output.images} == {(96, 32)}


def test_sizes_are_valid_grids(trained_pipe):
    chat = chat_from(trained_pipe, temperature=100.0, top_k=0)
    question = to_messages(RUNS["t2i_64x64_cfg1.0"]["qas"])
    outputs = chat([question] * 8, generator=[seeded(seed) for seed in range(8)], max_new_tokens=6, text_top_k=1)
    shapes = {tuple(codes.shape) for output in outputs for codes in images_of(output.parts)}
    assert len(shapes) > 2
    for rows, columns in shapes:
        assert rows * columns <= 36 and max(rows, columns) <= 4 * min(rows, columns)


def test_an_aspect_ratio_of_four_is_the_greatest(trained_pipe):
    vocabulary = trained_pipe.image_vocabulary
    grammar = Grammar(vocabulary, 96)  # of at most 9 cells
    tag = vocabulary.size_tag_ids
    assert grammar.width_ids(tag[0]).tolist() == list(tag[:4])
    assert grammar.width_ids(tag[3]).tolist() == list(tag[:2])
    assert grammar.height_ids().tolist() == list(tag[:4])
    two_cells = 2 * 32 * 32
    assert grammar.width_ids(tag[0], two_cells).tolist() == grammar.height_ids(two_cells).tolist() == list(tag[:2])
    assert grammar.size(tag[3], tag[0]) == (128, 32)


# Batches


def mixed_conversations() -> tuple[list, list]:
    """Conversations of one to three turns with no, one and three images."""
    image, other, third = TRAINED_IMAGES["i2i_cfg1.0/in0"], IMAGES["rgb_64x128_wh"], IMAGES["rgb_128x64_wh"]
    messages = [
        to_messages(RUNS["interleaved_cfg1.0"]["qas"]),
        to_messages([["Hello, who are you?", "I am a tiny model."], ["Depth estimation. <|image|>", None]]),
        to_messages(
            [
                ["Describe the image in detail. <|image|>", "It is a fox."],
                ["And <|image|>?", "<|image|> so."],
                ["Tell a story with two pictures.", None],
            ]
        ),
        to_messages(RUNS["t2i_96x64_cfg3.0"]["qas"]),
        to_messages(RUNS["first_turn"]["qas"]),
    ]
    return messages, [None, image, [image, other, third], None, None]


@pytest.mark.parametrize("num_draft_tokens", [0, 9])
@pytest.mark.parametrize("sampler", [{**GREEDY, "guidance_scale": 3.0}, SAMPLED], ids=["greedy", "sampled"])
def test_a_mixed_batch_equals_each_alone(trained_pipe, num_draft_tokens, sampler):
    chat = chat_from(trained_pipe, num_draft_tokens=num_draft_tokens)
    messages, images = mixed_conversations()
    arguments = {"max_new_tokens": 60, "output_type": "latent", **sampler}
    together = chat(messages, images=images, generator=[seeded(row) for row in range(len(messages))], **arguments)
    for row, output in enumerate(together):
        alone = chat(messages[row], images=images[row], generator=seeded(row), **arguments)
        assert alone.token_ids == output.token_ids
        assert alone.text == output.text and alone.finish_reason == output.finish_reason
        assert all(map(torch.equal, images_of(alone.parts), images_of(output.parts)))
    assert any(output.images for output in together) and any(not output.images for output in together)


def test_questions_about_images_in_a_batch(trained_pipe):
    chat = chat_from(trained_pipe, resolution=64)
    image, other = RUNS["understand"]["images"][0], RUNS["i2i_cfg1.0"]["images"][0][::-1]
    question = "Describe the image in detail. <|image|>"
    questions, images = [question, "What is it? <|image|>", question], [image, image, other]
    outputs = chat(questions, images=images, max_new_tokens=12, **GREEDY)
    assert outputs[0].text == RUNS["understand"]["text"]
    assert [output.text for output in outputs] == [
        chat(question, images=image, max_new_tokens=12, **GREEDY).text for question, image in zip(questions, images)
    ]


def test_one_generator_for_a_batch_seeds_one_for_each(trained_pipe):
    chat = chat_from(trained_pipe)
    question = to_messages(RUNS["interleaved_cfg1.0"]["qas"])
    first, second = (
        [output.token_ids for output in chat([question] * 2, generator=seeded(5), max_new_tokens=40, **SAMPLED)]
        for _ in range(2)
    )
    assert first == second and first[0] != first[1]


def test_every_forward_takes_all_rows_that_need_it(trained_pipe):
    chat = chat_from(trained_pipe)
    rows = []
    hook = trained_pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    messages = [to_messages(RUNS[name]["qas"]) for name in ("t2i_64x64_cfg1.0", "first_turn")]
    outputs = chat(messages, guidance_scale=3.0, max_new_tokens=50, **GREEDY)
    hook.remove()
    # Both in text; the unconditional branch of the image, which then is beside the text and alone; its last tokens.
    assert [row for row, _ in itertools.groupby(rows)] == [2, 1, 3, 2, 1]
    assert len(outputs[0].images) == 1


# Turns


def turns_of(count: int) -> list[tuple[str, np.ndarray | None]]:
    image = TRAINED_IMAGES["i2i_cfg1.0/in0"]
    turns = [
        ("Hello, who are you?", None),
        ("Depth estimation. <|image|>", image),
        ("Tell a story with two pictures.", None),
        ("Describe the image in detail. <|image|>", image[::-1]),
    ]
    return [turns[index % len(turns)] for index in range(count)]


@pytest.mark.parametrize("num_draft_tokens", [0, 6])
@pytest.mark.parametrize("sampler", [{**GREEDY, "guidance_scale": 3.0}, SAMPLED], ids=["greedy", "sampled"])
def test_turns_over_a_cache_equal_turns_from_scratch(trained_pipe, num_draft_tokens, sampler):
    chat = chat_from(trained_pipe, num_draft_tokens=num_draft_tokens)
    cached, fresh = LuminaMGPTConversation(seeded(1)), LuminaMGPTConversation(seeded(1))
    for text, image in turns_of(4):
        outputs = [
            chat(text, images=image, conversation=conversation, max_new_tokens=45, output_type="latent", **sampler)
            for conversation in (cached, fresh)
        ]
        assert outputs[0].token_ids == outputs[1].token_ids
        assert cached.token_ids == fresh.token_ids
        assert cached.num_cached_tokens > 0
        fresh.drop_cache()
        assert fresh.num_cached_tokens == 0 and fresh.cache_size == 0


def test_a_turn_costs_its_own_tokens(trained_pipe, count_forwards):
    chat = chat_from(trained_pipe)
    conversation = LuminaMGPTConversation()
    chat(
        "Tell a story with two pictures.", conversation=conversation, guidance_scale=1.0, max_new_tokens=200, **GREEDY
    )
    length = len(conversation.token_ids)
    assert length > 80
    # Of the turns so far only the separator that ended the answer has not been fed.
    assert conversation.num_cached_tokens == length - 1
    with count_forwards(trained_pipe.transformer) as forwards:
        output = chat(
            "Hello, who are you?", conversation=conversation, guidance_scale=1.0, max_new_tokens=20, **GREEDY
        )
    own = len(context_of(chat, "Hello, who are you?")) - 1
    # A few that show the weights, the turn's own tokens but the last, padded, then each token by itself.
    assert forwards.windows[:2] == [NUM_TOKENS, slots.round_up(own, slots.LENGTH_STEP)]
    sampled = [id for id in output.token_ids if id != chat.image_vocabulary.row_end_id]
    assert len(forwards) == 2 + len(sampled) + (output.finish_reason == "stop")
    assert set(forwards.windows[2:]) <= {1, 2}
    assert conversation.token_ids[length:][own:][: len(output.token_ids)] == output.token_ids


@pytest.mark.parametrize(("length_step", "num_draft_tokens"), [(None, 0), (1, 31)])
def test_conversations_meet_in_batches_and_part(trained_pipe, monkeypatch, length_step, num_draft_tokens):
    chat = chat_from(trained_pipe)
    turns = turns_of(3)
    arguments = {"max_new_tokens": 30, **SAMPLED}
    alone = [LuminaMGPTConversation(seeded(row)) for row in range(3)]
    expected = [
        [chat(text, images=image, conversation=conversation, **arguments).token_ids for text, image in turns]
        for conversation in alone
    ]
    together = [LuminaMGPTConversation(seeded(row)) for row in range(3)]
    chat = chat_from(trained_pipe, num_draft_tokens=num_draft_tokens)
    if length_step is not None:  # then rows have just the slots that they need
        monkeypatch.setattr(slots, "LENGTH_STEP", length_step)
        monkeypatch.setattr(engine, "LENGTH_STEP", length_step)
    batches = [[0, 1, 2], [2, 0], [1], [1, 2, 0]]
    answers: list[list] = [[], [], []]
    for rows in batches:
        own = [turns[len(answers[row])] for row in rows]
        outputs = chat(
            [text for text, _ in own],
            images=[image for _, image in own],
            conversation=[together[row] for row in rows],
            **arguments,
        )
        for row, output in zip(rows, outputs):
            answers[row].append(output.token_ids)
    assert answers == expected


def test_edits_of_edits(trained_pipe):
    chat = chat_from(trained_pipe, resolution=64)
    conversation = LuminaMGPTConversation()
    arguments = {"conversation": conversation, "guidance_scale": 3.0, "max_new_tokens": 60, **GREEDY}
    first = chat("Depth estimation. <|image|>", images=RUNS["i2i_cfg1.0"]["images"], **arguments)
    second = chat("Generate an image of 64x64", **arguments)
    assert len(first.images) == len(second.images) == 1
    # The second turn sees the very codes of the first answer.
    tokens = chat.image_vocabulary.to_tokens(first.parts[-1].codes).tolist()
    held = conversation.token_ids
    assert any(held[start : start + len(tokens)] == tokens for start in range(len(held)))
    # From scratch, with the answer passed back as it came.
    messages = [
        {"role": "user", "content": "Depth estimation. <|image|>"},
        {"role": "assistant", "content": first.parts},
        {"role": "user", "content": "Generate an image of 64x64"},
    ]
    content = [
        {"type": "text", "text": "Depth estimation. "},
        {"type": "image", "image": RUNS["i2i_cfg1.0"]["images"][0]},
    ]
    messages[0]["content"] = content
    again = chat(messages, guidance_scale=3.0, max_new_tokens=60, **GREEDY)
    assert again.token_ids == second.token_ids


def test_a_cache_is_kept_only_for_a_conversation_of_the_caller(trained_pipe):
    chat = chat_from(trained_pipe)
    output = chat("Hello, who are you?", max_new_tokens=20, **GREEDY)
    assert output.conversation.num_cached_tokens == 0
    follow_up = chat("Generate an image of 64x64", conversation=output.conversation, guidance_scale=3.0, **GREEDY)
    assert follow_up.token_ids == RUNS["two_turns"]["tokens_without_eos"]
    assert follow_up.conversation is output.conversation
    assert output.conversation.num_cached_tokens > 0


def test_a_failed_call_leaves_the_conversation_as_it_was(trained_pipe):
    chat = chat_from(trained_pipe)
    conversation = LuminaMGPTConversation()
    chat("Hello, who are you?", conversation=conversation, max_new_tokens=20, **GREEDY)
    before = list(conversation.token_ids)

    def fail(module, args):
        raise RuntimeError("out of memory")

    hook = trained_pipe.transformer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        chat("Generate an image of 64x64", conversation=conversation, **GREEDY)
    hook.remove()
    assert conversation.token_ids == before
    output = chat("Generate an image of 64x64", conversation=conversation, guidance_scale=3.0, **GREEDY)
    assert output.token_ids == RUNS["two_turns"]["tokens_without_eos"]


# Streams and outputs


@pytest.mark.parametrize("num_draft_tokens", [0, 7])
def test_a_stream_yields_the_answer_in_pieces(trained_pipe, num_draft_tokens):
    chat = chat_from(trained_pipe, num_draft_tokens=num_draft_tokens)
    run = RUNS["interleaved_cfg1.0"]
    conversation = LuminaMGPTConversation()
    arguments = {"guidance_scale": 1.0, "max_new_tokens": 200, **GREEDY}
    parts = list(chat.stream(run["qas"][0][0], conversation=conversation, **arguments))
    whole = chat(run["qas"][0][0], **arguments)
    assert sum(isinstance(part, TextPart) for part in parts) > 4
    joined = "".join(part.text if isinstance(part, TextPart) else "<|image|>" for part in parts)
    assert joined == whole.text == run["text"]
    pictures = [part for part in parts if isinstance(part, ImagePart)]
    for part, image in zip(pictures, whole.images, strict=True):
        assert np.array_equal(part.image, image)
    assert conversation.token_ids == whole.conversation.token_ids


def test_a_stream_can_be_closed_early(trained_pipe):
    chat = chat_from(trained_pipe)
    conversation = LuminaMGPTConversation()
    stream = chat.stream("Tell a story with two pictures.", conversation=conversation, guidance_scale=1.0, **GREEDY)
    seen = [next(stream).text for _ in range(3)]
    stream.close()
    vocabulary = chat.image_vocabulary
    tokens = RUNS["interleaved_cfg1.0"]["tokens_without_eos"][:3]
    assert conversation.token_ids[-4:] == [*tokens, vocabulary.separator_id]
    assert "".join(seen) == chat.tokenizer.decode(tokens)
    assert conversation.finish_reason == "length"
    output = chat("Hello, who are you?", conversation=conversation, max_new_tokens=5, **GREEDY)
    assert len(output.token_ids) == 5


def test_arguments_of_a_stream_are_checked_at_once(trained_pipe):
    with pytest.raises(ValueError, match="`max_new_tokens`"):
        chat_from(trained_pipe).stream("Hello", max_new_tokens=0)


def test_characters_come_out_whole(trained_pipe):
    chat = chat_from(trained_pipe)
    tokenizer = trained_pipe.tokenizer
    text = "Ein Füchslein 🦊 — 雪の中"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text)

    def said(pieces) -> list:
        return [getattr(part, "text", None) for part in chat._to_parts(pieces, "latent")]

    pieces = said(SampledText([id]) for id in ids)
    assert "".join(pieces) == text and not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    # An image in the middle of a character ends it.
    fox = tokenizer("🦊", add_special_tokens=False)["input_ids"]
    cut = [SampledText(fox[:-1]), SampledImage(None), SampledText(ids[:3])]
    assert said(cut) == ["\N{REPLACEMENT CHARACTER}", None, tokenizer.decode(ids[:3])]


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types(trained_pipe, output_type):
    output = chat_from(trained_pipe)(
        RUNS["t2i_96x64_cfg3.0"]["qas"][0][0], guidance_scale=3.0, output_type=output_type, **GREEDY
    )
    (image,) = output.images
    shape = image.size if output_type == "pil" else tuple(image.shape)
    assert shape == {"pil": (96, 64), "np": (64, 96, 3), "pt": (3, 64, 96), "latent": (4, 6)}[output_type]
    assert torch.equal(chat_from(trained_pipe).image_vocabulary.to_codes(output.token_ids), output.parts[0].codes)


def test_tuples_instead_of_outputs(trained_pipe):
    chat = chat_from(trained_pipe)
    parts, reason, token_ids, conversation = chat("Hello, who are you?", return_dict=False, **GREEDY)
    assert parts == [TextPart("I am a tiny model.")] and reason == "stop"
    assert token_ids == RUNS["first_turn"]["tokens_without_eos"]
    assert isinstance(conversation, LuminaMGPTConversation)
