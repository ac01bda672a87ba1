# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Calls of the text-to-image pipeline, each version of the project in a process of its own, so that two of them can take
turns in one run.

As a script it is such a process: it reads a model and then one call a line as JSON, and answers each with the seconds
that it took. It uses only what all versions have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import small_model
import torch
from diffusers import VQModel
from models import (
    PIPELINE_VQ_CONFIG,
    PROMPT_LENGTH,
    VOCABULARY,
    build_transformer,
    compile_transformer,
    synchronize,
    vocabulary_names,
)

from lumina_mgpt_diffusers import LuminaMGPTPipeline, LuminaMGPTScheduler, LuminaMGPTTransformer
from lumina_mgpt_diffusers.lumina_mgpt.unirep import ImageVocabulary


# No pixel is decoded.
VQ_CONFIG = {**PIPELINE_VQ_CONFIG, "block_out_channels": [32] * 5, "layers_per_block": 1}


@dataclass(frozen=True)
class ModelOptions:
    """
    Args:
        shape (`str`): One of the `SHAPES`, with random weights.
        folder (`str`, *optional*): The folder of a model that `small_model.py` trained, instead.
        dtype (`str`): Its dtype.
        device (`str`): Where it runs.
        threads (`int`): Threads of torch on a CPU.
        is_compiled (`bool`): Whether it is compiled.
    """

    shape: str
    folder: str | None = None
    dtype: str = "bfloat16"
    device: str = "cpu"
    threads: int = 1
    is_compiled: bool = False

    @property
    def vocabulary(self) -> ImageVocabulary:
        return VOCABULARY if self.folder is None else small_model.VOCABULARY

    @property
    def top_k(self) -> int:
        return 2000 if self.folder is None else 0

    def build(self) -> LuminaMGPTTransformer:
        torch.set_num_threads(self.threads)
        device, dtype = torch.device(self.device), getattr(torch, self.dtype)
        if self.folder is None:
            transformer = build_transformer(self.shape, device, dtype)
        else:
            transformer = small_model.load_small_model(Path(self.folder))[0]
            # `to` would cast the frequencies of the rotary embedding too.
            frequencies = transformer.model.rotary_emb.inv_freq
            transformer = transformer.to(device, dtype)
            transformer.model.rotary_emb.inv_freq = frequencies.to(device)
        if self.is_compiled:
            compile_transformer(transformer)
        return transformer

    def context(self, index: int) -> list[int]:
        """Token ids of one of several prompts."""
        if self.folder is None:
            first = 9000 + index % 1000
            return list(range(first, first + PROMPT_LENGTH))
        photo, zoom = index % len(small_model.PHOTOS), index // len(small_model.PHOTOS) % small_model.ZOOMS
        return small_model.context_ids(photo, zoom)


class PipelineProcess:
    """
    A process that calls the pipeline of a version of the project.

    Args:
        options ([`ModelOptions`]): The model.
        checkout (`Path`, *optional*): Root of a checkout of the version, by default the one that is imported here.
    """

    def __init__(self, options: ModelOptions, checkout: Path | None = None) -> None:
        environment = dict(os.environ)
        if checkout is not None:
            source = checkout.resolve() / "src"
            if not (source / "lumina_mgpt_diffusers").is_dir():
                raise SystemExit(f"{checkout} is no checkout of the project: it has no src/lumina_mgpt_diffusers.")
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(source), environment.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.version = self._ask(asdict(options))

    def seconds(self, size: int, seed: int, **scheduler: int | str) -> float:
        """How long one image takes, of `size` pixels on each side, with values of the scheduler's configuration."""
        return self._ask({"size": size, "seed": seed, "scheduler": scheduler})

    def _ask(self, question: dict) -> float | str:
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("The process of the pipeline ended early; its own message is above.")
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> PipelineProcess:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def answer_calls(questions: IO[str], answers: IO[str]) -> None:
    def answer(value: float | str) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    options = ModelOptions(**json.loads(questions.readline()))
    transformer = options.build()
    # Without a tokenizer the pipeline takes the names of the image tokens from the config.
    transformer.config.vocabulary_map = vocabulary_names(options.vocabulary)
    vqvae = VQModel(**VQ_CONFIG | {"num_vq_embeddings": options.vocabulary.num_codes})
    answer(str(Path(sys.modules[LuminaMGPTPipeline.__module__].__file__).parents[3]))
    for line in questions:
        call = json.loads(line)
        scheduler = LuminaMGPTScheduler(top_k=options.top_k, resolution=call["size"], **call["scheduler"])
        pipe = LuminaMGPTPipeline(None, transformer, vqvae, scheduler)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(call["seed"])
        start = time.perf_counter()
        pipe(prompt_token_ids=torch.tensor([options.context(call["seed"])]), generator=generator, output_type="latent")
        synchronize(transformer.device)
        answer(time.perf_counter() - start)


if __name__ == "__main__":
    # What a library prints is no answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    answer_calls(sys.stdin, answers)
