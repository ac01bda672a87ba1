# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Plot what `table.py` measured: seconds per image by mode, and how speed changes with window, batch and size.

    python benchmarks/plot.py h200.json --output speed.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes


BLUE, RED = "#4878a8", "#c44e52"
DRAFTS = "compiled-drafts-"


def plot_modes(axes: Axes, results: list[dict], size: int) -> None:
    # Drafts are not among them: with random weights next to none is right.
    modes = [r for r in results if (r["size"], r["batch_size"]) == (size, 1) and "drafts" not in r["mode"]]
    bars = axes.barh([r["mode"] for r in modes], [r["seconds_per_image"] for r in modes], color=BLUE)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(title=f"One image of {size} px", xlabel="seconds")


def plot_windows(axes: Axes, results: list[dict], size: int) -> None:
    milliseconds = {
        int(r["mode"].removeprefix(DRAFTS)) + 1 if r["mode"] != "compiled" else 1: r["ms_per_step"]
        for r in results
        if (r["size"], r["batch_size"]) == (size, 1)
        and (r["mode"] == "compiled" or r["mode"].removeprefix(DRAFTS).isdigit())
    }
    windows = sorted(milliseconds)
    axes.plot(windows, [milliseconds[window] for window in windows], "o-", color=RED)
    axes.set(title="One forward", xlabel="tokens in the window", ylabel="ms", ylim=(0, None))


def plot_speed(axes: Axes, results: list[dict], key: str, fixed: tuple[str, int], **labels) -> None:
    """Codes per second against `key` where another key has a fixed value."""
    compiled = [r for r in results if r["mode"] == "compiled" and r[fixed[0]] == fixed[1]]
    points = sorted((r[key], r["codes_per_second"]) for r in compiled)
    axes.plot(*zip(*points), "o-", color=RED)
    axes.set(ylabel="codes per second", ylim=(0, None), **labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON file that table.py wrote")
    parser.add_argument("--output", type=Path, default=Path("speed.png"))
    args = parser.parse_args()
    record = json.loads(args.results.read_text())
    size = int(record["settings"]["size"])
    results = [result for result in record["results"] if not result["is_whole"]]

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    figure.suptitle(
        f"{record['settings']['shape']} {record['settings']['dtype']}, {record['hardware']}, random weights"
    )
    plot_modes(axes[0], results, size)
    plot_windows(axes[1], results, size)
    plot_speed(axes[2], results, "batch_size", ("size", size), title=f"{size} px, compiled", xlabel="images at once")
    plot_speed(axes[3], results, "size", ("batch_size", 1), title="One image, compiled", xlabel="size in px")
    for one in axes[1:]:
        one.grid(alpha=0.3)
    partial = args.output.with_suffix(".partial.png")
    figure.savefig(partial, dpi=120)
    partial.replace(args.output)


if __name__ == "__main__":
    main()
