# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a server allows its clients."""

from dataclasses import dataclass, fields

from ..lumina_mgpt.validation import check_integer, check_number


@dataclass(frozen=True)
class ServerLimits:
    """
    Limits of a request. Those of the batch and the queue are the [`EngineHost`]'s.

    Args:
        max_pixels (`int`): Most pixels of an image that is made, whoever chooses its size.
        max_images (`int`): Most images of one request.
        max_input_images (`int`): Most images that go in with one request.
        max_input_pixels (`int`): Most pixels of each of them.
        max_tokens (`int`): Most tokens of an answer of a chat.
        max_text (`int`): Most characters of text in a request.
        max_partial_images (`int`): Most previews of an image that is streamed.
        max_body_bytes (`int`): Longest body of a request.
        max_buffered_bytes (`int`): Most bytes of all bodies that are being received or read.
        header_seconds (`float`), body_seconds (`float`): Time to send the head and the body of a request.
        request_seconds (`float`): Time until it is answered, the waiting included.
        send_seconds (`float`): Time that a client may leave a piece of its answer unread.
        fetch_seconds (`float`): Time to fetch an image of a URL.

    Raises:
        `ValueError`: If a limit is no positive number; `max_partial_images` may be 0.
    """

    max_pixels: int = 1024 * 1024
    max_images: int = 8
    max_input_images: int = 8
    max_input_pixels: int = 4096 * 4096
    max_tokens: int = 10240
    max_text: int = 32_000
    max_partial_images: int = 8
    max_body_bytes: int = 32 << 20
    max_buffered_bytes: int = 512 << 20
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    request_seconds: float = 600.0
    send_seconds: float = 60.0
    fetch_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if not name.endswith("_seconds"):
                check_integer(name, value, least=0 if name == "max_partial_images" else 1)
            elif not check_number(name, value):
                raise ValueError(f"`{name}` has to be greater than 0 but is {value}.")
