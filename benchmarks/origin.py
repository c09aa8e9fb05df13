"""The upstream for what nginx can't be asked: ``python -m benchmarks.origin PORT FOLDER``.

One thread, one epoll, a generator for each connection that yields what it waits for.

================================  =======================================================
``/stream/chunked/BYTES``         so many bytes in chunks of 16 KiB, sent by the kernel
``/stream/hold/SECONDS``          an answer of a few bytes, so much later
``/stream/sink``                  takes a request body of any length
``/stream/tunnel``                switches to ``websocket`` and returns every byte
``/stream/count``                 how many answers are held back now
================================  =======================================================
"""

from __future__ import annotations

import heapq
import itertools
import os
import re
import select
import socket
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

from benchmarks.machine import raise_descriptor_limit

#: What a connection waits for: events of epoll, or a negative number of seconds.
Steps = Generator[float, None, None]
READ: float = select.EPOLLIN
WRITE: float = select.EPOLLOUT
CHUNK = 16 * 1024
#: Chunks that stand in the file that is sent again and again.
CHUNKS_IN_FILE = 1024
_RENDERED = b"%x\r\n" % CHUNK + bytes(CHUNK) + b"\r\n"
_BUFFER = bytearray(1 << 20)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
# RFC 6455 4.2.2: what belongs to the key that `loads.tunnels` sends.
_SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


class Origin:
    """Listens on `port` of 127.0.0.1; its file of chunks lies in `folder`."""

    def __init__(self, port: int, folder: Path) -> None:
        self._poller = select.epoll()
        self._timers: list[tuple[float, int, Steps, socket.socket]] = []
        self._ticket = itertools.count()
        self._waiting: dict[int, tuple[Steps, socket.socket]] = {}
        self._held = 0
        path = folder / "chunks"
        path.write_bytes(_RENDERED * CHUNKS_IN_FILE)
        self._chunks = path.open("rb")
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self._poller.register(self._listener.fileno(), select.EPOLLIN)

    def run(self) -> None:
        """Serve for ever."""
        while True:
            wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1
            for number, _ in self._poller.poll(wait):
                if number == self._listener.fileno():
                    self._accept()
                else:
                    self._advance(*self._waiting[number])
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                self._advance(*heapq.heappop(self._timers)[2:])

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                steps = self._serve(sock)
                self._waiting[sock.fileno()] = steps, sock
                self._poller.register(sock.fileno(), select.EPOLLIN)

    def _advance(self, steps: Steps, sock: socket.socket) -> None:
        number = sock.fileno()
        if number < 0:
            # Its time came after its peer had gone.
            return
        try:
            wanted = next(steps)
        except (StopIteration, OSError):
            del self._waiting[number]
            sock.close()
            return
        self._poller.modify(number, int(wanted) if wanted > 0 else 0)
        if wanted < 0:
            heapq.heappush(self._timers, (time.monotonic() - wanted, next(self._ticket), steps, sock))

    def _serve(self, sock: socket.socket) -> Steps:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                more = sock.recv(65536)
                if not more:
                    return
                data += more
                if b"\r\n\r\n" not in data:
                    yield READ
            head, _, data = data.partition(b"\r\n\r\n")
            _, _, what, *rest = head.split(b" ", 2)[1].split(b"/", 3)
            argument = b"".join(rest)
            if what == b"tunnel":
                yield from self._tunnel(sock)
                return
            if what == b"chunked":
                yield from self._send_chunks(sock, int(argument))
            elif what == b"sink":
                yield from self._take_body(sock, head + b"\r\n", len(data))
                data = b""
            else:
                if what == b"hold":
                    yield from self._hold(float(argument))
                self._answer(sock, b"%d" % self._held)
            yield READ

    @staticmethod
    def _answer(sock: socket.socket, body: bytes) -> None:
        sock.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    def _hold(self, seconds: float) -> Steps:
        self._held += 1
        try:
            yield -seconds
        finally:
            self._held -= 1

    def _send_chunks(self, sock: socket.socket, size: int) -> Steps:
        sock.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunks = size // CHUNK
        while chunks:
            some = min(chunks, CHUNKS_IN_FILE)
            offset, end = 0, some * len(_RENDERED)
            while offset < end:
                try:
                    offset += os.sendfile(sock.fileno(), self._chunks.fileno(), offset, end - offset)
                except BlockingIOError:
                    yield WRITE
            chunks -= some
        while True:
            try:
                sock.send(b"0\r\n\r\n")
                return
            except BlockingIOError:
                yield WRITE

    def _take_body(self, sock: socket.socket, head: bytes, came: int) -> Steps:
        length = _LENGTH.search(head)
        missing = int(length[1]) - came if length else 0
        while missing:
            try:
                count = sock.recv_into(_BUFFER, min(missing, len(_BUFFER)), socket.MSG_TRUNC)
            except BlockingIOError:
                yield READ
                continue
            if not count:
                raise ConnectionError
            missing -= count
        self._answer(sock, b"taken")

    @staticmethod
    def _tunnel(sock: socket.socket) -> Steps:
        sock.send(_SWITCHING)
        while True:
            yield READ
            data = sock.recv(65536)
            if not data:
                return
            sock.send(data)


if __name__ == "__main__":
    raise_descriptor_limit()
    Origin(int(sys.argv[1]), Path(sys.argv[2])).run()
