# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
A batch job: a folder with many prompts, and an image and a line of metadata for each.

The job is written down first: `job.json` with its settings, and `prompts.parquet` with its rows. From then on it can
be run by anything, be killed and run again: the seed of a row follows from the job's seed and the row's id, so that
whoever samples the row writes the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..lumina_mgpt.validation import check_integer, shown
from ..png import describe, png_info
from .host import EngineHost
from .job import Job, RowError


SETTINGS = {
    "negative_prompt": pa.string(),
    "height": pa.int64(),
    "width": pa.int64(),
    "guidance_scale": pa.float64(),
    "temperature": pa.float64(),
    "top_k": pa.int64(),
    "top_p": pa.float64(),
    "min_p": pa.float64(),
}
"""Columns that prompts may have beside `id` and `prompt`."""

PROMPTS = pa.schema([("id", pa.string()), ("prompt", pa.string()), *SETTINGS.items()])

METADATA = pa.schema(
    [
        *PROMPTS,
        ("seed", pa.int64()),
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("error", pa.string()),
    ]
)

# Rows that are written at once.
CHUNK = 10_000

SEED_BITS = 48


@dataclass(frozen=True)
class BatchJob:
    """
    A job and where it is.

    Args:
        folder (`str`): Its folder: on a cluster one that all machines see.
        seed (`int`): Its seed.
        model (`str`): Name of the model, for the metadata.
        settings (`dict`): Settings for the rows that have none of their own.
        num_rows (`int`): Number of prompts.
    """

    folder: str
    seed: int
    model: str
    settings: dict[str, Any]
    num_rows: int

    @property
    def prompts(self) -> Path:
        return Path(self.folder) / "prompts.parquet"

    @property
    def metadata(self) -> Path:
        """Folder of parquet files with a row for each prompt that is done."""
        return Path(self.folder) / "metadata"

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike,
        rows: Iterable[Mapping[str, Any]],
        seed: int = 0,
        model: str = "lumina-mgpt",
        settings: Mapping[str, Any] | None = None,
    ) -> BatchJob:
        """
        Write a job down, or go on with the one that is in the folder.

        Args:
            folder (`str` or `os.PathLike`): The folder.
            rows (`Iterable[Mapping]`): Prompts: `prompt`, and an `id` or else their number, and any of [`SETTINGS`].
                They are not read if the folder has a job.
            seed (`int`, defaults to 0): The job's seed.
            model (`str`): Name of the model.
            settings (`Mapping`, *optional*): Settings for rows that have none of their own.

        Raises:
            `ValueError`: If the folder has a job with another seed, model or settings, or a row is not what it should
                be.
        """
        folder, given = (
            Path(folder).absolute(),
            {name: value for name, value in (settings or {}).items() if value is not None},
        )
        own = {"seed": check_integer("seed", seed, least=0), "model": model, "settings": given}
        if (folder / "job.json").is_file():
            job = cls.open(folder)
            before = {name: value for name, value in asdict(job).items() if name in own}
            if before != own:
                raise ValueError(f"`folder` has a job with {before} already, but this one is with {own}.")
            return job
        folder.mkdir(parents=True, exist_ok=True)
        num_rows = _write_prompts(folder / "prompts.parquet", rows)
        # As a whole: other processes may be waiting for it.
        written = json.dumps({**own, "num_rows": num_rows}, indent=2, sort_keys=True)
        _write(folder / "job.json", f"{written}\n".encode())
        return cls(str(folder), num_rows=num_rows, **own)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> BatchJob:
        """The job of a folder."""
        folder = Path(folder).absolute()
        return cls(str(folder), **json.loads((folder / "job.json").read_text(encoding="utf-8")))

    def seed_of(self, id: str) -> int:
        """The seed of a row."""
        digest = hashlib.sha256(f"{self.seed}\n{id}".encode()).digest()
        return int.from_bytes(digest, "big") >> (256 - SEED_BITS)

    def path_of(self, id: str) -> Path:
        """Where the image of a row is, in the folder."""
        name = hashlib.sha256(id.encode()).hexdigest()[:32]
        return Path("images") / name[:2] / f"{name}.png"

    def rows(self, shard: int = 0, num_shards: int = 1) -> Iterator[dict[str, Any]]:
        """The rows, or every so many of them from one on. What they leave open is None."""
        number = 0
        for batch in pq.ParquetFile(self.prompts).iter_batches(CHUNK):
            for row in batch.to_pylist():
                if number % num_shards == shard:
                    yield row
                number += 1

    def done(self) -> list[str]:
        """The ids of the rows that are done."""
        files = sorted(self.metadata.glob("*.parquet"))
        return [id for file in files for id in pq.read_table(file, columns=["id"])["id"].to_pylist()]

    def errors(self) -> Iterator[tuple[str, str]]:
        """The ids of the rows that are done without an image, and why."""
        for file in sorted(self.metadata.glob("*.parquet")):
            for row in pq.read_table(file, columns=["id", "error"]).to_pylist():
                if row["error"] is not None:
                    yield row["id"], row["error"]

    def check_complete(self) -> int:
        """Number of rows that are done. Raises a `RuntimeError` unless each is there once."""
        ids = self.done()
        missing, twice = self.num_rows - len(set(ids)), len(ids) - len(set(ids))
        if missing or twice:
            raise RuntimeError(f"Of {self.num_rows} rows {missing} are missing, and {twice} are there twice.")
        return len(ids)

    def start(self, host: EngineHost, row: Mapping[str, Any]) -> Job:
        """Have a host sample a row."""
        own = {name: row[name] for name in SETTINGS if row.get(name) is not None}
        generator = torch.Generator().manual_seed(self.seed_of(row["id"]))
        return host.start("text_to_image", prompt=row["prompt"], generator=generator, **{**self.settings, **own})

    def finish(self, host: EngineHost, row: Mapping[str, Any], job: Job) -> dict[str, Any]:
        """Wait for the image of a row and save it. Gives its metadata, in which an error of the row's own stands."""
        own = {name: row[name] for name in SETTINGS if row.get(name) is not None}
        done = {**dict.fromkeys(METADATA.names), **row, **self.settings, **own, "seed": self.seed_of(row["id"])}
        try:
            (codes,) = job.codes()
        except (ValueError, RowError) as error:
            return {**done, "error": str(error)}
        image = host.decode(codes).result()
        done |= {"height": image.height, "width": image.width}
        told = {name: value for name, value in done.items() if value is not None}
        data = _to_png(image, {"model": self.model, **told, **describe(host.pipe)})
        path = self.path_of(row["id"])
        _write(Path(self.folder) / path, data)
        return {**done, "path": path.as_posix(), "sha256": hashlib.sha256(data).hexdigest()}

    def sample(self, host: EngineHost, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Sample rows, all at once as far as the host has room, and give their metadata."""
        jobs = [self.start(host, row) for row in rows]
        return [self.finish(host, row, job) for row, job in zip(rows, jobs)]

    def write_part(self, name: str, done: Sequence[Mapping[str, Any]]) -> None:
        """Write metadata of rows down, by which they are done."""
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(done), METADATA), file)
        _write(self.metadata / f"{name}.parquet", file.getvalue())


def _write_prompts(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    partial = path.with_name(path.name + ".partial")
    ids: set[str] = set()
    chunk: list[dict[str, Any]] = []
    with pq.ParquetWriter(partial, PROMPTS) as writer:
        for index, row in enumerate(rows):
            chunk.append(_read_row(index, row))
            if chunk[-1]["id"] in ids:
                raise ValueError(
                    f"`id` has to be another one in every row, but {shown(chunk[-1]['id'])} is there twice."
                )
            ids.add(chunk[-1]["id"])
            if len(chunk) == CHUNK:
                writer.write_table(_as_table(chunk))
                chunk = []
        writer.write_table(_as_table(chunk))
    if not ids:
        raise ValueError("There are no prompts.")
    os.replace(partial, path)
    return len(ids)


def _read_row(index: int, row: Mapping[str, Any]) -> dict[str, Any]:
    prompt, id = row.get("prompt"), row.get("id")
    if not isinstance(prompt, str):
        raise ValueError(f"`prompt` has to be a string in every row, but in row {index} it is {shown(prompt)}.")
    settings = {name: row.get(name) for name in SETTINGS}
    return {"id": str(index if id is None else id), "prompt": prompt, **settings}


def _as_table(rows: list[dict[str, Any]]) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, PROMPTS)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"Settings of prompts have to be numbers, and texts texts: {error}") from error


def _to_png(image: PIL.Image.Image, settings: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=png_info(settings))
    return file.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Write a file as a whole, whoever else writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    partial.write_bytes(data)
    os.replace(partial, path)


def load_prompts(
    source: str, split: str = "train", prompt_column: str = "prompt", id_column: str = "id"
) -> Iterator[dict[str, Any]]:
    """
    Rows of prompts from a file, a folder or the Hub. It needs the package `datasets`.

    Args:
        source (`str`): A file (`.parquet`, `.jsonl`, `.json`, `.csv`, or `.txt` with a prompt on each line), or the
            id of a dataset or a folder with its files.
        split (`str`, defaults to `"train"`): Which split of a dataset.
        prompt_column (`str`, defaults to `"prompt"`), id_column (`str`, defaults to `"id"`): Names of the columns.
    """
    import datasets

    kinds = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text"}
    kind = kinds.get(Path(source).suffix)
    if kind is not None:
        if not Path(source).is_file():
            raise ValueError(f"There is no file {source!r}.")
        rows = datasets.load_dataset(kind, data_files=source, split="train", streaming=True)
        prompt_column = "text" if kind == "text" else prompt_column
    else:
        rows = datasets.load_dataset(source, split=split, streaming=True)
    for row in rows:
        if prompt_column not in row:
            raise ValueError(f"{source!r} has no column {prompt_column!r} but {list(row)}.")
        yield {**row, "prompt": row[prompt_column], "id": row.get(id_column)}
