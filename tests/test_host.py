# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Many callers of one engine: what each of them gets, and what happens to the others when one fails or leaves."""

import asyncio
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch
from omni import arrays

from lumina_mgpt_diffusers import (
    LuminaMGPTChatPipeline,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTInpaintPipeline,
    LuminaMGPTPipeline,
    TextPart,
)
from lumina_mgpt_diffusers.lumina_mgpt.pipeline_lumina_mgpt_chat import merge_text
from lumina_mgpt_diffusers.serving import (
    Ended,
    EngineHost,
    HostClosedError,
    QueueFullError,
    RowError,
    RowsDone,
    Sampled,
    StepError,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def host(trained_pipe):
    with EngineHost(trained_pipe, max_slots=8, num_draft_tokens=3) as host:
        yield host


@pytest.fixture
def gate(monkeypatch, trained_pipe):
    """Holds the engine before its next step until it is set."""
    gate = threading.Event()
    forward = type(trained_pipe.transformer).forward

    def wait(self, *args, **kwargs):
        assert gate.wait(30)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(trained_pipe.transformer), "forward", wait)
    yield gate
    gate.set()


@pytest.fixture(scope="module")
def photo() -> PIL.Image.Image:
    return PIL.Image.fromarray(arrays("7b_like/images.npz")["rgb_96x96"])


def call_for(index: int, photo: PIL.Image.Image) -> tuple[type, str, dict]:
    """One of several calls of mixed kinds and sizes, without its generator."""
    mask = PIL.Image.new("L", photo.size)
    mask.paste(255, (0, 40, 96, 96))
    return [
        (LuminaMGPTPipeline, "text_to_image", {"prompt": "a cat", "height": 64, "width": 96}),
        (LuminaMGPTPipeline, "text_to_image", {"prompt": "a dog", "height": 96, "width": 32, "top_k": 20}),
        (LuminaMGPTImg2ImgPipeline, "image_to_image", {"prompt": "Make it night.", "image": photo}),
        (LuminaMGPTImg2ImgPipeline, "image_to_image", {"task": "depth", "image": photo, "size": "free"}),
        (LuminaMGPTInpaintPipeline, "inpaint", {"prompt": "a cat", "image": photo, "mask_image": mask}),
        (LuminaMGPTPipeline, "text_to_image", {"prompt": "a fox", "negative_prompt": "a cat", "temperature": 0.7}),
    ][index]


def test_images_are_those_of_plain_calls(host, trained_pipe, photo):
    jobs = []
    for index in range(7):
        pipeline_class, kind, arguments = call_for(index % 6, photo)
        jobs.append(host.start(kind, every=1, generator=seeded(index), **arguments))
    for index, job in enumerate(jobs):
        pipeline_class, kind, arguments = call_for(index % 6, photo)
        pipe = pipeline_class.from_pipe(trained_pipe)
        pipe.set_progress_bar_config(disable=True)
        expected = pipe(generator=seeded(index), **arguments).images[0]
        (codes,) = job.codes()
        assert (np.asarray(host.decode(codes).result()) == np.asarray(expected)).all(), arguments


def test_several_images_of_a_call(host, trained_pipe):
    arguments = {"prompt": "a cat", "height": 32, "width": 64, "num_images_per_prompt": 3}
    codes = host.start("text_to_image", num_answers=3, generator=seeded(1), **arguments).codes()
    expected = trained_pipe(generator=seeded(1), output_type="latent", **arguments).images
    assert torch.equal(torch.stack(codes), expected)


def test_answers_are_those_of_plain_calls(host, trained_pipe, photo):
    pipe = LuminaMGPTChatPipeline.from_pipe(trained_pipe)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"messages": "Tell a story with two pictures.", "max_new_tokens": 60, "text_top_k": 3}
    expected = pipe(generator=seeded(4), **arguments)
    reader, parts = host.pipe.answer_reader(), []
    for event in host.start("chat", generator=seeded(4), **arguments):
        if isinstance(event, Sampled):
            parts += host.run(lambda event=event: list(reader.read(event.piece))).result()
    parts = merge_text([*parts, *reader.rest()])
    assert len(parts) == len(expected.parts) > 2
    for part, other in zip(parts, expected.parts):
        if isinstance(part, TextPart):
            assert part == other
        else:
            assert (np.asarray(part.image) == np.asarray(other.image)).all()
    assert (event.finish_reason, event.num_new_tokens) == (expected.finish_reason, len(expected.token_ids))


