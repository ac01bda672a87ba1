# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A call's state is the call's: streams interleaved, threads, calls in callbacks, errors anywhere."""

import copy
import threading

import pytest
import torch
from conftest import copy_of
from omni import chat_from, img2img_from
from peft import LoraConfig, get_peft_model

from lumina_mgpt_diffusers import LuminaMGPTConversation
from lumina_mgpt_diffusers.lumina_mgpt import engine, slots
from lumina_mgpt_diffusers.lumina_mgpt.evaluation import evaluating
from lumina_mgpt_diffusers.lumina_mgpt.noise import draw_key


CALLS = [
    {"prompt": "a cat", "height": 64, "width": 96, "guidance_scale": 1.0, "top_k": 50},
    {"prompt": "A red fox in the snow.", "height": 96, "width": 96, "guidance_scale": 4.0},
    {"prompt": "", "height": 96, "width": 32, "guidance_scale": 7.0, "temperature": 0.7, "num_draft_tokens": 7},
    {"prompt": "sunset", "height": 32, "width": 128, "guidance_scale": 3.0, "num_draft_tokens": 0},
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def call(pipe, index: int, **kwargs) -> torch.Tensor:
    return pipe(**CALLS[index], generator=seeded(index), output_type="latent", **kwargs).images


@pytest.fixture(scope="module")
def alone(trained_pipe) -> list[torch.Tensor]:
    return [call(trained_pipe, index) for index in range(len(CALLS))]


def test_streams_interleaved(trained_pipe, alone):
    streams = [
        trained_pipe.stream(**CALLS[index], generator=seeded(index), output_type="latent") for index in range(4)
    ]
    last = [None] * 4
    running = set(range(4))
    while running:
        for index in sorted(running):
            step = next(streams[index], None)
            if step is None:
                running.remove(index)
            else:
                last[index] = step.codes
    for codes, expected in zip(last, alone):
        assert torch.equal(codes, expected)


def test_threads(trained_pipe, alone):
    found = [[] for _ in CALLS]

    def work(index: int) -> None:
        for _ in range(2):
            found[index].append(call(trained_pipe, index))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(CALLS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own, expected in zip(found, alone):
        assert len(own) == 2 and all(torch.equal(codes, expected) for codes in own)


def test_prompts_that_are_fed_at_once_leave_the_stance_of_the_compiler(trained_pipe, monkeypatch):
    """They run uncompiled, the first that begins ends first."""
    began, ended = [threading.Event(), threading.Event()], threading.Event()
    feed, stances = slots.eager_call, []

    def feed_together(module):
        index = int(threading.current_thread().name)
        stances.append(torch._dynamo.eval_frame._stance)
        began[index].set()
        assert ended.wait(20) if index else began[1].wait(20)
        return feed(module)

    def work() -> None:
        if threading.current_thread().name == "1":
            assert began[0].wait(20)
        call(trained_pipe, 3, top_k=1)
        ended.set()

    monkeypatch.setattr(slots, "eager_call", feed_together)
    before = torch._dynamo.eval_frame._stance
    threads = [threading.Thread(target=work, name=str(index)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert began[1].is_set() and stances == [before] * len(stances)
    assert torch._dynamo.eval_frame._stance == before


def test_a_call_in_a_callback(trained_pipe, alone):
    inner = []

    def callback(pipe, step, timestep, kwargs):
        assert (pipe.num_timesteps, pipe.guidance_scale) == (36, 4.0)
        if step == 10:
            inner.append(call(trained_pipe, 3))
            pipe._guidance_scale = pipe.guidance_scale
        assert (pipe.num_timesteps, pipe.guidance_scale) == (36, 4.0)
        return kwargs

    assert torch.equal(call(trained_pipe, 1, callback_on_step_end=callback, num_draft_tokens=0), alone[1])
    assert torch.equal(inner[0], alone[3])


def test_a_call_while_a_stream_is_open_neither_sees_nor_stops_it(trained_pipe, alone):
    stream = trained_pipe.stream(**CALLS[1], generator=seeded(1), output_type="latent")
    next(stream)

    def stop(pipe, step, timestep, kwargs):
        pipe._interrupt = True
        pipe._guidance_scale = 1.0
        return {}

    assert (call(trained_pipe, 0, callback_on_step_end=stop) < 0).any()
    *_, last = stream
    assert torch.equal(last.codes, alone[1])
    assert torch.equal(call(trained_pipe, 0), alone[0])


def test_an_abandoned_stream_and_errors_leave_the_pipeline_as_it_was(trained_pipe, alone):
    before = dict(trained_pipe.scheduler.config), trained_pipe.transformer.training
    stream = trained_pipe.stream(**CALLS[1], generator=seeded(1))
    next(stream)
    del stream
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(*args, error=error):
            raise error

        hook = trained_pipe.transformer.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(error):
            call(trained_pipe, 1)
        hook.remove()
        with pytest.raises(error):
            call(trained_pipe, 1, callback_on_step_end=fail)
    assert (dict(trained_pipe.scheduler.config), trained_pipe.transformer.training) == before
    assert torch.is_grad_enabled()
    assert torch.equal(call(trained_pipe, 1), alone[1])


def test_a_refused_call_draws_nothing(trained_pipe):
    generator = seeded(0)
    before = generator.get_state()
    for wrong in ({"height": 50}, {"top_k": -1}, {"output_type": "jpg"}, {"callback_on_step_end": 3}):
        with pytest.raises(ValueError):
            trained_pipe("a cat", generator=generator, **wrong)
    conversation = LuminaMGPTConversation(generator)
    with pytest.raises(ValueError):
        chat_from(trained_pipe)("Hello", conversation=conversation, max_new_tokens=0)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"temperature": 1.0}])
def test_an_image_takes_as_much_of_its_generator_whatever_its_settings(trained_pipe, settings):
    generator = seeded(0)
    trained_pipe("a cat", height=32, width=32, generator=generator, **settings)
    states = [generator.get_state()]
    generator = seeded(0)
    img2img_from(trained_pipe)("Redder.", image=torch.zeros(2, 4, dtype=torch.long), generator=generator, **settings)
    assert torch.equal(generator.get_state(), states[0])


# Conversations


def test_one_conversation_is_answered_one_turn_at_a_time(trained_pipe):
    chat = chat_from(trained_pipe)
    conversation = LuminaMGPTConversation(seeded(0))
    stream = chat.stream("Tell a story with two pictures.", conversation=conversation, top_k=1, text_top_k=1)
    other = chat.stream("Hello", conversation=conversation)
    next(stream)
    state = conversation.generator.get_state()
    with pytest.raises(ValueError, match="`conversation` is in the middle of a turn"):
        chat("Hello", conversation=conversation)
    with pytest.raises(ValueError, match="in the middle of a turn"):
        next(other)
    stream.close()
    assert torch.equal(conversation.generator.get_state(), state)
    # It was made for the conversation as it was.
    late = chat.stream("Hello", conversation=conversation)
    chat("Hello", conversation=conversation, max_new_tokens=2)
    with pytest.raises(ValueError, match="`conversation` has gone on since this turn was made"):
        next(late)
    assert chat("Hello", conversation=conversation, max_new_tokens=2).finish_reason in ("stop", "length")


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_turn_that_fails_takes_its_key_back_unless_others_were_drawn_since(trained_pipe, is_shared):
    chat = chat_from(trained_pipe)
    generator = seeded(0)
    one, other = LuminaMGPTConversation(generator), LuminaMGPTConversation(generator)
    stream = chat.stream("Tell a story with two pictures.", conversation=one, top_k=1, text_top_k=1)
    next(stream)
    if is_shared:
        chat("Hello", conversation=other, max_new_tokens=1)
    with pytest.raises(RuntimeError):
        stream.throw(RuntimeError)
    expected = seeded(0)
    for _ in range(2 * is_shared):
        draw_key(expected)
    assert torch.equal(generator.get_state(), expected.get_state())
    assert one.token_ids == []
    one.check_free()


def test_a_cache_of_another_dtype_is_left(trained_pipe):
    pipe = copy_of(trained_pipe)
    chat = chat_from(pipe)
    conversation = LuminaMGPTConversation(seeded(0))
    chat("Hello, who are you?", conversation=conversation, max_new_tokens=5)
    assert conversation.num_cached_tokens > 0
    pipe.transformer.to(torch.bfloat16)
    fresh = LuminaMGPTConversation(seeded(1))
    fresh.token_ids, conversation.generator = list(conversation.token_ids), seeded(1)
    answers = [chat("And?", conversation=one, max_new_tokens=8).token_ids for one in (conversation, fresh)]
    assert answers[0] == answers[1]


# A cache of other weights


def load_adapter(pipe) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    pipe.transformer.add_adapter(config, "style")


def fuse_and_unload(pipe) -> None:
    pipe.fuse_lora()
    pipe.unload_lora_weights()


def merge_by_peft(pipe) -> None:
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["k_proj"], init_lora_weights=False)
    assert get_peft_model(pipe.transformer, config).merge_and_unload() is pipe.transformer


