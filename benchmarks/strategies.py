# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The strategies that are compared. Each is a function that samples one image (or several) and returns its codes.

All sample by the same rule: guidance, the token grammar, top-k, temperature. `original` draws with a multinomial as
the original code does; the others add the same noise, so that in float32 they give the same codes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from models import VOCABULARY
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StaticCache
from transformers.cache_utils import DynamicCache
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper
from transformers.modeling_outputs import CausalLMOutputWithPast

from lumina_mgpt_diffusers import LuminaMGPTScheduler, LuminaMGPTTransformer
from lumina_mgpt_diffusers.lumina_mgpt.drafts import Drafts
from lumina_mgpt_diffusers.lumina_mgpt.engine import Engine, is_compiled
from lumina_mgpt_diffusers.lumina_mgpt.kv_cache import SlotCache
from lumina_mgpt_diffusers.lumina_mgpt.noise import draw_key, gumbel_noise
from lumina_mgpt_diffusers.lumina_mgpt.request import Grammar, Request
from lumina_mgpt_diffusers.lumina_mgpt.unirep import ImageVocabulary


@dataclass
class Task:
    """
    What to sample: `batch_size` images of `rows x columns` codes after a prompt of `context` tokens.

    The first `num_given_rows` rows of codes are given, so that a run can begin in the middle of an image. With
    `max_steps` only the first so many steps are made, enough to time one.
    """

    transformer: LuminaMGPTTransformer
    device: torch.device
    context: list[int]
    rows: int
    columns: int
    guidance_scale: float = 4.0
    temperature: float = 1.0
    top_k: int = 2000
    batch_size: int = 1
    seed: int = 0
    num_given_rows: int = 0
    max_steps: int | None = None
    vocabulary: ImageVocabulary = VOCABULARY
    on_step: Callable[[], None] = field(default=lambda: None)
    on_end: Callable[[TimedTransformer], None] = field(default=lambda transformer: None)
    """Gets the transformer of this project's engine, as it was called."""
    kept_caches: list[SlotCache] = field(default_factory=list)
    """The cache of the last compiled run, which CUDA graphs were recorded with. The same list in all copies."""

    @property
    def num_codes(self) -> int:
        """Codes to sample for each image."""
        return (self.rows - self.num_given_rows) * self.columns

    @property
    def num_given(self) -> int:
        return self.num_given_rows * self.columns

    @property
    def num_tokens(self) -> int:
        """Tokens to generate one by one: the codes and the row ends between them."""
        return (self.rows - self.num_given_rows) * (self.columns + 1) - 1

    @property
    def image_start(self) -> list[int]:
        """Token ids of the image up to the first code to sample."""
        prefix = self.vocabulary.prefix(*(self.vocabulary.patch_size * side for side in (self.rows, self.columns)))
        given = self.latents()[0, : self.num_given_rows]
        ids = torch.nn.functional.pad(self.vocabulary.code_ids[given], (0, 1), value=self.vocabulary.row_end_id)
        return [*prefix, *ids.flatten().tolist()]

    def latents(self) -> torch.LongTensor:
        """The codes to start from, `(batch_size, rows, columns)`, -1 where one is to be sampled."""
        codes = torch.full((self.batch_size, self.rows, self.columns), -1)
        generator = torch.Generator().manual_seed(0)
        shape = (self.num_given_rows, self.columns)
        codes[:, : self.num_given_rows] = torch.randint(self.vocabulary.num_codes, shape, generator=generator)
        return codes

    def requests(self, scheduler: LuminaMGPTScheduler) -> list[Request]:
        """What this project's engine is asked for."""
        settings = scheduler.settings(
            guidance_scale=self.guidance_scale, temperature=self.temperature, top_k=self.top_k
        )
        return [
            Request(
                context=self.context,
                settings=settings,
                key=self.key(index),
                size=(self.vocabulary.patch_size * self.rows, self.vocabulary.patch_size * self.columns),
                is_image=True,
                codes=codes,
            )
            for index, codes in enumerate(self.latents())
        ]

    def key(self, index: int = 0) -> int:
        """The key of the noise of an image."""
        return draw_key(torch.Generator().manual_seed(self.seed + index))

    def noise(self) -> torch.Tensor:
        """The noise of the codes of the first image that are to be sampled, as the engine counts its places."""
        places = torch.arange(self.rows)[:, None] * (self.columns + 1) + torch.arange(self.columns)
        places = places.flatten()[-self.num_codes :].to(self.device) + len(self.vocabulary.prefix(32, 32))
        return gumbel_noise(torch.full_like(places, self.key()), places, self.vocabulary.num_codes)

    def codes(self, token_ids: torch.Tensor) -> torch.Tensor | None:
        """Codes `(1, rows, columns)` of an image whose generated token ids these are, None if it is not whole."""
        if len(token_ids) < self.num_tokens:
            return None
        grid = torch.cat([token_ids, token_ids.new_zeros(1)]).view(-1, self.columns + 1)[:, :-1].cpu()
        codes = self.latents()[:1]
        codes[0, self.num_given_rows :] = grid - self.vocabulary.code_ids[0]
        return codes


