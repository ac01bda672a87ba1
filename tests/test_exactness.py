# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What an image does not depend on, to the code: what docs/sampling.md promises of each type, and no more.

All of it runs on CPUs, small, and on the emulated device, where the engine takes the ways of CUDA. `pytest -m gpu`
runs it on a GPU, also with a model of realistic width, since kernels are chosen by it.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import pytest
import torch
from conftest import copy_of
from emulated_cuda import emulated_cuda
from engine_helpers import SIZES, Bench, result_of, run, sample_in_company, widened
from torch._dynamo.utils import counters

from lumina_mgpt_diffusers import LuminaMGPTScheduler
from lumina_mgpt_diffusers.lumina_mgpt import engine as engine_module
from lumina_mgpt_diffusers.lumina_mgpt import noise


# The fixture's own model, trained a little, and wide ones of so many layers.
MODELS = {"tiny": None, "narrow": (256, 1), "1024": (1024, 3), "2048": (2048, 4)}

ON_GPU = [pytest.param("cuda", model, marks=pytest.mark.gpu) for model in ("tiny", "1024", "2048")]
EAGER = [("cpu", "tiny"), ("emulated", "narrow"), *ON_GPU]
COMPILED = [pytest.param("cpu", "tiny", marks=pytest.mark.slow), *ON_GPU]

# Question, size (None for a conversation), guidance scale, top-k and key of a request.
KINDS = [(0, (64, 64), 4.0, 2000, 7), (1, None, 1.0, 2000, 7), (2, (32, 96), 1.0, 50, 7), (3, (96, 64), 4.0, 0, 7)]

# Number of rows, and the step at which the one that is looked at enters.
COMPANIES = [(1, 0), (2, 0), (5, 0), (2, 7), (5, 7)]


@pytest.fixture
def bench_of(trained_pipe, request) -> Iterator:
    """Makes a [`Bench`] on a device: of a model, a type, `batch_invariant`, and compiled or not."""
    emulated = request.node.callspec.params.get("device") == "emulated"

    def make(device: str, model: str, dtype: torch.dtype, is_compiled: bool = False, **sampler) -> Bench:
        pipe = copy_of(trained_pipe) if MODELS[model] is None else widened(trained_pipe, *MODELS[model])
        pipe.scheduler = LuminaMGPTScheduler.from_config(pipe.scheduler.config, **sampler)
        device = "cpu" if device == "cpu" else "cuda:0"
        pipe.transformer.to(device, dtype)
        if is_compiled:
            torch._dynamo.reset()
            # Where there is no GPU, how the code is made matters less than which shapes it is made for.
            options = {"backend": "eager"} if device == "cpu" else {"mode": "reduce-overhead"}
            pipe.transformer.compile(fullgraph=True, **options)
        return Bench(pipe, device)

    with emulated_cuda() if emulated else nullcontext():
        yield make
    torch._dynamo.reset()


def check_in_company(bench: Bench, kinds: Sequence[tuple], drafts: Sequence, companies: Sequence[tuple]) -> None:
    """Every request is what it is alone without drafts."""
    for kind, number, (rows, start) in itertools.product(kinds, drafts, companies):
        found = sample_in_company(bench, kind, number, rows, start)
        assert found == bench.alone(kind), (kind, number, rows, start)


def share_of(device: str) -> tuple:
    """Of everything that is checked, what there is time for."""
    if device == "cuda":
        return KINDS, (0, 3, 7, 15, "auto"), COMPANIES
    return KINDS[1:3], (15,), [(2, 7)]


@pytest.mark.parametrize(("device", "model"), EAGER)
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_batch_invariant_answers(bench_of, device, model, dtype):
    check_in_company(bench_of(device, model, dtype, batch_invariant=True), *share_of(device))


@pytest.mark.gpu
@pytest.mark.parametrize("model", MODELS)
def test_batch_invariant_answers_in_float16(bench_of, model):
    check_in_company(bench_of("cuda", model, torch.float16, batch_invariant=True), *share_of("cuda"))


@pytest.mark.parametrize(("device", "model"), COMPILED)
def test_batch_invariant_answers_of_compiled_code(bench_of, device, model):
    bench = bench_of(device, model, torch.bfloat16, is_compiled=True, batch_invariant=True)
    check_in_company(bench, *share_of(device))