def load_other_weights(pipe) -> None:
    weights = {name: tensor.flip(0) for name, tensor in pipe.transformer.state_dict().items() if "v_proj" in name}
    pipe.transformer.load_state_dict(weights, strict=False)


def average_weights(pipe) -> None:
    for parameter in pipe.transformer.model.layers[0].parameters():
        parameter.data.mul_(0.5)


def replace_the_transformer(pipe) -> None:
    pipe.transformer = copy.deepcopy(pipe.transformer)
    load_other_weights(pipe)


CHANGES = {
    "load": (None, load_adapter),
    "unload": (load_adapter, lambda pipe: pipe.unload_lora_weights()),
    "delete": (load_adapter, lambda pipe: pipe.delete_adapters("style")),
    "scale": (load_adapter, lambda pipe: pipe.set_adapters("style", 0.3)),
    "disable": (load_adapter, lambda pipe: pipe.disable_lora()),
    "disable by transformers": (load_adapter, lambda pipe: pipe.transformer.disable_adapters()),
    "fuse": (load_adapter, lambda pipe: pipe.fuse_lora(lora_scale=0.5)),
    "fuse and unload": (load_adapter, fuse_and_unload),
    "merge by peft": (None, merge_by_peft),
    "load weights": (None, load_other_weights),
    "average": (None, average_weights),
    "replace": (None, replace_the_transformer),
}


