# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The autoregressive transformer of Lumina-mGPT: transformers' Chameleon without its VQ model and its logit mask."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import ChameleonConfig, ChameleonForConditionalGeneration
from transformers.cache_utils import Cache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.chameleon.modeling_chameleon import ChameleonRotaryEmbedding

from .attention import XFORMERS, XformersAttentionMixin
from .kv_cache import SlotCache
from .lora import LoraTransformerMixin
from .slot_attention import SLOT_SDPA, slot_mask
from .weight_checks import check_config, check_finite, check_nothing_is_wrong, quantised_mismatches


SLOT_IMPLEMENTATIONS = ("eager", SLOT_SDPA, "flex_attention", XFORMERS)
"""Attention implementations that images can be sampled with."""

HUB_ARGUMENTS = ("repo_id", "commit_message", "private", "token", "revision", "create_pr")


@dataclass
class LuminaMGPTTransformerOutput(CausalLMOutputWithPast):
    """
    Output class of [`LuminaMGPTTransformer`], [`~transformers.modeling_outputs.CausalLMOutputWithPast`] and:

    Args:
        text_logits (`torch.Tensor` of shape `(number, vocab_size)`, *optional*): The logits at `text_places`.
    """

    text_logits: torch.Tensor | None = None


class LuminaMGPTRotaryEmbedding(ChameleonRotaryEmbedding):
    """Rotary embedding whose frequencies stay float32 when the model is cast: rounded ones move logits by about 1."""

    def _apply(self, fn: Callable, recurse: bool = True) -> LuminaMGPTRotaryEmbedding:
        exact = {name: buffer for name, buffer in self._buffers.items() if not buffer.is_meta}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            self._buffers[name] = buffer.to(self._buffers[name].device)
        return self


