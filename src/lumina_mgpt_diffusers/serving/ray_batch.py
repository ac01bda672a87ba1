# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
A [`BatchJob`] on Ray Data: any number of machines and GPUs, an actor with a pipeline on each.

Ray Data reads the prompts, leaves out those that its checkpoint names, restarts what dies, and writes metadata and
checkpoint so that a row is in both or in neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.checkpoint import CheckpointConfig

from ..lumina_mgpt.pipeline_base import LuminaMGPTBasePipeline
from ..lumina_mgpt.validation import check_integer
from .batch_job import METADATA, BatchJob
from .host import EngineHost


# Tasks of rows that an actor works at, so that its batch stays full where one ends and the next begins.
NUM_TASKS = 2


class Sampler:
    """
    The actor.

    Args:
        load (`Callable[[], LuminaMGPTBasePipeline]`): Loads the pipeline, where the actor is.
        job ([`BatchJob`]): The job.
        max_slots (`int`): See [`EngineHost`].
    """

    def __init__(self, load: Callable[[], LuminaMGPTBasePipeline], job: BatchJob, max_slots: int) -> None:
        self._job = job
        self._host = EngineHost(load(), max_slots, max_waiting=1 << 30)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist(self._job.sample(self._host, batch.to_pylist()), METADATA)


def run_batch(
    job: BatchJob,
    load: Callable[[], LuminaMGPTBasePipeline],
    num_actors: int | tuple[int, int] = 1,
    num_gpus: float = 1,
    num_cpus: float = 1,
    max_slots: int = 32,
    rows_per_task: int = 32,
) -> int:
    """
    Run a job, or the rest of it.

    Args:
        job ([`BatchJob`]): The job.
        load (`Callable[[], LuminaMGPTBasePipeline]`): Loads the pipeline.
        num_actors (`int` or `tuple[int, int]`, defaults to 1): How many actors, or the least and the most.
        num_gpus (`float`, defaults to 1), num_cpus (`float`, defaults to 1): Of each actor.
        max_slots (`int`, defaults to 32): See [`EngineHost`].
        rows_per_task (`int`, defaults to 32): Rows that are written at once. Twice as many are lost at most when an
            actor dies.

    Returns:
        `int`: Number of rows that are done, all of them.

    Raises:
        `ValueError`: If `rows_per_task` is not a number of rows.
        `RuntimeError`: If rows are missing or there twice at the end.
    """
    check_integer("rows_per_task", rows_per_task, least=1)
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=f"{job.folder}/checkpoint", delete_checkpoint_on_success=False
    )
    try:
        if not _is_complete(job):
            rows = ray.data.read_parquet(str(job.prompts), override_num_blocks=-(-job.num_rows // rows_per_task))
            done = rows.map_batches(
                Sampler,
                fn_constructor_args=(load, job, max_slots),
                batch_size=rows_per_task,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ray.data.ActorPoolStrategy(
                    **_pool_size(num_actors),
                    max_tasks_in_flight_per_actor=2 * NUM_TASKS,
                    max_concurrent_calls_per_actor=NUM_TASKS,
                    enable_true_multi_threading=True,
                ),
                num_gpus=num_gpus,
                num_cpus=num_cpus,
            )
            done.write_parquet(str(job.metadata))
    finally:
        context.checkpoint_config = None
    return job.check_complete()


def _is_complete(job: BatchJob) -> bool:
    try:
        job.check_complete()
    except (RuntimeError, OSError, pa.ArrowException):  # files that a kill left unfinished, which Ray Data removes
        return False
    return True


def _pool_size(num_actors: int | tuple[int, int]) -> dict[str, Any]:
    least, most = num_actors if isinstance(num_actors, tuple) else (num_actors, num_actors)
    return {"min_size": least, "max_size": most}
