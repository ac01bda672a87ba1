# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
A data set as token ids, in a folder that `datasets.load_from_disk` loads.

The samples are cut into blocks by their order alone. Each block becomes one Arrow file, written under another name and
renamed, with a list of what was left out beside it; a block that is there is never made again. So what is killed goes
on with the first block that is missing, several machines take blocks in turn, and the folder is the same whoever made
it. `state.json`, without which the folder does not load, comes last.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import torch
from datasets.arrow_writer import ArrowWriter
from diffusers import VQModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import ChameleonConfig, PreTrainedTokenizerBase

from ..lumina_mgpt.components import stride_of
from ..lumina_mgpt.families import ModelFamily
from ..lumina_mgpt.unirep import ImageVocabulary
from ..lumina_mgpt.vocabulary import family_of, read_vocabulary
from .encoding import EncodingSettings, Prepared, PreparedSamples, Skipped, encode_batch, insert_images
from .samples import SampleSource


SETTINGS_NAME = "settings.json"
SKIPPED_NAME = "skipped.jsonl"
STATE_NAME = "state.json"
UNFINISHED = ".unfinished-"

FEATURES = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        "labels": datasets.List(datasets.Value("int32")),
        "length": datasets.Value("int32"),
        "id": datasets.Value("string"),
    }
)


@dataclass(frozen=True)
class PretokenizationReport:
    """
    What became of the samples.

    Args:
        num_samples (`int`): Samples in the folder so far.
        skipped (`list[Skipped]`): Samples that were left out so far.
        is_complete (`bool`): Whether all shards are done, so that the folder can be loaded.
    """

    num_samples: int
    skipped: list[Skipped]
    is_complete: bool


def pretokenize(
    source: SampleSource,
    output: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase,
    vqvae: VQModel,
    settings: EncodingSettings,
    *,
    family: ModelFamily | None = None,
    config: ChameleonConfig | None = None,
    batch_size: int = 16,
    block_size: int = 1024,
    num_workers: int = 0,
    num_shards: int = 1,
    shard_index: int = 0,
    progress: bool = True,
) -> PretokenizationReport:
    """
    Encode samples.

    Args:
        source ([`SampleSource`]): The samples.
        output (`str` or `os.PathLike`): Folder to write to, or to go on in.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): The tokenizer.
        vqvae ([`VQModel`]): The VQ model, on the device that it runs on.
        settings ([`EncodingSettings`]): What decides the tokens of a sample.
        family ([`ModelFamily`], *optional*): What the names of the tokenizer are; by default it is found out.
        config ([`~transformers.ChameleonConfig`], *optional*):
            Configuration of the transformer, which has the names of the codes if the tokenizer lacks them.
        batch_size (`int`, defaults to 16): Images of one size that are encoded at once.
        block_size (`int`, defaults to 1024): Samples of a file, and what is lost at most when the run is killed.
        num_workers (`int`, defaults to 0): Processes that load and crop images, 0 for none beside this one.
        num_shards (`int`, defaults to 1), shard_index (`int`, defaults to 0):
            Of how many machines that share the folder this is which one.
        progress (`bool`, defaults to `True`): Whether to show a progress bar.

    Returns:
        [`PretokenizationReport`]: The columns of the folder are `input_ids`, `labels`, `length` and `id`.

    Raises:
        `ValueError`: If the folder holds what was made with other settings.
    """
    for name, value in (("batch_size", batch_size), ("block_size", block_size), ("num_shards", num_shards)):
        if value < 1:
            raise ValueError(f"`{name}` has to be at least 1 but is {value}.")
    if not 0 <= shard_index < num_shards:
        raise ValueError(f"`shard_index` has to be from 0 to {num_shards - 1} but is {shard_index}.")
    folder = Path(output)
    family = family or family_of(tokenizer, config)
    num_codes, stride = vqvae.config.num_vq_embeddings, stride_of(vqvae)
    vocabulary = read_vocabulary(tokenizer, num_codes, stride, config, family)
    recorded = {
        "source": source.fingerprint,
        "num_samples": len(source),
        "block_size": block_size,
        "batch_size": batch_size,
        **asdict(settings),
        "tokenizer": _digest(tokenizer.backend_tokenizer.to_str().encode()),
        "vqvae": _digest(*(_bytes_of(tensor) for tensor in vqvae.state_dict().values())),
        "vqvae_dtype": str(vqvae.dtype),
        "start_id": vocabulary.start_id,
        "separator_id": vocabulary.separator_id,
        "pad_id": tokenizer.pad_token_id,
    }
    writer = _AtomicWriter(shard_index)
    _record_settings(folder, recorded, writer)

    num_blocks = -(-len(source) // block_size)
    blocks = [
        _Block(folder, number, num_blocks, range(len(source))[number * block_size : (number + 1) * block_size])
        for number in range(num_blocks)
    ]
    own = blocks[shard_index::num_shards]
    missing = [block for block in own if not block.path.exists()]
    indices = [index for block in missing for index in block.indices]
    total = sum(len(block.indices) for block in own)
    samples = DataLoader(
        PreparedSamples(source, indices, tokenizer, vocabulary, settings, family),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=2 * batch_size if num_workers else None,
        generator=torch.Generator(),  # else the global one is drawn from
    )
    with tqdm(total=total, initial=total - len(indices), unit="sample", disable=not progress, smoothing=0.05) as bar:
        stream = iter(samples)
        for block in missing:
            encoder = _BlockEncoder(vqvae, vocabulary, batch_size, settings.max_length)
            for _ in block.indices:
                encoder.add(next(stream))
                bar.update()
            block.write(*encoder.finish(), writer)
    return _finish(folder, blocks, recorded, writer)


class _BlockEncoder:
    """Collects the samples of a block; encodes images as soon as there is a batch of one size."""

    def __init__(self, vqvae: VQModel, vocabulary: ImageVocabulary, batch_size: int, max_length: int | None) -> None:
        self.vqvae = vqvae
        self.vocabulary = vocabulary
        self.batch_size = batch_size
        self.max_length = max_length
        self.prepared: list[Prepared] = []
        self.skipped: list[Skipped] = []
        self.codes: list[list[torch.LongTensor | None]] = []
        self.waiting: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)

    def add(self, sample: Prepared | Skipped) -> None:
        if isinstance(sample, Skipped):
            self.skipped.append(sample)
            return
        self.prepared.append(sample)
        self.codes.append([None] * len(sample.images))
        for number, image in enumerate(sample.images):
            waiting = self.waiting[image.shape]
            waiting.append((len(self.prepared) - 1, number))
            if len(waiting) == self.batch_size:
                self._encode(waiting)

    def finish(self) -> tuple[Iterator[dict], list[Skipped]]:
        for waiting in self.waiting.values():
            if waiting:
                self._encode(waiting)
        return self._rows(), self.skipped

    def _encode(self, waiting: list[tuple[int, int]]) -> None:
        images = [self.prepared[sample].images[number] for sample, number in waiting]
        for (sample, number), codes in zip(waiting, encode_batch(self.vqvae, images)):
            self.codes[sample][number] = codes
            self.prepared[sample].images[number] = None  # no longer needed
        waiting.clear()

    def _rows(self) -> Iterator[dict]:
        for prepared, codes in zip(self.prepared, self.codes):
            input_ids, labels = insert_images(prepared, codes, self.vocabulary, self.max_length)
            yield {"input_ids": input_ids, "labels": labels, "length": len(input_ids), "id": prepared.id}


