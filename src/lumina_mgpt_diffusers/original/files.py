# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Finding the files of an originally released checkpoint, in a local folder or a repository on the Hub.

Files are asked for one by one and by name, so that nothing but what is needed is ever downloaded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open


TOKENIZER_REPOSITORY = "Alpha-VLLM/Lumina-mGPT-7B-768"
"""The one released repository that holds the tokenizer; all models of the family share it."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

_REPOSITORIES = "the repositories `Alpha-VLLM/Lumina-mGPT-*` on the Hub"


class FileSource:
    """
    A local folder or a repository on the Hub, from which files are asked for by name.

    Args:
        source (`str` or `os.PathLike`): A folder or a Hub id such as `Alpha-VLLM/Lumina-mGPT-7B-768`.
        argument (`str`): Name of the argument that `source` was passed as, for error messages.
        accepted (`str`): What that argument accepts and where to get it, for error messages.
        hub_kwargs: `cache_dir`, `revision`, `token`, `local_files_only` and `force_download`, as everywhere.

    Raises:
        `ValueError`: If `source` is neither a folder nor can be a Hub id.
    """

    def __init__(self, source: str | os.PathLike, argument: str, accepted: str, **hub_kwargs: Any):
        self.source = os.fspath(source)
        self.argument = argument
        self.accepted = accepted
        self.hub_kwargs = hub_kwargs
        self.folder = Path(self.source) if os.path.isdir(self.source) else None
        self._unreachable: Exception | None = None
        if self.folder is None and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.source):
            raise ValueError(f"`{argument}` is {self.source!r}, which is neither a folder nor a Hub id. {accepted}")

    def find(self, *names: str) -> Path | None:
        """
        Path of the first of the named files that exists, downloaded if need be; None if none does.

        Raises:
            `OSError`: If the repository cannot be read at all (it does not exist, is gated, …).
        """
        for name in names:
            if self.folder is not None:
                if (self.folder / name).is_file():
                    return self.folder / name
                continue
            try:
                return Path(hf_hub_download(self.source, name, **self.hub_kwargs))
            except EntryNotFoundError as error:
                self._unreachable = error if isinstance(error, LocalEntryNotFoundError) else self._unreachable
            except (HFValidationError, OSError) as error:
                raise OSError(
                    f"`{self.argument}` is {self.source!r}, which is no folder here and could not be read from the"
                    f" Hub: {error} {self.accepted}"
                ) from error
        return None

    def require(self, *names: str) -> Path:
        """Like `find`, but a missing file is an `OSError` that says where to get it."""
        path = self.find(*names)
        if path is None:
            raise self.missing(" or ".join(f"`{name}`" for name in names))
        return path

    def missing(self, what: str) -> OSError:
        """The error for something that is not there."""
        place = "the folder" if self.folder is not None else "the repository"
        if self._unreachable is not None:
            place = "the local cache (the Hub was not reached) of the repository"
        error = FileNotFoundError(f"`{self.argument}`: {place} {self.source!r} has no {what}. {self.accepted}")
        error.__cause__ = self._unreachable
        return error

    def find_weights(
        self, subfolder: str = "", stem: str = "model", prefixes: str | tuple[str, ...] = ""
    ) -> list[Path]:
        """
        The safetensors files of a model, in the order of its index; empty if there are none.

        Args:
            subfolder (`str`): Where in the source they lie.
            stem (`str`): `model` for transformers' names, `diffusion_pytorch_model` for diffusers'.
            prefixes (`str` or `tuple[str, ...]`): Only the shards of an index with a tensor whose name starts so.
        """
        folder = f"{subfolder}/" if subfolder else ""
        single = self.find(f"{folder}{stem}.safetensors")
        if single is not None:
            return [single]
        index = self.find(f"{folder}{stem}.safetensors.index.json")
        if index is None:
            return []
        weight_map = read_json(index)["weight_map"]
        names = sorted({shard for tensor, shard in weight_map.items() if tensor.startswith(prefixes)})
        return [self.require(folder + name) for name in names]


@dataclass(frozen=True)
class OriginalCheckpoint:
    """
    The files of an original transformer checkpoint.

    Args:
        config (`dict`): Content of `config.json`.
        weights (`list[Path]`): `model.safetensors` or the shards, in order; empty if they were not asked for.
    """

    config: dict[str, Any]
    weights: list[Path]


def find_checkpoint(
    checkpoint: str | os.PathLike, *, need_weights: bool = True, **hub_kwargs: Any
) -> OriginalCheckpoint:
    """
    Locate the transformer of an original checkpoint.

    Args:
        checkpoint (`str` or `os.PathLike`): A local folder or a Hub id.
        need_weights (`bool`, defaults to `True`): Whether to locate (and download) the weights as well.
        hub_kwargs: `cache_dir`, `revision`, `token`, `local_files_only`, `force_download`.

    Returns:
        [`OriginalCheckpoint`]

    Raises:
        `ValueError` or `OSError`: If `checkpoint` is not such a thing, naming the file that is missing.
    """
    accepted = (
        "An original Lumina-mGPT checkpoint has `config.json` and `model.safetensors`, or"
        f" `model.safetensors.index.json` and its shards, as {_REPOSITORIES} have them."
    )
    files = FileSource(checkpoint, "checkpoint", accepted, **hub_kwargs)
    config = read_json(files.require("config.json"))
    if config.get("model_type") != "chameleon":
        raise ValueError(
            f"`checkpoint` is {files.source!r}, whose `config.json` says `model_type` {config.get('model_type')!r}"
            f" but it has to be 'chameleon'. {accepted}"
        )
    weights = files.find_weights() if need_weights else []
    if need_weights and not weights:
        raise files.missing("`model.safetensors` or `model.safetensors.index.json`")
    return OriginalCheckpoint(config, weights)


def find_tokenizer(
    checkpoint: str | os.PathLike, original_tokenizer: str | os.PathLike | None = None, **hub_kwargs: Any
) -> Path:
    """
    Locate the tokenizer of an original checkpoint: the one asked for, else the checkpoint's own, else the family's.

    Args:
        checkpoint (`str` or `os.PathLike`): A local folder or a Hub id.
        original_tokenizer (`str` or `os.PathLike`, *optional*): Another folder or Hub id to take it from.
        hub_kwargs: As for [`find_checkpoint`]; `revision` is that of `checkpoint`.

    Returns:
        `Path`: The folder that holds `tokenizer.json` and the files beside it.

    Raises:
        `ValueError` or `OSError`: If there is none, saying where to get it.
    """
    accepted = (
        "It takes a folder or a Hub id with `tokenizer.json` and `tokenizer_config.json`; of the released repositories"
        f" only `{TOKENIZER_REPOSITORY}` has them, for all models."
    )
    sources = [original_tokenizer] if original_tokenizer is not None else [checkpoint, TOKENIZER_REPOSITORY]
    for source in sources:
        # A revision is one of the checkpoint's repository; in another repository it means nothing.
        kwargs = hub_kwargs if source is checkpoint else {k: v for k, v in hub_kwargs.items() if k != "revision"}
        files = FileSource(source, "original_tokenizer", accepted, **kwargs)
        found = [files.find(name) for name in TOKENIZER_FILES]
        if found[0] is not None:
            return found[0].parent
    raise files.missing(f"`{TOKENIZER_FILES[0]}`")


def base_size_from_name(name: str | os.PathLike) -> int | None:
    """
    The base size that the name of a released checkpoint states.

    Args:
        name (`str` or `os.PathLike`):
            A Hub id, a folder or a snapshot in the Hub's cache
            (`…/models--Alpha-VLLM--Lumina-mGPT-7B-768/snapshots/<commit>`).

    Returns:
        `int` or None: 512, 768 or 1024; None if the name does not say.

    Example:

    ```py
    >>> base_size_from_name("Alpha-VLLM/Lumina-mGPT-7B-768-Omni")
    768
    ```
    """
    path = Path(os.path.abspath(name))
    repositories = [part for part in path.parts if part.startswith("models--")]
    stated = re.search(r"(?<![A-Za-z0-9])(512|768|1024)(?![A-Za-z0-9])", (repositories or [path.name])[-1])
    return int(stated[1]) if stated else None


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only once it is complete."""
    temporary = Path(f"{os.fspath(path)}.incomplete")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def tensor_names(path: str | os.PathLike) -> list[str]:
    """Names of the tensors in a safetensors file."""
    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())


def read_json(path: str | os.PathLike) -> Any:
    """Content of a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write a JSON file the way transformers and diffusers do, with sorted keys."""
    Path(path).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
