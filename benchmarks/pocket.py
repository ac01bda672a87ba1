# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What only a trained model can show, on the pocket model that is part of the package.

    python benchmarks/pocket.py --output pocket.json
    python benchmarks/pocket.py --output rehearsal.json --num_images 2 --num_drafts 7 --size 64 64 --rounds 1

* forwards per code by rule of the first guess and number of drafts, each run checked to give the codes of plain
  autoregression, and by the maximal coupling of the literature (`coupling.py`);
* how many images are the same with drafts and without, in float32 and bfloat16;
* seconds for the first image of a fresh process, with loading and after it.

The tables are printed and written beside the JSON file as Markdown. `--parts` chooses some.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from coupling import FIRST_LAWS, RULES, CoupledSampler
from models import describe_hardware

from lumina_mgpt_diffusers import LuminaMGPTPipeline
from lumina_mgpt_diffusers.lumina_mgpt.scheduling_lumina_mgpt import DRAFT_INITS


PROMPTS = (
    "a red ball to the left of a blue cube",
    "three yellow stars on a charcoal floor",
    "a striped green cylinder behind a pink heart",
    "a purple ring, an orange cone and a turquoise diamond",
    "two spotted blue balls on a white floor",
    "a small red cone",
    "a picture of four green cubes",
    "there is a large orange heart on a lilac ground",
)

FIRST_IMAGE = """
import time
begin = time.perf_counter()
import torch
from lumina_mgpt_diffusers import LuminaMGPTPipeline
imported = time.perf_counter()
pipe = LuminaMGPTPipeline.from_pretrained({model!r}, dtype=torch.{dtype})
pipe.set_progress_bar_config(disable=True)
times = [time.perf_counter()]
for seed in range(2):
    pipe({prompt!r}, height={height}, width={width}, generator=torch.Generator().manual_seed(seed))
    times.append(time.perf_counter())
print(imported - begin, times[0] - imported, times[1] - times[0], times[2] - times[1])
"""


