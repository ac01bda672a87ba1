# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
LoRA adapters of the transformer.

Files name their tensors in one of two styles: diffusers' `transformer.<module>.lora_A.weight`, or peft's
`base_model.model.<module>.lora_A.weight` with the scale in an `adapter_config.json` beside them. Both are read here;
diffusers' style is written.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn as nn
from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.utils import logging
from diffusers.utils.peft_utils import require_peft_backend
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from ..original.files import read_json


logger = logging.get_logger(__name__)

PEFT_CONFIG_NAME = "adapter_config.json"

_PREFIXES = re.compile(r"^(transformer\.|base_model\.model\.)+")
_RENAMES = (
    # Names of the two matrices in older files of diffusers and of others.
    (re.compile(r"\.(lora|lora_linear_layer)\.down\.|\.lora_down\."), ".lora_A."),
    (re.compile(r"\.(lora|lora_linear_layer)\.up\.|\.lora_up\."), ".lora_B."),
    # A state dict of the model itself has the name of the adapter in its keys.
    (re.compile(r"\.(lora_[AB])\.[^.]+\.(weight|bias)$"), r".\1.\2"),
    (re.compile(r"\.(lora_embedding_[AB])\.[^.]+$"), r".\1"),
)
_SUFFIX = re.compile(r"\.(lora_[A-Za-z_]+|alpha)(\..*)?$")


