# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The model card of the pocket model: `model_card.md`, with numbers read from what training and evaluation wrote."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from judge import CATEGORIES
from measures import ROUND_TRIP, interval

from lumina_mgpt_diffusers import LuminaMGPTPipeline
from lumina_mgpt_diffusers.lumina_mgpt.unirep import trained_sizes


TEMPLATE = Path(__file__).with_name("model_card.md")

SPLIT_NAMES = {"test": "scenes of the kind of training", "held_out": "pairs of shape and colour never trained"}

JUDGED = ("right", "round trip", "wrong")

# What of a stage's settings the card tells, with its heading.
RECIPE = {
    "resolution": "base size",
    "samples_per_epoch": "samples an epoch",
    "steps": "steps",
    "samples_per_step": "batch",
    "optim": "optimizer",
    "learning_rate": "learning rate",
    "lr_scheduler": "schedule",
    "mixed_precision": "precision",
    "z_loss_weight": "z-loss",
    "context_dropout": "context dropout",
}


def pocket_card(
    pipe: LuminaMGPTPipeline, figures: Path | None, vq_figures: Path | None, training: Sequence[Path]
) -> str:
    """
    Text of the model card.

    Args:
        pipe ([`LuminaMGPTPipeline`]): The model.
        figures (`Path`, *optional*): Folder of the JSON files of `evaluate.py`.
        vq_figures (`Path`, *optional*): `figures.jsonl` of `train_vq.py`.
        training (`list[Path]`): `training.json` of each stage in order.

    Raises:
        `ValueError`: If there is no figure in the folder.
    """
    config = pipe.transformer.config
    resolution = pipe.scheduler.config.resolution
    return TEMPLATE.read_text(encoding="utf-8").format(
        millions=f"{sum(weight.numel() for weight in pipe.transformer.parameters()) / 1e6:.1f}",
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        vq_millions=f"{sum(weight.numel() for weight in pipe.vqvae.parameters()) / 1e6:.1f}",
        num_codes=pipe.vqvae.config.num_vq_embeddings,
        stride=pipe.vae_scale_factor,
        resolution=resolution,
        sizes=", ".join(f"{height}x{width}" for height, width in trained_sizes(resolution)),
        guidance_scale=pipe.scheduler.config.guidance_scale,
        recipe=recipe_table(training),
        vq=vq_sentence(vq_figures),
        figures="Not measured yet." if figures is None else figures_section(figures),
    )


def recipe_table(training: Sequence[Path]) -> str:
    if not training:
        return "The stages and their settings stand in `recipes/`."
    records = [json.loads(path.read_text(encoding="utf-8")) for path in training]
    for record in records:
        parts = ("train_batch_size", "gradient_accumulation_steps", "num_processes")
        record["samples_per_step"] = math.prod(record.get(name, 1) for name in parts)
    return table(
        ["stage", *RECIPE.values()],
        ([str(number), *(shown(record.get(name)) for name in RECIPE)] for number, record in enumerate(records, 1)),
    )


def vq_sentence(vq_figures: Path | None) -> str:
    if vq_figures is None:
        return ""
    last = json.loads(vq_figures.read_text(encoding="utf-8").splitlines()[-1])
    psnr = {name.removeprefix("psnr_"): value for name, value in last.items() if name.startswith("psnr_")}
    rows = ([name.replace("_", " "), f"{value:.1f}"] for name, value in psnr.items())
    return (
        f"\nThe VQ model after {last['step']:,} steps, on scenes that it was not trained on: {last['codes_used']:.0%}"
        f" of the codes are used, with a perplexity of {last['perplexity']:.0f}.\n\n"
        f"{table(['pictures', 'PSNR in dB'], rows)}\n"
    )


def figures_section(folder: Path) -> str:
    """The tables of all figures in a folder, with 95% intervals by bootstrap."""
    prompts, tasks, judge = (read_figures(folder, kind) for kind in ("prompts", "tasks", "judge"))
    if not prompts and not tasks:
        raise ValueError(f"`figures` is {str(folder)!r}, which has no prompts_*.json or tasks_*.json of evaluate.py.")
    parts = []
    if prompts:
        rows = [
            [name, *(shown_mean(values.get(name)) for values in prompts.values())] for name in (*CATEGORIES, "overall")
        ]
        parts.append("Prompts, the part that is drawn right:\n\n" + table(["category", *prompts], rows))
    if tasks:
        names = dict.fromkeys(name.removesuffix(ROUND_TRIP) for values in tasks.values() for name in values)
        heads = [head for kind in tasks for head in (kind, "what was wanted, after the VQ model")]
        rows = [
            [name, *(shown_mean(values.get(name + kind)) for values in tasks.values() for kind in ("", ROUND_TRIP))]
            for name in names
        ]
        parts.append("Tasks, at temperature 0:\n\n" + table(["measure", *heads], rows))
    if (folder / "frechet.json").exists():
        distance = json.loads((folder / "frechet.json").read_text(encoding="utf-8"))
        parts.append(
            "Fréchet distance of {num_images} pictures to as many of the world, on features of the VQ model's encoder,"
            " which compares with nothing else: {distance:.2f}.".format(**distance)
        )
    for label, values in judge.items():
        rows = [[name, *(shown_mean(values.get(f"{name}: {kind}")) for kind in JUDGED)] for name in CATEGORIES]
        parts.append(
            f"The judge itself, {label}: the part of pictures that it accepts, of those that are right, of the same"
            f" after the VQ model, which bounds what can be reached, and of wrong ones:\n\n"
            + table(["category", *JUDGED], rows)
        )
    parts.append("; ".join(f"**{name}**: {meaning}" for name, meaning in SPLIT_NAMES.items()) + ".")
    return "\n\n".join(parts)


def read_figures(folder: Path, kind: str) -> dict[str, dict[str, list[float]]]:
    """What `evaluate.py` measured of a kind, by split and size: `prompts_test_192x192.json` is `test, 192x192`."""
    name = re.compile(rf"{kind}_({'|'.join(SPLIT_NAMES)})(?:_(\d+x\d+))?")
    figures = {}
    for path in sorted(folder.glob(f"{kind}_*.json")):
        if match := name.fullmatch(path.stem):
            figures[", ".join(filter(None, match.groups()))] = json.loads(path.read_text(encoding="utf-8"))
    return figures


def shown_mean(values: list[float] | None) -> str:
    if not values:
        return ""
    mean, low, high = interval(values)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def shown(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
