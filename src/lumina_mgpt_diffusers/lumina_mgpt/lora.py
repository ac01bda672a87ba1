# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
LoRA adapters of the transformer.

diffusers and peft do the work. What they lack is here: files of peft in a pipeline (`base_model.model.<module>…`, with
the scale in an `adapter_config.json` beside them), and adapters on a model of transformers.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn
from diffusers.loaders.lora_base import _pack_dict_with_prefix
from diffusers.loaders.lora_pipeline import CogVideoXLoraLoaderMixin
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.utils import logging
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers.utils.versions import require_version


logger = logging.get_logger(__name__)

PEFT_CONFIG_NAME = "adapter_config.json"
EMBEDDING_NAME = "model.embed_tokens"
NO_EMBEDDING = "adapters of the embedding are not supported."

_PREFIXES = re.compile(r"^(transformer\.|base_model\.model\.)+")
_RENAMES = (
    # Names of the two matrices in older files of diffusers and of others.
    (re.compile(r"\.lora(_linear_layer)?[._]down\."), ".lora_A."),
    (re.compile(r"\.lora(_linear_layer)?[._]up\."), ".lora_B."),
    # A state dict of the model itself has the name of the adapter in its keys.
    (re.compile(r"\.(lora_[AB])\.[^.]+\.(weight|bias)$"), r".\1.\2"),
)
_SUFFIX = re.compile(r"\.(lora_[A-Za-z_]+|alpha)(\..*)?$")


