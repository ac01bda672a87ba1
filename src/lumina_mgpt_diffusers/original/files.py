# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Finding the files of an originally released checkpoint, in a local folder or a repository on the Hub.

Files are asked for one by one and by name, so that nothing but what is needed is ever downloaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, model_info, try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError, safe_open

from ..files import read_json
from ..lumina_mgpt.families import ModelFamily, families


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BPE_FILES = ("vocab.json", "merges.txt", "added_tokens.json")


class FileSource:
    """
    A local folder or a repository on the Hub, from which files are asked for by name.

    A repository is listed once. Where the Hub cannot be reached it is what the Hub's cache has of it.

    Args:
        source (`str` or `os.PathLike`): A folder or a Hub id such as `Alpha-VLLM/Lumina-mGPT-7B-768`.
        argument (`str`): Name of the argument that `source` was passed as, for error messages.
        accepted (`str`): What that argument accepts and where to get it, for error messages.
        cache_dir, revision, token, local_files_only, force_download (*optional*): As everywhere for the Hub.

    Raises:
        `ValueError`: If `source` is neither a folder nor can be a Hub id.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        argument: str,
        accepted: str,
        *,
        cache_dir: str | os.PathLike | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> None:
        self.source = os.fspath(source)
        self.argument = argument
        self.accepted = accepted
        self._hub_kwargs = {"cache_dir": cache_dir, "revision": revision, "token": token}
        self._force_download = force_download
        self._place = "the folder"
        self._unread: Exception | None = None
        if os.path.isdir(self.source):
            return
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.source):
            raise ValueError(f"`{argument}` is {self.source!r}, which is neither a folder nor a Hub id. {accepted}")
        self._place = "the repository"
        try:
            if local_files_only:
                raise ConnectionError("`local_files_only` is set.")
            siblings = model_info(self.source, revision=revision, token=token, timeout=10).siblings
            self._names = {file.rfilename for file in siblings or []}
        except (HTTPError, OSError) as error:
            self._unread = error
            self._place = f"there is no such folder, the Hub was not read ({error}), and its local cache of"

    def find(self, *names: str) -> Path | None:
        """Path of the first of the named files that exists, downloaded if need be; None if none does."""
        return next((path for path in map(self._find_one, names) if path is not None), None)

    def _find_one(self, name: str) -> Path | None:
        if self._place == "the folder":
            path = Path(self.source, name)
            return path if path.is_file() else None
        if self._unread is not None:
            path = try_to_load_from_cache(
                self.source, name, self._hub_kwargs["cache_dir"], self._hub_kwargs["revision"]
            )
            return Path(path) if isinstance(path, str) else None
        if name not in self._names:
            return None
        return Path(hf_hub_download(self.source, name, force_download=self._force_download, **self._hub_kwargs))

    def require(self, *names: str) -> Path:
        """Like `find`, but a missing file is an `OSError` that says where to get it."""
        path = self.find(*names)
        if path is None:
            raise self.missing(" or ".join(f"`{name}`" for name in names))
        return path

    def missing(self, what: str) -> OSError:
        """The error for something that is not there."""
        error = FileNotFoundError(f"`{self.argument}`: {self._place} {self.source!r} has no {what}. {self.accepted}")
        error.__cause__ = self._unread
        return error

    def find_weights(
        self, subfolder: str = "", stem: str = "model", prefixes: str | tuple[str, ...] = ""
    ) -> list[Path]:
        """
        The safetensors files of a model, in the order of its index; empty if there are none.

        Args:
            subfolder (`str`): Where in the source they lie, with a slash at the end.
            stem (`str`): `model` for transformers' names, `diffusion_pytorch_model` for diffusers'.
            prefixes (`str` or `tuple[str, ...]`): Only the shards of an index with a tensor whose name starts so.
        """
        single = self.find(f"{subfolder}{stem}.safetensors")
        if single is not None:
            return [single]
        index = self.find(f"{subfolder}{stem}.safetensors.index.json")
        if index is None:
            return []
        names = sorted({shard for tensor, shard in read_weight_map(index).items() if tensor.startswith(prefixes)})
        return [self.require(subfolder + name) for name in names]


def read_weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index of weights has it. Raises a `ValueError` if it is malformed."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) and re.fullmatch(r"[\w.-]+", shard) for shard in weight_map.values()
    ):
        raise ValueError(f"`weight_map` in {str(index)!r} has to give the name of a file for each tensor.")
    return weight_map


def find_checkpoint(
    checkpoint: str | os.PathLike, *, need_weights: bool = True, **hub_kwargs: Any
) -> tuple[dict[str, Any], list[Path]]:
    """
    Locate the transformer of an original checkpoint.

    Args:
        checkpoint (`str` or `os.PathLike`): A local folder or a Hub id.
        need_weights (`bool`, defaults to `True`): Whether to locate (and download) the weights as well.
        hub_kwargs: `cache_dir`, `revision`, `token`, `local_files_only`, `force_download`.

    Returns:
        `tuple[dict, list[Path]]`: The content of `config.json`, and the files of the weights, shard by shard.

    Raises:
        `ValueError` or `OSError`: If `checkpoint` is not such a thing, naming the file that is missing.
    """
    accepted = (
        "An original Lumina-mGPT checkpoint has `config.json` and `model.safetensors`, or"
        " `model.safetensors.index.json` and its shards, as the repositories `Alpha-VLLM/Lumina-mGPT-*` on the Hub"
        " have them."
    )
    files = FileSource(checkpoint, "checkpoint", accepted, **hub_kwargs)
    path = files.require("config.json")
    config = read_json(path)
    if config.get("model_type") != "chameleon":
        raise ValueError(
            f"`model_type` in {str(path)!r} has to be 'chameleon' but is {config.get('model_type')!r}. {accepted}"
        )
    weights = files.find_weights() if need_weights else []
    if need_weights and not weights:
        raise files.missing("`model.safetensors` or `model.safetensors.index.json`")
    return config, weights


def find_tokenizer(
    checkpoint: str | os.PathLike,
    family: ModelFamily,
    original_tokenizer: str | os.PathLike | None = None,
    **hub_kwargs: Any,
) -> Path:
    """
    Locate the tokenizer of an original checkpoint: the one asked for, else the checkpoint's own, else the family's.

    Args:
        checkpoint (`str` or `os.PathLike`): A local folder or a Hub id.
        family ([`ModelFamily`]): The family of the checkpoint.
        original_tokenizer (`str` or `os.PathLike`, *optional*): Another folder or Hub id to take it from.
        hub_kwargs: As for [`find_checkpoint`]; `revision` is that of `checkpoint`.

    Returns:
        `Path`: The folder that holds `tokenizer.json`, or else `vocab.json` and `merges.txt`, and the files beside it.

    Raises:
        `ValueError` or `OSError`: If there is none, saying where to get it.
    """
    accepted = (
        "It takes a folder or a Hub id with `tokenizer.json`, or `vocab.json` and `merges.txt`, and"
        " `tokenizer_config.json`."
    )
    if family.tokenizer_repository is not None:
        accepted += f" The released ones of {family.title} are in the repository `{family.tokenizer_repository}`."
    sources = [checkpoint, family.tokenizer_repository] if original_tokenizer is None else [original_tokenizer]
    for source in filter(None, sources):
        files = FileSource(
            source, "original_tokenizer", accepted, **(hub_kwargs if source is checkpoint else elsewhere(hub_kwargs))
        )
        found = [files.find(name) for name in TOKENIZER_FILES]
        if found[0] is not None:
            return found[0].parent
        found = [files.find(name) for name in BPE_FILES]
        if None not in found[:2]:
            return found[0].parent
    raise files.missing(f"`{TOKENIZER_FILES[0]}`")


def elsewhere(hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments for another repository, in which a revision of the checkpoint's means nothing."""
    return {name: value for name, value in hub_kwargs.items() if name != "revision"}


