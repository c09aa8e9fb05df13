"""What the loads share: connections, requests, and as much reading of answers as counting needs."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterable

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)

#: The fields that a browser sends beside Host.
BROWSER_FIELDS = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language: en-US,en;q=0.5",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "DNT: 1",
    "Referer: http://127.0.0.1/reports/overview",
    "Connection: keep-alive",
    "Cookie: theme=dark; session=0123456789abcdef0123456789abcdef; seen=4711",
    "Upgrade-Insecure-Requests: 1",
    "Sec-Fetch-Dest: document",
    "Sec-Fetch-Mode: navigate",
)


class BadAnswer(Exception):
    """An answer that is not the one that was asked for: its figures would mean nothing."""


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def request(path: str, fields: Iterable[str] = (), method: str = "GET") -> bytes:
    """The bytes of a request without body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *fields, "", ""]).encode("latin-1")


def head_length(data: bytes) -> int:
    """Length of the head of a 200; 0 if it is not whole yet. Raises `BadAnswer` of any other status."""
    if len(data) >= 13 and not data.startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 ")):
        raise BadAnswer(f"not a 200: {data[:400]!r}")
    return data.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in data else 0


def body_length(head: bytes) -> int:
    """What Content-Length says; raises `BadAnswer` where there is none."""
    found = _LENGTH.search(head)
    if found is None:
        raise BadAnswer(f"an answer without Content-Length: {head[:400]!r}")
    return int(found[1])


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """Read, blocking, the head of a 200, and what of the body came with it."""
    data = b""
    while not (end := head_length(data)):
        more = sock.recv(65536)
        if not more:
            raise BadAnswer(f"closed in the head: {data!r}")
        data += more
    return data[:end], data[end:]


def told_to_end(descriptors: Iterable[int]) -> bool:
    """Whether standard input is among what is ready: the harness has closed it."""
    return sys.stdin.fileno() in descriptors
