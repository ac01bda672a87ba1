# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Encode images and texts as tokens, once, to be trained on as often as you like.

    python examples/training/pretokenize.py --pretrained_model_name_or_path lumina-mgpt-7b-768 \
        --train_data_dir photos --output_dir photos-768 --preprocessing_num_workers 8

Start it again if it was killed: it goes on. Several machines share a folder with `--num_shards 4 --shard_index 0` to
`3`.
"""

import sys

import torch

from lumina_mgpt_diffusers.training.arguments import DTYPES, PretokenizeArguments, parse_arguments
from lumina_mgpt_diffusers.training.sources import encode_source, load_pipeline


def main() -> None:
    ((arguments,), _) = parse_arguments(PretokenizeArguments, sys.argv[1:])
    pipeline = load_pipeline(arguments, torch.float32, transformer=None)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.vqvae.to(device, DTYPES[arguments.vqvae_dtype])
    report = encode_source(arguments, pipeline, arguments.output_dir, arguments.num_shards, arguments.shard_index)
    for one in report.skipped:
        print(f"{one.id} was left out: {one.reason}")
    print(f"{report.num_samples} samples, {len(report.skipped)} left out.")
    if not report.is_complete:
        print("The folder can be loaded when the other shards are done.")


if __name__ == "__main__":
    main()
