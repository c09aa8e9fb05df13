"""Readers that take a large answer slowly."""

from __future__ import annotations

import socket
import time
from typing import Any

from benchmarks.loads import ready
from benchmarks.loads.wire import BadAnswer, connect, read_head, request

#: Seconds between two reads of one connection.
_TICK = 0.1


def slow(port: int, path: str, connections: int, rate: int, seconds: float) -> dict[str, Any]:
    """Each connection reads `rate` bytes a second for so long, then closes; returns the bytes read."""
    asked = request(path)
    socks = [connect(port) for _ in range(connections)]
    ready()
    for sock in socks:
        sock.sendall(asked)
    for sock in socks:
        read_head(sock)
        sock.setblocking(False)
    buffer = bytearray(int(rate * _TICK))
    end = time.perf_counter() + seconds
    total = 0
    while (begin := time.perf_counter()) < end:
        total += sum(_read(sock, buffer) for sock in socks)
        time.sleep(max(0.0, begin + _TICK - time.perf_counter()))
    return {"bytes": total}


def _read(sock: socket.socket, buffer: bytearray) -> int:
    try:
        count = sock.recv_into(buffer, len(buffer), socket.MSG_TRUNC)
    except BlockingIOError:
        return 0
    if not count:
        raise BadAnswer("closed before the end")
    return count
