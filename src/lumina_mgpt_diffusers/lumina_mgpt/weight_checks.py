# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Whether weights are those of a model and its configuration is one. Libraries make up weights that are missing and only
log it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from transformers import ChameleonConfig


MAX_NAMES = 20
"""Names that a message lists of each kind."""

Mismatch = tuple[str, tuple[int, ...], tuple[int, ...]]


def check_config(config: ChameleonConfig) -> None:
    """Raise a `ValueError` that names the value if no transformer can have this configuration."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for name in (*sizes, "num_key_value_heads", "model_parallel_size"):
        if (value := getattr(config, name)) < 1:
            raise ValueError(f"`{name}` in the configuration of the transformer has to be at least 1 but is {value}.")
    for name, divisor in (
        ("hidden_size", "num_attention_heads"),
        ("num_attention_heads", "num_key_value_heads"),
        ("num_key_value_heads", "model_parallel_size"),
    ):
        value, by = getattr(config, name), getattr(config, divisor)
        if value % by:
            raise ValueError(
                f"`{name}` in the configuration of the transformer has to be divisible by `{divisor}` {by} but is"
                f" {value}."
            )


def check_shapes(source: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """
    Compare the weights that there are with those that a configuration needs.

    Args:
        source (`str`): Where the weights are from, for the error message.
        found (`Mapping[str, tuple[int, ...]]`), expected (`Mapping[str, tuple[int, ...]]`): Shapes by name.

    Raises:
        `ValueError`: If they differ, with the names and shapes.
    """
    mismatched = [
        (name, tuple(found[name]), tuple(shape))
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    check_nothing_is_wrong(source, expected.keys() - found.keys(), found.keys() - expected.keys(), mismatched)


def check_nothing_is_wrong(
    source: str, missing: Collection[str], unexpected: Collection[str], mismatched: Collection[Mismatch]
) -> None:
    """Raise a `ValueError` that lists what is wrong, if anything is: `mismatched` holds (name, found, expected)."""
    shapes = [f"{name} {tuple(found)} instead of {tuple(expected)}" for name, found, expected in mismatched]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(wrong.values()):
        raise ValueError(
            f"The weights in {source!r} are not those that the configuration needs: "
            + "; ".join(f"{len(names)} {kind} ({_listed(names)})" for kind, names in wrong.items() if names)
            + "."
        )


def quantised_mismatches(model: torch.nn.Module) -> list[Mismatch]:
    """Linear layers whose weights are of another shape than theirs: transformers lets quantised ones pass."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            # bitsandbytes packs weights of four bits and keeps their shape beside them.
            shape = tuple(getattr(getattr(module.weight, "quant_state", None), "shape", module.weight.shape))
            if shape != (module.out_features, module.in_features):
                found.append((f"{name}.weight", shape, (module.out_features, module.in_features)))
    return found


def check_finite(source: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise a `ValueError` that lists the weights with NaN or infinite values, if there are any."""
    wrong = [name for name, tensor in tensors if not _is_finite(tensor)]
    if wrong:
        raise ValueError(f"The weights in {source!r} are not finite: {len(wrong)} hold NaN or inf ({_listed(wrong)}).")


def _is_finite(tensor: torch.Tensor) -> bool:
    # One NaN or inf makes the sum one, at the speed of memory. A sum may also overflow: then the extremes decide.
    return bool(tensor.sum().isfinite()) or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _listed(names: Collection[str]) -> str:
    listed = sorted(names)
    rest = f", and {len(listed) - MAX_NAMES} more" if len(listed) > MAX_NAMES else ""
    return ", ".join(listed[:MAX_NAMES]) + rest
