# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Convert an original Lumina-mGPT checkpoint to a diffusers pipeline.

    python conversion/convert_original_to_diffusers.py \
        --checkpoint_path Alpha-VLLM/Lumina-mGPT-7B-768 --vqgan_path chameleon/tokenizer --output_path lumina-mgpt

It needs the memory of one shard and can be interrupted: run again, it keeps what is finished.
"""

import argparse
import logging

import torch
from huggingface_hub import HfApi

from lumina_mgpt_diffusers.lumina_mgpt.families import families
from lumina_mgpt_diffusers.original import convert_original_to_diffusers
from lumina_mgpt_diffusers.repository import CARD_NAME


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

logger = logging.getLogger("lumina_mgpt_diffusers")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert an original Lumina-mGPT checkpoint to a diffusers pipeline.")
    parser.add_argument("--checkpoint_path", required=True, help="Folder or Hub id of the original checkpoint.")
    parser.add_argument(
        "--vqgan_path",
        required=True,
        help="Folder, `vqgan.ckpt` or `movqgan_270M.ckpt`, diffusers `VQModel` or Hub id of the VQ model.",
    )
    parser.add_argument("--tokenizer_path", help="Folder or Hub id of the tokenizer, if not the checkpoint's own.")
    parser.add_argument("--output_path", required=True, help="Folder to write the pipeline to.")
    parser.add_argument(
        "--base_size",
        type=int,
        help="Side in pixels of the square of the trained area, a multiple of 32. By default what the name says.",
    )
    parser.add_argument("--family", choices=families(), help="By default what the vocabulary shows.")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="Type of the transformer's weights. By default they keep theirs."
    )
    parser.add_argument("--push_to_hub", metavar="REPO", help="Hub id to upload the finished folder to.")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    api = HfApi()
    # First of all, so that a token that may not write does not cost a conversion.
    repository = api.create_repo(args.push_to_hub, exist_ok=True).repo_id if args.push_to_hub else None
    folder = convert_original_to_diffusers(
        args.checkpoint_path,
        args.output_path,
        original_vqgan=args.vqgan_path,
        original_tokenizer=args.tokenizer_path,
        base_size=args.base_size,
        family=args.family,
        dtype=DTYPES.get(args.dtype),
        model=repository or ".",
    )
    logger.info(f"The pipeline is in {folder}.")
    if repository is not None:
        kept = CARD_NAME if api.file_exists(repository, CARD_NAME) else None
        api.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=kept)
        logger.info(f"The pipeline is at https://huggingface.co/{repository}.")


if __name__ == "__main__":
    main()
