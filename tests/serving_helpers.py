# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""A server in a thread, and images that go to it."""

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL.Image
import torch
import uvicorn
from omni import arrays

from lumina_mgpt_diffusers.serving import EngineHost
from lumina_mgpt_diffusers.serving.limits import ServerLimits
from lumina_mgpt_diffusers.serving.server import build_app, server_config


class RunningServer:
    """A server with its host, and where it is."""

    def __init__(self, server: uvicorn.Server, host: EngineHost, port: int) -> None:
        self.server, self.host, self.port = server, host, port
        self.url = f"http://127.0.0.1:{port}"


@contextmanager
def running_server(
    pipe, limits: ServerLimits | None = None, host_options: dict | None = None, **options
) -> Iterator[RunningServer]:
    host = EngineHost(pipe, **{"max_slots": 8, "num_draft_tokens": 3, **(host_options or {})})
    app = build_app(host, "tiny", limits, **options)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        server = uvicorn.Server(server_config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield RunningServer(server, host, listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive() and not host.is_alive


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo(name: str = "rgb_96x96") -> PIL.Image.Image:
    return PIL.Image.fromarray(arrays("7b_like/images.npz")[name])


def to_png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def to_url(image: PIL.Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(to_png(image)).decode()


def from_base64(data: str) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(base64.b64decode(data)))


def same(image: PIL.Image.Image, other: PIL.Image.Image) -> bool:
    return image.size == other.size and bool((np.asarray(image) == np.asarray(other)).all())
