# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Train a LoRA adapter on a folder of images and captions.

    python examples/training/train_lora.py --pretrained_model_name_or_path lumina-mgpt-7b-768 \
        --train_data_dir photos --output_dir photos-lora --mixed_precision bf16 --gradient_checkpointing True \
        --max_train_steps 1000

Use it with `pipe.load_lora_weights("photos-lora")`. Start the command again if it was killed: it goes on.
"""

import sys

from lumina_mgpt_diffusers.training.arguments import LoraArguments, parse_arguments
from lumina_mgpt_diffusers.training.fine_tuning import fine_tune


def main() -> None:
    ((arguments,), _) = parse_arguments(LoraArguments, sys.argv[1:])
    print(f"The adapter is in {fine_tune(arguments)}.")


if __name__ == "__main__":
    main()