def load(args: argparse.Namespace, dtype: torch.dtype) -> LuminaMGPTPipeline:
    pipe = LuminaMGPTPipeline.from_pretrained(args.model, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe: LuminaMGPTPipeline, args: argparse.Namespace, seed: int, **settings: Any) -> tuple[torch.Tensor, int]:
    """The codes of an image, and the number of forwards after that of the prompt."""
    steps: list[int] = []

    def count(pipe: LuminaMGPTPipeline, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return {}

    codes = pipe(
        PROMPTS[seed % len(PROMPTS)],
        height=args.size[0],
        width=args.size[1],
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        callback_on_step_end=count,
        **settings,
    ).images[0]
    return codes, len(steps)


def measure_forwards(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Forwards per code, by guidance scale, rule and number of drafts."""
    pipe = load(args, torch.float32)
    seeds = range(args.num_images)
    results = []
    for scale in args.guidance_scale:
        plain = [sample(pipe, args, seed, guidance_scale=scale, num_draft_tokens=0) for seed in seeds]
        num_codes = plain[0][0].numel()
        own = [("none", 0, [forwards for _, forwards in plain])]
        for rule in DRAFT_INITS:
            for number in (*args.num_drafts, "auto"):
                runs = [
                    sample(pipe, args, seed, guidance_scale=scale, num_draft_tokens=number, draft_init=rule)
                    for seed in seeds
                ]
                for seed, (codes, _) in enumerate(runs):
                    if not torch.equal(codes, plain[seed][0]):
                        raise SystemExit(f"{rule} with {number} drafts gives other codes than none, image {seed}.")
                own.append((rule, number, [forwards for _, forwards in runs]))
        for rule in RULES:
            for first_law in FIRST_LAWS:
                for number in args.num_drafts:
                    forwards = []
                    for seed in seeds:
                        prompt = PROMPTS[seed % len(PROMPTS)]
                        sampler = CoupledSampler(pipe, prompt, *args.size, scale, rule, first_law, number, seed)
                        forwards.append(sampler.run()[1])
                    own.append((f"literature: {rule}, first {first_law}", number, forwards))
        for rule, number, forwards in own:
            per_code = [one / num_codes for one in forwards]
            results.append(
                {
                    "guidance_scale": scale,
                    "rule": rule,
                    "num_drafts": number,
                    "forwards_per_code": statistics.mean(per_code),
                    "standard_error": statistics.stdev(per_code) / len(per_code) ** 0.5 if len(per_code) > 1 else None,
                }
            )
    return results


def measure_agreement(args: argparse.Namespace) -> list[dict[str, Any]]:
    """How many images are the same, to the code, with drafts and without, by type."""
    results = []
    for dtype in ("float32", "bfloat16"):
        pipe = load(args, getattr(torch, dtype))
        plain = [sample(pipe, args, seed, num_draft_tokens=0)[0] for seed in range(args.num_images)]
        for number in (*args.num_drafts, "auto"):
            same = [
                sample(pipe, args, seed, num_draft_tokens=number)[0] == plain[seed] for seed in range(args.num_images)
            ]
            before = [float(one.flatten().long().cumprod(0).sum()) / one.numel() for one in same]
            results.append(
                {
                    "dtype": dtype,
                    "num_drafts": number,
                    "same_images": sum(bool(one.all()) for one in same),
                    "images": len(same),
                    "codes_before_first_difference": statistics.mean(before),
                }
            )
    return results


def measure_first_image(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a fresh process, the best of some rounds: what else runs only makes it slower."""
    results = []
    for dtype in ("float32", "bfloat16"):
        code = FIRST_IMAGE.format(
            model=args.model, dtype=dtype, prompt=PROMPTS[0], height=args.size[0], width=args.size[1]
        )
        rounds = []
        for _ in range(args.rounds):
            begin = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            total = time.perf_counter() - begin
            rounds.append((total, *map(float, done.stdout.split())))
        _, imports, loading, first, second = min(rounds)
        names = {"imports": imports, "loading": loading, "first_image": first, "second_image": second}
        # The process itself takes the second image too, and its own start and end.
        whole = min(total - second for total, *_, second in rounds)
        results.append({"dtype": dtype, **names, "whole_process_with_one_image": whole})
    return results


PARTS: dict[str, tuple[str, Callable[[argparse.Namespace], list[dict[str, Any]]]]] = {
    "forwards": ("Forwards per code", measure_forwards),
    "agreement": ("Images that are the same with drafts and without", measure_agreement),
    "first_image": ("Seconds of a fresh process", measure_first_image),
}


def to_markdown(record: dict[str, Any]) -> str:
    lines = [f"{record['hardware']}, {record['versions']}, {record['settings']}"]
    for name, rows in record["results"].items():
        lines += ["", f"## {PARTS[name][0]}", ""]
        if name == "forwards":
            lines += forwards_tables(rows)
        else:
            lines += table(list(rows[0]), [[shown(value) for value in row.values()] for row in rows])
    return "\n".join(lines) + "\n"


def forwards_tables(rows: list[dict[str, Any]]) -> list[str]:
    """One table for each guidance scale: rules by numbers of drafts."""
    lines: list[str] = []
    for scale in dict.fromkeys(row["guidance_scale"] for row in rows):
        some = [row for row in rows if row["guidance_scale"] == scale]
        numbers = list(dict.fromkeys(row["num_drafts"] for row in some if row["rule"] != "none"))
        cells = {(row["rule"], row["num_drafts"]): row for row in some}
        (plain,) = (row for row in some if row["rule"] == "none")
        lines += [f"Guidance {scale:g}; without drafts {plain['forwards_per_code']:.3f}:", ""]
        rules = list(dict.fromkeys(row["rule"] for row in some if row["rule"] != "none"))
        body = [[rule, *(shown_mean(cells.get((rule, number))) for number in numbers)] for rule in rules]
        lines += [*table(["first guess", *map(str, numbers)], body), ""]
    return lines


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows)]


def shown_mean(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.3f}"
    return f"{row['forwards_per_code']:.3f}{error}"


def shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write(record: dict[str, Any], path: Path) -> None:
    for target, text in ((path, json.dumps(record, indent=2) + "\n"), (path.with_suffix(".md"), to_markdown(record))):
        partial = target.with_name(target.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="default: %(default)s")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=[128, 128])
    parser.add_argument("--num_images", type=int, default=16)
    parser.add_argument("--num_drafts", type=int, nargs="+", default=[3, 7, 15, 31])
    parser.add_argument("--guidance_scale", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes that are timed")
    args = parser.parse_args()
    record: dict[str, Any] = {
        "hardware": describe_hardware(torch.device("cpu")),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, diffusers)},
        "settings": {name: value for name, value in vars(args).items() if name not in ("output", "parts")},
        "results": {},
    }
    for name in args.parts:
        record["results"][name] = PARTS[name][1](args)
        write(record, args.output)
    print(to_markdown(record))


if __name__ == "__main__":
    main()