@dataclass(frozen=True)
class _Block:
    folder: Path
    number: int
    num_blocks: int
    indices: range

    @property
    def path(self) -> Path:
        return self.folder / f"data-{self.number:05d}-of-{self.num_blocks:05d}.arrow"

    @property
    def skipped_path(self) -> Path:
        return self.path.with_suffix(".skipped.jsonl")

    def write(self, rows: Iterator[dict], skipped: list[Skipped], writer: _AtomicWriter) -> None:
        writer.write_lines(self.skipped_path, skipped)
        with writer.open(self.path) as unfinished:
            arrow = ArrowWriter(path=str(unfinished), features=FEATURES)
            for row in rows:
                arrow.write(row)
            arrow.finalize()
            arrow.close()

    def skipped(self) -> list[Skipped]:
        return [Skipped(**json.loads(line)) for line in self.skipped_path.read_text().splitlines()]

    def num_rows(self) -> int:
        return len(datasets.Dataset.from_file(str(self.path)))


@dataclass(frozen=True)
class _AtomicWriter:
    """Writes files under another name, of this shard alone, and renames them."""

    shard_index: int

    @contextmanager
    def open(self, path: Path) -> Iterator[Path]:
        unfinished = path.with_name(f"{path.name}{UNFINISHED}{self.shard_index}")
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)

    def write_text(self, path: Path, text: str) -> None:
        with self.open(path) as unfinished:
            unfinished.write_text(text)

    def write_lines(self, path: Path, skipped: list[Skipped]) -> None:
        self.write_text(path, "".join(f"{json.dumps(asdict(one))}\n" for one in skipped))


def _record_settings(folder: Path, settings: dict, writer: _AtomicWriter) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS_NAME
    if not path.exists():
        others = sorted(child.name for child in folder.iterdir() if UNFINISHED not in child.name)
        if others:
            raise ValueError(f"`output` is {str(folder)!r}, which holds other files, such as {others[0]!r}.")
        writer.write_text(path, json.dumps(settings, indent=2) + "\n")
    before = json.loads(path.read_text())
    for name in sorted({*before, *settings}):
        if before.get(name) != settings.get(name):
            raise ValueError(
                f"`output` is {str(folder)!r}, which was begun with `{name}` {before.get(name)!r}, not"
                f" {settings.get(name)!r}. Choose another folder, or delete this one to begin anew."
            )


def _finish(folder: Path, blocks: list[_Block], settings: dict, writer: _AtomicWriter) -> PretokenizationReport:
    done = [block for block in blocks if block.path.exists()]
    skipped = [one for block in done for one in block.skipped()]
    num_samples = sum(block.num_rows() for block in done)
    is_complete = len(done) == len(blocks)
    if is_complete and not (folder / STATE_NAME).exists():
        if not num_samples:
            raise ValueError(f"All {len(skipped)} samples were left out. {skipped[0].id}: {skipped[0].reason}.")
        writer.write_lines(folder / SKIPPED_NAME, skipped)
        datasets.DatasetInfo(features=FEATURES).write_to_directory(str(folder))
        state = {
            "_data_files": [{"filename": block.path.name} for block in blocks],
            "_fingerprint": _digest(json.dumps(settings, sort_keys=True).encode())[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        writer.write_text(folder / STATE_NAME, json.dumps(state, indent=2))
    return PretokenizationReport(num_samples, skipped, is_complete)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
