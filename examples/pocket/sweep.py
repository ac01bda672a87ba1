# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Curves of the part of prompts that is drawn right over guidance, temperature and top-k, each with the others at the
model's defaults.

    python examples/pocket/sweep.py --pipeline pocket --output pocket_figures
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from evaluate import draw_prompts
from measures import interval

from lumina_mgpt_diffusers import LuminaMGPTPipeline


VALUES = {
    "guidance_scale": (1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    "temperature": (0.5, 0.7, 0.8, 0.9, 1.0),
    "top_k": (5, 20, 100, 0),
}


def plot(curves: dict[str, dict[str, list[float]]], path: Path) -> None:
    """One panel for each setting, with 95% intervals."""
    figure, panels = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3), sharey=True, layout="constrained")
    for panel, (name, results) in zip(panels, curves.items()):
        means, lows, highs = zip(*(interval(values) for values in results.values()))
        errors = [[mean - low for mean, low in zip(means, lows)], [high - mean for mean, high in zip(means, highs)]]
        labels = ["all" if (name, value) == ("top_k", "0") else value for value in results]
        panel.errorbar(labels, means, errors, marker="o", capsize=3)
        panel.set_xlabel(name.replace("_", " "))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("drawn right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="pocket", help="folder of the pipeline")
    parser.add_argument("--output", type=Path, required=True, help="folder of sweep.json and sweep.png")
    parser.add_argument("--num_prompts", type=int, default=20, help="of each category")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch_size", type=int, default=16)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    pipe = LuminaMGPTPipeline.from_pretrained(args.pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    base_size = pipe.scheduler.config.resolution
    defaults = {**vars(args), "split": "test", "size": (base_size, base_size), **dict.fromkeys(VALUES)}
    curves: dict[str, dict[str, list[float]]] = {}
    for name, values in VALUES.items():
        for value in values:
            results, _ = draw_prompts(pipe, argparse.Namespace(**{**defaults, name: value}))
            curves.setdefault(name, {})[str(value)] = results["overall"]
            print(name, value, "{:.3f} ({:.3f} to {:.3f})".format(*interval(results["overall"])), flush=True)
            (args.output / "sweep.json").write_text(json.dumps(curves))
    plot(curves, args.output / "sweep.png")


if __name__ == "__main__":
    main()
