# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""`lumina-mgpt app`: the demo in a browser."""

import argparse

from .arguments import add_model_arguments
from .extras import import_extra
from .hosting import add_host_arguments, load_host, model_name


EXAMPLE = """\
example:
  lumina-mgpt app --model lumina-mgpt-7b-768-omni

Then open http://127.0.0.1:7860. All visitors share one batch. It needs the extra `app`.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "app",
        help="the demo in a browser",
        description="Try the model in a browser: images that appear row by row, tasks, chat.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--address", default="127.0.0.1", help="0.0.0.0 for all; default: %(default)s")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    parser.add_argument("--name", help="what stands above the page; default: the name of the model's folder")
    add_host_arguments(parser)
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    demo = import_extra("serving.demo", "app")
    with load_host(args) as host:
        demo.launch(demo.build_demo(host, model_name(args)), args.address, args.port)