def base_size_from_name(name: str | os.PathLike) -> int | None:
    """
    The base size that the name of a released checkpoint states.

    Args:
        name (`str` or `os.PathLike`):
            A Hub id, a folder or a snapshot in the Hub's cache
            (`…/models--Alpha-VLLM--Lumina-mGPT-7B-768/snapshots/<commit>`).

    Returns:
        `int` or None: In pixels; None if no family has released such a name.

    Example:

    ```py
    >>> base_size_from_name("Alpha-VLLM/Lumina-mGPT-7B-768-Omni")
    768
    ```
    """
    stated = (family.base_size_of(own_name(name)) for family in families().values())
    return next((base_size for base_size in stated if base_size is not None), None)


def own_name(checkpoint: str | os.PathLike) -> str:
    """The name of a checkpoint by itself: of a Hub id, a folder or a snapshot in the Hub's cache."""
    path = Path(os.path.abspath(checkpoint))
    repositories = [part for part in path.parts if part.startswith("models--")]
    return (repositories or [path.name])[-1].rpartition("--")[2]


@contextmanager
def open_weights(path: Path) -> Iterator[safe_open]:
    """Open a safetensors file. A damaged one is a `ValueError` that names it."""
    try:
        # Pages of a memory map stay in memory until the file is closed; bytes that are read go with their tensor.
        with safe_open(path, framework="pt", backend="pread") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} cannot be read as safetensors: {error}") from error
