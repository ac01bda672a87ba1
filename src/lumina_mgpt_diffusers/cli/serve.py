# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""`lumina-mgpt serve`: a server with OpenAI's interface."""

import argparse
from pathlib import Path

from ..lumina_mgpt.validation import check_integer
from .arguments import add_model_arguments
from .extras import import_extra
from .hosting import API_KEY_VARIABLE, add_host_arguments, load_host, model_name, read_key


LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")
"""Those of uvicorn."""

EXAMPLE = f"""\
example:
  lumina-mgpt serve --model lumina-mgpt-7b-768-omni --name lumina-mgpt --port 8000
  curl http://127.0.0.1:8000/v1/images/generations -H 'Content-Type: application/json' \\
    -d '{{"prompt": "a red fox in the snow", "size": "768x768", "seed": 0}}'

Clients of OpenAI work with the address http://127.0.0.1:8000/v1 as base URL. The key that they have to know, if any,
is that of `--api_key_file` or else of the variable {API_KEY_VARIABLE}. SIGTERM ends the server when what runs is
finished. It needs the extra `serve`.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="a server with OpenAI's interface",
        description="Serve images, edits and chats over OpenAI's HTTP interface. All requests share one batch.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--address", default="127.0.0.1", help="0.0.0.0 for all; default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--name", help="the model's name for clients; default: that of its folder")
    parser.add_argument("--api_key_file", type=Path, help="file with the key that clients have to know")
    parser.add_argument("--max_connections", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--log_level", choices=LOG_LEVELS, default="info", help="default: %(default)s")
    add_limit_arguments(parser)
    add_host_arguments(parser)
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits of a request")
    group.add_argument("--max_pixels", type=int, default=1 << 20, help="of an image; default: %(default)s")
    group.add_argument("--max_images", type=int, default=8, help="default: %(default)s")
    group.add_argument("--max_tokens", type=int, default=10240, help="of an answer of a chat; default: %(default)s")
    group.add_argument("--max_body_bytes", type=int, default=32 << 20, help="default: %(default)s")
    group.add_argument(
        "--request_seconds",
        type=float,
        default=600,
        help="for its answer, waiting included; default: %(default)s",
    )
    group.add_argument(
        "--fetch_from", nargs="+", default=(), metavar="HOST", help="hosts whose images clients may name by URLs"
    )


def run(args: argparse.Namespace) -> None:
    server = import_extra("serving.server", "serve")
    limits = import_extra("serving.limits", "serve").ServerLimits(
        max_pixels=args.max_pixels,
        max_images=args.max_images,
        max_tokens=args.max_tokens,
        max_body_bytes=args.max_body_bytes,
        request_seconds=args.request_seconds,
    )
    check_integer("port", args.port, least=0, most=65535)
    check_integer("max_connections", args.max_connections, least=1)
    api_key = read_key(args.api_key_file)
    app = server.build_app(load_host(args), model_name(args), limits, api_key, args.fetch_from)
    server.run(server.server_config(app, args.address, args.port, args.max_connections, args.log_level))
