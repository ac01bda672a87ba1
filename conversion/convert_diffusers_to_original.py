# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Convert a diffusers pipeline of Lumina-mGPT to the form of the original checkpoints.

    python conversion/convert_diffusers_to_original.py --pipeline_path lumina-mgpt-7b-768 --output_path original

The VQ model goes to `original_tokenizers/vqgan.ckpt` and `vqgan.yaml` in the output folder.
"""

import argparse
import logging

from lumina_mgpt_diffusers.original import convert_diffusers_to_original


logger = logging.getLogger("lumina_mgpt_diffusers")


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a diffusers pipeline of Lumina-mGPT to the original form.")
    parser.add_argument("--pipeline_path", required=True, help="Folder or Hub id of the pipeline.")
    parser.add_argument("--output_path", required=True, help="Folder to write the checkpoint to.")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    folder = convert_diffusers_to_original(args.pipeline_path, args.output_path)
    logger.info(f"The checkpoint is in {folder}.")


if __name__ == "__main__":
    main()
