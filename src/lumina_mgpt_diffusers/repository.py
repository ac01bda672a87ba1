# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Saving pipelines to folders and to the Hub such that every loading route of diffusers works for them, anywhere.

A folder has portable configurations, code files that lead a process that has not imported this package to its classes,
and a model card. The card's `library_name` is `diffusers`: the Hub counts the downloads of a repository by the
`model_index.json` of that library, whose users need nothing but the import that the card shows.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, create_repo, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from .files import files_in, move_files, read_json, staging_folder, write_json
from .lumina_mgpt.families import LUMINA_MGPT, ModelFamily, find_family
from .lumina_mgpt.unirep import nearest_size, trained_sizes


LIBRARY = "lumina_mgpt"
"""The library that `model_index.json` names for the components of this package."""

MODEL_NAME = "lumina-mgpt"
"""The name by which diffusers finds the pipelines of one model for one another."""

INDEX_NAME = "model_index.json"
CARD_NAME = "README.md"

# diffusers takes the one pipeline that it finds in the file, and runs the files of all local folders in one module, in
# which the names of the last one remain: pipelines all have to use the same.
SHIM = """\
# Leads diffusers to the class in the package `lumina-mgpt-diffusers`, which has to be installed.
from lumina_mgpt_diffusers import {name}


__all__ = ["{exported}"]
"""

# How and from where a component was loaded, and settings of a Llama tokenizer that this one does not have.
DROPPED_KEYS = ("_name_or_path", "is_local", "local_files_only", "backend")
DROPPED_KEYS += ("add_prefix_space", "legacy", "use_default_system_prompt")

# transformers names the class of any fast tokenizer so, but only its old name is known to transformers 4 as well.
TOKENIZER_CLASS = {"TokenizersBackend": "PreTrainedTokenizerFast"}

TEXT_TO_IMAGE = """\
image = pipe("a red fox in the snow", height={resolution}, width={resolution}, generator=generator).images[0]
image.save("fox.png")"""
IMAGE_TO_IMAGE = """\
{image_to_image}
image.save("result.png")"""
INPAINTING = """\
image = pipe("a red fox", image="snow.png", mask_image="mask.png", generator=generator).images[0]
image.save("fox.png")"""
CHAT = """\
answer = pipe("Describe the image in detail. <|image|>", images="fox.png", generator=generator)
print(answer.text)"""
USAGE = {
    "LuminaMGPTPipeline": ("text-to-image", TEXT_TO_IMAGE),
    "LuminaMGPTImg2ImgPipeline": ("image-to-image", IMAGE_TO_IMAGE),
    "LuminaMGPTInpaintPipeline": ("image-to-image", INPAINTING),
    "LuminaMGPTChatPipeline": ("any-to-any", CHAT),
}

COMMON_SHAPES = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16), (2, 1), (1, 2))

WEIGHTS = re.compile(
    r"(?:(?:diffusion_)?pytorch_)?model(?:\.(\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)(?:\.index(?:\.(\w+))?\.json)?"
)


class PortableSavingMixin:
    """
    Gives a [`DiffusionPipeline`] a `save_pretrained` and a `push_to_hub` that also write a model card and the files
    through which diffusers finds the classes without an import of this package.
    """

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **kwargs,
    ) -> None:
        r"""
        Save the pipeline to a folder, from which [`from_pretrained`] loads it.

        All files are written beside their places and moved there at the end, `model_index.json` last: a folder that
        holds one is complete. A pipeline that was in the folder is replaced, but for weights of other variants. A
        model card that is in the folder, or in the repository that is pushed to, is kept as it is.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to save to. It is created if it does not exist.
            safe_serialization (`bool`, defaults to `True`): Whether to write safetensors rather than pickles.
            variant (`str`, *optional*): Written into the names of the weights, such as `"bf16"`.
            max_shard_size (`int` or `str`, *optional*): Greatest size of one file of weights, such as `"5GB"`.
            push_to_hub (`bool`, defaults to `False`): Whether to upload the folder to the Hub then.
            repo_id (`str`, *optional*): Where to, by default the name of the folder in the user's namespace.
            kwargs: `private`, `token`, `commit_message` and `create_pr` as for [`push_to_hub`], and further arguments
                of [`DiffusionPipeline.save_pretrained`].
        """
        folder, model, token = Path(save_directory), None, kwargs.pop("token", None)
        private, message = kwargs.pop("private", None), kwargs.pop("commit_message", None)
        create_pr = kwargs.pop("create_pr", False)
        if push_to_hub:
            model = create_repo(repo_id or folder.name, private=private, token=token, exist_ok=True).repo_id
        # Processes that save the same pipeline do so one after the other.
        with staging_folder(folder, wait=True) as staging:
            super().save_pretrained(staging, safe_serialization, variant, max_shard_size, **kwargs)
            _keep_card(staging, folder, model, token=token)
            finish_folder(staging, model or ".")
            (folder / INDEX_NAME).unlink(missing_ok=True)
            for path in _replaced_weights(staging, folder):
                path.unlink()
            move_files(staging, folder, last=INDEX_NAME)
        if push_to_hub:
            self._upload_folder(folder, model, token, message, create_pr)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> CommitInfo:
        r"""
        Upload the pipeline to the Hub, with a model card unless the repository has one.

        The arguments are those of [`DiffusionPipeline.push_to_hub`]. Returns the [`~huggingface_hub.CommitInfo`].
        """
        model = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            super().save_pretrained(folder, safe_serialization, variant)
            _keep_card(Path(folder), Path(folder), model, subfolder=subfolder, token=token)
            finish_folder(folder, model)
            return self._upload_folder(folder, model, token, commit_message, create_pr, subfolder)


