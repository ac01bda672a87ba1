# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the tests of images and conversations share: the recorded images, and a model that says what it is told to."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from lumina_mgpt_diffusers import LuminaMGPTChatPipeline, LuminaMGPTPipeline, LuminaMGPTScheduler
from lumina_mgpt_diffusers.lumina_mgpt.kv_cache import SlotCache


FIXTURES = Path(__file__).parent / "fixtures"

GREEDY = {"top_k": 1, "text_top_k": 1}


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / name) as file:
        return dict(file)


def trained_runs() -> dict[str, dict]:
    runs = json.loads((FIXTURES / "7b_like_trained" / "generations.json").read_text())
    for run in runs:
        run["images"] = [
            arrays("7b_like_trained/generated_images.npz")[f"{run['name']}/in{i}"] for i in range(run["n_in"])
        ]
    return {run["name"]: run for run in runs}


def random_runs() -> dict[str, dict]:
    return {run["name"]: run for run in json.loads((FIXTURES / "7b_like" / "generations.json").read_text())}


def to_messages(qas: list) -> list[dict]:
    """Questions and answers of the recordings as messages."""
    turns = [text for qa in qas for text in qa if text is not None]
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)]


def chat_from(pipe: LuminaMGPTPipeline, transformer: object = None, **sampler) -> LuminaMGPTChatPipeline:
    """A chat pipeline over the components of another, with a scheduler of its own."""
    chat = LuminaMGPTChatPipeline(
        tokenizer=pipe.tokenizer,
        transformer=transformer or pipe.transformer,
        vqvae=pipe.vqvae,
        scheduler=LuminaMGPTScheduler.from_config(pipe.scheduler.config, **sampler),
    )
    chat.set_progress_bar_config(disable=True)
    return chat


class Playback(torch.nn.Module):
    """
    Stands for a transformer: wants the token that a script holds for each position, and writes nothing to its cache.

    Args:
        script (`dict[int, int]`): The wanted token id for positions after the question; `default` elsewhere.
    """

    def __init__(self, config, script: list[int], default: int) -> None:
        super().__init__()
        self.config = config
        self.script = script
        self.default = default
        self.start: int | None = None
        self.register_buffer("anchor", torch.zeros(1))

    @property
    def dtype(self) -> torch.dtype:
        return self.anchor.dtype

    @property
    def device(self) -> torch.device:
        return self.anchor.device

    def forward(self, input_ids, position_ids, past_key_values, logits_to_keep, logits_range=None):
        if self.start is None:
            self.start = int(logits_to_keep.max())  # the separator before the answer
        for index, layer in enumerate(past_key_values.layers):
            empty = torch.zeros(len(input_ids), 1, input_ids.shape[1], 1)
            assert isinstance(past_key_values, SlotCache)
            past_key_values.positions = position_ids
            past_key_values.update(empty, empty, index)
        positions = position_ids.gather(1, logits_to_keep)
        logits = torch.zeros(*positions.shape, self.config.vocab_size)
        for row, of_row in enumerate(positions.tolist()):
            for place, position in enumerate(of_row):
                index = position - self.start
                wanted = self.script[index] if 0 <= index < len(self.script) else self.default
                logits[row, place, wanted] = 10.0
        if logits_range is not None:
            logits = logits[..., slice(*logits_range)]
        return SimpleNamespace(logits=logits)
