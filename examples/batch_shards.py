# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Images of many prompts without Ray: every process takes its shard of the rows.

    accelerate launch --num_processes 8 examples/batch_shards.py prompts.jsonl --output images --model MODEL
    srun --ntasks 64 python examples/batch_shards.py prompts.jsonl --output /shared/images --model MODEL

Killed and started again, with any number of processes, it goes on. The output is that of `lumina-mgpt batch`, which
restarts processes that die and gives them rows as they are free. Rows of which no image can be made have an `error` in
the metadata, and the process goes on with the others.
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


def device_of_process() -> torch.device:
    """A process may see all GPUs of its machine, or its own alone."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", of_environment(LOCAL_RANK, 0) % torch.cuda.device_count())


def wait_for_job(file: Path, seconds: float) -> None:
    """Until the first process has written the job down."""
    end = time.monotonic() + seconds
    while not file.is_file():
        if time.monotonic() > end:
            raise TimeoutError(
                f"The process of rank 0 has not written {str(file)!r} within {seconds:g} s. Has it failed, or does it"
                " write where this process does not see it?"
            )
        time.sleep(min(1, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", help="a .parquet, .jsonl, .json, .csv or .txt file, a folder or a Hub id")
    parser.add_argument("--output", type=Path, required=True, help="folder, which all processes have to see")
    parser.add_argument("--model", default="pocket", help="Hub id or folder; default: the small model of the package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--max_slots", type=int, default=32, help="of a batch; an image takes two")
    parser.add_argument("--rows_per_part", type=int, default=32, help="rows that are written down at once")
    parser.add_argument("--patience", type=float, default=600, help="seconds for rank 0 to write the job down")
    args = parser.parse_args()
    if args.rows_per_part < 1:
        parser.error(f"--rows_per_part has to be at least 1 but is {args.rows_per_part}")

    rank, world_size = of_environment(RANK, 0), of_environment(WORLD_SIZE, 1)
    device = device_of_process()
    if rank > 0:
        wait_for_job(args.output / "job.json", args.patience)
    # Where the job is written down already this reads no prompts, and says if it is another one.
    settings = {"height": args.height, "width": args.width}
    job = BatchJob.create(args.output, load_prompts(args.prompts), args.seed, args.model, settings)

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    pipe = LuminaMGPTPipeline.from_pretrained(args.model, dtype=dtype).to(device)
    done = set(job.done())
    rows = (row for row in job.rows(rank, world_size) if row["id"] not in done)
    with EngineHost(pipe, args.max_slots, max_waiting=1 << 30) as host:
        # While one part is finished the next one is sampled already, so that the batch stays full.
        parts = iter(lambda: [(row, job.start(host, row)) for row in islice(rows, args.rows_per_part)], [])
        part, num_errors = next(parts, None), 0
        while part:
            upcoming = next(parts, None)
            finished = [job.finish(host, row, one) for row, one in part]
            job.write_part(f"part-{job.path_of(part[0][0]['id']).stem}", finished)
            num_errors += sum(row["error"] is not None for row in finished)
            part = upcoming
    print(f"Process {rank} of {world_size} is done; {num_errors} of its rows have an error.")


if __name__ == "__main__":
    main()