def finish_folder(folder: str | os.PathLike, model: str = ".") -> None:
    """
    Complete a pipeline's folder.

    Args:
        folder (`str` or `os.PathLike`): Folder with a `model_index.json` and the components.
        model (`str`, defaults to `"."`): How the model card refers to the pipeline: the id of its repository.
    """
    folder = Path(folder)
    index = _edit_json(folder / INDEX_NAME)
    shims = {"pipeline.py": (f"{index['_class_name']} as Pipeline", "Pipeline")}
    for component, pair in index.items():
        if isinstance(pair, list) and pair[0] == LIBRARY:
            shims[f"{component}/{LIBRARY}.py"] = (pair[1], pair[1])
        elif isinstance(pair, list):
            pair[1] = TOKENIZER_CLASS.get(pair[1], pair[1])
    write_json(folder / INDEX_NAME, index)
    for path, (name, exported) in shims.items():
        if (folder / path).parent.is_dir():
            write_shim(folder / path, name, exported)

    for path in (folder / "tokenizer" / "tokenizer_config.json", folder / "vqvae" / "config.json"):
        if path.is_file():
            _edit_json(path)
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        settings = read_json(folder / "scheduler" / "scheduler_config.json")
        family = LUMINA_MGPT
        if (folder / "transformer" / "config.json").is_file():
            # The base size belongs to the weights: another scheduler does not change it.
            config = _edit_json(folder / "transformer" / "config.json", base_size=settings["resolution"])
            family = find_family(config, config.get("vocabulary_map") or {})
        if not (folder / CARD_NAME).exists():
            card = model_card(index["_class_name"], settings, model, family)
            (folder / CARD_NAME).write_text(card, encoding="utf-8")


def write_shim(path: Path, name: str, exported: str | None = None) -> None:
    """Write a file that leads diffusers to a class of this package, by its name or another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SHIM.format(name=name, exported=exported or name), encoding="utf-8")


def model_card(pipeline: str, settings: dict[str, object], model: str = ".", family: ModelFamily = LUMINA_MGPT) -> str:
    """
    Text of the `README.md` of a pipeline.

    Args:
        pipeline (`str`): Name of its class.
        settings (`dict[str, object]`): Configuration of its [`LuminaMGPTScheduler`].
        model (`str`, defaults to `"."`): What the usage loads: the id of the repository or a folder.
        family ([`ModelFamily`], *optional*): What the model is, by default Lumina-mGPT.
    """
    resolution = settings["resolution"]
    pipeline_tag, usage = USAGE.get(pipeline, USAGE["LuminaMGPTPipeline"])
    grid_size = family.grid_size
    shapes = [(shape, nearest_size(shape[1], shape[0], resolution, grid_size)) for shape in COMMON_SHAPES]
    sizes = trained_sizes(resolution, grid_size)
    template = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")
    return template.format(
        pipeline=pipeline,
        pipeline_tag=pipeline_tag,
        usage=usage.format(resolution=resolution, image_to_image=family.image_to_image_example),
        title=family.title,
        front_matter="\n".join(f"{key}: {value}" for key, value in family.card.items()),
        description=family.description,
        licence=family.licence,
        model=model,
        resolution=resolution,
        settings="\n".join(f"| `{name}` | {settings[name]} |" for name in sorted(settings) if name[0] != "_"),
        num_sizes=len(sizes),
        shapes="\n".join(f"| {w} : {h} | {height} | {width} |" for (w, h), (height, width) in shapes),
        sizes=", ".join(f"{height}x{width}" for height, width in sizes),
    )


def _edit_json(path: Path, **values: object) -> dict[str, object]:
    """Set values in a configuration, and remove from it what tells how its component was loaded."""
    config = {name: value for name, value in read_json(path).items() if name not in DROPPED_KEYS} | values
    if "tokenizer_class" in config:
        config["tokenizer_class"] = TOKENIZER_CLASS.get(config["tokenizer_class"], config["tokenizer_class"])
    write_json(path, config)
    return config


def _keep_card(staging: Path, folder: Path, repo_id: str | None, **hub_kwargs: str | None) -> None:
    """Put the card that is in the folder, or else in the repository, into a folder that is being prepared."""
    try:
        card = folder / CARD_NAME
        if repo_id is not None and not card.is_file():
            card = Path(hf_hub_download(repo_id, CARD_NAME, **hub_kwargs))
        if card.is_file():
            (staging / CARD_NAME).write_bytes(card.read_bytes())
    except EntryNotFoundError:
        pass  # a repository without a card gets ours


def _replaced_weights(staging: Path, folder: Path) -> list[Path]:
    """Weights in a folder that those in the staging folder stand instead of: of the same component and variant."""

    def kind(path: Path) -> tuple[Path, str] | None:
        match = WEIGHTS.fullmatch(path.name)
        return (path.parent, match[1] or match[2] or "") if match else None

    new = {kind(path) for path in files_in(staging)} - {None}
    old = [path.relative_to(folder) for part in {parent for parent, _ in new} for path in (folder / part).glob("*")]
    return [folder / path for path in old if kind(path) in new]