def full_mask(allowed: torch.Tensor, task: Task) -> torch.Tensor:
    mask = torch.full((task.transformer.config.vocab_size,), -torch.inf, device=task.device)
    mask[allowed.to(task.device)] = 0.0
    return mask


class ImageGrammar(LogitsProcessor):
    """Leaves only codes, or at the end of a row only the row end, over the full vocabulary."""

    def __init__(self, task: Task, prompt_length: int) -> None:
        self.prompt_length = prompt_length
        self.columns = task.columns
        self.codes = full_mask(task.vocabulary.code_ids, task)
        self.row_end = full_mask(torch.tensor([task.vocabulary.row_end_id]), task)

    def is_row_end(self, input_ids: torch.Tensor) -> bool:
        return (input_ids.shape[1] - self.prompt_length + 1) % (self.columns + 1) == 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + (self.row_end if self.is_row_end(input_ids) else self.codes)


class SecondForwardGuidance(LogitsProcessor):
    """Runs the unconditional branch by itself, with a growing cache of its own."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.start = len(task.context)
        self.cache = DynamicCache()
        self.fed = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ids = input_ids[:, self.start + self.fed :]
        self.fed += ids.shape[1]
        # The growing mask of ones is what `generate` passes too; without, a cached forward builds the same mask.
        output = self.task.transformer(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        unconditional = output.logits[:, -1].float()
        return unconditional + self.task.guidance_scale * (scores - unconditional)


class StepHook(LogitsProcessor):
    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.task.on_step()
        return scores


def generation_config(task: Task, **kwargs) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=min(task.num_tokens, task.max_steps or task.num_tokens),
        eos_token_id=task.vocabulary.separator_id,
        pad_token_id=1,
        # 0 is "all": None would mean transformers' default of 50.
        **{"top_k": 0} if kwargs["do_sample"] else {},
        **kwargs,
    )


def original(task: Task) -> torch.Tensor:
    """Two forwards per token, each with its growing cache; processors and a multinomial over the full vocabulary."""
    ids = torch.tensor([task.context + task.image_start], device=task.device)
    processors = LogitsProcessorList([ImageGrammar(task, ids.shape[1])])
    if task.guidance_scale != 1.0:
        processors.insert(0, SecondForwardGuidance(task))
    if task.top_k:
        processors.append(TopKLogitsWarper(task.top_k))
    if task.temperature not in (0, 1.0):
        processors.append(TemperatureLogitsWarper(task.temperature))
    processors.append(StepHook(task))
    torch.manual_seed(task.seed)
    output = task.transformer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=generation_config(task, do_sample=task.temperature != 0 and task.top_k != 1),
        logits_processor=processors,
    )
    return task.codes(output[0, ids.shape[1] :])


class PairedGuidance(LogitsProcessor):
    """Combines the two branches that share a batch and gives both the same scores."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        conditional, unconditional = scores.chunk(2)
        guided = unconditional + self.task.guidance_scale * (conditional - unconditional)
        return guided.repeat(2, 1)


