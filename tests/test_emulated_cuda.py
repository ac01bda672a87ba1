# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The emulated CUDA device catches what a real one would not forgive, and the pipelines run on it."""

import pytest
import torch
from emulated_cuda import emulated_cuda
from omni import chat_from, img2img_from

from lumina_mgpt_diffusers import LuminaMGPTConversation
from lumina_mgpt_diffusers.lumina_mgpt import engine, slots


PROMPTS = ["A red fox in the snow.", "a cat"]


@pytest.fixture
def device():
    with emulated_cuda() as device:
        yield device


def test_tensors_are_on_the_device_they_were_made_on(device):
    host = torch.ones(2, 3)
    tensors = [
        torch.zeros(2, device="cuda"),
        torch.tensor([1], device="cuda:0"),
        host.to("cuda"),
        host.cuda(),
        host.to(device="cuda", dtype=torch.float64),
        host.to(torch.arange(2, device="cuda")),
        torch.nn.Linear(3, 2).to("cuda").weight,
    ]
    tensors += [tensors[0] + 1, tensors[0][:1], torch.zeros_like(tensors[0]), tensors[2].new_zeros(3), tensors[3].mT]
    tensors += [torch.topk(tensors[0], 1).values, torch.cat([tensors[0], tensors[0]]), tensors[0].data]
    assert all(tensor.device == torch.device("cuda", 0) and tensor.is_cuda for tensor in tensors)
    assert isinstance(tensors[6], torch.nn.Parameter)
    for tensor in (host, host.to("cuda").cpu(), host.to("cuda").to("cpu"), torch.zeros_like(tensors[0], device="cpu")):
        assert tensor.device.type == "cpu" and not tensor.is_cuda
    kept = tensors[0]
    assert kept.add_(1) is kept and kept.to("cuda") is kept and kept.tolist() == [1, 1]


def test_devices_do_not_mix(device):
    host, cuda = torch.arange(3), torch.arange(3, device="cuda")
    for mix in (
        lambda: host + cuda,
        lambda: torch.cat([host, cuda]),
        lambda: torch.where(cuda > 1, host, cuda),
        lambda: host[cuda],
        lambda: host.__setitem__(cuda, 1),
        lambda: cuda.__setitem__(cuda, host),
        lambda: torch.nn.functional.embedding(cuda, torch.ones(3, 2)),
        lambda: cuda.add_(host),
    ):
        with pytest.raises(RuntimeError, match="device"):
            mix()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        cuda.numpy()
    # A number may come from the host.
    assert (cuda * torch.tensor(2)).tolist() == [0, 2, 4]
    assert cuda[host].is_cuda


@pytest.mark.parametrize("values", [[1, 2], [0.5, 1.5], [True, False]])
@pytest.mark.parametrize("to", [False, True])
def test_a_copy_to_the_host_is_garbage_until_its_event(device, values, to):
    source = torch.tensor(values, device="cuda")
    if to:
        host = source.to("cpu", non_blocking=True)
    else:
        host = torch.empty(2, dtype=source.dtype, pin_memory=True).copy_(source, non_blocking=True)
    event = torch.cuda.current_stream().record_event()
    source.zero_()  # later than the copy
    late = source.to("cpu", non_blocking=True)
    assert all(value != expected for value, expected in zip(host.tolist(), values))
    event.synchronize()
    assert host.tolist() == values
    assert late.tolist() != [0, 0]
    torch.cuda.synchronize()
    assert late.tolist() == [0, 0]


def test_an_event_is_reached_when_it_is_asked_for_again(device):
    host = torch.ones(2, device="cuda").to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    assert not event.query() and host.isnan().all()
    assert event.query() and host.tolist() == [1, 1]
    assert device.syncs == []


def test_waits_of_the_host_are_recorded(device):
    cuda = torch.arange(4, device="cuda")
    masks = torch.ones(4, dtype=torch.bool, device="cuda")
    for number, wait in enumerate(
        [
            lambda: cuda[0].item(),
            lambda: cuda.tolist(),
            lambda: bool((cuda > 1).any()),
            lambda: range(cuda[1]),
            lambda: cuda[: cuda[2]],
            lambda: cuda[cuda[2]],
            lambda: [1, 2, 3][cuda[2]],
            lambda: torch.ones(4)[: cuda[2]],
            lambda: torch.ones(4, dtype=torch.int64).__setitem__(slice(1, 2), cuda[1:2]),
            lambda: cuda.__setitem__(0, torch.tensor(0)),
            lambda: cuda[masks],
            lambda: torch.where(masks),
            lambda: cuda.nonzero(),
            lambda: cuda.cpu(),
            lambda: torch.empty(4, dtype=torch.int64).copy_(cuda),
            lambda: torch.tensor([1], device="cuda"),
            lambda: torch.as_tensor(torch.ones(1), device="cuda"),
            lambda: torch.ones(1).to("cuda"),
            lambda: torch.equal(cuda, cuda),
            lambda: torch.cuda.current_stream().synchronize(),
            lambda: f"{cuda}",
        ]
    ):
        before = len(device.syncs)
        wait()
        assert len(device.syncs) == before + 1, number
    before = len(device.syncs)
    cuda[masks] = 0
    cuda[1:] = 3
    torch.where(masks, cuda, 0)
    torch.zeros(2, device="cuda")
    torch.ones(1).to("cuda", non_blocking=True)
    cuda.to(torch.float32)
    torch.as_tensor(cuda, device="cuda")
    assert len(device.syncs) == before


