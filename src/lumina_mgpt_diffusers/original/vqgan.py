# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The VQ model in its original files as a diffusers [`VQModel`], and back: `vqgan.ckpt` with `vqgan.yaml` (Chameleon's),
or `movqgan_270M.ckpt` alone (MoVQGAN, whose structure is that of its tensors).

Both hold the same network, so the conversion only renames tensors and turns the 1x1 convolutions of the attention into
linear layers.
"""

from __future__ import annotations

import os
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import VQModel
from diffusers.utils import logging

from ..files import read_json
from ..lumina_mgpt.weight_checks import check_finite, check_nothing_is_wrong, check_shapes
from .checkpoint import VQ_PREFIX
from .files import FileSource, open_weights


logger = logging.get_logger(__name__)

ACCEPTED = (
    "It takes a folder or a Hub id with `vqgan.ckpt` and `vqgan.yaml` (also under `tokenizer/` or"
    " `original_tokenizers/`), a path to a `vqgan.ckpt` with the `vqgan.yaml` beside it, `movqgan_270M.ckpt` for"
    " Lumina-mGPT 2.0 or a folder or a Hub id with it, a diffusers `VQModel` or a diffusers pipeline with one, or the"
    " weights of a `ChameleonVQVAE` with decoder. The first come with Meta's Chameleon download (`tokenizer/`) and"
    " with the Hub repositories `Alpha-VLLM/Chameleon_7B_mGPT` (`original_tokenizers/`), `GAIR/Anole-7b-v0.1`"
    " (`tokenizer/`) and `leloy/Anole-7b-v0.1-vqvae-hf`; `movqgan_270M.ckpt` is in `ai-forever/MoVQGAN`."
)

YAML_NAME = "vqgan.yaml"
NORM_NUM_GROUPS = 32
CHECKPOINT_FOLDERS = ("", "tokenizer/", "original_tokenizers/")
MOVQGAN_NAME = "movqgan_270M.ckpt"
MOVQGAN_FOLDERS = ("", "movqgan/270M/", "lumina_mgpt/movqgan/270M/", "270M/", "original_tokenizers/")

# What training leaves in a checkpoint.
_NOT_OF_THE_MODEL = ("loss.", "ema_", "model_ema.")

_ATTENTION = re.compile(r"\.attn(?:_1|\.\d+)\.(q|k|v|proj_out)\.weight$")

# diffusers' name -> original name; the order of the decoder's levels is reversed as well
_RENAMES = [
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
    (r"\.up_blocks\.(\d+)\.resnets\.", r".up.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.down_blocks\.(\d+)\.attentions\.", r".down.\1.attn."),
    (r"\.up_blocks\.(\d+)\.attentions\.", r".up.\1.attn."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"(\.attn(?:_1|\.\d+))\.(?:group_norm|spatial_norm)\.", r"\1.norm."),
    (r"(\.attn(?:_1|\.\d+))\.to_([qkv])\.", r"\1.\2."),
    (r"(\.attn(?:_1|\.\d+))\.to_out\.0\.", r"\1.proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
]


def load_vqvae(source: str | os.PathLike, *, dtype: torch.dtype = torch.float32, **hub_kwargs: Any) -> VQModel:
    """
    Load the VQ model from any of the forms it is distributed in.

    Args:
        source (`str` or `os.PathLike`):
            A folder or a Hub id with `vqgan.ckpt` and `vqgan.yaml` (at the top, in `tokenizer/` or in
            `original_tokenizers/`); a path to a `vqgan.ckpt` with the `vqgan.yaml` beside it; a `movqgan_270M.ckpt`,
            or a folder or a Hub id with it (at the top or in `movqgan/270M/`); a diffusers `VQModel`; a diffusers
            pipeline with one; or weights named as in transformers' `ChameleonVQVAE`, with the decoder.
        dtype (`torch.dtype`, defaults to `torch.float32`): Type of the weights.
        hub_kwargs: `cache_dir`, `revision`, `token`, `local_files_only`, `force_download`.

    Returns:
        [`VQModel`]: In evaluation mode, on the CPU.

    Raises:
        `ValueError` or `OSError`: If `source` is none of these, lacks a file, or its weights do not fit its
            configuration.

    Example:

    ```py
    >>> vqvae = load_vqvae("chameleon/tokenizer")
    >>> pixels = vqvae.decode(codes, force_not_quantize=True, shape=(1, rows, columns, 256)).sample
    ```
    """
    if os.path.isfile(source):
        path = Path(source)
        yaml_path = path.with_name(YAML_NAME)
        if path.name != "vqgan.ckpt" and not yaml_path.is_file():
            return _from_tensors(path, dtype)
        if not yaml_path.is_file():
            raise FileNotFoundError(
                f"`original_vqgan` is {str(path)!r} but there is no `vqgan.yaml` beside it. {ACCEPTED}"
            )
        return _from_original(path, yaml_path, dtype)

    files = FileSource(source, "original_vqgan", ACCEPTED, **hub_kwargs)
    for folder in CHECKPOINT_FOLDERS:
        path = files.find(f"{folder}vqgan.ckpt")
        if path is not None:
            return _from_original(path, files.require(f"{folder}{YAML_NAME}"), dtype)
    path = files.find(*(folder + MOVQGAN_NAME for folder in MOVQGAN_FOLDERS))
    if path is not None:
        return _from_tensors(path, dtype)

    for folder in ("", "vqvae/"):
        path = files.find(f"{folder}config.json")
        if path is not None and read_json(path).get("_class_name") == "VQModel":
            weights = files.find(
                f"{folder}diffusion_pytorch_model.safetensors", f"{folder}diffusion_pytorch_model.bin"
            )
            if weights is None:
                raise files.missing(f"`{folder}diffusion_pytorch_model.safetensors`")
            return _from_diffusers(path.parent, dtype)

    return _from_transformers(files, dtype)


def vqvae_to_original(vqvae: VQModel) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """
    The VQ model as the original files hold it.

    Args:
        vqvae ([`VQModel`]): The model to write.

    Returns:
        `tuple[dict[str, torch.Tensor], dict]`: What `vqgan.ckpt` has under `state_dict` and `movqgan_270M.ckpt` at the
        top, and the content of `vqgan.yaml`.
    """
    config = vqvae.config
    state_dict = {}
    for name, tensor in vqvae.state_dict().items():
        name = _original_name(name, len(config.block_out_channels))
        state_dict[name] = tensor[:, :, None, None] if _ATTENTION.search(name) else tensor
    channels = config.block_out_channels[0]
    ddconfig = {
        "double_z": False,
        "z_channels": config.latent_channels,
        "resolution": 512,
        "in_channels": config.in_channels,
        "out_ch": config.out_channels,
        "ch": channels,
        "ch_mult": [width // channels for width in config.block_out_channels],
        "num_res_blocks": config.layers_per_block,
        "attn_resolutions": [
            512 // 2**level for level, kind in enumerate(config.down_block_types) if kind.startswith("Attn")
        ],
        "dropout": 0.0,
    }
    params = {"embed_dim": config.vq_embed_dim, "n_embed": config.num_vq_embeddings, "ddconfig": ddconfig}
    return state_dict, {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}


def original_vqgan_files(vqvae: VQModel, name: str = "vqgan.ckpt") -> dict[str, bytes]:
    """
    The VQ model as the bytes of its original files.

    Args:
        vqvae ([`VQModel`]): The model to write.
        name (`str`, defaults to `"vqgan.ckpt"`): Name of the checkpoint.

    Returns:
        `dict[str, bytes]`: Content by name: the checkpoint and `vqgan.yaml`, or `movqgan_270M.ckpt` alone.

    Raises:
        `ValueError`: If the original files cannot say what the model is.
    """
    if vqvae.config.norm_num_groups != NORM_NUM_GROUPS:
        raise ValueError(
            f"The VQ model has norms of {vqvae.config.norm_num_groups} groups (`norm_num_groups`), but the original's"
            f" always have {NORM_NUM_GROUPS}: it has no original form."
        )
    state_dict, config = vqvae_to_original(vqvae)
    state_dict = {name: tensor.contiguous() for name, tensor in state_dict.items()}
    checkpoint = BytesIO()
    if name == MOVQGAN_NAME:
        torch.save(state_dict, checkpoint)
        return {name: checkpoint.getvalue()}
    if config["model"]["params"]["ddconfig"]["attn_resolutions"] or vqvae.config.norm_type != "group":
        raise ValueError(
            f"The VQ model has attention at full levels or spatial norms, which `{name}` cannot hold: only a MoVQGAN's"
            f" `{MOVQGAN_NAME}` can."
        )
    torch.save({"state_dict": state_dict}, checkpoint)
    return {name: checkpoint.getvalue(), YAML_NAME: yaml.safe_dump(config, sort_keys=False).encode()}


def _from_original(path: Path, yaml_path: Path, dtype: torch.dtype) -> VQModel:
    try:
        config = _config_from_yaml(yaml.safe_load(yaml_path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(
            f"`original_vqgan`: {str(yaml_path)!r} is not the configuration of a VQGAN ({error!r}). {ACCEPTED}"
        ) from error
    return _build(config, _read_model(path), path, dtype)


def _from_tensors(path: Path, dtype: torch.dtype) -> VQModel:
    state_dict = _read_model(path)
    try:
        config = _config_from_shapes(state_dict)
    except KeyError as error:
        raise ValueError(
            f"`original_vqgan`: the weights in {str(path)!r} are not a VQ model's with encoder and decoder: there is"
            f" no {error}. {ACCEPTED}"
        ) from error
    return _build(config, state_dict, path, dtype)


def _read_model(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in _read_pickle(path).items() if not name.startswith(_NOT_OF_THE_MODEL)}


def _from_diffusers(folder: Path, dtype: torch.dtype) -> VQModel:
    vqvae, info = VQModel.from_pretrained(folder, output_loading_info=True)
    check_nothing_is_wrong(str(folder), *(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched")))
    check_finite(str(folder), vqvae.state_dict().items())
    return vqvae.to(dtype).eval()


def _from_transformers(files: FileSource, dtype: torch.dtype) -> VQModel:
    # Of a whole Chameleon checkpoint only the shards with the VQ model are of interest.
    paths = files.find_weights(prefixes=(VQ_PREFIX, "encoder.", "decoder.", "quant", "post_quant_conv."))
    if paths:
        state_dict = {}
        for path in paths:
            with open_weights(path) as tensors:
                names = list(tensors.keys())
                wanted = [name for name in names if name.startswith(VQ_PREFIX)] or names
                state_dict.update({name: tensors.get_tensor(name) for name in wanted})
    else:
        path = files.find("pytorch_model.bin", "model.bin")
        if path is None:
            raise files.missing("VQ model in any known form")
        state_dict = _read_pickle(path)
    state_dict = {name.removeprefix(VQ_PREFIX): tensor for name, tensor in state_dict.items()}
    try:
        config = _config_from_shapes(state_dict)
    except KeyError as error:
        raise ValueError(
            f"`original_vqgan` is {files.source!r}, whose weights are not a VQ model's with encoder and decoder:"
            f" there is no {error}. {ACCEPTED}"
        ) from error
    return _build(config, state_dict, path, dtype)


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what unpickling makes of damaged bytes is of every kind
        raise ValueError(
            f"`original_vqgan`: {str(path)!r} cannot be read as a file of tensors. Either it is damaged, or it is a"
            " pickle that runs code when it is opened, which is refused: only tensors and plain containers are"
            " accepted. If you trust such a file, load it yourself and save its `state_dict` again with `torch.save`."
            f" {ACCEPTED}"
        ) from error
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"`original_vqgan`: {str(path)!r} holds no `state_dict` of tensors. {ACCEPTED}")
    return state_dict


def _config_from_yaml(content: dict[str, Any]) -> dict[str, Any]:
    params = content["model"]["params"]
    ddconfig = params["ddconfig"]
    if ddconfig["attn_resolutions"] or ddconfig["double_z"]:
        raise ValueError(
            "`original_vqgan`: only VQGANs with `attn_resolutions: []` and `double_z: false` can be a diffusers"
            f" `VQModel`, but they are {ddconfig['attn_resolutions']} and {ddconfig['double_z']}."
        )
    return _config(
        in_channels=ddconfig["in_channels"],
        out_channels=ddconfig["out_ch"],
        block_out_channels=[ddconfig["ch"] * multiplier for multiplier in ddconfig["ch_mult"]],
        layers_per_block=ddconfig["num_res_blocks"],
        latent_channels=ddconfig["z_channels"],
        num_vq_embeddings=params["n_embed"],
        vq_embed_dim=params["embed_dim"],
    )


def _config_from_shapes(state_dict: dict[str, torch.Tensor]) -> dict[str, Any]:
    shapes = {name: tensor.shape for name, tensor in state_dict.items()}
    first_convs = [name for name in shapes if re.fullmatch(r"encoder\.down\.\d+\.block\.0\.conv1\.weight", name)]
    levels = range(len(first_convs))
    norm_type = "spatial" if "decoder.norm_out.norm_layer.weight" in shapes else "group"
    z_channels, embed_dim = shapes["encoder.conv_out.weight"][0], shapes["quantize.embedding.weight"][1]
    if norm_type == "spatial" and embed_dim != z_channels:
        raise ValueError(
            "`original_vqgan`: only MoVQGANs whose `embed_dim` is equal to their `z_channels` can be a diffusers"
            f" `VQModel`, but they are {embed_dim} and {z_channels}."
        )
    return _config(
        in_channels=shapes["encoder.conv_in.weight"][1],
        out_channels=shapes["decoder.conv_out.weight"][0],
        block_out_channels=[shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in levels],
        layers_per_block=sum(
            re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name) is not None for name in shapes
        ),
        latent_channels=z_channels,
        num_vq_embeddings=shapes["quantize.embedding.weight"][0],
        vq_embed_dim=embed_dim,
        has_attention=[f"encoder.down.{level}.attn.0.q.weight" in shapes for level in levels],
        norm_type=norm_type,
    )


def _config(
    *, block_out_channels: list[int], has_attention: list[bool] | None = None, norm_type: str = "group", **config: Any
) -> dict[str, Any]:
    has_attention = has_attention or [False] * len(block_out_channels)
    return {
        **config,
        "block_out_channels": tuple(block_out_channels),
        "down_block_types": tuple("Attn" * attends + "DownEncoderBlock2D" for attends in has_attention),
        "up_block_types": tuple("Attn" * attends + "UpDecoderBlock2D" for attends in reversed(has_attention)),
        "norm_type": norm_type,
        "norm_num_groups": NORM_NUM_GROUPS,
        "scaling_factor": 1.0,
        "mid_block_add_attention": True,
        "lookup_from_codebook": True,
    }


def _build(config: dict[str, Any], original: dict[str, torch.Tensor], path: Path, dtype: torch.dtype) -> VQModel:
    try:
        with torch.device("meta"):
            vqvae = VQModel(**config)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"`original_vqgan`: no VQ model can be configured as for {str(path)!r}: {error}") from error
    original_names = {name: _original_name(name, len(config["block_out_channels"])) for name in vqvae.state_dict()}
    unknown = sorted(original.keys() - set(original_names.values()))
    if unknown and config["norm_type"] == "spatial":  # the original drops what its MoVQGAN does not have
        logger.warning(
            f"{len(unknown)} tensors in {str(path)!r} are not of its MoVQGAN and are left out, such as"
            f" {', '.join(unknown[:3])}."
        )
        original = {name: tensor for name, tensor in original.items() if name not in unknown}
    original = {name: t.flatten(1) if _ATTENTION.search(name) else t for name, t in original.items()}
    check_shapes(
        str(path),
        {name: tuple(tensor.shape) for name, tensor in original.items()},
        {original_names[name]: tuple(tensor.shape) for name, tensor in vqvae.state_dict().items()},
    )
    check_finite(str(path), original.items())
    state_dict = {name: original[original_names[name]].to(dtype, copy=True) for name in original_names}
    vqvae.load_state_dict(state_dict, assign=True)
    return vqvae.eval()


def _original_name(name: str, num_levels: int) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"\.up\.(\d+)\.", lambda match: f".up.{num_levels - 1 - int(match[1])}.", name)
