"""Large answers, read as fast as they come."""

from __future__ import annotations

import select
import socket
import sys
import time
from typing import Any

from benchmarks.loads import ready
from benchmarks.loads.wire import BadAnswer, body_length, connect, head_length, request

_BUFFER = bytearray(1 << 20)
_VIEW = memoryview(_BUFFER)


class _Reader:
    """One connection that asks `times` times for `path`. The kernel throws the bodies away (MSG_TRUNC): only their
    length is looked at, so that the reader costs little and the same for every server."""

    def __init__(self, port: int, path: str, times: int, chunked: bool) -> None:
        self.sock = connect(port)
        self.asked = request(path)
        self.times = times
        self.chunked = chunked
        self.total = 0
        self.missing = 0
        self.tail = b""
        self.head: bytes | None = None

    def ask(self) -> bool:
        """Ask again; False after the last time."""
        if not self.times:
            return False
        self.times -= 1
        self.head = b""
        self.sock.setblocking(False)
        self.sock.send(self.asked)
        return True

    def _read_head(self, so_far: bytes) -> None:
        data = so_far + self.sock.recv(65536)
        if data == so_far:
            raise BadAnswer(f"closed in the head: {data!r}")
        end = head_length(data)
        if not end:
            self.head = data
            return
        self.head = None
        body = data[end:]
        self.total += len(body)
        self.tail = body[-5:]
        self.missing = 0 if self.chunked else body_length(data[:end]) - len(body)

    def read(self) -> bool:
        """Read once; whether the body has ended."""
        if self.head is not None:
            self._read_head(self.head)
            return False
        if self.chunked:
            # Where a chunked body ends can only be told from its bytes.
            count = self._take(len(_BUFFER), 0)
            self.tail = (self.tail + bytes(_VIEW[max(0, count - 5) : count]))[-5:]
            return self.tail == b"0\r\n\r\n"
        self.missing -= self._take(min(self.missing, len(_BUFFER)), socket.MSG_TRUNC)
        return not self.missing

    def _take(self, most: int, flags: int) -> int:
        count = self.sock.recv_into(_BUFFER, most, flags)
        if not count:
            raise BadAnswer(f"closed after {self.total} bytes")
        self.total += count
        return count


def bulk(
    port: int, path: str, connections: int, times: int = 1, chunked: bool = False, lasting: bool = False
) -> dict[str, Any]:
    """Bytes of all bodies and the seconds they took. `lasting` repeats until standard input ends."""
    readers = [_Reader(port, path, sys.maxsize if lasting else times, chunked) for _ in range(connections)]
    ready()
    begin = time.perf_counter()
    poller = select.epoll()
    open_ones = {reader.sock.fileno(): reader for reader in readers if reader.ask()}
    for number in open_ones:
        poller.register(number, select.EPOLLIN)
    if lasting:
        poller.register(sys.stdin.fileno(), select.EPOLLIN)
    while open_ones:
        for number, _ in poller.poll():
            reader = open_ones.get(number)
            if reader is None:
                open_ones.clear()
                break
            if reader.read() and not reader.ask():
                poller.unregister(number)
                del open_ones[number]
    return {"bytes": sum(reader.total for reader in readers), "seconds": time.perf_counter() - begin}
