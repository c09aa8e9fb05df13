"""Small answers on kept connections, asked for again at once or after a while, also for as long as another load lasts.

What wrk can't do: it neither waits nor ends when it is told.
"""

from __future__ import annotations

import heapq
import select
import sys
import time
from typing import Any

from benchmarks.figures import percentile
from benchmarks.loads import ready
from benchmarks.loads.wire import BadAnswer, body_length, connect, head_length, read_head, request


class _Client:
    """One connection: asks, and counts the bytes of the answer."""

    __slots__ = ("data", "length", "sent", "sock")

    def __init__(self, port: int, asked: bytes) -> None:
        self.sock = connect(port)
        self.sock.sendall(asked)
        head, body = read_head(self.sock)
        missing = body_length(head) - len(body)
        while missing:
            missing -= len(self.sock.recv(min(missing, 65536)))
        self.length = len(head) + body_length(head)
        self.sock.setblocking(False)
        self.data = b""
        self.sent = 0.0

    def received(self) -> bool:
        """Take what came; whether the answer is whole."""
        more = self.sock.recv(65536)
        if not more:
            raise BadAnswer(f"closed after {len(self.data)} bytes of an answer")
        data = self.data = self.data + more if self.data else more
        # An answer is as long as the one before it, or its head is read.
        if len(data) != self.length or not data.startswith(b"HTTP/1.1 200 "):
            end = head_length(data)
            if not end:
                return False
            self.length = end + body_length(data[:end])
            if len(data) > self.length:
                raise BadAnswer("more bytes than were asked for")
            return len(data) == self.length
        return True


class _Run:
    """One run. With `think` each connection waits so many seconds before it asks again."""

    def __init__(self, clients: list[_Client], asked: bytes, think: float) -> None:
        self.asked = asked
        self.think = think
        self.latencies: list[float] = []
        self.poller = select.epoll()
        self.by_number = {client.sock.fileno(): client for client in clients}
        self.resting: list[tuple[float, int]] = []
        for number in self.by_number:
            self.poller.register(number, select.EPOLLIN)

    def ask(self, client: _Client) -> None:
        client.data = b""
        client.sent = time.perf_counter()
        client.sock.send(self.asked)

    def step(self, until: float) -> bool:
        """Wait for answers and ask again; False once standard input has ended."""
        now = time.perf_counter()
        while self.resting and self.resting[0][0] <= now:
            self.ask(self.by_number[heapq.heappop(self.resting)[1]])
        wake = min(until, self.resting[0][0]) if self.resting else until
        for number, _ in self.poller.poll(max(0.0, wake - now)):
            client = self.by_number.get(number)
            if client is None:
                return False
            if client.received():
                done = time.perf_counter()
                self.latencies.append(done - client.sent)
                if self.think:
                    heapq.heappush(self.resting, (done + self.think, number))
                else:
                    self.ask(client)
        return True

    def until(self, end: float) -> None:
        """Run until that time, or until standard input ends."""
        if end == float("inf"):
            self.poller.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)
            end = time.perf_counter() + 3600
        for client in self.by_number.values():
            self.ask(client)
        while time.perf_counter() < end and self.step(end):
            pass


def small(port: int, path: str, connections: int, seconds: float = 0, think: float = 0) -> dict[str, Any]:
    """Requests a second and latencies in milliseconds; without `seconds` until standard input ends."""
    asked = request(path)
    run = _Run([_Client(port, asked) for _ in range(connections)], asked, think)
    ready()
    begin = time.perf_counter()
    run.until(begin + seconds if seconds else float("inf"))
    took = time.perf_counter() - begin
    milliseconds = [1000 * value for value in run.latencies]
    return {
        "answers": len(milliseconds),
        "rate": len(milliseconds) / took,
        "p50": percentile(milliseconds, 0.5),
        "p99": percentile(milliseconds, 0.99),
        "most": max(milliseconds),
    }
