# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The slow way: stock transformers, the whole sequence anew for every token, one image at a time.

And a checkpoint like that of the 34B model to try it on: swin norm, grouped kv heads, two norm rows, another rope
theta, several shards, VQ weights inside, and code tokens in the lexicographic order of their names.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from lumina_mgpt_diffusers import LUMINA_MGPT


NUM_CODES = 8192
FIRST_CODE_ID = 4


def load_stock(checkpoint: Path) -> ChameleonForConditionalGeneration:
    """Load an original checkpoint into the stock model, with its norms expanded by hand."""
    state = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        state.update(load_file(shard))
    config = ChameleonConfig.from_pretrained(checkpoint)
    for name, tensor in state.items():
        heads = {"q_norm": config.num_attention_heads, "k_norm": config.num_key_value_heads}
        for norm, count in heads.items():
            if norm in name:
                state[name] = torch.stack([tensor[head * len(tensor) // count] for head in range(count)])
    model = ChameleonForConditionalGeneration(config)
    result = model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    assert all(".vqmodel." in name for name in result.missing_keys)
    return model.eval()


def guided_logits(model, conditional: list[int], unconditional: list[int] | None, scale: float) -> torch.Tensor:
    # The head by itself: the stock forward masks the image tokens.
    logits = [
        model.lm_head(model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])
        for ids in (conditional, unconditional)
        if ids is not None
    ]
    return logits[0] if len(logits) == 1 else logits[1] + scale * (logits[0] - logits[1])


class Noise:
    """
    The noise of one answer, in plain integers: splitmix64 of key and place, then two rounds for each code.

    Args:
        generator (`torch.Generator`, *optional*): Draws the key.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        self.key = 0
        if generator is not None:
            self.key = int(torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator)) % 2**64

    def at(self, place: int, number: int) -> torch.Tensor:
        word = mix64((mix64(self.key) + place * 0x9E3779B97F4A7C15) % 2**64)
        bits = np.arange(number, dtype=np.uint64) * 0x9E3779B9 % 2**32 ^ word % 2**32
        for shift, factor, addend in ((16, 0x7FEB352D, word >> 32), (15, 0x846CA68B, 0)):
            bits = (bits ^ bits >> np.uint64(shift)) * factor % 2**32
            bits = ((bits ^ bits >> np.uint64(15)) + addend) % 2**32
        uniform = ((bits >> np.uint64(9)).astype(np.float64) + 0.5) / 2**23
        return torch.from_numpy(-np.log(-np.log1p(-uniform))).float()


def mix64(word: int) -> int:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ word >> shift) * factor % 2**64
    return word ^ word >> 31


@torch.no_grad()
def generate(
    model,
    code_ids: list[int],
    context: list[int],
    prefix: list[int],
    rows: int,
    columns: int,
    row_end_id: int,
    guidance_scale: float = 1.0,
    temperature: float = 0.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The codes `(rows, columns)` of one image."""
    noise = Noise(generator)
    image, codes = list(prefix), []
    for index in range(rows * columns):
        unconditional = image if guidance_scale != 1.0 else None
        logits = guided_logits(model, context + image, unconditional, guidance_scale)[code_ids]
        if temperature:
            kept = logits.sort(descending=True).indices[: top_k or None]
            scores = torch.full_like(logits, -torch.inf)
            # A place is counted from the start of the answer, row ends included.
            scores[kept] = logits[kept] / temperature + noise.at(len(image), len(code_ids))[kept]
            logits = scores
        codes.append(int(logits.argmax()))
        image.append(code_ids[codes[-1]])
        if (index + 1) % columns == 0:
            image.append(row_end_id)
    return torch.tensor(codes).view(rows, columns)


def lexicographic_ids() -> dict[str, int]:
    names = sorted(LUMINA_MGPT.codes.name(code) for code in range(NUM_CODES))
    return {name: FIRST_CODE_ID + index for index, name in enumerate(names)}


def make_34b_like(folder: Path, source: Path) -> Path:
    """Write the checkpoint, with the tokenizer of `source` but for the order of its codes."""
    folder.mkdir(parents=True)
    ids = lexicographic_ids()

    tokenizer = json.loads((source / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["id"] = ids.get(token["content"], token["id"])
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    tokenizer["model"]["vocab"].update(ids)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    tokenizer_config = json.loads((source / "tokenizer_config.json").read_text())
    decoder = tokenizer_config["added_tokens_decoder"]
    by_name = {token["content"]: token for token in decoder.values()}
    decoder.update({str(id): by_name[name] for name, id in ids.items()})
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    shutil.copy(source / "special_tokens_map.json", folder)

    config = json.loads((source / "config.json").read_text())
    config["vocabulary_map"].update(ids)
    config.update(
        num_key_value_heads=2,
        model_parallel_size=2,
        swin_norm=True,
        rope_theta=123456.0,
        hidden_size=64,
        num_attention_heads=8,
        intermediate_size=96,
        num_hidden_layers=3,
    )
    (folder / "config.json").write_text(json.dumps(config))

    generator = torch.Generator().manual_seed(34)
    stock_config = ChameleonConfig.from_pretrained(folder)
    shapes = {
        name: tensor.shape for name, tensor in ChameleonForConditionalGeneration(stock_config).state_dict().items()
    }
    state = {}
    for name, shape in shapes.items():
        if "q_norm" in name or "k_norm" in name:
            shape = (2, shape[1])
        values = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif "embed" in name or "lm_head" in name:
            values = values * (8.0 if "lm_head" in name else 1.0) / 8
        else:
            values = values * 0.3
        state[name] = values
    names = sorted(state)
    shards = [names[index::3] for index in range(3)]
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        filename = f"model-{number:05d}-of-00003.safetensors"
        save_file({name: state[name].contiguous() for name in shard}, folder / filename, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, filename))
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
