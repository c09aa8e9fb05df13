"""Many switched connections, nearly all of them idle."""

from __future__ import annotations

import socket
import time
from typing import Any

from benchmarks.figures import percentile
from benchmarks.loads import ready
from benchmarks.loads.wire import BadAnswer, connect, request

#: A fixed key (RFC 6455 4.1); the origin answers it as it must.
_FIELDS = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
_MESSAGE = b"0123456789abcdef" * 2
#: Seconds between two messages on one connection.
_PAUSE = 0.05


def _open(port: int, path: str) -> socket.socket:
    sock = connect(port)
    sock.sendall(request(path, _FIELDS))
    head = b""
    while b"\r\n\r\n" not in head:
        more = sock.recv(65536)
        if not more:
            raise BadAnswer(f"closed in the head: {head!r}")
        head += more
    if not head.startswith(b"HTTP/1.1 101 "):
        raise BadAnswer(f"not switched: {head[:400]!r}")
    return sock


def _echo(sock: socket.socket) -> float:
    """Milliseconds that a message takes there and back."""
    begin = time.perf_counter()
    sock.sendall(_MESSAGE)
    missing = len(_MESSAGE)
    while missing:
        count = len(sock.recv(missing))
        if not count:
            raise BadAnswer("a tunnel was closed")
        missing -= count
    return 1000 * (time.perf_counter() - begin)


def tunnels(port: int, path: str, count: int, echoing: int, seconds: float) -> dict[str, Any]:
    """Opens `count` tunnels; after the word, echoes on `echoing` of them one after the other for so long."""
    socks = [_open(port, path) for _ in range(count)]
    ready()
    end = time.perf_counter() + seconds
    times: list[float] = []
    while time.perf_counter() < end:
        for sock in socks[:echoing]:
            times.append(_echo(sock))
            time.sleep(_PAUSE / echoing)
    return {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99), "messages": len(times)}
