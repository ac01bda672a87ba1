# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images that clients name by URLs: from listed hosts with public addresses, and from nowhere else."""

import http.server
import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest
from serving_helpers import photo, running_server, to_png

from lumina_mgpt_diffusers.serving import fetching
from lumina_mgpt_diffusers.serving.errors import ApiError


PUBLIC = "93.184.215.14"


@pytest.fixture
def resolve(monkeypatch):
    """Says what addresses names have."""
    asked = []

    def set_addresses(**addresses: list[str]) -> list[str]:
        def getaddrinfo(host, port, **kwargs):
            asked.append(host)
            if host not in addresses:
                raise socket.gaierror
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses[host]]

        monkeypatch.setattr(fetching.socket, "getaddrinfo", getaddrinfo)
        return asked

    return set_addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::",
        "64:ff9b::7f00:1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "ff02::1", "192.0.2.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address, resolve):
    assert not fetching.is_public(address)
    resolve(example=[PUBLIC, address])
    with pytest.raises(ApiError) as error:
        fetching.fetch("http://example/a.png", {"example"}, 100, 1)
    assert error.value.code == "image_url_forbidden"


def test_public_addresses():
    for address in (PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "8.8.8.8"):
        assert fetching.is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://other/a.png", "http://example.evil/a.png", "http://example:8080/a.png", "http://example:22/",
        "ftp://example/a.png", "file:///etc/passwd", "//example/a.png", "example/a.png", "http:///a.png", "http://[::1",
        "http://user:password@example/a.png", "http://example@127.0.0.1/", "http://127.0.0.1/", "http://2130706433/",
        "http://localhost/", "http://example:99999999/", "gopher://example", "", "http://exa\u212aple/",
    ],
)  # fmt: skip
def test_urls_that_lead_elsewhere(url, resolve):
    asked = resolve(example=[PUBLIC])
    with pytest.raises(ApiError) as error:
        fetching.fetch(url, {"example"}, 100, 1)
    assert error.value.status == 400 and not asked


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind = urlsplit(self.path).path
        if kind.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", "http://" + kind.removeprefix("/to/"))
            self.end_headers()
        elif kind == "/slow":
            self.send_response(200)
            self.end_headers()
            with suppress(ConnectionError):
                for _ in range(100):
                    self.wfile.write(b"a")
                    time.sleep(0.05)
        elif kind == "/slow-head":
            with suppress(ConnectionError):
                for byte in b"HTTP/1.0 200 OK\r\nX: ".ljust(100, b"a"):
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
        elif kind == "/missing":
            self.send_error(404, "secret")
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(to_png(photo()) if kind == "/photo" else b"a" * 10_000)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def pages(monkeypatch):
    """A server that the name `example` leads to, as if it were public."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    check = fetching._check

    def check_with_port(url, hosts):
        host, _, address = check(url, hosts)
        return host, server.server_address[1], address

    def getaddrinfo(host, port, **kwargs):
        address = "127.0.0.1" if host == "example" else "10.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(fetching, "_check", check_with_port)
    real = fetching.is_public
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1" or real(address))
    # Of this module alone: connections are made to addresses.
    monkeypatch.setattr(fetching, "socket", type("Names", (), {**vars(socket), "getaddrinfo": getaddrinfo}))
    yield server
    server.shutdown()


def test_bodies_and_their_limits(pages):
    def get(path: str, **kwargs) -> bytes:
        return fetching.fetch(
            f"http://example/{path}", {"example", "inside"}, **{"max_bytes": 20_000, "seconds": 2, **kwargs}
        )

    assert get("page?a=1") == b"a" * 10_000 and get("to/example/page") == b"a" * 10_000
    for path, reason, options in (
        ("page", "more than 100 bytes", {"max_bytes": 100}),
        ("missing", "no such image", {}),
        ("to/example/to/example/to/example/to/example/page", "too often", {}),
        ("to/127.0.0.1/page", "not among", {}),
        ("to/inside/page", "not public", {}),
    ):
        with pytest.raises(ApiError) as error:
            get(path, **options)
        assert reason in error.value.message and "secret" not in error.value.message, path


@pytest.mark.parametrize("path", ["slow", "slow-head"])
def test_what_drips_in_is_cut_off_in_time(pages, path):
    begin = time.monotonic()
    with pytest.raises(ApiError) as error:
        fetching.fetch(f"http://example/{path}", {"example"}, 20_000, 0.3)
    assert "too long" in error.value.message and time.monotonic() - begin < 1.5


def test_the_server_fetches_for_those_hosts_alone(trained_pipe, pages):
    def ask(server, url: str) -> httpx.Response:
        part = {"type": "image_url", "image_url": {"url": url}}
        body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 5}
        return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)

    with running_server(trained_pipe, fetch_hosts=["Example"]) as server:
        assert ask(server, "http://EXAMPLE/photo").status_code == 200
        assert ask(server, "http://example/page").json()["error"]["code"] == "invalid_image"
        assert ask(server, "http://other/photo").json()["error"]["code"] == "image_url_forbidden"
    with running_server(trained_pipe) as server:
        assert ask(server, "http://example/photo").json()["error"]["code"] == "image_url_forbidden"