class ExpandNormRows(ConversionOps):
    """
    Gives every head its own row of a q- or k-norm.

    Original checkpoints hold one row per shard of tensor-parallel training, `(rows, head_dim)`, shared by the heads of
    that shard; the model holds `(num_heads, head_dim)`.
    """

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        model: nn.Module,
        full_layer_name: str,
        **kwargs,
    ) -> dict[str, torch.Tensor]:
        (tensors,) = input_dict.values()
        tensor = tensors[0] if isinstance(tensors, list) else tensors
        num_heads = model.get_parameter(full_layer_name).shape[0]
        if tensor.ndim != 2 or not tensor.shape[0] or num_heads % tensor.shape[0]:
            return {target_patterns[0]: tensor}  # reported as of another shape
        return {target_patterns[0]: tensor.repeat_interleave(num_heads // tensor.shape[0], dim=0)}

    @property
    def reverse_op(self) -> ConversionOps:
        # On disk every head keeps its row, as stock transformers expects, and expanding that changes nothing.
        return self


@functools.cache
def register_norm_expansion() -> None:
    """Have transformers expand the norms of [`LuminaMGPTTransformer`] whenever it loads one."""
    # Not at import: it makes transformers gather the conversions of all its models, as it does to load one.
    register_checkpoint_conversion_mapping(
        LuminaMGPTTransformer.__name__,
        [
            WeightConverter(rf"self_attn.{norm}.{kind}", rf"self_attn.{norm}.{kind}", operations=[ExpandNormRows()])
            for norm in ("q_norm", "k_norm")
            for kind in ("weight", "bias")
        ],
        overwrite=True,
    )


class LuminaMGPTTransformer(LoraTransformerMixin, XformersAttentionMixin, ChameleonForConditionalGeneration):
    r"""
    The decoder-only transformer of Lumina-mGPT (https://huggingface.co/papers/2408.02657).

    It differs from [`~transformers.ChameleonForConditionalGeneration`] where Lumina-mGPT does: it may emit image
    tokens, and its VQ model is a component of its own. `from_pretrained` loads the released checkpoints as they are
    (one q/k-norm row per training shard, with or without `model.vqmodel.*` weights) as well as what `save_pretrained`
    writes, a Chameleon checkpoint that stock transformers can read.

    Args:
        config ([`~transformers.ChameleonConfig`]): The configuration of the model.
    """

    _keys_to_ignore_on_load_unexpected = [r"model\.vqmodel\."]

    def __init__(self, config: ChameleonConfig) -> None:
        register_norm_expansion()
        check_config(config)
        super().__init__(config)
        del self.model.vqmodel
        self.model.rotary_emb = LuminaMGPTRotaryEmbedding(config)

    def _check_and_adjust_attn_implementation(self, *args, **kwargs) -> str:
        implementation = super()._check_and_adjust_attn_implementation(*args, **kwargs)
        return SLOT_SDPA if implementation == "sdpa" else implementation

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs,
    ) -> LuminaMGPTTransformer | tuple[LuminaMGPTTransformer, dict[str, Any]]:
        r"""
        Load the model from a folder or a repository.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): A folder or a Hub id.
            ignore_mismatched_sizes (`bool`, defaults to `False`):
                Whether to start weights of another shape, or that are not there, from random values.
            output_loading_info (`bool`, defaults to `False`): Whether to return what was missing or unexpected too.
            args, kwargs: All else that [`~transformers.PreTrainedModel.from_pretrained`] takes.

        Raises:
            `ValueError`: If names and shapes of the weights are not those that the configuration needs, with a list;
                or if weights are NaN or infinite.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path,
            *args,
            ignore_mismatched_sizes=True,  # else they are an error without their names
            output_loading_info=True,
            **kwargs,
        )
        if not ignore_mismatched_sizes:
            source = str(pretrained_model_name_or_path)
            mismatched = [*info["mismatched_keys"], *quantised_mismatches(model)]
            check_nothing_is_wrong(source, info["missing_keys"], info["unexpected_keys"], mismatched)
            # Weights that are offloaded or quantised are not here as plain tensors.
            plain = ((name, weight) for name, weight in model.named_parameters() if type(weight) is nn.Parameter)
            plain = ((name, weight.data) for name, weight in plain if weight.is_floating_point())
            check_finite(source, ((name, w) for name, w in plain if type(w) is torch.Tensor and not w.is_meta))
        return (model, info) if output_loading_info else model

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, str], allow_all_kernels: bool = False
    ) -> None:
        r"""
        Choose how attention is computed.

        Args:
            attn_implementation (`str` or `dict[str, str]`):
                `"sdpa"`, `"eager"` or `"flex_attention"`; `"flash_attention_2"` and others without a [`SlotCache`].
            allow_all_kernels (`bool`, defaults to `False`): Whether kernels of any repository on the Hub are allowed.
        """
        if isinstance(attn_implementation, str):
            # For this model alone: its configuration has one of a VQ model too, but the model has none.
            attn_implementation = {"": attn_implementation}
        super().set_attn_implementation(attn_implementation, allow_all_kernels)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        **kwargs,
    ) -> None:
        r"""
        Save the model as a Chameleon checkpoint. LoRA adapters are part of it where they are fused; save the others
        with [`LuminaMGPTPipeline.save_lora_weights`].

        Args:
            save_directory (`str` or `os.PathLike`): Folder to save to.
            is_main_process (`bool`, defaults to `True`): Whether this process writes the configuration.
            state_dict (`dict[str, torch.Tensor]`, *optional*): The weights, by default those of the model.
            push_to_hub (`bool`, defaults to `False`): Whether to upload the model to the Hub then.
            max_shard_size (`int` or `str`, defaults to `"50GB"`): Greatest size of one file of weights.
            variant (`str`, *optional*): Written into the names of the weights, such as `"bf16"`.
            kwargs: See [`~transformers.PreTrainedModel.save_pretrained`] and, with `push_to_hub`, its `push_to_hub`.
        """
        hub_kwargs = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs} if push_to_hub else {}
        has_adapters = self._hf_peft_config_loaded
        if has_adapters and getattr(self, "hf_quantizer", None) is not None:
            raise ValueError(
                "A quantised model cannot be saved while it has LoRA adapters. Save those with `save_lora_weights()`,"
                " then call `unload_lora_weights()`."
            )
        if getattr(self, "hf_quantizer", None) is not None:
            # Weights that were loaded quantised are saved as they are: what loads them has no reverse.
            kwargs.setdefault("save_original_format", False)
        try:
            if has_adapters and state_dict is None:
                state_dict = self.state_dict_without_adapters()
            self._hf_peft_config_loaded = False  # else only an adapter is saved
            super().save_pretrained(
                save_directory,
                is_main_process=is_main_process,
                state_dict=state_dict,
                max_shard_size=max_shard_size,
                variant=variant,
                **kwargs,
            )
        finally:
            self._hf_peft_config_loaded = has_adapters
        if is_main_process:
            # The folder is one that stock transformers and other engines know how to read.
            self.config.architectures = [ChameleonForConditionalGeneration.__name__]
            self.config.save_pretrained(save_directory)
        if push_to_hub:
            self.push_to_hub(hub_kwargs.pop("repo_id", Path(save_directory).name), **hub_kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        logits_range: tuple[int, int] | None = None,
        text_places: tuple[torch.LongTensor, torch.LongTensor] | None = None,
        **kwargs,
    ) -> LuminaMGPTTransformerOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, query_length)`, *optional*):
                Token ids. Exactly one of `input_ids` and `inputs_embeds` is needed.
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*):
                1 for tokens, 0 for padding. Not needed with a [`SlotCache`].
            position_ids (`torch.LongTensor` of shape `(batch_size, query_length)`, *optional*):
                Position of each token in its sequence; with a [`SlotCache`] also the slot that it is written to.
            past_key_values ([`~transformers.Cache`], *optional*):
                Keys and values of earlier forwards.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, query_length, hidden_size)`, *optional*):
                Embedded tokens instead of `input_ids`.
            labels (`torch.LongTensor` of shape `(batch_size, query_length)`, *optional*):
                Token ids to learn, -100 where there is nothing to learn.
            use_cache (`bool`, *optional*):
                Whether to make a cache if none is given.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0):
                Number of last positions, or the indices, to compute logits for; 0 for all.
            logits_range (`tuple[int, int]`, *optional*):
                Compute only the logits of the token ids `[first, stop)`.
            text_places (`tuple[torch.LongTensor, torch.LongTensor]`, *optional*):
                Rows and places in them, `(number,)` each, to compute the logits of all token ids for beside.

        Returns:
            [`LuminaMGPTTransformerOutput`]: `logits` are of shape
            `(batch_size, kept_length, vocab_size or stop - first)`.
        """
        slots = past_key_values if isinstance(past_key_values, SlotCache) else None
        if slots is not None:
            slots.positions = position_ids
            attention_mask = self._slot_mask(slots)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **self._xformers_arguments(slots),
            **{**kwargs, "return_dict": True},
        )
        # On CPU, a strided input makes the bfloat16 head 20 times slower.
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = outputs.last_hidden_state[:, kept].contiguous()
        logits = self._head(hidden_states, logits_range)
        text_logits = None
        if text_places is not None:
            text_logits = self._head(outputs.last_hidden_state[text_places], None)

        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return LuminaMGPTTransformerOutput(
            loss=loss,
            logits=logits,
            text_logits=text_logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _slot_mask(self, cache: SlotCache) -> torch.Tensor | BlockMask:
        """What each query may see of the cache, in the form that the attention implementation takes."""
        implementation = self.config._attn_implementation
        if implementation not in SLOT_IMPLEMENTATIONS:
            raise ValueError(
                f"The attention implementation {implementation!r} cannot read the slots of the KV cache. Use one of"
                f" {list(SLOT_IMPLEMENTATIONS)} to sample images."
            )
        if implementation == XFORMERS:
            cache.make_slot_major()
        if implementation == "flex_attention":
            positions = cache.positions
            return create_block_mask(
                lambda batch, head, query, slot: slot <= positions[batch, query],
                B=positions.shape[0],
                H=None,
                Q_LEN=positions.shape[1],
                KV_LEN=cache.visible_length,
                device=positions.device,
            )
        visible = cache.visibility()
        if implementation == "eager":
            hidden = torch.finfo(self.dtype).min
            return torch.zeros_like(visible, dtype=self.dtype).masked_fill(~visible, hidden)
        return slot_mask(visible) if implementation == SLOT_SDPA else visible

    def _head(self, hidden_states: torch.Tensor, logits_range: tuple[int, int] | None) -> torch.Tensor:
        head = self.lm_head
        if logits_range is None:
            return head(hidden_states)
        first, stop = logits_range
        weight = head.weight
        # Rows of the weight may only be taken where calling the head would do just `hidden @ weight.T`: not if it is a
        # quantised or LoRA layer, nor if a hook moves or casts its weight when it is called.
        is_plain = type(head) is nn.Linear and type(weight) is nn.Parameter and "forward" not in head.__dict__
        if is_plain and weight.device == hidden_states.device and weight.dtype == hidden_states.dtype:
            return F.linear(hidden_states, weight[first:stop])
        return head(hidden_states)[..., first:stop]