def test_rows_are_told_of_as_they_come(host):
    events = list(host.start("text_to_image", every=2, prompt="a cat", height=96, width=64, generator=seeded(0)))
    rows = [event for event in events if isinstance(event, RowsDone)]
    assert rows and isinstance(events[-2], Sampled) and isinstance(events[-1], Ended)
    for event in rows:
        final = events[-2].piece.codes
        assert (event.codes[: event.num_rows] == final[: event.num_rows]).all()
    assert [event.num_rows for event in rows] == sorted({event.num_rows for event in rows})
    assert events[-1].finish_reason == "stop"


def test_an_event_loop_reads_too(host):
    async def read() -> list:
        async def one(seed: int) -> torch.Tensor:
            job = host.start("text_to_image", prompt="a cat", height=32, width=32, generator=seeded(seed))
            return [event.piece.codes async for event in job if isinstance(event, Sampled)][0]

        return await asyncio.gather(*map(one, range(5)))

    images = asyncio.run(read())
    for seed, codes in enumerate(images):
        again = host.start("text_to_image", prompt="a cat", height=32, width=32, generator=seeded(seed)).codes()
        assert torch.equal(codes, again[0])


def test_what_waits_unread_does_not_grow(host):
    job = host.start("text_to_image", every=1, prompt="a cat", height=96, width=96, generator=seeded(0))
    host.start("text_to_image", prompt="a dog", height=96, width=96, generator=seeded(0)).codes()
    while not job.is_done:
        pass
    assert len(job._events) == 2


def test_an_error_of_a_call_is_its_own(host):
    good = host.start("text_to_image", prompt="a cat", height=64, width=64, generator=seeded(0))
    bad = host.start("text_to_image", prompt="a cat", height=65)
    with pytest.raises(ValueError, match="65"):
        list(bad)
    assert len(good.codes()) == 1
    with pytest.raises(ValueError, match="kind"):
        host.start("video")


def test_a_cancelled_call_frees_its_rows(host, gate):
    jobs = [host.start("text_to_image", prompt="a cat", height=96, width=96) for _ in range(6)]
    kept = host.start("text_to_image", prompt="a cat", height=32, width=32, generator=seeded(0))
    jobs[0].cancel()  # perhaps before its arguments are read
    host.run(int).result()  # the others have been read
    for job in jobs[1:]:
        job.cancel()
    gate.set()
    assert len(kept.codes()) == 1
    with pytest.raises(CancelledError):
        list(jobs[0])
    host.close()
    assert (host.counts.num_cancelled, host.counts.num_finished) == (6, 1)
    assert not host._jobs.answers and not host._jobs.engine.rows and not host._held


