# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Tiny checkpoints in the original's format, with the outputs that the original code gives for them."""

import copy
import json
import os
import shutil
from pathlib import Path


# Before torch is imported, and for processes that tests start. Tiny models gain nothing from threads, and threads that
# wait for each other cost six times the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from diffusers import DiffusionPipeline

from lumina_mgpt_diffusers import LuminaMGPTPipeline, LuminaMGPTScheduler


FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINT = FIXTURES / "7b_like" / "ckpt"
TRAINED_CHECKPOINT = FIXTURES / "7b_like_trained" / "ckpt"
VQGAN = FIXTURES / "vqgan"
CHECKPOINT_2 = FIXTURES / "7b2_like" / "ckpt"
MOVQGAN = FIXTURES / "movqgan"
BASE_SIZE = 96


def load_pipeline(checkpoint: Path, **kwargs) -> LuminaMGPTPipeline:
    defaults = {"dtype": torch.float32, "scheduler": LuminaMGPTScheduler(resolution=BASE_SIZE, num_draft_tokens=0)}
    pipe = LuminaMGPTPipeline.from_pretrained(checkpoint, **{"original_vqgan": VQGAN, **defaults, **kwargs})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_checkpoint_2(folder: Path) -> Path:
    """A checkpoint of Lumina-mGPT 2.0 as recorded: the fixture without the names of its 16,384 codes, and these."""
    shutil.copytree(CHECKPOINT_2, folder, dirs_exist_ok=True)
    codes = {f"<MOVQGAN{code:05d}>": 760 + code for code in range(16384)}
    config = json.loads((folder / "config.json").read_text())
    config["vocabulary_map"] |= codes
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    kind = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] += [{"id": id, "content": name, **kind} for name, id in codes.items()]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def copy_of(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline with models and a scheduler of its own, in a twentieth of the time that loading takes."""
    own = {name: copy.deepcopy(pipe.components[name]) for name in ("transformer", "vqvae", "scheduler")}
    copied = type(pipe)(tokenizer=pipe.tokenizer, **own)
    copied.set_progress_bar_config(disable=True)
    return copied


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def prompts_golden() -> dict:
    return json.loads((FIXTURES / "7b_like" / "prompts.json").read_text())


@pytest.fixture(scope="session")
def random_pipe() -> LuminaMGPTPipeline:
    """Random weights. Tests that change a component have to put it back."""
    return load_pipeline(CHECKPOINT)


@pytest.fixture(scope="session")
def trained_pipe() -> LuminaMGPTPipeline:
    """Trained a little: it accepts drafts. Tests that change a component have to put it back."""
    return load_pipeline(TRAINED_CHECKPOINT, original_tokenizer=CHECKPOINT)


@pytest.fixture(scope="session")
def checkpoint_2(tmp_path_factory) -> Path:
    """A checkpoint of Lumina-mGPT 2.0 in the original's form. Tests may not change it."""
    return write_checkpoint_2(tmp_path_factory.mktemp("7b2") / "ckpt")


@pytest.fixture(scope="session")
def pipe_2(checkpoint_2) -> LuminaMGPTPipeline:
    """Lumina-mGPT 2.0 with random weights. Tests that change a component have to put it back."""
    return load_pipeline(checkpoint_2, original_vqgan=MOVQGAN)


@pytest.fixture
def with_sampler():
    """Set values of a pipeline's scheduler for the length of a test."""
    before = []

    def set_values(pipe: LuminaMGPTPipeline, **values) -> LuminaMGPTPipeline:
        before.append((pipe, pipe.scheduler))
        pipe.scheduler = LuminaMGPTScheduler.from_config(pipe.scheduler.config, **values)
        return pipe

    yield set_values
    for pipe, scheduler in reversed(before):
        pipe.scheduler = scheduler


class CountForwards:
    """Counts the forwards of a transformer, their rows, the tokens that each row was fed, and rows with text."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        self.rows: list[int] = []
        self.windows: list[int] = []
        self.text_rows: set[int] = set()
        self._hook = transformer.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        num_rows, window = kwargs["input_ids"].shape
        self.rows.append(num_rows)
        self.windows.append(window)
        if kwargs.get("text_places") is not None:
            self.text_rows.add(len(kwargs["text_places"][0]))

    def __enter__(self) -> "CountForwards":
        return self

    def __exit__(self, *exception) -> None:
        self._hook.remove()

    def __len__(self) -> int:
        return len(self.windows)


@pytest.fixture
def count_forwards():
    return CountForwards


@pytest.fixture(scope="session")
def saved_folder(random_pipe, tmp_path_factory) -> Path:
    """The pipeline `random_pipe` as `save_pretrained` writes it. Tests may not change it."""
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    random_pipe.save_pretrained(folder)
    return folder
