# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Plot what `table.py` measured: seconds per image by mode, and codes per second against batch and against size.

    python benchmarks/plot.py h200.json --output speed.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON file that table.py wrote")
    parser.add_argument("--output", type=Path, default=Path("speed.png"))
    args = parser.parse_args()
    record = json.loads(args.results.read_text())
    size = int(record["settings"]["size"])
    results = record["results"]

    figure, (by_mode, by_batch, by_size) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    figure.suptitle(f"{record['settings']['shape']} {record['settings']['dtype']}, {record['hardware']}")

    # Drafts are not among them: with random weights next to none is right.
    modes = [
        result
        for result in results
        if result["size"] == size and result["batch_size"] == 1 and not result["mode"].startswith("drafts")
    ]
    names = [result["mode"] for result in modes]
    bars = by_mode.barh(names, [result["seconds_per_image"] for result in modes], color="#4878a8")
    by_mode.bar_label(bars, fmt="%.1f", padding=3)
    by_mode.invert_yaxis()
    by_mode.margins(x=0.15)
    by_mode.set(title=f"One image of {size} px", xlabel="seconds")

    for mode, color in (("ours", "#4878a8"), ("compiled", "#c44e52")):
        batches = sorted(
            (r["batch_size"], r["codes_per_second"]) for r in results if (r["size"], r["mode"]) == (size, mode)
        )
        if batches:
            by_batch.plot(*zip(*batches), "o-", color=color, label=mode)
        sizes = sorted(
            (r["size"], r["codes_per_second"]) for r in results if (r["batch_size"], r["mode"]) == (1, mode)
        )
        if sizes:
            by_size.plot(*zip(*sizes), "o-", color=color, label=mode)
    by_batch.set(title=f"{size} px", xlabel="images at once", ylabel="codes per second", ylim=(0, None))
    by_size.set(title="One image", xlabel="size in px", ylabel="codes per second", ylim=(0, None))
    for axes in (by_batch, by_size):
        axes.legend()
        axes.grid(alpha=0.3)
    partial = args.output.with_suffix(".partial.png")
    figure.savefig(partial, dpi=120)
    partial.replace(args.output)


if __name__ == "__main__":
    main()
