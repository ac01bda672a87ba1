# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Saving pipelines to folders and to the Hub such that every loading route of diffusers works for them."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, create_repo, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from ..repository import CARD_NAME, finish_folder


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
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        **kwargs,
    ) -> None:
        r"""
        Save the pipeline to a folder, from which [`from_pretrained`] loads it.

        A model card that is in the folder, or in the repository that is pushed to, is kept as it is.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to save to. It is created if it does not exist.
            safe_serialization (`bool`, defaults to `True`): Whether to write safetensors rather than pickles.
            variant (`str`, *optional*): Written into the names of the weights, such as `"bf16"`.
            max_shard_size (`int` or `str`, *optional*): Greatest size of one file of weights, such as `"5GB"`.
            push_to_hub (`bool`, defaults to `False`): Whether to upload the folder to the Hub then.
            repo_id (`str`, *optional*): Where to, by default the name of the folder in the user's namespace.
            private (`bool`, *optional*): Whether a new repository is private.
            token (`str`, *optional*): Token of the Hub.
            commit_message (`str`, *optional*): Message of the commit.
            create_pr (`bool`, defaults to `False`): Whether to open a pull request instead of committing.
            kwargs: Further arguments of [`DiffusionPipeline.save_pretrained`].
        """
        super().save_pretrained(save_directory, safe_serialization, variant, max_shard_size, **kwargs)
        if push_to_hub:
            name = Path(save_directory).name if repo_id is None else repo_id
            self._upload(save_directory, name, commit_message, private, token, create_pr)
        else:
            finish_folder(save_directory)

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

        Args:
            repo_id (`str`): The repository. It is created if it does not exist.
            commit_message (`str`, *optional*): Message of the commit.
            private (`bool`, *optional*): Whether a new repository is private.
            token (`str`, *optional*): Token of the Hub.
            create_pr (`bool`, defaults to `False`): Whether to open a pull request instead of committing.
            safe_serialization (`bool`, defaults to `True`): Whether to write safetensors rather than pickles.
            variant (`str`, *optional*): Written into the names of the weights, such as `"bf16"`.
            subfolder (`str`, *optional*): Folder of the repository to upload to.

        Returns:
            [`~huggingface_hub.CommitInfo`]: The commit.
        """
        with TemporaryDirectory() as folder:
            super().save_pretrained(folder, safe_serialization, variant)
            return self._upload(folder, repo_id, commit_message, private, token, create_pr, subfolder)

    def _upload(
        self,
        folder: str | os.PathLike,
        repo_id: str,
        commit_message: str | None,
        private: bool | None,
        token: str | None,
        create_pr: bool,
        subfolder: str | None = None,
    ) -> CommitInfo:
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        card = Path(folder, CARD_NAME)
        if not card.exists():
            try:
                card.write_bytes(
                    Path(hf_hub_download(repo_id, CARD_NAME, subfolder=subfolder, token=token)).read_bytes()
                )
            except EntryNotFoundError:
                pass  # a repository without a card gets ours
        finish_folder(folder, model=repo_id)
        return self._upload_folder(folder, repo_id, token, commit_message, create_pr, subfolder)