@pytest.mark.parametrize("change", [*CHANGES, "load weights in inference mode"])
def test_a_cache_of_other_weights_is_left(trained_pipe, change):
    is_inference = change.endswith(" in inference mode")
    prepare, change = CHANGES[change.removesuffix(" in inference mode")]
    with torch.inference_mode(is_inference):
        pipe = copy_of(trained_pipe)
        if prepare is not None:
            prepare(pipe)
        conversation = LuminaMGPTConversation(seeded(0))
        chat = chat_from(pipe)
        chat("Hello, who are you?", conversation=conversation, max_new_tokens=9)
        assert conversation.num_cached_tokens > 20
        change(pipe)
        chat = chat_from(pipe)
        fresh = LuminaMGPTConversation(seeded(1))
        fresh.token_ids, conversation.generator = list(conversation.token_ids), seeded(1)
        answers = [chat("And?", conversation=one, max_new_tokens=9).token_ids for one in (conversation, fresh)]
        assert answers[0] == answers[1]
        assert all(
            torch.equal(keys, other) for keys, other in zip(contents(conversation), contents(fresh), strict=True)
        )


def contents(conversation: LuminaMGPTConversation) -> list[torch.Tensor]:
    return [states for layer in conversation._cache.layers for states in (layer.keys, layer.values)]


