# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Images of many prompts without Ray: every process takes its shard of the rows.

    accelerate launch --num_processes 8 examples/batch_shards.py prompts.jsonl --output images --model MODEL
    srun --ntasks 64 python examples/batch_shards.py prompts.jsonl --output /shared/images --model MODEL

Killed and started again, with any number of processes, it goes on. The output is that of `lumina-mgpt batch`, which
restarts processes that die and gives them rows as they are free.
"""

import argparse
import os
import time
from itertools import islice
from pathlib import Path

import torch

from lumina_mgpt_diffusers import LuminaMGPTPipeline
from lumina_mgpt_diffusers.serving import EngineHost
from lumina_mgpt_diffusers.serving.batch_job import BatchJob, load_prompts


# The names of accelerate and torchrun, and those of SLURM.
RANK = ("RANK", "SLURM_PROCID")
WORLD_SIZE = ("WORLD_SIZE", "SLURM_NTASKS")
LOCAL_RANK = ("LOCAL_RANK", "SLURM_LOCALID")


def of_environment(names: tuple[str, ...], default: int) -> int:
    return int(next((os.environ[name] for name in names if name in os.environ), default))


def wait_for_job(output: Path) -> BatchJob:
    """The job that the first process writes down."""
    while not (output / "job.json").is_file():
        time.sleep(1)
    return BatchJob.open(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", help="a .parquet, .jsonl, .json, .csv or .txt file, or a Hub id")
    parser.add_argument("--output", type=Path, required=True, help="folder, which all processes have to see")
    parser.add_argument("--model", default="pocket", help="Hub id or folder; default: the small model of the package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--max_slots", type=int, default=32, help="of a batch; an image takes two")
    parser.add_argument("--rows_per_part", type=int, default=32, help="rows that are written down at once")
    args = parser.parse_args()

    rank, world_size = of_environment(RANK, 0), of_environment(WORLD_SIZE, 1)
    device = torch.device("cuda", of_environment(LOCAL_RANK, 0)) if torch.cuda.is_available() else torch.device("cpu")
    if rank == 0:
        settings = {"height": args.height, "width": args.width}
        job = BatchJob.create(args.output, load_prompts(args.prompts), args.seed, args.model, settings)
    else:
        job = wait_for_job(args.output)

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    pipe = LuminaMGPTPipeline.from_pretrained(args.model, dtype=dtype).to(device)
    done = set(job.done())
    rows = (row for row in job.rows(rank, world_size) if row["id"] not in done)
    with EngineHost(pipe, args.max_slots, max_waiting=1 << 30) as host:
        # While one part is finished the next one is sampled already, so that the batch stays full.
        parts = iter(lambda: [(row, job.start(host, row)) for row in islice(rows, args.rows_per_part)], [])
        part = next(parts, None)
        while part:
            upcoming = next(parts, None)
            finished = [job.finish(host, row, one) for row, one in part]
            job.write_part(f"part-{job.path_of(part[0][0]['id']).stem}", finished)
            part = upcoming
    print(f"Process {rank} of {world_size} is done.")


if __name__ == "__main__":
    main()
