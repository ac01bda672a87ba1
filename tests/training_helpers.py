# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the tests of training share: captioned images, the commands, and the arguments of a short run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
from conftest import BASE_SIZE
from safetensors.torch import load_file

from lumina_mgpt_diffusers.training.arguments import FineTuningArguments


ROOT = Path(__file__).parents[1]

CAPTIONS = [
    "red fox",
    "green tree",
    "blue sea",
    "grey stone",
    "white snow",
    "black cat",
    "golden sun",
    "brown bear",
]

SIZES = [(96, 96), (128, 64)]
"""Two aspect ratios, `(height, width)`, both trained sizes of the base size of the fixtures."""


def make_photos(folder: Path, number: int = 8) -> Path:
    """Captioned images of blocks of colour, of two aspect ratios."""
    folder.mkdir(parents=True)
    lines = []
    for index in range(number):
        height, width = SIZES[index % 2]
        colours = np.random.default_rng(index).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        image = PIL.Image.fromarray(colours).resize((width, height), PIL.Image.Resampling.NEAREST)
        image.save(folder / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": CAPTIONS[index % 8] + " again" * (index // 8)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def short_run(pipeline: Path, photos: Path, output: Path, kind: type = FineTuningArguments, **values):
    """Arguments of a run of four steps that uses all that is random."""
    defaults = {
        "pretrained_model_name_or_path": str(pipeline),
        "train_data_dir": str(photos),
        "output_dir": str(output),
        "resolution": BASE_SIZE,
        "train_batch_size": 4,
        "max_train_steps": 4,
        "checkpointing_steps": 2,
        "checkpoints_total_limit": None,
        "learning_rate": 1e-3,
        "dropout": 0.1,
        "context_dropout": 0.5,
        "report_to": ["none"],
        "use_cpu": True,
    }
    return kind(**{**defaults, **values})


def weights_of(folder: Path) -> dict:
    return load_file(folder / "transformer" / "model.safetensors")


def command(name: str, **flags: object) -> list[str]:
    """A command line of `examples/training`."""
    line = [sys.executable, str(ROOT / "examples" / "training" / name)]
    for flag, value in flags.items():
        line += [f"--{flag}", *(str(one) for one in (value if isinstance(value, list) else [value]))]
    return line


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(line: list[str], **variables: str) -> subprocess.CompletedProcess:
    values = {**environment(), **variables}
    done = subprocess.run(line, env=values, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return done