def test_a_cache_of_the_same_weights_is_used(trained_pipe):
    pipe = copy_of(trained_pipe)
    load_adapter(pipe)
    conversation = LuminaMGPTConversation(seeded(0))
    chat = chat_from(pipe)
    chat("Hello, who are you?", conversation=conversation, max_new_tokens=20)
    for change in (pipe.disable_lora, pipe.enable_lora, lambda: pipe.to("cpu"), pipe.transformer.train):
        change()
    number = conversation.num_cached_tokens
    fed = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(int(kwargs["position_ids"].min())), with_kwargs=True
    )
    chat("And?", conversation=conversation, max_new_tokens=2)
    hook.remove()
    # The tokens that show the weights, then the turn's own.
    assert fed[:2] == [0, number]


# What surrounds a call


def test_autocast(trained_pipe):
    with torch.autocast("cpu", torch.bfloat16):
        codes = [call(trained_pipe, 1, num_draft_tokens=number) for number in (0, 7, 31)]
        conversation = LuminaMGPTConversation(seeded(0))
        chat = chat_from(trained_pipe)
        chat("Tell a story with two pictures.", conversation=conversation, max_new_tokens=30)
    assert all(torch.equal(one, codes[0]) for one in codes) and codes[0].min() >= 0
    assert chat("Hello", conversation=conversation, max_new_tokens=3).token_ids


def test_gradient_checkpointing_and_training_mode(trained_pipe, alone):
    pipe = copy_of(trained_pipe)
    pipe.transformer.gradient_checkpointing_enable()
    pipe.transformer.train()
    assert torch.equal(call(pipe, 1), alone[1])
    assert pipe.transformer.training and all(layer.training for layer in pipe.transformer.model.layers)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_training_mode_is_off_until_the_last_is_done(is_compiled):
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2).eval())
    first, second = evaluating(model), evaluating(torch.compile(model) if is_compiled else model)
    with second:
        with first:
            assert not model.training and not model[0].training
        assert not model.training and not model[0].training
    assert model.training and model[0].training and not model[1].training
    first, second = evaluating(model), evaluating(model)
    first.__enter__()
    with second:
        first.__exit__(None, None, None)
        assert not model.training and not model[0].training
    assert model.training and model[0].training and not model[1].training


def test_a_model_that_returns_tuples(trained_pipe, alone):
    pipe = copy_of(trained_pipe)
    pipe.transformer.config.return_dict = False
    assert torch.equal(call(pipe, 1), alone[1])


def test_inference_mode_and_then_not(trained_pipe, alone):
    chat = chat_from(trained_pipe)
    conversation = LuminaMGPTConversation(seeded(0))
    with torch.inference_mode():
        assert torch.equal(call(trained_pipe, 1), alone[1])
        chat("Hello, who are you?", conversation=conversation, max_new_tokens=3)
    assert torch.equal(call(trained_pipe, 1), alone[1])
    assert chat("And?", conversation=conversation, max_new_tokens=3).token_ids


def test_another_default_device(trained_pipe, alone):
    with torch.device("meta"):
        assert torch.equal(call(trained_pipe, 1), alone[1])
        # (diffusers' VQ model itself makes tensors on the default device.)
        arguments = {"top_k": 1, "output_type": "latent"}
        chat = chat_from(trained_pipe)
        output = chat("Tell a story with two pictures.", text_top_k=1, max_new_tokens=40, **arguments)
        assert len(output.token_ids) == 40
        codes = torch.zeros(2, 4, dtype=torch.long, device="cpu")
        assert img2img_from(trained_pipe)("Redder.", image=codes, **arguments).images.shape == (1, 2, 4)