class LuminaMGPTLoraLoaderMixin(LoraBaseMixin):
    """
    Gives a pipeline LoRA adapters of its transformer: on any of its linear layers (attention, MLP, `lm_head`) and on
    `embed_tokens`, each with a rank of its own.
    """

    _lora_loadable_modules = ["transformer"]
    transformer_name = "transformer"

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        *,
        return_lora_metadata: bool = False,
        weight_name: str | None = None,
        subfolder: str | None = None,
        use_safetensors: bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool | None = None,
        force_download: bool = False,
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        r"""
        Read a LoRA adapter.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`):
                A folder, a file, a Hub id or the tensors themselves.
            return_lora_metadata (`bool`, defaults to `False`):
                Whether to return the arguments of the adapter's [`~peft.LoraConfig`] as well, named
                `transformer.<argument>`; None if they are not known.
            weight_name (`str`, *optional*): Name of the file of weights, if there are several.
            subfolder (`str`, *optional*): Where in the folder or repository it lies.
            use_safetensors (`bool`, *optional*): Whether only safetensors are accepted; by default they are preferred.
            cache_dir, revision, token, local_files_only, force_download (*optional*): As everywhere on the Hub.

        Returns:
            `dict[str, torch.Tensor]`: The tensors, named `transformer.<module>.lora_A.weight` and so on.
        """
        source = pretrained_model_name_or_path_or_dict
        hub_kwargs = {
            "cache_dir": cache_dir,
            "revision": revision,
            "token": token,
            "local_files_only": local_files_only,
            "force_download": force_download,
        }
        state_dict, metadata = _fetch_state_dict(
            source,
            weight_name=weight_name,
            use_safetensors=use_safetensors in (None, True),
            subfolder=subfolder,
            proxies=None,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            allow_pickle=use_safetensors is None,
            **hub_kwargs,
        )
        if metadata is None and not isinstance(source, dict):
            metadata = _read_peft_config(source, subfolder, **hub_kwargs)
            metadata = None if metadata is None else cls._with_prefix(metadata)
        state_dict = cls._with_prefix(to_peft_names(state_dict))
        return (state_dict, metadata) if return_lora_metadata else state_dict

    @classmethod
    def _with_prefix(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {f"{cls.transformer_name}.{name}": value for name, value in values.items()}

    @require_peft_backend
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        **kwargs,
    ) -> None:
        r"""
        Load a LoRA adapter into the transformer and activate it.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`):
                A folder, a file, a Hub id or the tensors themselves, with the names of diffusers or of peft.
            adapter_name (`str`, *optional*): Name for [`set_adapters`] and others, `default_{i}` by default.
            hotswap (`bool`, defaults to `False`): Whether to replace the weights of a loaded adapter of that name.
            low_cpu_mem_usage (`bool`, defaults to `True`): Whether to skip the initialisation of the new layers.
            kwargs: See [`lora_state_dict`].

        Raises:
            `ValueError`: If the weights are not those of a LoRA adapter of this model.
        """
        state_dict, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **kwargs
        )
        self.load_lora_into_transformer(
            state_dict,
            self.transformer,
            adapter_name=adapter_name,
            metadata=metadata,
            _pipeline=self,
            low_cpu_mem_usage=low_cpu_mem_usage,
            hotswap=hotswap,
        )

    @classmethod
    def load_lora_into_transformer(
        cls,
        state_dict: dict[str, torch.Tensor],
        transformer: nn.Module,
        adapter_name: str | None = None,
        metadata: dict[str, Any] | None = None,
        _pipeline: LuminaMGPTLoraLoaderMixin | None = None,
        low_cpu_mem_usage: bool = True,
        hotswap: bool = False,
    ) -> None:
        r"""
        Load the tensors of a LoRA adapter into a transformer.

        Args:
            state_dict (`dict[str, torch.Tensor]`): From [`lora_state_dict`].
            transformer ([`LuminaMGPTTransformer`]): The model.
            adapter_name (`str`, *optional*): Name of the adapter.
            metadata (`dict[str, Any]`, *optional*): From [`lora_state_dict`], else it is inferred.
            low_cpu_mem_usage (`bool`, defaults to `True`): Whether to skip the initialisation of the new layers.
            hotswap (`bool`, defaults to `False`): Whether to replace the weights of a loaded adapter of that name.
        """
        modules = {name for name, _ in transformer.named_modules()}
        found, ignored = {}, []
        for name, tensor in to_peft_names(state_dict).items():
            if _module_of(name) in modules:
                found[name] = tensor
            else:
                ignored.append(name)
        if ignored:
            logger.warning(
                f"{len(ignored)} of {len(state_dict)} LoRA keys, such as {ignored[0]!r}, are not those of a module of"
                f" {type(transformer).__name__} and are ignored."
            )
        if not found:
            return
        alphas = {_module_of(name): float(value) for name, value in found.items() if name.endswith(".alpha")}
        tensors = {name: value.to(transformer.dtype) for name, value in found.items() if "lora_" in name}
        if metadata is None:
            metadata = infer_lora_config(tensors, alphas)
        with warnings.catch_warnings():
            # That there are several adapters then is what is wanted.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            transformer.load_lora_adapter(
                tensors,
                prefix=None,
                adapter_name=adapter_name,
                metadata={name.removeprefix(f"{cls.transformer_name}."): value for name, value in metadata.items()},
                low_cpu_mem_usage=low_cpu_mem_usage,
                hotswap=hotswap,
                _pipeline=_pipeline,
            )

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        transformer_lora_layers: dict[str, torch.Tensor | nn.Module] | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: dict[str, Any] | None = None,
    ) -> None:
        r"""
        Save a LoRA adapter.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to save to.
            transformer_lora_layers (`dict[str, torch.Tensor]`):
                The tensors, from `peft.get_peft_model_state_dict(pipe.transformer, adapter_name="…")`.
            is_main_process (`bool`, defaults to `True`): Whether this process writes.
            weight_name (`str`, *optional*): Name of the file, by default `pytorch_lora_weights.safetensors`.
            save_function (`Callable`, *optional*): Called with the tensors and the path instead of the default.
            safe_serialization (`bool`, defaults to `True`): Whether to write safetensors rather than a pickle.
            transformer_lora_adapter_metadata (`dict[str, Any]`, *optional*):
                `pipe.transformer.peft_config["…"].to_dict()`: keeps the scale. Without it the scale is 1 on loading.
        """
        if not transformer_lora_layers:
            raise ValueError("You must pass `transformer_lora_layers`.")
        layers = transformer_lora_layers
        if isinstance(layers, nn.Module):
            layers = layers.state_dict()
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers={cls.transformer_name: to_peft_names(layers)},
            lora_metadata={cls.transformer_name: transformer_lora_adapter_metadata},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
        )

    def fuse_lora(
        self,
        components: list[str] = ["transformer"],
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs,
    ) -> None:
        r"""
        Add LoRA adapters to the weights of the transformer, so that they cost nothing any more.

        Args:
            components (`list[str]`, defaults to `["transformer"]`): Components to fuse the adapters of.
            lora_scale (`float`, defaults to 1.0): Scales the adapters.
            safe_fusing (`bool`, defaults to `False`): Whether to leave out weights that would become NaN.
            adapter_names (`list[str]`, *optional*): Adapters to fuse, by default the active ones.
        """
        if "transformer" in components:
            # peft's own `scale_layer`, which is called for the other layers, leaves embeddings out.
            for module in self.transformer.modules():
                for name in getattr(module, "lora_embedding_A", {}):
                    if name in module.active_adapters:
                        module.scaling[name] *= lora_scale
        super().fuse_lora(components, lora_scale, safe_fusing, adapter_names, **kwargs)

    def unfuse_lora(self, components: list[str] = ["transformer"], **kwargs) -> None:
        r"""
        Take fused LoRA adapters out of the weights again.

        Args:
            components (`list[str]`, defaults to `["transformer"]`): Components to take them out of.
        """
        super().unfuse_lora(components, **kwargs)


