"""Memory: what slow peers make the relay hold is bounded, and the application's own pages stay quick meanwhile."""

from __future__ import annotations

import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from site_process import SiteProcess
from support import Origin, OriginWire, Script, route, wait_until

MIB = 1 << 20
CLIENTS = 500
BODY = 64 * MIB
#: Bytes a second that a client takes, and for how long it is watched.
SPEED = 50_000
SECONDS = 4.0
#: Seconds between two reads of a client.
TICK = 0.2

MakeOrigin = Callable[[Script], Origin]


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    """Both ends of 500 connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def sends_much(wire: OriginWire) -> None:
    """64 MiB as fast as they are taken."""
    request = wire.request()
    if request is None:
        return
    piece = b"x" * 65536
    if request.target == "/chunked":
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + piece + b"\r\n"
    else:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BODY)
    wire.sock.settimeout(None)
    for _ in range(BODY // 65536):
        wire.send(piece)
    if request.target == "/chunked":
        wire.send(b"0\r\n\r\n")


class Readers:
    """Clients that take little at a time."""

    def __init__(self, port: int, path: str) -> None:
        self.taken = 0
        self.socks = [self._ask(port, path) for _ in range(CLIENTS)]

    def _ask(self, port: int, path: str) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.connect(("127.0.0.1", port))
        sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
        sock.setblocking(False)
        return sock

    def read(self, seconds: float) -> None:
        """Read at `SPEED`, each client in its own part of the tick."""
        began = time.monotonic()
        turns = int(seconds / TICK)
        for turn in range(turns * CLIENTS):
            due = began + turn * TICK / CLIENTS
            if (left := due - time.monotonic()) > 0.002:
                select.select([], [], [], left)
            try:
                self.taken += len(self.socks[turn % CLIENTS].recv(int(SPEED * TICK)))
            except BlockingIOError:
                pass

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


class Visitor:
    """Asks for one of the application's own pages again and again, and notes how long it took."""

    def __init__(self, site: SiteProcess) -> None:
        self._site = site
        self._over = threading.Event()
        self.seconds: list[float] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.01):
            began = time.monotonic()
            assert self._site.get("/own") == b"own"
            self.seconds.append(time.monotonic() - began)

    def stop(self) -> float:
        """The time that 99 of 100 took at most."""
        self._over.set()
        self._thread.join()
        return sorted(self.seconds)[len(self.seconds) * 99 // 100]


@pytest.mark.parametrize("path", ["/r/length", "/r/chunked"])
def test_slow_readers(path: str, origin: MakeOrigin, tmp_path: Path, stack: ExitStack) -> None:
    """500 clients that read 64 MiB at 50 KB/s make the process grow by less than 32 MiB; own pages stay quick."""
    upstream = origin(sends_much)
    site = stack.enter_context(SiteProcess(tmp_path, route("r", upstream.url), python=()))
    assert len(site.get(path)) >= BODY  # starts what is started once
    before = site.quiet_vitals().memory
    site.forget_peak()
    readers = Readers(site.port, path)
    stack.callback(readers.close)
    wait_until(lambda: site.vitals().in_flight == CLIENTS, "500 exchanges")
    visitor = Visitor(site)
    readers.read(SECONDS)
    slowest = visitor.stop()
    grown = site.peak() - before
    print(f"grown by {grown / MIB:.1f} MiB, own pages within {slowest * 1000:.0f} ms, {readers.taken / MIB:.0f} MiB taken")
    assert readers.taken > CLIENTS * SPEED * SECONDS * 0.25
    assert grown < 32 * MIB
    assert slowest < 0.25
