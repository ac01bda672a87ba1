# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
What a pipeline's folder needs so that anyone can load it anywhere: portable configurations, code files that lead a
process that has not imported this package to its classes, and a model card.
"""

from __future__ import annotations

import os
from pathlib import Path

from .model_card import model_card
from .original.files import read_json, write_json


LIBRARY = "lumina_mgpt"
"""The library that `model_index.json` names for the components of this package."""

CARD_NAME = "README.md"

SHIM = """\
# Leads diffusers to the class in the package `lumina-mgpt-diffusers` (pip install lumina-mgpt-diffusers).
from lumina_mgpt_diffusers import {name}


__all__ = ["{name}"]
"""

# diffusers takes the one pipeline that it finds in the file, and runs the files of all local folders in one module, in
# which the names of the last one remain: they all have to use the same.
PIPELINE_SHIM = """\
# Leads diffusers to the class in the package `lumina-mgpt-diffusers` (pip install lumina-mgpt-diffusers).
from lumina_mgpt_diffusers import {name} as Pipeline


__all__ = ["Pipeline"]
"""

# How and from where a component was loaded, and settings of a Llama tokenizer that this one does not have.
DROPPED_KEYS = ("_name_or_path", "is_local", "local_files_only", "backend")
DROPPED_KEYS += ("add_prefix_space", "legacy", "use_default_system_prompt")

# transformers names the class of any fast tokenizer so, but only its old name is known to transformers 4 as well.
TOKENIZER_CLASS = {"TokenizersBackend": "PreTrainedTokenizerFast"}


def finish_folder(folder: str | os.PathLike, model: str = ".") -> None:
    """
    Complete a pipeline's folder.

    Args:
        folder (`str` or `os.PathLike`): Folder with a `model_index.json` and the components.
        model (`str`, defaults to `"."`): How the model card refers to the pipeline: the id of its repository.
    """
    folder = Path(folder)
    index = {name: value for name, value in read_json(folder / "model_index.json").items() if name not in DROPPED_KEYS}
    shims = {"pipeline.py": PIPELINE_SHIM.format(name=index["_class_name"])}
    for component, pair in index.items():
        if isinstance(pair, list) and pair[0] == LIBRARY:
            shims[f"{component}/{LIBRARY}.py"] = SHIM.format(name=pair[1])
        elif isinstance(pair, list):
            pair[1] = TOKENIZER_CLASS.get(pair[1], pair[1])
    write_json(folder / "model_index.json", index)

    for path in (folder / "tokenizer" / "tokenizer_config.json", folder / "vqvae" / "config.json"):
        if path.is_file():
            tidy_config(path)
    for path, text in shims.items():
        if (folder / path).parent.is_dir():
            (folder / path).write_text(text, encoding="utf-8")
    scheduler_config = folder / "scheduler" / "scheduler_config.json"
    if scheduler_config.is_file() and not (folder / CARD_NAME).exists():
        (folder / CARD_NAME).write_text(model_card(read_json(scheduler_config), model), encoding="utf-8")


def tidy_config(path: Path) -> None:
    """Remove from the configuration of a component what tells how it was loaded."""
    config = {name: value for name, value in read_json(path).items() if name not in DROPPED_KEYS}
    if "tokenizer_class" in config:
        config["tokenizer_class"] = TOKENIZER_CLASS.get(config["tokenizer_class"], config["tokenizer_class"])
    write_json(path, config)
