# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Clients that mean no good: each gets a reason, and nobody else notices.

Two thousand of them, and thirty-two well-meaning clients for minutes: `pytest -m slow tests/test_server_hostile.py`,
with `LUMINA_MGPT_TEST_MINUTES` and `LUMINA_MGPT_TEST_REQUESTS` for longer or shorter runs.
"""

import http.client
import json
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import hostile
import httpx
import psutil
import pytest
from omni import img2img_from
from serving_helpers import from_base64, photo, running_server, same, seeded, to_png

from lumina_mgpt_diffusers.serving.limits import ServerLimits


LIMITS = ServerLimits(
    max_pixels=96 * 96,
    max_images=3,
    max_body_bytes=400_000,
    header_seconds=0.5,
    body_seconds=0.5,
    request_seconds=30,
    send_seconds=1.0,
)


@pytest.fixture(scope="module")
def server(trained_pipe):
    with running_server(trained_pipe, LIMITS, {"max_length": 400}) as server:
        yield server


def send(port: int, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value.encode())
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (ConnectionError, http.client.RemoteDisconnected):
        return 0, b""  # closed while a body that is too long was sent
    except (http.client.InvalidURL, UnicodeEncodeError):
        return 404, b'{"error": {"message": "not sent", "type": "invalid_request_error"}}'
    finally:
        connection.close()


def check(status: int, text: bytes, request: tuple) -> None:
    method, path, headers, body = request
    assert status == 0 or 200 <= status < 500, (status, text[:300], method, path, headers, body[:300])
    assert b"Traceback" not in text and b"/work" not in text and b"site-packages" not in text
    if status >= 400 and path.startswith("/v1") and method not in ("HEAD", "BREW") and b"error" in text:
        error = json.loads(text)["error"]
        assert error["message"] and error["type"] == "invalid_request_error", (text, request)


def is_well(server) -> bool:
    answer = httpx.post(f"{server.url}/v1/images/generations", json={"prompt": "a", "size": "32x32"}, timeout=30)
    return answer.status_code == 200


def run_hostile(server, number: int, seed: int) -> dict[int, int]:
    counts: dict[int, int] = {}

    def one(request: tuple) -> None:
        status, text = send(server.port, *request)
        check(status, text, request)
        counts[status] = counts.get(status, 0) + 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, hostile.requests(number, seed)))
    return counts


def test_hostile_requests_get_a_reason(server):
    counts = run_hostile(server, 120, seed=0)
    assert sum(number for status, number in counts.items() if status >= 400) > 80
    assert is_well(server)


def raw(server, data: bytes, seconds: float = 20.0) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        try:
            connection.sendall(data)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            return answer
        except ConnectionError:
            return b""


@pytest.mark.parametrize("index", range(len(hostile.RAW)))
def test_what_is_hardly_http(server, index):
    answer = raw(server, hostile.RAW[index])
    assert not answer or b" 4" in answer.split(b"\r\n")[0], answer[:200]


def test_slow_heads_and_bodies_are_cut_off(server):
    begin = time.monotonic()
    assert raw(server, b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nX") == b""
    body = b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"
    assert b" 408 " in raw(server, body)
    assert time.monotonic() - begin < 5


def test_long_bodies_are_cut_off(server):
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\n"
    assert b" 413 " in raw(server, head + b"Content-Length: 400001\r\n\r\n")
    chunks = b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"a" * 65536 + b"\r\n") * 10
    answer = raw(server, head + chunks)
    assert not answer or b" 413 " in answer


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"n": 4}, "n"),
        ({"n": 0}, "n"),
        ({"size": "128x96"}, "size"),
        ({"size": "64x63"}, None),
        ({"size": "64"}, "size"),
        ({"prompt": "a" * 32_001}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"partial_images": 9, "stream": True}, "partial_images"),
        ({"temperature": -1}, None),
        ({"guidance_scale": 1e300}, None),
        ({"background": "transparent"}, "background"),
        ({"prompts": "a"}, "prompts"),
    ],
)
def test_limits_and_reasons(server, fields, param):
    answer = httpx.post(f"{server.url}/v1/images/generations", json={"prompt": "a", **fields})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_length_of_a_chat_is_limited(server, name):
    body = {"messages": [{"role": "user", "content": "a"}], name: LIMITS.max_tokens + 1}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "max_tokens"


def test_images_that_are_none_or_too_large(server):
    for data, reason in ((hostile.bomb(), "pixels"), (b"<svg/>", "image"), (to_png(photo())[:300], "cannot be read")):
        answer = httpx.post(f"{server.url}/v1/images/edits", files={"image": data}, data={"task": "depth"})
        assert answer.status_code == 400 and reason in answer.json()["error"]["message"], answer.text
    files = [("image[]", to_png(photo()))] * 9
    answer = httpx.post(f"{server.url}/v1/images/edits", files=files, data={"prompt": "a"})
    assert answer.status_code == 400 and "At most 8" in answer.json()["error"]["message"]
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
    assert answer.status_code == 400 and "400 tokens" in answer.json()["error"]["message"]


def test_a_reader_that_never_reads_is_let_go(trained_pipe):
    with running_server(trained_pipe, ServerLimits(send_seconds=0.3)) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        body = json.dumps({"prompt": "a", "n": 8, "stream": True, "partial_images": 8})
        head = "POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        for _ in range(6):  # more answers than the buffers on the way hold
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        end = time.monotonic() + 30
        while not server.host.counts.num_finished:
            assert time.monotonic() < end
            time.sleep(0.02)
        # The engine lets the rows of whoever left go at its next step.
        while server.server.server_state.connections or server.host._held:
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.mark.slow
def test_two_thousand_hostile_requests(server):
    number = int(os.environ.get("LUMINA_MGPT_TEST_REQUESTS", 2400))
    process = psutil.Process()
    run_hostile(server, number // 4, seed=1)
    before = process.memory_info().rss
    counts = run_hostile(server, number, seed=2)
    grown = process.memory_info().rss - before
    print(f"\n{counts}, grown by {grown / 2**20:.0f} MiB, {threading.active_count()} threads")
    assert grown < 64 << 20 and is_well(server) and not server.host._held


@pytest.mark.slow
def test_many_clients_for_minutes(trained_pipe):
    """32 clients with mixed sizes, tasks, cancellations and slow readers; every finished image is as if alone."""
    minutes = float(os.environ.get("LUMINA_MGPT_TEST_MINUTES", 10))
    limits = ServerLimits(max_pixels=96 * 96)
    memory, errors, counts = [], [], {"images": 0, "cancelled": 0, "full": 0, "chats": 0}
    images: dict[tuple, set[str]] = {}
    lock = threading.Lock()
    picture = to_png(photo())

    def ask(client: httpx.Client, choice: random.Random) -> None:
        seed, kind = choice.randrange(6), choice.randrange(6)
        if kind < 3:
            size = choice.choice(["32x32", "64x32", "96x96", "32x96"])
            key = ("generate", size, seed)
            fields = {"prompt": "a cat", "size": size, "seed": seed}
            if kind == 2:
                leave = choice.random() < 0.5
                with client.stream(
                    "POST", "/v1/images/generations", json={**fields, "stream": True, "partial_images": 2}
                ) as answer:
                    if answer.status_code == 429:
                        counts["full"] += 1
                        return
                    assert answer.status_code == 200
                    for line in answer.iter_lines():
                        if leave:
                            counts["cancelled"] += 1
                            return
                        time.sleep(choice.choice([0, 0.3]))
                        if line.startswith("data: ") and "completed" in line:
                            keep(key, json.loads(line[6:])["b64_json"])
                return
            answer = client.post("/v1/images/generations", json=fields)
        elif kind < 5:
            task = choice.choice(["depth", "normal"])
            key = ("edit", task, seed)
            data = {"task": task, "seed": str(seed), "size": "64x64"}
            answer = client.post("/v1/images/edits", data=data, files={"image": picture})
        else:
            body = {"messages": [{"role": "user", "content": "Hello"}], "seed": seed, "max_tokens": 20}
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code in (200, 429), answer.text
            counts["chats" if answer.status_code == 200 else "full"] += 1
            return
        if answer.status_code == 429:
            counts["full"] += 1
            time.sleep(min(float(answer.headers["retry-after"]), 2))
            return
        assert answer.status_code == 200, answer.text
        keep(key, answer.json()["data"][0]["b64_json"])

    def keep(key: tuple, image: str) -> None:
        with lock:
            counts["images"] += 1
            images.setdefault(key, set()).add(image)

    with running_server(trained_pipe, limits, {"max_slots": 16, "max_waiting": 16}) as server:
        end = time.monotonic() + 60 * minutes

        def client_loop(index: int) -> None:
            choice = random.Random(index)
            try:
                with httpx.Client(base_url=server.url, timeout=120) as client:
                    while time.monotonic() < end:
                        ask(client, choice)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=client_loop, args=(index,)) for index in range(32)]
        for thread in threads:
            thread.start()
        while time.monotonic() < end:
            time.sleep(max(60 * minutes / 20, 1))
            memory.append(psutil.Process().memory_info().rss >> 20)
        for thread in threads:
            thread.join(120)
        left = (dict(server.host._held), server.host.counts.num_failed)
    print(f"\n{counts}, memory in MiB {memory}")
    assert not errors and left == ({}, 0)
    assert all(len(own) == 1 for own in images.values())
    editor = img2img_from(trained_pipe)
    for (kind, what, seed), own in images.items():
        if kind == "generate":
            width, height = map(int, what.split("x"))
            output = trained_pipe("a cat", height=height, width=width, generator=seeded(seed))
        else:
            output = editor(image=photo(), task=what, height=64, width=64, generator=seeded(seed))
        assert same(from_base64(*own), output.images[0])
    third = len(memory) // 3
    assert max(memory[-third:]) < max(memory[third : 2 * third]) + 64
