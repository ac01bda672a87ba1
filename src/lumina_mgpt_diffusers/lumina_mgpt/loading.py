# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Loading pipelines from diffusers folders and from the originally released checkpoints alike."""

from __future__ import annotations

import os
from collections.abc import Container

import diffusers
from diffusers import DiffusionPipeline
from packaging.version import Version

from ..files import read_json
from ..original.files import FileSource, read_weight_map
from ..original.layout import checked_config, original_as_diffusers
from ..shipped import model_source
from .families import ModelFamily
from .validation import shown


DTYPE_ARGUMENT = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"

HUB_ARGUMENTS = ("cache_dir", "revision", "token", "local_files_only", "force_download")
COMPONENTS = ("tokenizer", "transformer", "vqvae", "scheduler")
CONFIGURATIONS = (
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/model.safetensors.index.json",
    "vqvae/config.json",
)


class OriginalCheckpointMixin:
    """Gives a [`DiffusionPipeline`] a `from_pretrained` that also takes original checkpoints."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        original_vqgan: str | os.PathLike | None = None,
        original_tokenizer: str | os.PathLike | None = None,
        family: str | ModelFamily | None = None,
        **kwargs,
    ) -> DiffusionPipeline:
        r"""
        Load a pipeline from a diffusers folder or repository, or from an originally released checkpoint.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A Hub id, a folder, or `"pocket"` for the small model of this package (see `POCKET`), unless there is
                a folder of that name that holds a model. Without a `model_index.json` it is taken for an original
                checkpoint (`config.json` and safetensors of the transformer, as in `Alpha-VLLM/Lumina-mGPT-7B-768`).
                Its base size is read from its configuration or from such a name; where they state none it is a guess,
                with a warning: pass `scheduler=LuminaMGPTScheduler(resolution=…)`.
            original_vqgan (`str` or `os.PathLike`, *optional*):
                Where the VQ model of an original checkpoint is, which does not hold one: a folder with `vqgan.ckpt`
                and `vqgan.yaml` (the `tokenizer` folder of Meta's Chameleon download), such a `vqgan.ckpt`, a
                `movqgan_270M.ckpt` or a folder with it for Lumina-mGPT 2.0, a diffusers [`VQModel`] folder, or a Hub
                id of any of these. Not needed if `vqvae` is passed.
            original_tokenizer (`str` or `os.PathLike`, *optional*):
                Folder or Hub id of the tokenizer of an original checkpoint, by default that of the checkpoint, or if
                it has none, that of its family, such as `Alpha-VLLM/Lumina-mGPT-7B-768`.
            family (`str` or [`ModelFamily`], *optional*):
                Which family an original checkpoint is of, see [`register_family`]; by default what its configuration
                states as `model_family`, or the names in its vocabulary or its own, as released, show.
            kwargs: All that [`~diffusers.DiffusionPipeline.from_pretrained`] takes.

        Raises:
            `ValueError` or `OSError`: If a file is missing, naming it and where to get it.

        Example:

        ```py
        >>> import torch
        >>> from lumina_mgpt_diffusers import LuminaMGPTPipeline

        >>> pipe = LuminaMGPTPipeline.from_pretrained(
        ...     "Alpha-VLLM/Lumina-mGPT-7B-768", original_vqgan="chameleon/tokenizer", dtype=torch.bfloat16
        ... ).to("cuda")
        ```
        """
        pretrained_model_name_or_path = model_source(pretrained_model_name_or_path)
        hub_kwargs = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        files = model_files(pretrained_model_name_or_path, **hub_kwargs)
        if not is_original(files):
            originals = {"original_vqgan": original_vqgan, "original_tokenizer": original_tokenizer, "family": family}
            for name, value in originals.items():
                if value is not None:
                    raise ValueError(
                        f"`{name}` is {shown(value)} but {str(pretrained_model_name_or_path)!r} is a pipeline in"
                        " diffusers' format, which holds all its components. Pass a component itself to replace it."
                    )
            check_files(files, kwargs)
            return cls._load(pretrained_model_name_or_path, **kwargs)

        components = {name: kwargs[name] for name in COMPONENTS if kwargs.get(name) is not None}
        with original_as_diffusers(
            pretrained_model_name_or_path,
            original_vqgan=original_vqgan,
            original_tokenizer=original_tokenizer,
            family=family,
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
        pipe = super().from_pretrained(folder, **with_dtype({**kwargs, **dict.fromkeys(own)}))
        pipe.register_modules(**own)
        return pipe


def with_dtype(kwargs: dict[str, object]) -> dict[str, object]:
    """Arguments with `dtype` by the name that the installed diffusers knows: before 0.40 it ignores this one."""
    return {DTYPE_ARGUMENT if name == "dtype" else name: value for name, value in kwargs.items()}


def model_files(name_or_path: str | os.PathLike, **hub_kwargs) -> FileSource:
    """The files of a pipeline in either format."""
    accepted = "It takes a pipeline in diffusers' format or an original Lumina-mGPT checkpoint."
    return FileSource(name_or_path, "pretrained_model_name_or_path", accepted, **hub_kwargs)


def is_original(files: FileSource) -> bool:
    """Whether files are those of a bare transformer rather than of a pipeline in diffusers' format."""
    return files.require(DiffusionPipeline.config_name, "config.json").name != DiffusionPipeline.config_name


def check_files(files: FileSource, components: Container[str]) -> None:
    """Raise a `ValueError` that names the file if one of a pipeline is malformed, unless its component is passed."""
    for name in (DiffusionPipeline.config_name, *CONFIGURATIONS):
        if name.split("/")[0] not in components and (path := files.find(name)) is not None:
            content = read_json(path)
            if name == "transformer/config.json":
                checked_config(content)
            elif name == "transformer/model.safetensors.index.json":
                read_weight_map(path)