@pytest.mark.parametrize(("device", "model"), EAGER)
def test_answers_in_float32(bench_of, device, model):
    check_in_company(bench_of(device, model, torch.float32), *share_of(device))


@pytest.mark.gpu
@pytest.mark.parametrize("model", MODELS)
def test_compiled_code_gives_the_answers_of_eager_code_in_float32(bench_of, model):
    eager = bench_of("cuda", model, torch.float32)
    expected = [eager.alone(kind) for kind in KINDS]
    compiled = bench_of("cuda", model, torch.float32, is_compiled=True)
    for number in (0, 7, 15):
        assert [sample_in_company(compiled, kind, number, 1, 0) for kind in KINDS] == expected, number


@pytest.mark.parametrize(("device", "model"), EAGER)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_call_in_half_precision(bench_of, device, model, dtype):
    """By default no more is promised on GPUs. How many codes agree over drafts is printed."""
    bench = bench_of(device, model, dtype)
    images = [kind for kind in KINDS if kind[1] is not None] if device == "cuda" else KINDS[2:3]
    codes, numbers = {}, (0, 7, 15) if device == "cuda" else (0, 15)
    for number in numbers:
        codes[number], again = ([codes_of(bench, kind, number) for kind in images] for _ in range(2))
        assert all(map(torch.equal, codes[number], again)), number
    for number in numbers[1:]:
        agreeing = sum((codes[0][i] == codes[number][i]).sum().item() for i in range(len(images)))
        total = sum(one.numel() for one in codes[0])
        print(f"{device}, {model}, {dtype}: {number} drafts give {agreeing} of {total} codes that none give")


def codes_of(bench: Bench, kind: tuple, number: int) -> torch.LongTensor:
    ((_, _, (codes,)),) = [sample_in_company(bench, kind, number, 1, 0)]
    return torch.tensor(codes, device="cpu")


# What a step does beside the forward, compiled


@pytest.fixture
def fused(trained_pipe, monkeypatch):
    """A [`Bench`] whose engine takes the ways of CUDA beside a compiled transformer, but for that transformer."""

    class Sampler(LuminaMGPTScheduler):
        def restrict(self, logits, places):
            # As a rule of one's own has it on a CPU too: `top_k` for all places.
            return super().restrict(logits, places)

    def read(strip: noise.NoiseStrip, places: torch.LongTensor) -> torch.Tensor:
        return noise._noise_of(strip.mixed_keys, places, strip.codes)

    def make(**options) -> Bench:
        torch._dynamo.reset()
        counters.clear()
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, **options))
        pipe = copy_of(trained_pipe)
        pipe.scheduler = Sampler.from_config(pipe.scheduler.config)
        return Bench(pipe)

    monkeypatch.setattr(noise.NoiseStrip, "read", read)
    monkeypatch.setitem(engine_module.COMPILED_LENGTH_STEP, "cpu", 512)
    monkeypatch.setitem(engine_module.FRONTIER_LAG, "cpu", 1)
    monkeypatch.setattr(engine_module, "is_compiled", lambda module: True)
    yield make
    torch._dynamo.reset()


def check_fused(bench: Bench, expected: Bench, drafts: Sequence[int]) -> None:
    kinds = [(index, size, 4.0, (50, 2000)[index % 2], 1) for index, size in enumerate(SIZES[:3])]
    for own, number in itertools.product((kinds[:1], kinds[1:2], kinds), drafts):
        engine = bench.engine(number)
        rows = [engine.submit(bench.request(kind)) for kind in own]
        run(engine)
        assert [result_of(row) for row in rows] == [expected.alone(kind) for kind in own]


@pytest.mark.slow
def test_sampling_is_compiled_without_breaks(fused, trained_pipe):
    bench = fused(backend="eager", fullgraph=True)
    check_fused(bench, Bench(trained_pipe), (3, 15))
    # First guesses, and the codes of a window: for one image and for several, whatever their sizes and settings.
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= 4


@pytest.mark.slow
def test_compiled_sampling_gives_the_same_codes(fused, trained_pipe):
    check_fused(fused(), Bench(trained_pipe), (0, 3, 15))
