# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
`train_omni_sft.py`, or with `--rank` `train_lora.py`, with FSDP2 on CPUs, started by torchrun.

accelerate knows FSDP on accelerators only: on CPUs it would replicate the model. What is put in its place here is the
kind of distribution it has found; everything from there on is its own.
"""

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from lumina_mgpt_diffusers.training import FineTuningArguments, LoraArguments, LuminaMGPTTrainer, fine_tune
from lumina_mgpt_diffusers.training.arguments import parse_arguments


def shard_on_cpu(trainer: LuminaMGPTTrainer) -> None:
    state = trainer.accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="FULL_STATE_DICT"
    )
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def main() -> None:
    create = LuminaMGPTTrainer.create_accelerator_and_postprocess

    def create_and_shard(trainer: LuminaMGPTTrainer) -> None:
        create(trainer)
        shard_on_cpu(trainer)

    LuminaMGPTTrainer.create_accelerator_and_postprocess = create_and_shard
    kind = LoraArguments if "--rank" in sys.argv else FineTuningArguments
    ((arguments,), _) = parse_arguments(kind, sys.argv[1:])
    fine_tune(arguments)


if __name__ == "__main__":
    main()