class LoraTransformerMixin:
    """Gives a model of transformers the LoRA loader of diffusers' models, and a state dict without adapters."""

    load_lora_adapter = PeftAdapterMixin.load_lora_adapter
    enable_lora_hotswap = PeftAdapterMixin.enable_lora_hotswap
    _optionally_disable_offloading = PeftAdapterMixin._optionally_disable_offloading
    _prepare_lora_hotswap_kwargs = None

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """Add a new adapter, to be trained; see [`~transformers.PreTrainedModel.add_adapter`]."""
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
        `ValueError`: If there are tensors that are not those of a LoRA adapter.
    """
    tensors, foreign = {}, []
    for key, tensor in state_dict.items():
        name = _PREFIXES.sub("", key)
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)
        if "lora_" in name or name.endswith(".alpha"):
            tensors[name] = tensor
        elif not name.endswith(".base_layer.weight"):  # which peft adds unasked where embeddings have an adapter
            foreign.append(key)
    if foreign or not tensors:
        what = f"{len(foreign)} do not, such as {foreign[0]!r}" if foreign else "there are none"
        raise ValueError(
            f"Invalid LoRA checkpoint. Make sure all LoRA param names contain `'lora'` substring: {what}."
        )
    return tensors


def infer_lora_config(tensors: Mapping[str, torch.Tensor], alphas: Mapping[str, float]) -> dict[str, Any]:
    """
    Arguments of the [`~peft.LoraConfig`] of an adapter.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): Its tensors, from [`to_peft_names`].
        alphas (`Mapping[str, float]`): The alpha of modules that have one; that of others is their rank, for scale 1.
    """
    ranks = {}
    for name, tensor in tensors.items():
        if ".lora_A." in name or name.endswith(".lora_embedding_A"):
            ranks[_module_of(name)] = tensor.shape[0]
    alphas = {module: alphas.get(module, rank) for module, rank in ranks.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "target_modules": sorted(ranks),
        "use_dora": any("lora_magnitude_vector" in name for name in tensors),
        "lora_bias": any(name.endswith(".lora_B.bias") for name in tensors),
    }


def _module_of(name: str) -> str:
    return _SUFFIX.sub("", name)


def _read_peft_config(source: str | os.PathLike, subfolder: str | None, **hub_kwargs) -> dict[str, Any] | None:
    """Arguments of the adapter's [`~peft.LoraConfig`] as peft saves it, None if it did not."""
    if os.path.exists(source):
        folder = os.fspath(source) if os.path.isdir(source) else os.path.dirname(source)
        path = os.path.join(folder, subfolder or "", PEFT_CONFIG_NAME)
        if not os.path.isfile(path):
            return None
    else:
        try:
            path = hf_hub_download(source, PEFT_CONFIG_NAME, subfolder=subfolder, **hub_kwargs)
        except EntryNotFoundError:
            return None
    from peft import LoraConfig

    # peft itself knows which of the saved values are arguments.
    return LoraConfig.from_peft_type(**read_json(path)).to_dict()
