# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""`lumina-mgpt batch`: images of many prompts, on many machines."""

import argparse
import functools
import math
import os
import sys
from itertools import islice
from pathlib import Path

from ..lumina_mgpt import LuminaMGPTPipeline
from ..lumina_mgpt.validation import check_integer
from .arguments import (
    add_model_arguments,
    add_sampler_arguments,
    add_size_arguments,
    default_device,
    load_pipeline,
    sampler_settings,
)
from .extras import import_extra


EXAMPLE = """\
examples:
  lumina-mgpt batch prompts.jsonl --output images --model lumina-mgpt-7b-768 --num_actors 8
  lumina-mgpt batch user/prompts --split train --output /shared/images --model lumina-mgpt-7b-768 \\
    --ray auto --device cuda --num_actors 64

Killed anywhere and started again with the same arguments it goes on; at the end every row is there once. Rows may have
an `id`, a `negative_prompt`, `height`, `width` and settings of the sampler of their own. The images are in
OUTPUT/images, and OUTPUT/metadata is a parquet dataset that says what each is. Rows of which no image can be made,
such as of a size that there is not, have an `error` there; then the status at the end is 1. It needs the extra `ray`.
"""

# Rows whose errors are printed; the metadata has all.
NUM_SHOWN = 5


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "batch",
        help="images of many prompts, on many machines",
        description="Generate an image for each of many prompts, on all GPUs of a machine or of a Ray cluster.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "prompts", metavar="PROMPTS", help="a .parquet, .jsonl, .json, .csv or .txt file, a folder or a Hub id"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder, which all machines have to see")
    parser.add_argument("--split", default="train", help="of a dataset of the Hub; default: %(default)s")
    parser.add_argument("--prompt_column", default="prompt", help="default: %(default)s")
    parser.add_argument("--id_column", default="id", help="default: %(default)s, or else the number of the row")
    parser.add_argument("--seed", type=int, default=0, help="of the job; default: %(default)s")
    add_size_arguments(parser, "the model's base size")
    group = parser.add_argument_group("machines")
    group.add_argument(
        "--ray", metavar="ADDRESS", help="of a Ray cluster, or `auto`; it needs --device; default: this machine alone"
    )
    group.add_argument("--num_actors", type=int, default=1, help="processes with a model; default: %(default)s")
    group.add_argument("--gpus_per_actor", type=float, help="default: 1 with --device cuda, else 0")
    group.add_argument("--cpus_per_actor", type=float, default=1, help="default: %(default)s")
    group.add_argument(
        "--max_slots", type=int, default=32, help="of a batch, an image takes two; default: %(default)s"
    )
    group.add_argument(
        "--rows_per_task",
        type=int,
        default=32,
        help="written at once; twice as many may be lost when an actor dies; default: %(default)s",
    )
    # A job keeps what a call takes, and goes on with it: the schedule of the guidance is the model's.
    add_sampler_arguments(parser, with_schedule=False)
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    for name, least in (("num_actors", 1), ("max_slots", 2), ("rows_per_task", 1)):
        check_integer(name, getattr(args, name), least)
    if args.ray is not None and args.device is None:
        raise ValueError("`--ray` needs `--device` cuda or cpu: what this machine has says nothing of the others.")
    ray_batch = import_extra("serving.ray_batch", "ray")
    batch_job = import_extra("serving.batch_job", "ray")
    rows = batch_job.load_prompts(args.prompts, args.split, args.prompt_column, args.id_column)
    settings = {"height": args.height, "width": args.width, **sampler_settings(args)}
    job = batch_job.BatchJob.create(args.output, rows, args.seed, args.model, settings)
    cluster = {"address": args.ray}
    if args.ray is None:
        # Beside the actors a CPU has to be left for the tasks that read and write rows, or all wait for ever.
        needed = math.ceil(args.num_actors * args.cpus_per_actor) + 1
        cluster = {"address": "local", "include_dashboard": False}
        cluster["num_cpus"] = needed if needed > (os.cpu_count() or 1) else None
    ray_batch.ray.init(ignore_reinit_error=True, **cluster)
    uses_gpu, gpus = (args.device or default_device()) != "cpu", args.gpus_per_actor
    number = ray_batch.run_batch(
        job,
        functools.partial(load_pipeline, LuminaMGPTPipeline, args),
        num_actors=args.num_actors,
        num_gpus=float(uses_gpu) if gpus is None else gpus,
        num_cpus=args.cpus_per_actor,
        max_slots=args.max_slots,
        rows_per_task=args.rows_per_task,
    )
    num_errors = sum(1 for _ in job.errors())
    print(f"{number} rows are done, {num_errors} of them with an error, in {args.output}")
    if num_errors:
        for id, error in islice(job.errors(), NUM_SHOWN):
            print(f"{id}: {error}", file=sys.stderr)
        raise SystemExit(1)
