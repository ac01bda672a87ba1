# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Requests that nobody means well: each is a generator of raw bytes for a connection, or of a request of httpx."""

import json
import random
import zlib
from collections.abc import Iterator

from serving_helpers import photo, to_png, to_url


PATHS = [
    "/", "/v1", "/v1/", "/v1/images", "/v1/images/generations/", "//v1/images/generations", "/v1/../metrics",
    "/v1/%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "/v1/models/../../x", "/v1/models/%00", "/v1/models/" + "a" * 5000,
    "/v1/images/generations;x=1", "/V1/models", "/v1/files", "/v1/images/variations", "/static/../../x", "/%ff%fe",
]  # fmt: skip

JSON_VALUES = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308, "", "a", "nan", "64x64", "0x0",
    "1x1", "33x64", "99999x99999", "-64x64", "64X64", "auto", "free", [], [1], {}, {"a": 1}, "\ud800", "\x00", "‮",
    "a" * 40_000, "<eoss>", "IMGIMGBZ", "<|image|>", ["a cat"], [[[[[]]]]], "😀" * 100,
]  # fmt: skip

IMAGE_FIELDS = [
    "prompt", "n", "size", "seed", "guidance_scale", "temperature", "top_k", "top_p", "min_p", "negative_prompt",
    "response_format", "output_format", "output_compression", "stream", "partial_images", "background", "model",
    "unknown", "task", "quality", "metadata", "result_only",
]  # fmt: skip

CHAT_FIELDS = [
    "messages", "model", "max_tokens", "max_completion_tokens", "temperature", "seed", "stream", "stream_options",
    "n", "stop", "tools", "logit_bias", "top_p", "size", "guidance_scale", "text_top_k", "unknown", "response_format",
]  # fmt: skip

PARTS = [
    {"type": "text"}, {"type": "text", "text": 5}, {"type": "image_url"}, {"type": "image_url", "image_url": 5},
    {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}},
    {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
    {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}},
    {"type": "image_url", "image_url": {"url": "data:image/png,abc"}},
    {"type": "image_url", "image_url": {"url": "data:;base64,AAAA"}},
    {"type": "image", "path": "/etc/passwd"}, {"type": "image", "url": "http://127.0.0.1"}, {"type": "input_audio"},
    {}, [], None, "text", 5,
]  # fmt: skip

FILES = [
    b"", b"\x00" * 100, b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"<svg/>", b"BM" + b"\x00" * 60,
    b"%!PS-Adobe-3.0 EPSF-3.0", b"RIFF\x00\x00\x00\x00WEBP", b"II*\x00" + b"\xff" * 64,
]  # fmt: skip


def bomb() -> bytes:
    """A small PNG that says it is of 9,000 by 9,000 pixels."""
    png = bytearray(to_png(photo()))
    png[16:24] = (9_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    return bytes(png)


def damaged(choice: random.Random) -> bytes:
    png = bytearray(to_png(photo()))
    for _ in range(choice.randint(1, 20)):
        png[choice.randrange(len(png))] = choice.randrange(256)
    return bytes(png[: choice.randint(1, len(png))])


def json_body(choice: random.Random) -> bytes:
    """A body of `/v1/images/generations` or of the chat that may be of any kind."""
    kind = choice.randrange(8)
    if kind == 0:
        return choice.choice(
            [b"", b"{", b"[]", b"null", b"5", b'"a"', b"\xff\xfe", b"{}", b'{"prompt":', b"\x00" * 99]
        )
    if kind == 1:
        depth = choice.choice([50, 1000, 100_000])
        return b'{"prompt":' + b"[" * depth + b"]" * depth + b"}"
    if kind == 2:
        depth = choice.choice([50, 1000, 20_000])
        return b'{"a":' * depth + b"1" + b"}" * depth
    if kind == 3:
        return b'{"prompt": "a cat", "temperature": %s}' % choice.choice([b"NaN", b"Infinity", b"-Infinity", b"1e999"])
    if kind == 4:
        return b'{"prompt": "' + bytes(choice.randrange(128, 256) for _ in range(20)) + b'"}'
    body = {"prompt": "a cat", "size": "32x32"}
    for _ in range(choice.randint(1, 3)):
        body[choice.choice(IMAGE_FIELDS)] = choice.choice(JSON_VALUES)
    return json.dumps(body).encode()


def chat_body(choice: random.Random) -> bytes:
    messages: object = [{"role": "user", "content": [choice.choice(PARTS) for _ in range(choice.randint(0, 3))]}]
    kind = choice.randrange(6)
    if kind == 0:
        messages = choice.choice(JSON_VALUES)
    elif kind == 1:
        messages = [{"role": choice.choice(JSON_VALUES + ["system", "tool"]), "content": choice.choice(JSON_VALUES)}]
    elif kind == 2:
        url = to_url(photo())
        messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}] * 20}]
    elif kind == 3:
        images = choice.choice([5, [5], [{}], [{"type": "image_url", "text_offset": 9}], [PARTS[4]]])
        answer = {"role": "assistant", "content": "a", "images": images}
        messages = [{"role": "user", "content": "a"}, answer, {"role": "user", "content": "b"}]
    body = {"messages": messages, "max_tokens": 3}
    for _ in range(choice.randint(0, 2)):
        body[choice.choice(CHAT_FIELDS)] = choice.choice(JSON_VALUES)
    return json.dumps(body).encode()


