# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The transformer's weights, rewritten one tensor at a time.

The original and the diffusers form of a checkpoint differ in the q- and k-norms only: the original holds one row per
shard of tensor-parallel training, the other one row per head. A checkpoint is far larger than memory may be, so a
[`Shard`] is planned from the header of its source and streamed from file to file.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .files import atomic_file


ResizeNorm = Callable[[str, torch.Tensor], torch.Tensor]

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_NORM = re.compile(r"\.self_attn\.([qk])_norm\.(weight|bias)$")


def expand_norms(config: Mapping[str, Any]) -> ResizeNorm:
    """
    How the norms `(rows, head_dim)` of an original checkpoint become `(num_heads, head_dim)`.

    Args:
        config (`Mapping`): Content of `config.json`.

    Returns:
        `Callable`: Takes the name of a tensor and the tensor, gives the new tensor.
    """

    def expand(name: str, tensor: torch.Tensor) -> torch.Tensor:
        heads, rows = _num_heads(name, config), tensor.shape[0]
        if tensor.ndim != 2 or heads % rows:
            raise ValueError(f"{name!r} is of shape {tuple(tensor.shape)}, which cannot be shared by {heads} heads.")
        return tensor.repeat_interleave(heads // rows, 0)

    return expand


def fold_norms(config: Mapping[str, Any]) -> ResizeNorm:
    """
    How the norms `(num_heads, head_dim)` become `(model_parallel_size, head_dim)`, as original checkpoints hold them.

    Args:
        config (`Mapping`): Content of `config.json`.

    Returns:
        `Callable`: Takes the name of a tensor and the tensor, gives the new tensor. It raises `ValueError` if heads of
        one shard have different norms, as after training with one norm per head.
    """
    rows = config["model_parallel_size"]

    def fold(name: str, tensor: torch.Tensor) -> torch.Tensor:
        heads = _num_heads(name, config)
        if tensor.shape[0] != heads or heads % rows:
            raise ValueError(
                f"{name!r} is of shape {tuple(tensor.shape)}, which cannot be folded to `model_parallel_size` {rows}"
                f" rows of {heads} heads."
            )
        shards = tensor.unflatten(0, (rows, heads // rows))
        if not torch.equal(shards, shards[:, :1].expand_as(shards)):
            layer = re.search(r"layers\.(\d+)", name)[1]
            raise ValueError(
                f"Layer {layer}: the rows of {name!r} differ within one of the {rows} shards, so they cannot be"
                f" written as `model_parallel_size` {rows} rows. Norms trained apart have no original form."
            )
        return shards[:, 0]

    return fold


@dataclass(frozen=True)
class Shard:
    """
    One safetensors file to be written: which tensors of which file it holds, and how they change.

    Args:
        name (`str`): Name of the file.
        source (`Path`): File that the tensors come from.
        header (`dict[str, dict]`): Type, shape and place of each tensor, as the format has it.
        resize_norm (`Callable`): [`expand_norms`] or [`fold_norms`].
    """

    name: str
    source: Path
    header: dict[str, dict[str, Any]]
    resize_norm: ResizeNorm

    @property
    def num_bytes(self) -> int:
        """Size of the tensors together."""
        return max(entry["data_offsets"][1] for entry in self.header.values())

    def write(self, folder: Path) -> None:
        """Write the file, atomically, holding one tensor in memory at a time."""
        with atomic_file(folder / self.name) as file:
            file.write(self._preamble())
            for _, tensor in self._tensors():
                file.write(_as_bytes(tensor).numpy())

    def is_written(self, folder: Path) -> bool:
        """Whether the file is there and holds exactly what `write` would write."""
        path = folder / self.name
        preamble = self._preamble()
        if not path.is_file() or os.path.getsize(path) != len(preamble) + self.num_bytes:
            return False
        with open(path, "rb") as file:
            if file.read(len(preamble)) != preamble:
                return False
        with _open(path) as written:
            return all(
                torch.equal(_as_bytes(written.get_tensor(name)), _as_bytes(tensor)) for name, tensor in self._tensors()
            )

    def _preamble(self) -> bytes:
        text = json.dumps({"__metadata__": {"format": "pt"}, **self.header}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        with _open(self.source) as source:
            for name, entry in self.header.items():
                tensor = source.get_tensor(name)
                if _NORM.search(name):
                    tensor = self.resize_norm(name, tensor)
                yield name, tensor.to(_DTYPES[entry["dtype"]])


def plan_shards(
    weights: list[Path], resize_norm: ResizeNorm, torch_dtype: torch.dtype | None = None
) -> tuple[list[Shard], dict[str, Any] | None]:
    """
    Plan the files that a checkpoint is rewritten to, one for each of its own.

    Args:
        weights (`list[Path]`): The safetensors files, in order.
        resize_norm (`Callable`): [`expand_norms`] or [`fold_norms`].
        torch_dtype (`torch.dtype`, *optional*): Type to cast to; by default each tensor keeps its own.

    Returns:
        `tuple[list[Shard], dict | None]`: The shards, without the weights of the VQ model, and the content of
        `model.safetensors.index.json`; None if there is but one file.
    """
    headers = [(path, _plan_header(path, resize_norm, torch_dtype)) for path in weights]
    headers = [(path, header) for path, header in headers if header]
    if len(headers) == 1:
        return [Shard("model.safetensors", *headers[0], resize_norm)], None
    shards = [
        Shard(f"model-{number:05d}-of-{len(headers):05d}.safetensors", path, header, resize_norm)
        for number, (path, header) in enumerate(headers, start=1)
    ]
    index = {
        "metadata": {"total_size": sum(shard.num_bytes for shard in shards)},
        "weight_map": {name: shard.name for shard in shards for name in shard.header},
    }
    return shards, index


def _plan_header(path: Path, resize_norm: ResizeNorm, torch_dtype: torch.dtype | None) -> dict[str, dict[str, Any]]:
    entries = []
    with _open(path) as source:
        for name in sorted(source.keys()):
            if name.startswith("model.vqmodel."):
                continue
            tensor = source.get_slice(name)
            dtype, shape = tensor.get_dtype(), tensor.get_shape()
            if dtype not in _DTYPES:
                raise ValueError(f"{name!r} in {str(path)!r} is of type {dtype} but has to be one of {[*_DTYPES]}.")
            if _NORM.search(name):
                shape = list(resize_norm(name, source.get_tensor(name)).shape)
            entries.append((name, dtype if torch_dtype is None else _DTYPE_NAMES[torch_dtype], shape))
    header, offset = {}, 0
    # The format wants every tensor aligned to its type: widest types first.
    for name, dtype, shape in sorted(entries, key=lambda entry: -_DTYPES[entry[1]].itemsize):
        end = offset + math.prod(shape) * _DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    return header


def _num_heads(norm_name: str, config: Mapping[str, Any]) -> int:
    is_query = _NORM.search(norm_name)[1] == "q"
    return config["num_attention_heads"] if is_query else config["num_key_value_heads"]


def _open(path: Path) -> safe_open:
    # Pages of a memory map stay in memory until the whole file is closed; bytes that are read go with their tensor.
    return safe_open(path, framework="pt", backend="pread")


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
