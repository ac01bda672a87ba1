# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Transformers of given shapes with random weights, made where they run: timing needs no checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch._inductor.config
import torch.nn.functional as F
from transformers import ChameleonConfig

from lumina_mgpt_diffusers import LuminaMGPTTransformer
from lumina_mgpt_diffusers.lumina_mgpt.unirep import ImageVocabulary


SHAPES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 4},
    "340m": {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 16, "num_attention_heads": 16},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "34b": {
        "hidden_size": 8192,
        "intermediate_size": 22016,
        "num_hidden_layers": 48,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "swin_norm": True,
    },
}
# The decoder of Lumina-mGPT 2.0 is that of the 7B model; its vocabulary and its VQ model are others.
SHAPES |= {
    f"2.0{name}": {**SHAPES[shape], "max_position_embeddings": 10240}
    for name, shape in (("", "7b"), ("-340m", "340m"), ("-tiny", "tiny"))
}

# The ids of the released tokenizer.
VOCABULARY = ImageVocabulary(
    code_ids=torch.arange(4, 8196),
    size_tag_ids=tuple(range(8805, 8905)),
    start_id=8197,
    end_id=8196,
    row_end_id=8803,
    separator_id=8710,
    patch_size=16,
)
VOCABULARY_SIZE = 65536

PROMPT_LENGTH = 48

# That of the released VQ model.
PIPELINE_VQ_CONFIG = {
    "down_block_types": ["DownEncoderBlock2D"] * 5,
    "up_block_types": ["UpDecoderBlock2D"] * 5,
    "block_out_channels": [128, 128, 256, 256, 512],
    "layers_per_block": 2,
    "latent_channels": 256,
    "vq_embed_dim": 256,
    "num_vq_embeddings": 8192,
    "lookup_from_codebook": True,
    "scaling_factor": 1.0,
}


@dataclass(frozen=True)
class Language:
    """What is not of the decoder: the name of the family and of each code, the ids of its tokens and its VQ model."""

    family: str
    code_name: Callable[[int], str]
    vocabulary: ImageVocabulary
    vocab_size: int
    vq_config: dict
    top_k: int = 2000


# In words of their own, since versions of the project that are measured beside this one know no families.
LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")
LANGUAGE = Language(
    "lumina-mgpt",
    lambda code: f"IMGIMG{str(code).translate(LETTERS)}Z",
    VOCABULARY,
    VOCABULARY_SIZE,
    PIPELINE_VQ_CONFIG,
)

# The ids of separator and size tags are not known of the release and do not matter here.
LANGUAGE_2 = Language(
    "lumina-mgpt-2",
    "<MOVQGAN{}>".format,
    ImageVocabulary(
        code_ids=torch.arange(155_000, 171_384),
        size_tag_ids=tuple(range(151_672, 151_772)),
        start_id=151_665,
        end_id=151_666,
        row_end_id=151_670,
        separator_id=151_671,
        patch_size=8,
    ),
    171_385,
    {
        "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [256, 512, 512, 1024],
        "layers_per_block": 2,
        "latent_channels": 4,
        "vq_embed_dim": 4,
        "num_vq_embeddings": 16384,
        "norm_type": "spatial",
        "lookup_from_codebook": True,
        "scaling_factor": 1.0,
    },
    top_k=4096,
)


def language_of(shape: str) -> Language:
    return LANGUAGE_2 if shape.startswith("2.0") else LANGUAGE


def vocabulary_names(vocabulary: ImageVocabulary, language: Language = LANGUAGE) -> dict[str, int]:
    """Names of the token ids, from which a pipeline without a tokenizer takes them."""
    return {
        **{language.code_name(code): id for code, id in enumerate(vocabulary.code_ids.tolist())},
        **{f"<reserved{8800 + number:05d}>": id for number, id in enumerate(vocabulary.size_tag_ids, 1)},
        "<racm3:break>": vocabulary.start_id,
        "<eoss>": vocabulary.end_id,
        "<reserved08799>": vocabulary.row_end_id,
        "<reserved08706>": vocabulary.separator_id,
    }


def shape_config(shape: str, num_layers: int | None = None) -> ChameleonConfig:
    """The configuration of one of the `SHAPES`, with only its first `num_layers` layers if given."""
    values = {"num_key_value_heads": SHAPES[shape]["num_attention_heads"], **SHAPES[shape]}
    values["num_hidden_layers"] = num_layers or values["num_hidden_layers"]
    small_vq = {"base_channels": 32, "num_res_blocks": 1, "channel_multiplier": [1], "num_embeddings": 8}
    language = language_of(shape)
    names = {"vocab_size": language.vocab_size, "model_family": language.family, "vocabulary_map": {}}
    return ChameleonConfig(vq_config=small_vq, **names, **values)


def build_transformer(
    shape: str, device: torch.device, dtype: torch.dtype, seed: int = 0, num_layers: int | None = None
) -> LuminaMGPTTransformer:
    """A transformer of one of the `SHAPES`, allocated on `device` in `dtype` from the start."""
    config = shape_config(shape, num_layers)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            transformer = LuminaMGPTTransformer(config)
    finally:
        torch.set_default_dtype(default)
    transformer.model.rotary_emb.inv_freq = 1.0 / (
        10000.0 ** (torch.arange(0, transformer.model.layers[0].self_attn.head_dim, 2, device=device).float()
                    / transformer.model.layers[0].self_attn.head_dim)
    )  # fmt: skip
    # Sharper than at initialisation, so that the greedy choice is not decided by rounding.
    torch.nn.init.normal_(transformer.lm_head.weight, std=0.3)
    return transformer.eval().requires_grad_(False)


def compile_transformer(transformer: LuminaMGPTTransformer) -> None:
    # CUDA graphs spare the host; on a CPU, freezing lays the weights out as its matrix products read them.
    is_cpu = transformer.device.type == "cpu"
    torch._inductor.config.freezing = is_cpu
    transformer.compile(fullgraph=True, **{} if is_cpu else {"mode": "reduce-overhead"})


def weight_bytes(transformer: LuminaMGPTTransformer, num_codes: int = VOCABULARY.num_codes) -> int:
    """Bytes that one forward reads: all weights but the embedding, and of the head only the rows of the codes."""
    config = transformer.config
    layers = sum(map(tensor_bytes, transformer.model.layers.parameters()))
    head = num_codes * config.hidden_size * transformer.lm_head.weight.element_size()
    return layers + head


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the values; of a quantised tensor those of its parts."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(tensor_bytes(getattr(tensor, name)) for name in names)
    return tensor.nbytes


def cache_bytes(transformer: LuminaMGPTTransformer, length: int, rows: int) -> int:
    """Bytes of the keys and values of `rows` sequences of `length` tokens."""
    config = transformer.config
    head_dim = config.hidden_size // config.num_attention_heads
    element = torch.finfo(transformer.dtype).bits // 8
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * length * rows * element


def describe_hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    """Bytes per second at which a matrix far greater than any cache is read by a product with a vector."""
    gigabytes = 4 if device.type == "cuda" else 1
    columns = 4096
    rows = gigabytes * 2**30 // columns // (torch.finfo(dtype).bits // 8)
    weight = torch.ones(rows, columns, device=device, dtype=dtype)
    vector = torch.ones(1, columns, device=device, dtype=dtype)
    seconds = []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        F.linear(vector, weight)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return weight.numel() * weight.element_size() / min(seconds)
