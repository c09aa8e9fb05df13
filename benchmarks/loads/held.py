"""Many requests at once whose answers are held back by the upstream."""

from __future__ import annotations

import errno
import select
import socket
import sys
import time
from typing import Any

from benchmarks.loads import ready
from benchmarks.loads.wire import BadAnswer, body_length, head_length, request

#: Connections that are being opened at one time.
_OPENING = 256
#: Seconds after which a connection that was not taken is tried anew. The kernel itself would wait for whole seconds
#: once the listener's queue was full, and its waiting would be what is measured.
_IMPATIENCE = 0.05


class _Crowd:
    """Opens `count` connections, asks on each, and counts the answers."""

    def __init__(self, port: int, path: str, count: int) -> None:
        self.port = port
        self.asked = request(path)
        self.to_open = count
        self.opening: dict[int, float] = {}
        self.socks: dict[int, socket.socket] = {}
        self.poller = select.epoll()
        self.answered = 0

    def open_some(self) -> None:
        now = time.perf_counter()
        for number in [number for number, begun in self.opening.items() if begun + _IMPATIENCE < now]:
            del self.opening[number]
            self.socks.pop(number).close()
            self.to_open += 1
        while self.to_open and len(self.opening) < _OPENING:
            sock = socket.socket()
            sock.setblocking(False)
            if sock.connect_ex(("127.0.0.1", self.port)) not in (0, errno.EINPROGRESS):
                raise BadAnswer("no connection")
            self.socks[sock.fileno()] = sock
            self.poller.register(sock.fileno(), select.EPOLLOUT)
            self.to_open -= 1
            self.opening[sock.fileno()] = now

    def ask(self, number: int) -> None:
        if failure := self.socks[number].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise BadAnswer(f"no connection: {errno.errorcode[failure]}")
        self.socks[number].send(self.asked)
        self.poller.modify(number, select.EPOLLIN)
        del self.opening[number]

    def read(self, number: int) -> None:
        data = self.socks[number].recv(65536)
        end = head_length(data)
        if not end or len(data) != end + body_length(data[:end]):
            raise BadAnswer(f"an answer in pieces, or none: {data[:200]!r}")
        self.poller.unregister(number)
        self.answered += 1

    def step(self) -> bool:
        """Do what can be done; False once standard input has ended."""
        self.open_some()
        for number, events in self.poller.poll(_IMPATIENCE / 2 if self.opening else -1):
            if number == sys.stdin.fileno():
                return False
            if events & select.EPOLLOUT:
                self.ask(number)
            else:
                self.read(number)
        return True


def held(port: int, path: str, count: int, lasting: bool = False) -> dict[str, Any]:
    """Seconds until all are answered. `lasting`: ask, say so, and stay until standard input ends."""
    crowd = _Crowd(port, path, count)
    if lasting:
        while crowd.to_open or crowd.opening:
            crowd.step()
    ready()
    if lasting:
        crowd.poller.register(sys.stdin.fileno(), select.EPOLLIN)
    begin = time.perf_counter()
    while crowd.answered < count and crowd.step():
        pass
    return {"answers": crowd.answered, "seconds": time.perf_counter() - begin}