# Of diffusers' mixins for pipelines with a transformer only, the one that the others are copied from.
class LuminaMGPTLoraLoaderMixin(CogVideoXLoraLoaderMixin):
    """
    Gives a pipeline LoRA adapters of its transformer, on any of its linear layers (attention, MLP, `lm_head`), each
    with a rank of its own.
    """

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        *,
        return_lora_metadata: bool = False,
        **kwargs,
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        r"""
        Read a LoRA adapter.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`):
                A folder, a file, a Hub id or the tensors themselves, with the names of diffusers or of peft.
            return_lora_metadata (`bool`, defaults to `False`):
                Whether to return the arguments of the adapter's [`~peft.LoraConfig`] as well, named
                `transformer.<argument>`; None if they are not known, and then the scale of the tensors is 1.
            kwargs:
                `weight_name` and `subfolder` say which file it is, `use_safetensors` whether a pickle is refused
                (`True`), `cache_dir`, `revision`, `token`, `local_files_only` and `force_download` are as everywhere
                on the Hub.

        Returns:
            `dict[str, torch.Tensor]`: The tensors, named `transformer.<module>.lora_A.weight` and so on.

        Raises:
            `ValueError`: If there are tensors that are not those of a LoRA adapter of linear layers.
        """
        source = pretrained_model_name_or_path_or_dict
        state_dict, metadata = super().lora_state_dict(source, return_lora_metadata=True, **kwargs)
        tensors = to_peft_names(state_dict)
        if metadata is None and not isinstance(source, dict):
            metadata = _read_peft_config(source, **kwargs)
            metadata = None if metadata is None else _pack_dict_with_prefix(metadata, cls.transformer_name)
        alphas = {name: tensors.pop(name) for name in list(tensors) if name.endswith(".alpha")}
        if metadata is None:
            _apply_alphas(tensors, alphas)
        tensors = _pack_dict_with_prefix(tensors, cls.transformer_name)
        return (tensors, metadata) if return_lora_metadata else tensors

    @classmethod
    def load_lora_into_transformer(
        cls, state_dict: dict[str, torch.Tensor], transformer: nn.Module, *args: Any, **kwargs: Any
    ) -> None:
        r"""
        Load the tensors of a LoRA adapter into a transformer.

        Args:
            state_dict (`dict[str, torch.Tensor]`): From [`lora_state_dict`].
            transformer ([`LuminaMGPTTransformer`]): The model.
            args, kwargs: See [`~loaders.StableDiffusionLoraLoaderMixin.load_lora_into_unet`].
        """
        require_version("diffusers>=0.42", "Older versions load no adapter into this transformer, and do not say so.")
        modules = {f"{cls.transformer_name}.{name}" for name, _ in transformer.named_modules()}
        tensors = {name: tensor for name, tensor in state_dict.items() if _SUFFIX.sub("", name) in modules}
        if len(tensors) < len(state_dict):
            ignored = [name for name in state_dict if name not in tensors]
            logger.warning(
                f"{len(ignored)} of {len(state_dict)} LoRA keys, such as {ignored[0]!r}, are not those of a module of"
                f" {type(transformer).__name__} and are ignored."
            )
        if not tensors:
            return
        tensors = {name: tensor.to(transformer.dtype) for name, tensor in tensors.items()}
        with warnings.catch_warnings():
            # That there are several adapters then is what is wanted.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            super().load_lora_into_transformer(tensors, transformer, *args, **kwargs)

    @staticmethod
    def pack_weights(layers: dict[str, torch.Tensor] | nn.Module, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors of an adapter to be saved, without the base weights that peft adds to that of `lm_head`."""
        tensors = layers.state_dict() if isinstance(layers, nn.Module) else layers
        return _pack_dict_with_prefix(to_peft_names(tensors), prefix)


class LoraTransformerMixin:
    """Gives a model of transformers the LoRA loader of diffusers' models, and a state dict without adapters."""

    load_lora_adapter = PeftAdapterMixin.load_lora_adapter
    enable_lora_hotswap = PeftAdapterMixin.enable_lora_hotswap
    _optionally_disable_offloading = PeftAdapterMixin._optionally_disable_offloading
    _prepare_lora_hotswap_kwargs = None

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """
        Add a new adapter of linear layers, to be trained; see [`~transformers.PreTrainedModel.add_adapter`].

        Raises:
            `ValueError`: If the target modules include the embedding.
        """
        from peft.tuners.tuners_utils import check_target_module_exists

        targets = getattr(adapter_config, "target_modules", None)
        if targets and check_target_module_exists(adapter_config, EMBEDDING_NAME):
            raise ValueError(f"`target_modules` has to name linear layers only but is {targets}: {NO_EMBEDDING}")
        super().add_adapter(adapter_config, adapter_name)
        if os.path.isabs(adapter_config.base_model_name_or_path or ""):
            # A folder of this machine, which means nothing where the adapter is loaded.
            adapter_config.base_model_name_or_path = None

    def state_dict_without_adapters(self) -> dict[str, torch.Tensor]:
        """The weights of the model, with fused adapters and without the others, by the names of the plain model."""
        return {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in self.state_dict().items()
            if ".lora_" not in name
        }


def to_peft_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Name the tensors of a LoRA adapter `<module>.lora_A.weight` and so on.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): In the style of diffusers or of peft.

    Raises:
        `ValueError`: If there are tensors that are not those of a LoRA adapter of linear layers.
    """
    tensors, foreign = {}, []
    for key, tensor in state_dict.items():
        name = _PREFIXES.sub("", key)
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)
        if ".lora_embedding_" in name:
            raise ValueError(
                f"Invalid LoRA checkpoint with {key!r}: {NO_EMBEDDING} Merge it into the weights with peft's"
                " `merge_and_unload()`."
            )
        if ".lora_" in name or name.endswith(".alpha"):
            tensors[name] = tensor
        elif not name.endswith(".base_layer.weight"):  # which peft adds unasked where `lm_head` has an adapter
            foreign.append(key)
    if foreign or not tensors:
        what = f"{len(foreign)} do not, such as {foreign[0]!r}" if foreign else "there are none"
        raise ValueError(
            f"Invalid LoRA checkpoint. Make sure all LoRA param names contain `'lora'` substring: {what}."
        )
    return tensors


def _apply_alphas(tensors: dict[str, torch.Tensor], alphas: dict[str, torch.Tensor]) -> None:
    """Multiply the scales, which files of others hold as `<module>.alpha`, into the tensors."""
    for name, alpha in alphas.items():
        up = name.removesuffix("alpha") + "lora_B.weight"
        if up in tensors:
            tensors[up] = tensors[up] * (float(alpha) / tensors[up].shape[1])


def _read_peft_config(source: str | os.PathLike, **kwargs: Any) -> dict[str, Any] | None:
    """Arguments of the adapter's [`~peft.LoraConfig`] as peft saves it, None if it did not."""
    if os.path.exists(source):
        folder = os.fspath(source) if os.path.isdir(source) else os.path.dirname(source)
        path = os.path.join(folder, kwargs.get("subfolder") or "", PEFT_CONFIG_NAME)
        if not os.path.isfile(path):
            return None
    else:
        kwargs = {name: value for name, value in kwargs.items() if name not in ("weight_name", "use_safetensors")}
        try:
            path = hf_hub_download(source, PEFT_CONFIG_NAME, **kwargs)
        except EntryNotFoundError:
            return None
    from peft import LoraConfig

    return LoraConfig.from_pretrained(os.path.dirname(path)).to_dict()