def test_nothing_is_left_behind():
    names = ("current_stream", "Event", "synchronize")
    before = [getattr(torch.cuda, name) for name in names]
    with emulated_cuda():
        assert [getattr(torch.cuda, name) for name in names] != before
    assert [getattr(torch.cuda, name) for name in names] == before
    assert not torch.ones(1).to("cpu").is_cuda


def codes_of(pipe, prompt, **kwargs) -> torch.Tensor:
    seeds = [0] if isinstance(prompt, str) else range(len(prompt))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompt, generator=generators, output_type="latent", **{"height": 32, "width": 64, **kwargs}).images


@pytest.mark.parametrize("num_draft_tokens", [0, 7])
def test_text_to_image_has_the_codes_of_the_host(trained_pipe, with_sampler, num_draft_tokens):
    with_sampler(trained_pipe, num_draft_tokens=num_draft_tokens)
    expected = codes_of(trained_pipe, PROMPTS)
    holes = expected.clone()
    holes[:, 1, 1:3] = -1
    image = trained_pipe(PROMPTS[0], latents=expected[:1], height=32, width=64, output_type="np").images
    with emulated_cuda() as device:
        moved = device.move(trained_pipe)
        codes = codes_of(moved, PROMPTS)
        assert codes.is_cuda and torch.equal(codes.cpu(), expected)
        assert torch.equal(codes_of(moved, PROMPTS, latents=holes).cpu(), expected)
        same = moved(PROMPTS[0], latents=codes[:1], height=32, width=64, output_type="np").images
    assert (same == image).all()
    assert not any(parameter.is_cuda for parameter in trained_pipe.transformer.parameters())


@pytest.mark.parametrize(("length_step", "lag"), [(None, 1), (1, 3)])
def test_streams_images_and_conversations_are_those_of_the_host(trained_pipe, monkeypatch, length_step, lag):
    picture = torch.rand(3, 32, 64, generator=torch.Generator().manual_seed(0))

    def run(text2img, img2img, chat) -> list:
        seed = torch.Generator().manual_seed
        options = {"height": 32, "width": 64, "generator": seed(0), "output_type": "latent"}
        *_, last = text2img.stream(PROMPTS[0], **options)
        edited = img2img("Make it night.", image=picture, generator=seed(1), output_type="latent").images
        conversation = LuminaMGPTConversation(seed(2))
        said = chat("What is it? <|image|>", images=[picture], conversation=conversation, max_new_tokens=12)
        assert conversation.num_cached_tokens > 12
        more = chat("And?", conversation=conversation, max_new_tokens=4)
        return [codes.tolist() for codes in (*last.codes, *edited)] + [said.text, more.text]

    expected = run(trained_pipe, img2img_from(trained_pipe), chat_from(trained_pipe))
    monkeypatch.setitem(engine.FRONTIER_LAG, "cuda", lag)
    if length_step is not None:
        monkeypatch.setattr(slots, "LENGTH_STEP", length_step)
        monkeypatch.setattr(engine, "LENGTH_STEP", length_step)
    with emulated_cuda() as device:
        moved = device.move(trained_pipe)
        assert run(moved, img2img_from(moved), chat_from(moved)) == expected


@pytest.mark.parametrize("kind", ["text", "edit", "chat"])
def test_the_host_waits_at_most_so_often_for_a_forward(trained_pipe, with_sampler, count_forwards, kind):
    with_sampler(trained_pipe, num_draft_tokens=3)
    picture = torch.rand(3, 32, 64, generator=torch.Generator().manual_seed(0))
    calls = {
        "text": lambda pipe, size: codes_of(pipe, "a cat", width=32 * size),
        "edit": lambda pipe, size: img2img_from(pipe)("Redder.", picture, height=32, width=32 * size, top_k=1),
        "chat": lambda pipe, size: chat_from(pipe)("Hello, who are you?", max_new_tokens=4 * size, text_top_k=1),
    }
    with emulated_cuda() as device:
        moved = device.move(trained_pipe)
        (few_forwards, few_waits), (many_forwards, many_waits) = (
            waits_of(device, moved, calls[kind], size, count_forwards) for size in (1, 3)
        )
    assert many_forwards > few_forwards
    # Where the next tokens of text stand is uploaded for each forward.
    assert many_waits - few_waits <= (5 if kind == "chat" else 1) * (many_forwards - few_forwards)


def waits_of(device, pipe, call, size, count_forwards) -> tuple[int, int]:
    """Number of forwards, and of waits."""
    device.syncs.clear()
    with count_forwards(pipe.transformer) as forwards:
        call(pipe, size)
    return len(forwards), len(device.syncs)