def form(choice: random.Random) -> tuple[str, bytes]:
    """Content type and body of `/v1/images/edits`."""
    boundary = choice.choice(["x", "-" * 70, "a b", "é", "x" * 300])
    parts = []
    for _ in range(choice.choice([0, 1, 2, 3, 80])):
        name = choice.choice(["image", "image[]", "mask", "prompt", "task", "size", "n", "file", "", "a" * 300, '"'])
        content = choice.choice([*FILES, damaged(choice), bomb(), to_png(photo()), b"depth", b"a" * 300_000, b"64x64"])
        is_file = choice.random() < 0.6
        disposition = f'form-data; name="{name}"' + ('; filename="../../a.png"' if is_file else "")
        head = f"Content-Disposition: {disposition}\r\n"
        if choice.random() < 0.1:
            head = choice.choice(["", "Content-Disposition:\r\n", "X: " + "y" * 9000 + "\r\n"])
        parts.append(f"--{boundary}\r\n{head}\r\n".encode() + content + b"\r\n")
    end = f"--{boundary}--\r\n".encode() if choice.random() < 0.8 else b""
    body = b"".join(parts) + end
    kind = f"multipart/form-data; boundary={boundary}"
    kind = choice.choice([kind] * 6 + ["multipart/form-data", "application/json", "text/plain", ""])
    return kind, body[: len(body) if choice.random() < 0.8 else choice.randint(0, len(body))]


def requests(number: int, seed: int) -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """Method, path, headers and body of many requests that can be sent as a whole."""
    choice = random.Random(seed)
    for index in range(number):
        kind = index % 6
        headers: dict[str, str] = {"Content-Type": "application/json"}
        if kind == 0:
            method = choice.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW"])
            yield method, choice.choice(PATHS), headers, choice.choice([b"", b"{}", b"x" * 1000])
        elif kind in (1, 2):
            yield "POST", "/v1/images/generations", headers, json_body(choice)
        elif kind == 3:
            yield "POST", "/v1/chat/completions", headers, chat_body(choice)
        elif kind == 4:
            content_type, body = form(choice)
            yield "POST", "/v1/images/edits", {"Content-Type": content_type}, body
        else:
            name = choice.choice(["Authorization", "Cookie", "Host", "Expect", "Content-Encoding", "X-Forwarded-For"])
            value = choice.choice(["", "a" * 20_000, "Bearer", "Bearer " + "x" * 3000, "gzip", "100-continue"])
            yield "POST", "/v1/images/generations", {**headers, name: value}, json_body(choice)


RAW = [
    b"\x00\x01\x02\x03\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nab",
    b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    b"GET / HTTP/1.1\r\nHost: a\r\nA: \xff\xfe\x00\r\n\r\n",
]
"""Bytes that are hardly HTTP."""
