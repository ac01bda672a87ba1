# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Fetching images that clients name by a URL, from hosts that the operator lists and nowhere else.

The addresses of a name are checked, and the connection goes to the address that was checked, since a name may lead
elsewhere when it is asked again.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from .errors import ApiError


MAX_REDIRECTS = 3

CHUNK = 64 << 10

# Its addresses end in those of IPv4 that they lead to, which may be private ones.
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fetch(url: str, hosts: Collection[str], max_bytes: int, seconds: float) -> bytes:
    """
    The body of what a URL leads to.

    Args:
        url (`str`): An http or https URL.
        hosts (`Collection[str]`): Names of hosts, in lower case, that it and its redirects may lead to.
        max_bytes (`int`): Longest body.
        seconds (`float`): Time for all of it, but that in which the system looks up the addresses of names.

    Raises:
        [`ApiError`]: If it leads elsewhere, or there is no such body. It tells nothing of what is there instead.
    """
    deadline = time.monotonic() + seconds
    for _ in range(MAX_REDIRECTS + 1):
        target, port, address = _check(url, hosts)
        redirect, body = _get(url, target, port, address, max_bytes, deadline)
        if redirect is None:
            return body
        url = urljoin(url, redirect)
    raise _failure("it redirects too often")


def _failure(reason: str, code: str = "image_url_failed") -> ApiError:
    return ApiError(400, f"The image of this URL cannot be used: {reason}.", code, "image_url")


def _check(url: str, hosts: Collection[str]) -> tuple[str, int, str]:
    """Host, port and address that a URL leads to, if it may."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _failure("it is malformed") from error
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
        raise _failure("it has to be an http or https URL of a host, without a name or password")
    if host not in hosts or port not in (None, 80, 443):
        raise _failure("its host is not among those that this server may fetch from", "image_url_forbidden")
    port = port or (443 if parts.scheme == "https" else 80)
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise _failure("its host has no address") from error
    if not found or not all(is_public(address) for address in found):
        raise _failure("its host has an address that is not public", "image_url_forbidden")
    return host, port, min(found)


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, neither private nor of the machine nor a wrapped one."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(parsed, "ipv4_mapped", None) or getattr(parsed, "sixtofour", None)
    if parsed in NAT64:
        inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    if getattr(parsed, "teredo", None) is not None:
        return False
    return (inner is None or is_public(str(inner))) and parsed.is_global and not parsed.is_multicast


def _get(url: str, host: str, port: int, address: str, max_bytes: int, deadline: float) -> tuple[str | None, bytes]:
    """Where a URL redirects to, or its body."""
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"Host": parts.netloc, "Accept": "image/*", "Accept-Encoding": "identity"}
    connection = _connection(parts.scheme, host, port, address, deadline)
    try:
        connection.connect()
        with _ended_at(deadline, connection.sock):
            connection.request("GET", path, headers=headers, preload_content=False)
            with connection.getresponse() as response:
                if response.status in (301, 302, 303, 307, 308):
                    return response.headers.get("Location", ""), b""
                if response.status != 200:
                    raise _failure("there is no such image")
                return None, _read(response, max_bytes, deadline)
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
        raise _failure("it takes too long" if time.monotonic() > deadline else "it cannot be fetched") from error
    finally:
        connection.close()


def _connection(scheme: str, host: str, port: int, address: str, deadline: float) -> HTTPConnection:
    timeout = max(deadline - time.monotonic(), 0.01)
    if scheme == "http":
        return HTTPConnection(address, port, timeout=timeout)
    return HTTPSConnection(
        address, port, timeout=timeout, server_hostname=host, assert_hostname=host, cert_reqs="CERT_REQUIRED"
    )


@contextmanager
def _ended_at(deadline: float, connected: socket.socket) -> Iterator[None]:
    """Ends what is read from a socket at a time, since a timeout begins anew with every byte that drips in."""

    def end() -> None:
        with suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(deadline - time.monotonic(), end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _read(response: urllib3.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    body = bytearray()
    for chunk in response.stream(CHUNK, decode_content=False):
        body += chunk
        if len(body) > max_bytes:
            raise _failure(f"it has more than {max_bytes} bytes")
    if time.monotonic() > deadline:  # it may be the end that was made to it
        raise _failure("it takes too long")
    return bytes(body)
