# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the commands share that keep a model running for many, that of Ray Serve among them."""

import argparse
import os
from pathlib import Path

from ..lumina_mgpt import LuminaMGPTPipeline
from ..serving import EngineHost
from ..serving.host import check_room
from .arguments import draft_tokens, load_pipeline


API_KEY_VARIABLE = "LUMINA_MGPT_API_KEY"


def add_host_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("batch", "how much is sampled at once; `lumina-mgpt memory` says what fits")
    group.add_argument("--max_slots", type=int, default=32, help="an image takes two; default: %(default)s")
    group.add_argument("--max_waiting", type=int, default=64, help="answers that may wait; default: %(default)s")
    group.add_argument(
        "--max_length", type=int, default=16384, help="tokens of prompt and answer; default: %(default)s"
    )
    group.add_argument("--num_draft_tokens", type=draft_tokens, help="a number or `auto`, a matter of speed alone")
    group.add_argument("--compile", action="store_true", help="compile the transformer: a slow start, then fast")


def load_host(args: argparse.Namespace) -> EngineHost:
    """A host of the model that the arguments name."""
    room = check_room(args.max_slots, args.max_waiting, args.max_length)
    pipe = load_pipeline(LuminaMGPTPipeline, args)
    if args.compile:
        on_cuda = {"fullgraph": True, "mode": "reduce-overhead"}
        pipe.transformer.compile(**(on_cuda if pipe.device.type == "cuda" else {}))
    return EngineHost(pipe, *room)


def model_name(args: argparse.Namespace) -> str:
    """How clients call the model: as asked for, else the last part of its id or folder."""
    return args.name or Path(os.path.abspath(args.model)).name


def read_key(path: Path | None) -> str | None:
    """The key that clients have to know: that of a file or of the environment."""
    key = os.environ.get(API_KEY_VARIABLE) if path is None else path.read_text(encoding="utf-8").strip()
    if key is not None and not key:
        raise ValueError("The key is empty. Leave it out to do without one.")
    return key
