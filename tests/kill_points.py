# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Kills conversions and saving at changes of the file system, and looks at what is left.

    python tests/kill_points.py <folder> convert back save replace:10,-2

Of each kind a process is killed at the changes of the file system that are given, counted from 0, a negative one from
the last, or at every one. Then a second run has to give what an undisturbed one gives. Prints the number of kills.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import CHECKPOINT, VQGAN, load_pipeline

from lumina_mgpt_diffusers import LuminaMGPTPipeline, LuminaMGPTScheduler
from lumina_mgpt_diffusers.original import convert_diffusers_to_original, convert_original_to_diffusers


KILLED = 9
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


def changes_files(event: str, arguments: tuple, folder: Path) -> bool:
    path = arguments[0] if arguments else None
    if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(str(folder)):
        # What is removed below an open directory has no whole path.
        return event in ("os.remove", "os.rmdir") and isinstance(path, str) and not os.path.isabs(path)
    return event in CHANGES or (event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))


def run_in_child(work: Callable[[Path], object], folder: Path, at: int | None = None) -> int:
    """Run in a process of its own, killed at a change if asked; the number of changes that there were."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        count = 0

        def audit(event: str, arguments: tuple) -> None:
            nonlocal count
            if changes_files(event, arguments, folder):
                if count == at:
                    os._exit(KILLED)
                count += 1

        sys.addaudithook(audit)
        try:
            work(folder)
            os.write(write, str(count).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(read) as pipe:
        content = pipe.read()
    assert status == (0 if at is None else KILLED), (status, at)
    return int(content or 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def complete(folder: Path, last: str) -> dict[str, bytes] | None:
    """What a reader sees of a folder that looks complete; None if it does not look so."""
    if not (folder / last).is_file():
        return None
    return {name: content for name, content in contents(folder).items() if not name.startswith(".incomplete")}


def kill_at(pipe: LuminaMGPTPipeline, place: Path, kind: str, points: list[int]) -> int:
    source, old, folder = place / "source", place / "old", place / kind
    before = contents(old) if kind == "replace" else {}
    work = {
        "convert": lambda folder: convert_original_to_diffusers(
            CHECKPOINT, folder, original_vqgan=VQGAN, base_size=512
        ),
        "back": lambda folder: convert_diffusers_to_original(source, folder),
        "save": pipe.save_pretrained,
        "replace": pipe.save_pretrained,
    }[kind]
    last = "config.json" if kind == "back" else "model_index.json"

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if kind == "replace":
            shutil.copytree(old, folder)

    prepare()
    number = run_in_child(work, folder)
    expected = contents(folder)
    points = points or list(range(number))
    for point in points:
        prepare()
        run_in_child(work, folder, at=point % number)
        left = complete(folder, last)
        assert left is None or left in (before, expected), f"{kind} {point}: looks complete but is not"
        run_in_child(work, folder)
        assert contents(folder) == expected, f"{kind} {point}: the second run is another"
    return len(points)


def main(place: Path, *wanted: str) -> None:
    torch.set_num_threads(1)
    pipe = load_pipeline(CHECKPOINT)
    pipe.save_pretrained(place / "source")
    other = LuminaMGPTPipeline(**{**pipe.components, "scheduler": LuminaMGPTScheduler(resolution=64)})
    other.save_pretrained(place / "old", max_shard_size="1MB")
    kills = 0
    for one in wanted:
        kind, _, points = one.partition(":")
        kills += kill_at(pipe, place, kind, [int(point) for point in points.split(",") if point])
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
