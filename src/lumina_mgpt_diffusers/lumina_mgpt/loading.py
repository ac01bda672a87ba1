# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Loading pipelines from diffusers folders and from the originally released checkpoints alike."""

from __future__ import annotations

import os

from diffusers import DiffusionPipeline

from ..original.files import FileSource
from ..original.layout import original_as_diffusers


HUB_ARGUMENTS = ("cache_dir", "revision", "token", "local_files_only", "force_download")
COMPONENTS = ("tokenizer", "transformer", "vqvae", "scheduler")


class OriginalCheckpointMixin:
    """Gives a [`DiffusionPipeline`] a `from_pretrained` that also takes original checkpoints."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        original_vqgan: str | os.PathLike | None = None,
        original_tokenizer: str | os.PathLike | None = None,
        **kwargs,
    ) -> DiffusionPipeline:
        r"""
        Load a pipeline from a diffusers folder or repository, or from an originally released checkpoint.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A Hub id or a folder. Without a `model_index.json` it is taken for an original checkpoint
                (`config.json` and safetensors of the transformer, as in `Alpha-VLLM/Lumina-mGPT-7B-768`). Its base
                size is read from its name; pass `scheduler=LuminaMGPTScheduler(resolution=…)` where that says none.
            original_vqgan (`str` or `os.PathLike`, *optional*):
                Where the VQ model of an original checkpoint is, which does not hold one: a folder with `vqgan.ckpt`
                and `vqgan.yaml` (the `tokenizer` folder of Meta's Chameleon download), such a `vqgan.ckpt`, a
                diffusers [`VQModel`] folder, or a Hub id of any of these. Not needed if `vqvae` is passed.
            original_tokenizer (`str` or `os.PathLike`, *optional*):
                Folder or Hub id of the tokenizer of an original checkpoint, by default that of the checkpoint, or if
                it has none, of `Alpha-VLLM/Lumina-mGPT-7B-768`.
            kwargs: All that [`~diffusers.DiffusionPipeline.from_pretrained`] takes.

        Raises:
            `ValueError` or `OSError`: If a file is missing, naming it and where to get it.

        Example:

        ```py
        >>> import torch
        >>> from lumina_mgpt_diffusers import LuminaMGPTPipeline

        >>> pipe = LuminaMGPTPipeline.from_pretrained(
        ...     "Alpha-VLLM/Lumina-mGPT-7B-768", original_vqgan="chameleon/tokenizer", torch_dtype=torch.bfloat16
        ... ).to("cuda")
        ```
        """
        hub_kwargs = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if not is_original_checkpoint(pretrained_model_name_or_path, **hub_kwargs):
            for name, value in (("original_vqgan", original_vqgan), ("original_tokenizer", original_tokenizer)):
                if value is not None:
                    raise ValueError(
                        f"`{name}` is {str(value)!r} but {str(pretrained_model_name_or_path)!r} is a pipeline in"
                        " diffusers' format, which holds all its components. Pass a component itself to replace it."
                    )
            return cls._load(pretrained_model_name_or_path, **kwargs)

        components = {name: kwargs[name] for name in COMPONENTS if kwargs.get(name) is not None}
        with original_as_diffusers(
            pretrained_model_name_or_path,
            original_vqgan=original_vqgan,
            original_tokenizer=original_tokenizer,
            **components,
            **hub_kwargs,
        ) as folder:
            pipe = cls._load(folder, **kwargs)
        pipe.register_to_config(_name_or_path=os.fspath(pretrained_model_name_or_path))
        return pipe

    @classmethod
    def _load(cls, folder: str | os.PathLike, **kwargs) -> DiffusionPipeline:
        # diffusers warns about passed components of a pipeline's own classes, because it cannot check their types.
        own = {name: kwargs[name] for name in ("transformer", "scheduler") if kwargs.get(name) is not None}
        pipe = super().from_pretrained(folder, **{**kwargs, **dict.fromkeys(own)})
        pipe.register_modules(**own)
        return pipe


def is_original_checkpoint(name_or_path: str | os.PathLike, **hub_kwargs) -> bool:
    """Whether a folder or repository holds a bare transformer rather than a pipeline in diffusers' format."""
    files = FileSource(
        name_or_path,
        "pretrained_model_name_or_path",
        "It takes a pipeline in diffusers' format or an original Lumina-mGPT checkpoint.",
        **hub_kwargs,
    )
    return files.find(DiffusionPipeline.config_name) is None and files.find("config.json") is not None
