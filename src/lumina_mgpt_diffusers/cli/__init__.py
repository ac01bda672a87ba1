# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""The command `lumina-mgpt`. Each module of this folder is a subcommand: `add_parser` says what it takes."""

import argparse
import logging
from collections.abc import Sequence

from .. import __version__
from . import app, batch, chat, convert, edit, generate, memory, serve


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run `lumina-mgpt`.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments, by default those of the process.

    Raises:
        `SystemExit`: With 2 and a message if the arguments do not fit or a file is not what it should be.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"lumina-mgpt: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130)


def build_parser() -> argparse.ArgumentParser:
    """What reads the arguments of `lumina-mgpt`."""
    parser = argparse.ArgumentParser("lumina-mgpt", description="Images and text with Lumina-mGPT.")
    parser.add_argument("--version", action="version", version=f"lumina-mgpt-diffusers {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (generate, edit, chat, app, serve, batch, convert, memory):
        command.add_parser(subparsers)
    return parser
