# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What tests of the engine sample with: requests, others beside them, and models wide enough for kernels to differ."""

import itertools
import random

import torch
from conftest import copy_of

from lumina_mgpt_diffusers import LuminaMGPTPipeline
from lumina_mgpt_diffusers.lumina_mgpt.engine import Engine
from lumina_mgpt_diffusers.lumina_mgpt.prompts import encode_conversation
from lumina_mgpt_diffusers.lumina_mgpt.request import Grammar, Request
from lumina_mgpt_diffusers.lumina_mgpt.row import Row, SampledImage


SIZES = [(64, 64), (32, 96), (96, 32), (64, 96), (96, 96)]
DRAFTS = [0, 1, 3, 7, 15, 31, 63, "auto"]
QUESTIONS = ["Tell a story with two pictures.", "Hello, who are you?", "Generate an image of 64x64", ""]


class Bench:
    """What requests are made and sampled with."""

    def __init__(self, pipe: LuminaMGPTPipeline, device: str = "cpu") -> None:
        self.pipe = pipe
        self.device = torch.device(device)
        self.vocabulary = pipe.image_vocabulary
        self.grammar = Grammar.from_tokenizer(pipe.tokenizer, self.vocabulary, pipe.scheduler.config.resolution)
        self._alone: dict = {}

    def engine(self, num_draft_tokens=0, **kwargs) -> Engine:
        pipe = self.pipe
        return Engine(pipe.transformer, pipe.scheduler, self.grammar, self.device, num_draft_tokens, **kwargs)

    def request(self, kind: tuple) -> Request:
        """Of `(question, size or None for a conversation, guidance scale, top-k, key)`."""
        question, size, guidance_scale, top_k, key = kind
        content = [{"role": "user", "content": QUESTIONS[question]}]
        return Request(
            context=encode_conversation(self.pipe.tokenizer, content),
            settings=self.pipe.scheduler.settings(guidance_scale=guidance_scale, top_k=top_k, text_top_k=3),
            key=key,
            size=size,
            is_image=size is not None,
            max_new_tokens=None if size is not None else 40,
        )

    def alone(self, kind: tuple) -> list:
        """What a request samples by itself, one code at a time."""
        if kind not in self._alone:
            engine = self.engine()
            row = engine.submit(self.request(kind))
            run(engine)
            self._alone[kind] = result_of(row)
        return self._alone[kind]


def run(engine: Engine) -> None:
    while not engine.is_idle:
        engine.step()


def result_of(row: Row) -> list:
    codes = [piece.codes.tolist() for piece in row.take_pieces() if isinstance(piece, SampledImage)]
    return [row.finish_reason, row.token_ids, codes]


def random_kind(choice: random.Random) -> tuple:
    size = choice.choice([*SIZES, None])
    return (choice.randrange(4), size, choice.choice([1.0, 4.0]), choice.choice([1, 50, 2000, 0]), choice.randrange(3))


# All that others in a batch may be doing.
OTHERS = [(row % 4, [*SIZES, None][row % 6], (1.0, 4.0)[row % 2], 50, row) for row in range(15)]


def sample_in_company(bench: Bench, kind: tuple, num_draft_tokens: int | str, number: int, start: int) -> list:
    """What a request samples that enters at a step when others, one less than `number`, are under way."""
    engine, others, company = bench.engine(num_draft_tokens), itertools.cycle(OTHERS), []

    def under_way() -> list[Row]:
        return [row for row in company if row in engine.rows and not row.is_finished]

    def fill() -> None:
        company[:] = [row for row in company if not row.is_finished]
        company.extend(engine.submit(bench.request(next(others))) for _ in range(number - 1 - len(company)))

    fill()
    for step in itertools.count():
        if step >= start and (start == 0 or number == 1 or under_way()):
            break
        engine.step()
        fill()
    assert len(company) == number - 1 and bool(under_way()) is (start > 0 and number > 1)
    row = engine.submit(bench.request(kind))
    while not row.is_finished:
        engine.step()
        fill()
    return result_of(row)


def widened(pipe: LuminaMGPTPipeline, hidden_size: int, num_layers: int = 2) -> LuminaMGPTPipeline:
    """
    A copy with a model of matrices wide enough for kernels to differ, of logits far apart enough to matter.

    Args:
        pipe ([`LuminaMGPTPipeline`]): The pipeline.
        hidden_size (`int`): Its hidden size, in heads of 128 as those of the released models.
        num_layers (`int`, defaults to 2): Its number of layers.
    """
    pipe = copy_of(pipe)
    config, heads = pipe.transformer.config, hidden_size // 128
    values = {**config.to_dict(), "hidden_size": hidden_size, "intermediate_size": 2 * hidden_size}
    values |= {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": 128}
    values |= {"num_hidden_layers": num_layers}
    pipe.transformer = type(pipe.transformer)(type(config)(**values)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in pipe.transformer.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                parameter.normal_(std=0.05, generator=generator)
    return pipe
