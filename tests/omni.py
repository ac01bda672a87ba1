# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the tests of images and conversations share: the recorded images, and a model that says what it is told to."""

import functools
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from reference import Noise, guided_logits

from lumina_mgpt_diffusers import (
    LuminaMGPTAutoBlocks,
    LuminaMGPTChatPipeline,
    LuminaMGPTImg2ImgPipeline,
    LuminaMGPTModularPipeline,
    LuminaMGPTPipeline,
    LuminaMGPTScheduler,
    LuminaMGPTTransformer,
)


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
    return _with_components(LuminaMGPTChatPipeline, pipe, transformer or pipe.transformer, sampler)


def img2img_from(pipe: LuminaMGPTPipeline, **sampler) -> LuminaMGPTImg2ImgPipeline:
    """An image-to-image pipeline over the components of another, with a scheduler of its own."""
    return _with_components(LuminaMGPTImg2ImgPipeline, pipe, pipe.transformer, sampler)


def modular_from(pipe: LuminaMGPTPipeline) -> LuminaMGPTModularPipeline:
    """A modular pipeline over the components of another."""
    made = LuminaMGPTAutoBlocks().init_pipeline()
    made.update_components(**pipe.components)
    made.set_progress_bar_config(disable=True)
    return made


def _with_components(pipeline_class, pipe, transformer, sampler):
    scheduler = LuminaMGPTScheduler.from_config(pipe.scheduler.config, **sampler)
    own = pipeline_class(tokenizer=pipe.tokenizer, transformer=transformer, vqvae=pipe.vqvae, scheduler=scheduler)
    own.set_progress_bar_config(disable=True)
    return own


class Playback(LuminaMGPTTransformer):
    """
    Stands for a transformer: wants the token that a script holds for each position, and writes nothing to its cache.

    Args:
        script (`list[int]`): The token ids wanted after the question.
        default (`int`): The one wanted from then on.
        second_choice (`int`): The one wanted where the first may not stand.
    """

    def __init__(self, config, script: list[int], default: int, second_choice: int) -> None:
        torch.nn.Module.__init__(self)
        self.config = config
        self.script = script
        self.default = default
        self.second_choice = second_choice
        self.start: int | None = None
        self.lm_head = None
        self.register_buffer("anchor", torch.zeros(1))

    @property
    def dtype(self) -> torch.dtype:
        return self.anchor.dtype

    @property
    def device(self) -> torch.device:
        return self.anchor.device

    def forward(self, input_ids, position_ids, past_key_values, logits_range, logits_to_keep=0, text_places=None):
        past_key_values.positions = position_ids
        for index in range(len(past_key_values.layers)):
            empty = torch.zeros(len(input_ids), 1, input_ids.shape[1], 1)
            past_key_values.update(empty, empty, index)
        if self.start is None and text_places is not None:
            self.start = int(position_ids[text_places].max())  # the separator before the answer
        logits = self._wanted(position_ids)[..., slice(*logits_range)]
        text_logits = None if text_places is None else self._wanted(position_ids[text_places])
        return SimpleNamespace(logits=logits, text_logits=text_logits)

    def _wanted(self, positions: torch.LongTensor) -> torch.Tensor:
        logits = torch.zeros(*positions.shape, self.config.vocab_size)
        logits[..., self.second_choice] = 1.0
        for place in itertools.product(*map(range, positions.shape)):
            index = int(positions[place]) - (self.start or 0)
            wanted = self.script[index] if 0 <= index < len(self.script) else self.default
            logits[(*place, wanted)] = 10.0
        return logits


@torch.no_grad()
def slow_answer(
    model: torch.nn.Module,
    chat: LuminaMGPTChatPipeline,
    context: list[int],
    max_new_tokens: int,
    generator: torch.Generator | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 1,
    text_temperature: float = 1.0,
    text_top_k: int = 1,
) -> list[int]:
    """An answer by stock transformers, the whole sequence anew for every token; no noise is drawn where greedy."""
    vocabulary = chat.image_vocabulary
    base_size = chat.scheduler.config.resolution
    tags = vocabulary.size_tag_ids
    code_ids = vocabulary.code_ids.tolist()
    is_control = set(chat.tokenizer.added_tokens_encoder.values()) - {vocabulary.start_id, vocabulary.separator_id}
    text_ids = [id for id in range(len(chat.tokenizer)) if id not in is_control and id < model.config.vocab_size]

    def choose(logits, allowed, temperature, top_k, noise=None):
        allowed = torch.tensor(allowed)
        scores = logits[allowed]
        if temperature and top_k != 1:
            kept = scores.sort(descending=True).indices[: top_k or None]
            masked = torch.full_like(scores, -torch.inf)
            masked[kept] = scores[kept] / temperature + noise[allowed][kept]
            scores = masked
        return int(allowed[scores.argmax()])

    noise = Noise(generator)
    answer: list[int] = []
    while len(answer) < max_new_tokens:
        sampler = {"temperature": text_temperature, "top_k": text_top_k}
        of_place = noise.at(len(answer), model.config.vocab_size)
        id = choose(guided_logits(model, context + answer, None, 1.0), text_ids, **sampler, noise=of_place)
        if id == vocabulary.separator_id:
            break
        answer.append(id)
        if id != vocabulary.start_id:
            continue
        image = [id]
        sampler = {"temperature": temperature, "top_k": top_k}
        for side in range(2):
            cells = (base_size // 32) ** 2
            sides = [n + 1 for n in range(len(tags))]
            if side == 1:
                height = tags.index(image[1]) + 1
                sides = [n for n in sides if n * height <= cells and max(n, height) <= 4 * min(n, height)]
            else:
                sides = [n for n in sides if any(n * m <= cells and max(n, m) <= 4 * min(n, m) for m in sides)]
            of_place = noise.at(len(answer), model.config.vocab_size)
            logits = guided_logits(model, context + answer, None, 1.0)
            image.append(choose(logits, [tags[n - 1] for n in sides], **sampler, noise=of_place))
            answer.append(image[-1])
        rows, columns = (2 * (tags.index(tag) + 1) for tag in image[1:])
        for index in range(rows * columns):
            unconditional = image if guidance_scale != 1.0 else None
            logits = guided_logits(model, context + answer, unconditional, guidance_scale)
            in_codebook = logits[torch.tensor(code_ids)]
            of_place = noise.at(len(answer), len(code_ids))
            new = [code_ids[choose(in_codebook, range(len(code_ids)), **sampler, noise=of_place)]]
            if (index + 1) % columns == 0:
                new.append(vocabulary.row_end_id)
            if index + 1 == rows * columns:
                new.append(vocabulary.end_id)
            image, answer = image + new, answer + new
    return answer[:max_new_tokens]
