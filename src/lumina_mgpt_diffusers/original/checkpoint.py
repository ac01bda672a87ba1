# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The transformer's weights, rewritten one shard at a time.

The original and the diffusers form of a checkpoint differ in the q- and k-norms only: the original holds one row per
shard of tensor-parallel training, the other one row per head.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from ..lumina_mgpt.weight_checks import check_finite, check_shapes
from .files import open_weights


_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_NORM = re.compile(r"\.self_attn\.([qk])_norm\.(weight|bias)$")

_LAYER = re.compile(r"^model\.layers\.(\d+)\.")

VQ_PREFIX = "model.vqmodel."


def resize_norm(name: str, tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """
    Give a q- or k-norm another number of rows.

    Args:
        name (`str`): Name of the tensor, for the error message.
        tensor (`torch.Tensor` of shape `(old_rows, head_dim)`): The norm.
        rows (`int`): Rows that are wanted: as many as heads, or as shards of the original training.

    Returns:
        `torch.Tensor` of shape `(rows, head_dim)`.

    Raises:
        `ValueError`: If the rows cannot be shared out evenly, or if rows to be made one differ, as after training
            with one norm per head.
    """
    there = tensor.shape[0]
    if tensor.ndim != 2 or not there or (rows % there and there % rows):
        raise ValueError(f"{name!r} is of shape {tuple(tensor.shape)}, which cannot be made {rows} rows.")
    if rows >= there:
        return tensor.repeat_interleave(rows // there, 0)
    shards = tensor.unflatten(0, (rows, there // rows))
    if not torch.equal(shards, shards[:, :1].expand_as(shards)):
        raise ValueError(
            f"Layer {_LAYER.match(name)[1]}: the rows of {name!r} differ within one of the {rows} shards, so they"
            f" cannot be written as `model_parallel_size` {rows} rows. Norms trained apart have no original form."
        )
    return shards[:, 0]


@dataclass(frozen=True)
class Shard:
    """
    One safetensors file to be written: which tensors of which file it holds, and how they change.

    Args:
        name (`str`): Name of the file.
        source (`Path`): File that the tensors come from.
        tensors (`dict[str, torch.dtype]`): Type of each tensor that it holds.
        norm_rows (`dict[str, int]`): Rows of each q- and k-norm among them.
        num_bytes (`int`): Size of the tensors together.
    """

    name: str
    source: Path
    tensors: dict[str, torch.dtype]
    norm_rows: dict[str, int]
    num_bytes: int

    def write(self, folder: Path, staging: Path) -> None:
        """Write the file to `folder`, where it appears once it is complete; until then it is in `staging`."""
        save_file(dict(self._read()), staging / self.name, metadata={"format": "pt"})
        os.replace(staging / self.name, folder / self.name)

    def is_written(self, folder: Path) -> bool:
        """Whether the file is there and holds exactly what `write` would write."""
        if not (folder / self.name).is_file():
            return False
        try:
            with open_weights(folder / self.name) as written:
                return {*written.keys()} == {*self.tensors} and all(
                    _is_same(written.get_tensor(name), tensor) for name, tensor in self._read()
                )
        except ValueError:  # damaged
            return False

    def _read(self) -> Iterator[tuple[str, torch.Tensor]]:
        with open_weights(self.source) as source:
            for name, dtype in self.tensors.items():
                tensor = source.get_tensor(name)
                if name in self.norm_rows:
                    tensor = resize_norm(name, tensor, self.norm_rows[name])
                tensor = tensor.to(dtype).contiguous()
                check_finite(str(self.source), [(name, tensor)])
                yield name, tensor


def plan_shards(
    weights: list[Path], config: ChameleonConfig, *, rows_per_head: bool, dtype: torch.dtype | None = None
) -> tuple[list[Shard], dict[str, Any] | None]:
    """
    Plan the files that a checkpoint is rewritten to, one for each of its own.

    Args:
        weights (`list[Path]`): The safetensors files, in order.
        config ([`~transformers.ChameleonConfig`]): What the weights have to fit.
        rows_per_head (`bool`):
            Whether to give the norms one row per head, or one per shard of training (`model_parallel_size`).
        dtype (`torch.dtype`, *optional*): Type to cast to; by default each tensor keeps its own.

    Returns:
        `tuple[list[Shard], dict | None]`: The shards, without the weights of the VQ model, and the content of
        `model.safetensors.index.json`; None if there is but one file.

    Raises:
        `ValueError`: If a file cannot be read, or if the names, shapes or types are not those that are needed.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"The weights in {str(weights[0].parent)!r} are quantised (`quantization_config` in the configuration) but"
            " only plain ones can be converted. `LuminaMGPTPipeline.from_pretrained` loads them as they are, and"
            " `save_pretrained` writes what it has loaded."
        )
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    found, shards = {}, []
    for path in weights:
        tensors, norm_rows, num_bytes = {}, {}, 0
        with open_weights(path) as source:
            for name in sorted(name for name in source.keys() if not name.startswith(VQ_PREFIX)):
                tensor = source.get_slice(name)
                kind, shape = tensor.get_dtype(), tensor.get_shape()
                if kind not in _DTYPES:
                    raise ValueError(f"{name!r} in {str(path)!r} is of type {kind} but has to be one of {[*_DTYPES]}.")
                if (norm := _NORM.search(name)) and len(shape) == 2 and shape[0]:
                    rows = heads[norm[1]]
                    norm_rows[name] = rows if rows_per_head else config.model_parallel_size
                    if not rows_per_head:  # hours before it would fail
                        resize_norm(name, source.get_tensor(name), config.model_parallel_size)
                    # Fewer rows than heads are right as well.
                    found[name] = (rows if rows % shape[0] == 0 else shape[0], shape[1])
                    num_elements = norm_rows[name] * shape[1]
                else:
                    found[name] = tuple(shape)
                    num_elements = torch.Size(shape).numel()
                tensors[name] = dtype or _DTYPES[kind]
                num_bytes += num_elements * tensors[name].itemsize
        if tensors:
            shards.append((path, tensors, norm_rows, num_bytes))
    check_shapes(str(weights[0].parent), found, needed_shapes(config, found))
    if len(shards) == 1:
        return [Shard("model.safetensors", *shards[0])], None
    shards = [
        Shard(f"model-{number:05d}-of-{len(shards):05d}.safetensors", *shard)
        for number, shard in enumerate(shards, start=1)
    ]
    index = {
        "metadata": {"total_size": sum(shard.num_bytes for shard in shards)},
        "weight_map": {name: shard.name for shard in shards for name in shard.tensors},
    }
    return shards, index


def needed_shapes(config: ChameleonConfig, found: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the weights that a transformer needs, of which tied ones need not be `found`."""
    num_layers = len({layer[1] for name in found if (layer := _LAYER.match(name))})
    if num_layers < config.num_hidden_layers:
        raise ValueError(
            f"`num_hidden_layers` is {config.num_hidden_layers} in the configuration but there are weights of"
            f" {num_layers} layers."
        )
    with torch.device("meta"):
        tensors = ChameleonForConditionalGeneration(config).state_dict()
    if config.tie_word_embeddings and "lm_head.weight" not in found:
        del tensors["lm_head.weight"]
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.startswith(VQ_PREFIX)}


def _is_same(first: torch.Tensor, second: torch.Tensor) -> bool:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return torch.equal(first.flatten().view(torch.uint8), second.flatten().view(torch.uint8))