def test_logits_that_are_not_finite_are_an_error(trained_pipe):
    pipe = copy_of(trained_pipe)
    with torch.no_grad():
        pipe.transformer.lm_head.weight[pipe.image_vocabulary.code_ids[5]] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        call(pipe, 1)
    with torch.no_grad():
        pipe.transformer.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        chat_from(pipe)("Hello", max_new_tokens=5)


@pytest.mark.parametrize("result", [{"latents": 3.0}, {"latents": torch.zeros(1, 6, 6)}, {"latents": None}, 7])
def test_what_a_callback_returns_is_checked(trained_pipe, alone, result):
    def callback(*args):
        return result

    if isinstance(result, dict) and result["latents"] is None:
        assert torch.equal(call(trained_pipe, 1, callback_on_step_end=callback), alone[1])
        return
    with pytest.raises(ValueError, match="`callback_on_step_end`"):
        call(trained_pipe, 1, callback_on_step_end=callback)


@pytest.mark.parametrize("code", [8192, -2])
def test_codes_of_a_callback_that_are_none(trained_pipe, code):
    def callback(pipe, step, timestep, kwargs):
        kwargs["latents"][0, 0, 0] = code
        return kwargs

    with pytest.raises(ValueError, match="VQ codes"):
        call(trained_pipe, 1, callback_on_step_end=callback)


def test_turning_guidance_on_on_the_way(trained_pipe):
    def turn_on(pipe, step, timestep, kwargs):
        if step == 11:
            pipe._guidance_scale = 4.0
        return kwargs

    arguments = {"height": 96, "width": 96, "output_type": "latent", "num_draft_tokens": 0}
    plain = trained_pipe("a cat", generator=seeded(3), guidance_scale=1.0, **arguments).images
    mixed = trained_pipe(
        "a cat", generator=seeded(3), guidance_scale=1.0, callback_on_step_end=turn_on, **arguments
    ).images
    given = torch.where(torch.arange(6)[:, None] < 2, plain, -1)
    expected = trained_pipe("a cat", generator=seeded(3), guidance_scale=4.0, latents=given, **arguments).images
    assert torch.equal(mixed, expected) and not torch.equal(mixed, plain)


def test_several_sizes_in_one_call_are_each_alone(trained_pipe, alone):
    sizes = [(call["height"], call["width"]) for call in CALLS]
    heights, widths = map(list, zip(*sizes))
    prompts = [call["prompt"] for call in CALLS]
    arguments = {"guidance_scale": 3.0, "output_type": "latent", "num_images_per_prompt": 2}
    together = trained_pipe(
        prompts, height=heights, width=widths, generator=[seeded(index) for index in range(8)], **arguments
    ).images
    for index, codes in enumerate(together):
        height, width = sizes[index // 2]
        own = trained_pipe(
            prompts[index // 2], height=height, width=width, generator=[seeded(index), seeded(9)], **arguments
        ).images[0]
        assert codes.shape == (height // 16, width // 16) and torch.equal(codes, own)
    images = trained_pipe(prompts, height=heights, width=widths).images
    assert [image.size for image in images] == [(width, height) for height, width in sizes]
    with pytest.raises(ValueError, match="`height` is a list of 3 but there are 4 prompts"):
        trained_pipe(prompts, height=heights[:3], width=widths)


def test_the_emulated_lag_does_not_change_a_stream(trained_pipe, alone, monkeypatch):
    monkeypatch.setitem(engine.FRONTIER_LAG, "cpu", 2)
    for index in range(4):
        *_, last = trained_pipe.stream(**CALLS[index], generator=seeded(index), output_type="latent")
        assert torch.equal(last.codes, alone[index])


def test_a_conversation_can_be_copied(trained_pipe):
    chat = chat_from(trained_pipe)
    conversation = LuminaMGPTConversation(seeded(0))
    chat("Hello, who are you?", conversation=conversation, max_new_tokens=5)
    branch = copy.deepcopy(conversation)
    branch.generator = seeded(3)
    chat("And?", conversation=branch, max_new_tokens=5)
    assert len(branch.token_ids) > len(conversation.token_ids)
