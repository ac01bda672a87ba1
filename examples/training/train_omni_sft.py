# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Omni-SFT: train on many tasks at once, mixed by weight.

    accelerate launch examples/training/train_omni_sft.py --config examples/training/recipes/omni_sft.yaml

Encode each task with `pretokenize.py` first; `data` in the recipe names the folders and their weights. Start it again
if it was killed: it goes on. The result is the folder `pipeline` in `output_dir`.
"""

import sys

from lumina_mgpt_diffusers.training.arguments import FineTuningArguments, parse_arguments
from lumina_mgpt_diffusers.training.fine_tuning import fine_tune


def main() -> None:
    ((arguments,), _) = parse_arguments(FineTuningArguments, sys.argv[1:])
    print(f"The pipeline is in {fine_tune(arguments)}.")


if __name__ == "__main__":
    main()
