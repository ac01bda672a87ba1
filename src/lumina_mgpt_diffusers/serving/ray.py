# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The server on many machines: the same application as a deployment of Ray Serve.

    serve run lumina_mgpt_diffusers.serving.ray:app model=lumina-mgpt-7b-768-omni max_replicas=8

Each replica has a GPU and an engine of its own. Ray's proxies spread the requests over them and pass streams through.
A replica that dies loses what it was making, whose clients get an error; others go on, and Ray starts a new one.
"""

# No `from __future__ import annotations` here: Ray Serve reads the class of the builder's argument.
from pathlib import Path
from typing import Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, field_validator
from ray import serve

from ..cli.hosting import load_host, model_name, read_key
from ..shipped import POCKET_NAME
from .host import check_room
from .limits import ServerLimits
from .server import build_app


LIMITS = ("max_pixels", "max_images", "max_tokens", "max_body_bytes", "request_seconds")
"""Those of [`ServerLimits`] that the command may say."""


class Arguments(BaseModel):
    """
    What the command may say, as `name=value`.

    Args:
        model (`str`, defaults to `"pocket"`): Hub id or folder, which all machines have to see.
        name (`str`, *optional*): The model's name for clients, by default that of its folder.
        original_vqgan (`str`, *optional*), original_tokenizer (`str`, *optional*): Of an original checkpoint.
        device (`str`, *optional*), dtype (`str`, *optional*): By default `"cuda"` and `"bfloat16"` with a GPU.
        compile (`bool`, defaults to `False`): Whether to compile the transformer.
        num_draft_tokens (`int` or `"auto"`, *optional*): A matter of speed alone.
        gpus_per_replica (`float`, defaults to 1), cpus_per_replica (`float`, defaults to 1): Of each replica.
        min_replicas (`int`, defaults to 1), max_replicas (`int`, defaults to 1): Bounds of the autoscaling.
        max_slots (`int`), max_waiting (`int`), max_length (`int`): See [`EngineHost`].
        max_pixels (`int`), max_images (`int`), max_tokens (`int`), max_body_bytes (`int`): See [`ServerLimits`].
        request_seconds (`float`): See [`ServerLimits`]. A replica that is to end finishes what it runs within this.
        api_key_file (`str`, *optional*):
            File with the key that clients have to know, by default that of the variable `LUMINA_MGPT_API_KEY`. The
            command reads it, and the replicas get it from there.
        fetch_from (`list[str]`): Hosts whose images clients may name by URLs; in the command with commas between.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = POCKET_NAME
    name: str | None = None
    original_vqgan: str | None = None
    original_tokenizer: str | None = None
    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    compile: bool = False
    num_draft_tokens: int | Literal["auto"] | None = None
    gpus_per_replica: float = 1
    cpus_per_replica: float = 1
    min_replicas: int = 1
    max_replicas: int = 1
    max_slots: int = 32
    max_waiting: int = 64
    max_length: int = 16384
    max_pixels: int = ServerLimits.max_pixels
    max_images: int = ServerLimits.max_images
    max_tokens: int = ServerLimits.max_tokens
    max_body_bytes: int = ServerLimits.max_body_bytes
    request_seconds: float = ServerLimits.request_seconds
    api_key_file: Path | None = None
    fetch_from: list[str] = []

    @field_validator("fetch_from", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value


def limits_of(arguments: Arguments) -> ServerLimits:
    return ServerLimits(**{name: getattr(arguments, name) for name in LIMITS})


@serve.ingress()
class Replica:
    """
    A pipeline with its engine and application.

    Args:
        arguments ([`Arguments`]): Those of the command.
        api_key (`str`, *optional*): The key that clients have to know.
    """

    def __init__(self, arguments: Arguments, api_key: str | None) -> None:
        self._arguments = arguments
        self._api_key = api_key
        self._host = load_host(arguments)

    def __serve_build_asgi_app__(self) -> FastAPI:
        arguments = self._arguments
        return build_app(
            self._host,
            model_name(arguments),
            limits_of(arguments),
            self._api_key,
            arguments.fetch_from,
        )

    def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        if not self._host.is_alive:
            raise RuntimeError("The engine of this replica cannot go on.")


def app(args: Arguments) -> serve.Application:
    """
    The application, for `serve run lumina_mgpt_diffusers.serving.ray:app model=…`.

    Args:
        args ([`Arguments`]): What the command says.

    Raises:
        `ValueError`: If a limit is impossible or the key is empty.
    """
    limits_of(args)
    check_room(args.max_slots, args.max_waiting, args.max_length)
    api_key = read_key(args.api_key_file)
    # The replica itself says 429 when its queue is full; until then Ray may send it all that it has room for.
    room = args.max_slots + args.max_waiting
    deployment = serve.deployment(
        Replica,
        name="LuminaMGPT",
        max_ongoing_requests=room + args.max_waiting,
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": max(args.max_replicas, args.min_replicas),
            # Half of the places of a batch, an image taking two.
            "target_ongoing_requests": max(args.max_slots // 4, 1),
        },
        ray_actor_options={"num_gpus": args.gpus_per_replica, "num_cpus": args.cpus_per_replica},
        graceful_shutdown_timeout_s=args.request_seconds,
        health_check_period_s=5,
    )
    return deployment.bind(args, api_key)