class AddNoise(LogitsProcessor):
    def __init__(self, task: Task, grammar: ImageGrammar) -> None:
        self.task = task
        self.grammar = grammar
        self.noise = task.noise()
        self.index = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.grammar.is_row_end(input_ids):
            return scores
        first = self.task.vocabulary.code_ids[0].item()
        scores = scores / self.task.temperature
        scores[:, first : first + self.task.vocabulary.num_codes] += self.noise[self.index]
        self.index += 1
        return scores


def transformers_generate(task: Task, static: bool = False) -> torch.Tensor:
    """transformers' `generate` with the branches in one batch; optionally with its static cache and compilation."""
    rows = [task.context + task.image_start]
    if task.guidance_scale != 1.0:
        rows.append([1] * len(task.context) + task.image_start)
    ids = torch.tensor(rows, device=task.device)
    mask = torch.ones_like(ids)
    mask[1:, : len(task.context)] = 0
    grammar = ImageGrammar(task, ids.shape[1])
    processors = LogitsProcessorList([PairedGuidance(task)] if len(rows) == 2 else [])
    processors.append(grammar)
    if task.top_k:
        processors.append(TopKLogitsWarper(task.top_k))
    if task.temperature != 0 and task.top_k != 1:
        processors.append(AddNoise(task, grammar))
    processors.append(StepHook(task))
    kwargs = {}
    if static:
        length = ids.shape[1] + task.num_tokens + 1
        kwargs["past_key_values"] = StaticCache(config=task.transformer.config, max_cache_len=length)
    output = task.transformer.generate(
        ids,
        attention_mask=mask,
        generation_config=generation_config(task, do_sample=False),
        logits_processor=processors,
        **kwargs,
    )
    return task.codes(output[0, ids.shape[1] :])


class TimedTransformer:
    """A transformer that remembers how long its calls took the host, and what they were since it was last told to."""

    def __init__(self, transformer: LuminaMGPTTransformer) -> None:
        self.transformer = transformer
        self.calls: list[dict] = []
        self.seconds = 0.0

    def __getattr__(self, name: str) -> object:
        # What the engine reads, and `_call_impl`, by which it feeds prompts: they are not counted.
        return getattr(self.transformer, name)

    def __call__(self, **kwargs) -> CausalLMOutputWithPast:
        self.calls.append(kwargs)
        start = time.perf_counter()
        output = self.transformer(**kwargs)
        self.seconds += time.perf_counter() - start
        return output

    def repeat(self) -> None:
        for call in self.calls:
            # The cache still holds these positions: as an input of its own they need no other compiled code.
            self.transformer(**{**call, "position_ids": call["position_ids"].clone()})


@torch.no_grad()
def ours(
    task: Task,
    num_draft_tokens: int | str = 0,
    draft_init: str = "logits",
    batch_invariant: bool | None = None,
    samples_eagerly: bool = False,
) -> torch.Tensor:
    """
    This project's engine. Codes that are not sampled before `max_steps` are -1. On a GPU, beside a compiled
    transformer, it compiles what it does itself unless it `samples_eagerly`.
    """
    scheduler = LuminaMGPTScheduler(
        num_draft_tokens=num_draft_tokens, draft_init=draft_init, batch_invariant=batch_invariant
    )
    transformer = TimedTransformer(task.transformer)
    base_size = task.vocabulary.patch_size * max(task.rows, task.columns)
    engine = Engine(transformer, scheduler, Grammar(task.vocabulary, base_size), task.device)
    if samples_eagerly:
        engine._guess, engine._sample = Drafts.guess, Engine._commit_codes
    if task.kept_caches:
        engine.cache = task.kept_caches.pop()
    rows = [engine.submit(request) for request in task.requests(scheduler)]
    steps = 0
    while not engine.is_idle and steps != task.max_steps:
        transformer.calls.clear()
        if steps == 1:
            # The prompts are fed in the first step, which is not counted.
            transformer.seconds = 0.0
        engine.step()
        task.on_step()
        steps += 1
    codes = torch.stack([engine.codes(row).cpu() for row in rows])
    if is_compiled(task.transformer):
        task.kept_caches.append(engine.cache)
    task.on_end(transformer)
    return codes
