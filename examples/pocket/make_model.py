# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Put the untrained pocket model together, as a folder that `LuminaMGPTPipeline.from_pretrained` loads.

    python examples/pocket/make_model.py --vqvae pocket_vq/vqvae --output pocket_start

The VQ model is the trained one, the tokenizer is trained here, the transformer is random.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import VQModel
from make_tokenizer import make_tokenizer
from transformers import ChameleonConfig, PreTrainedTokenizerFast

from lumina_mgpt_diffusers import (
    LUMINA_MGPT_POCKET,
    LuminaMGPTPipeline,
    LuminaMGPTScheduler,
    LuminaMGPTTransformer,
)


def make_transformer(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> LuminaMGPTTransformer:
    config = ChameleonConfig(
        model_family=LUMINA_MGPT_POCKET.name,
        # The head is fastest with a number of tokens that is a multiple of 64.
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        num_key_value_heads=args.num_key_value_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        vocabulary_map=tokenizer.added_tokens_encoder,
        # Stock transformers builds a VQ model by this, of which no weights are kept.
        vq_config={"base_channels": 32, "num_res_blocks": 1, "channel_multiplier": [1], "num_embeddings": 8},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(args.seed)
    return LuminaMGPTTransformer(config)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vqvae", required=True, help="folder of the trained VQ model")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--intermediate_size", type=int, default=512)
    parser.add_argument("--num_hidden_layers", type=int, default=6)
    parser.add_argument("--num_attention_heads", type=int, default=4)
    parser.add_argument("--num_key_value_heads", type=int, default=2)
    parser.add_argument("--resolution", type=int, default=96, help="base size in pixels")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    dtype = getattr(torch, args.dtype)
    vqvae = VQModel.from_pretrained(args.vqvae, torch_dtype=dtype)
    tokenizer = make_tokenizer(vqvae.config.num_vq_embeddings)
    pipe = LuminaMGPTPipeline(
        tokenizer=tokenizer,
        transformer=make_transformer(tokenizer, args).to(dtype),
        vqvae=vqvae,
        scheduler=LuminaMGPTScheduler(resolution=args.resolution),
    )
    pipe.save_pretrained(args.output)
    num_parameters = sum(parameter.numel() for parameter in pipe.transformer.parameters())
    megabytes = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file()) / 1e6
    print(
        f"{len(tokenizer)} tokens, a transformer of {num_parameters / 1e6:.2f}M parameters, {megabytes:.2f} MB in all"
    )


if __name__ == "__main__":
    main()
