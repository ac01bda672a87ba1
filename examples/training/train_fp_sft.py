# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
FP-SFT: progressive fine-tuning in stages of rising resolution, each of which starts from the last.

    accelerate launch examples/training/train_fp_sft.py --config examples/training/recipes/fp_sft.yaml

The values under `stages` in the recipe replace those above them. Each stage has a folder of its resolution in
`output_dir`; its result is the folder `pipeline` in there. Start the command again if it was killed: it goes on.
"""

import sys

from lumina_mgpt_diffusers.training.arguments import FineTuningArguments, parse_arguments
from lumina_mgpt_diffusers.training.progressive import fine_tune_progressively


def main() -> None:
    stages, _ = parse_arguments(FineTuningArguments, sys.argv[1:], lists=["stages"])
    print(f"The pipeline is in {fine_tune_progressively(stages)}.")


if __name__ == "__main__":
    main()