def test_leaving_an_iteration_cancels(host):
    job = host.start("text_to_image", every=1, prompt="a cat", height=96, width=96)
    for event in job:
        break
    assert job.is_done and host.start("text_to_image", prompt="a cat", height=32, width=32).codes()

    async def leave() -> None:
        task = asyncio.ensure_future(anext(aiter(other)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    other = host.start("chat", messages="Hello", max_new_tokens=10000)
    asyncio.run(leave())
    assert other.is_done


def test_a_full_queue_says_when_to_come_again(trained_pipe, gate):
    with EngineHost(trained_pipe, max_slots=2, max_waiting=3) as host:
        jobs = [host.start("text_to_image", prompt="a cat", height=32, width=32) for _ in range(3)]
        with pytest.raises(QueueFullError) as error:
            for _ in range(3):
                jobs.append(host.start("text_to_image", prompt="a cat", height=32, width=32))
        assert 1 <= error.value.retry_after <= 600
        gate.set()
        assert all(len(job.codes()) == 1 for job in jobs)
        assert host.start("text_to_image", prompt="a cat", height=32, width=32).codes()


def test_closing_answers_what_was_taken(trained_pipe, gate):
    host = EngineHost(trained_pipe)
    job = host.start("text_to_image", prompt="a cat", height=64, width=64, generator=seeded(0))
    with ThreadPoolExecutor() as pool:
        closed = pool.submit(host.close)
        while host.is_alive:
            pass
        with pytest.raises(HostClosedError):
            host.start("text_to_image", prompt="a cat")
        gate.set()
        assert len(job.codes()) == 1
        closed.result(30)
    assert not host.is_alive


def test_closing_at_once_gives_up_what_was_taken(trained_pipe, gate):
    host = EngineHost(trained_pipe)
    job = host.start("text_to_image", prompt="a cat", height=64, width=64)
    threading.Timer(0.2, gate.set).start()
    host.close(drain=False)
    with pytest.raises(HostClosedError):
        job.codes()


def test_a_step_that_fails_loses_its_batch_alone(trained_pipe, monkeypatch):
    forward, fails = type(trained_pipe.transformer).forward, [True]

    def fail_once(self, *args, **kwargs):
        if fails and kwargs["input_ids"].shape[0] == 2 and kwargs.get("logits_to_keep") != 1:
            fails.clear()
            raise MemoryError("no memory")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(trained_pipe.transformer), "forward", fail_once)
    with EngineHost(trained_pipe, max_slots=2) as host:
        jobs = [
            host.start("text_to_image", prompt="a cat", height=32, width=64, generator=seeded(seed))
            for seed in range(3)
        ]
        with pytest.raises(StepError, match="MemoryError") as failure:
            jobs[0].codes()
        assert not isinstance(failure.value, RowError)
        for seed in (1, 2):
            expected = trained_pipe("a cat", height=32, width=64, generator=seeded(seed), output_type="latent").images[
                0
            ]
            assert torch.equal(jobs[seed].codes()[0], expected)
        assert host.is_alive and host.counts.num_failed == 1


def test_logits_that_are_no_numbers_fail_their_row_alone(trained_pipe, monkeypatch):
    """The next request takes the slots of the row that failed, in which there are values that are no numbers."""
    layer = trained_pipe.transformer.model.layers[0].self_attn.v_proj
    poisoned = threading.Event()

    def poison(module, args, output):
        if poisoned.is_set():
            poisoned.clear()
            output = output.clone()
            output[-2:] = torch.nan  # both branches of the last request
        return output

    hook = layer.register_forward_hook(poison)
    try:
        with EngineHost(trained_pipe, num_draft_tokens=0) as host:
            arguments = {"prompt": "a cat", "height": 96, "width": 96}
            long = host.start("text_to_image", every=1, generator=seeded(0), **arguments)
            events = iter(long)
            next(events)
            bad = host.start("text_to_image", every=1, generator=seeded(1), **arguments)
            next(iter(bad_events := iter(bad)))
            poisoned.set()
            with pytest.raises(RowError, match="not finite"):
                list(bad_events)
            next_one = host.start("text_to_image", height=32, width=32, prompt="a dog", generator=seeded(2)).codes()
            images = [event.piece.codes for event in events if isinstance(event, Sampled)]
    finally:
        hook.remove()
    for codes, seed, own in ((images[0], 0, arguments), (next_one[0], 2, {"prompt": "a dog", "height": 32})):
        expected = trained_pipe(generator=seeded(seed), output_type="latent", **{"width": 32, **own}).images[0]
        assert torch.equal(codes, expected)


def test_a_sequence_may_only_be_so_long(trained_pipe):
    with EngineHost(trained_pipe, max_length=60) as host:
        with pytest.raises(ValueError, match="60 tokens"):
            host.start("text_to_image", prompt="a cat", height=96, width=96).codes()
        with pytest.raises(ValueError, match="60 tokens"):
            host.start("chat", messages="Hello", max_new_tokens=59).codes()
        assert host.start("text_to_image", prompt="", height=32, width=32).codes()


def test_offloading_is_refused(trained_pipe):
    class Hooked:
        pass

    trained_pipe.vqvae._hf_hook = Hooked()
    try:
        with pytest.raises(ValueError, match="offloading"):
            EngineHost(trained_pipe)
    finally:
        del trained_pipe.vqvae._hf_hook
