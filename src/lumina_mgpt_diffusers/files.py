# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Files that are never half written: JSON, and whole folders that are prepared beside their place and moved into it.

A process can be killed at any time. A folder counts as complete once it holds one certain file, such as
`model_index.json`; that file is moved last, and where a folder is replaced, it is taken away first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


STAGING = ".incomplete"


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Content of a JSON file that holds an object. Raises a `ValueError` that names the file if it does not."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{os.fspath(path)!r} has to hold a JSON object but holds {type(content).__name__}.")
    return content


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write a JSON file the way transformers and diffusers do, with sorted keys."""
    Path(path).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def staging_folder(folder: Path, wait: bool = False) -> Iterator[Path]:
    """
    An empty folder within `folder`, where what belongs into it is prepared; nobody else writes to `folder` meanwhile.

    Args:
        folder (`Path`): It is created if it does not exist.
        wait (`bool`, defaults to `False`): Whether to wait if another process writes to it.

    Yields:
        `Path`: In `folder`, because only within one file system can a file be moved atomically. Removed at the end.

    Raises:
        `BlockingIOError`: If another process writes to `folder` and `wait` is `False`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{STAGING}.lock")
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        raise BlockingIOError(f"Another process is writing to {str(folder)!r}.") from None
    staging = folder / STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # on Windows a file that is open stays
            os.remove(lock.lock_file)
        lock.release()


def files_in(folder: Path) -> list[Path]:
    """The files in a folder and those below it, relative to it and in order."""
    return [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]


def move_files(staging: Path, folder: Path, last: str) -> None:
    """Move all files of a staging folder to their places, the one named `last` at the end."""
    for path in sorted(files_in(staging), key=lambda path: path == Path(last)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / path, folder / path)
