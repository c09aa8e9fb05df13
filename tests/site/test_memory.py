"""Memory: what slow peers make the relay hold is bounded, and the application's own pages stay quick meanwhile."""

from __future__ import annotations

import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.fault_origin import OriginProcess
from tests.support.site import route
from tests.support.site_process import SiteProcess
from tests.support.waiting import wait_until

MIB = 1 << 20
CLIENTS = 500
BODY = 64 * MIB
#: Bytes a second that a client takes, and for how long it is watched.
SPEED = 50_000
SECONDS = 4.0
#: Seconds between two reads of a client.
TICK = 0.2


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    """Both ends of 500 connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_slow_readers(framing: str, tmp_path: Path, stack: ExitStack) -> None:
    """500 clients that read 64 MiB at 50 KB/s make the process grow by less than 32 MiB; own pages stay quick."""
    upstream = stack.enter_context(OriginProcess())
    path = f"/r/flood/{framing}/{BODY}"
    site = stack.enter_context(SiteProcess(tmp_path, route("r", upstream.url), python=()))
    assert len(site.get(path)) >= BODY  # starts what is started once
    (tmp_path / "idle").mkdir()
    idle = stack.enter_context(SiteProcess(tmp_path / "idle", {}, python=()))
    before = site.quiet_vitals().memory
    site.forget_peak()
    readers = Readers(site.port, path)
    stack.callback(readers.close)
    wait_until(lambda: site.vitals().in_flight == CLIENTS, "500 exchanges")
    visitors = Visitor(site), Visitor(idle)
    readers.read(SECONDS)
    slowest, usual = (visitor.stop() for visitor in visitors)
    grown = site.peak() - before
    print(f"grown by {grown / MIB:.1f} MiB, own pages within {slowest * 1000:.0f} ms, idle {usual * 1000:.0f}")
    assert readers.taken > CLIENTS * SPEED * SECONDS * 0.25
    assert grown < 32 * MIB
    assert slowest < max(0.25, 3 * usual)  # what else the machine does slows both


def test_slow_upstreams(tmp_path: Path, stack: ExitStack) -> None:
    """200 uploads that the upstream does not take lie where waitress has put them: the relay adds next to nothing."""
    upstream = stack.enter_context(OriginProcess())
    options = {"inbuf_overflow": 65536, "recv_bytes": 65536}
    site = stack.enter_context(SiteProcess(tmp_path, route("r", upstream.url), python=(), **options))
    site.get(f"/r/flood/length/{MIB}")
    before = site.quiet_vitals().memory
    site.forget_peak()
    for _ in range(200):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", site.port)))
        client.sendall(b"POST /r/deaf HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (3 * MIB))
        client.sendall(bytes(3 * MIB))
    wait_until(lambda: site.vitals().in_flight == 200, "200 exchanges")
    grown = site.peak() - before
    print(f"grown by {grown / MIB:.1f} MiB")
    assert grown < 16 * MIB
    upstream.kill()
    assert site.quiet_vitals().in_flight == 0


def test_a_filter(tmp_path: Path, stack: ExitStack) -> None:
    """256 MiB through a filter: the process grows by less than 8 MiB, and its own pages are quick meanwhile."""
    upstream = stack.enter_context(OriginProcess())
    settings = route("r", upstream.url, hooks__body="tests.relay.test_body_filter.shouting")
    site = stack.enter_context(SiteProcess(tmp_path, settings, python=()))
    site.get(f"/r/flood/length/{MIB}")  # starts what is started once
    (tmp_path / "idle").mkdir()
    idle = stack.enter_context(SiteProcess(tmp_path / "idle", {}, python=()))
    before = site.quiet_vitals().memory
    site.forget_peak()
    visitors = Visitor(site), Visitor(idle)
    taken = 0
    with socket.create_connection(("127.0.0.1", site.port)) as client:
        client.sendall(b"GET /r/flood/length/%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % (256 * MIB))
        while data := client.recv(256 * 1024):
            taken += len(data)
    slowest, usual = (visitor.stop() for visitor in visitors)
    grown = site.peak() - before
    print(f"grown by {grown / MIB:.1f} MiB, own pages within {slowest * 1000:.0f} ms, idle {usual * 1000:.0f}")
    assert taken > 256 * MIB
    assert grown < 8 * MIB
    assert slowest < max(0.25, 3 * usual)


def test_slow_uploads(tmp_path: Path, stack: ExitStack) -> None:
    """2,000 uploads that stream and come a byte at a time hold no thread each, and less than 16 KiB of memory each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    upstream = stack.enter_context(OriginProcess())
    settings = route("r", upstream.url, request__buffering="false") | {"proxy.max_exchanges": "3000"}
    site = stack.enter_context(
        SiteProcess(tmp_path, settings, python=(), asyncore_use_poll=True, connection_limit=9000)
    )
    site.get(f"/r/flood/length/{MIB}")
    before = site.quiet_vitals()
    site.forget_peak()
    clients = [stack.enter_context(socket.create_connection(("127.0.0.1", site.port))) for _ in range(2000)]
    for client in clients:
        client.sendall(b"POST /r/deaf HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (3 * MIB))
    wait_until(lambda: site.vitals().in_flight == 2000, "2,000 exchanges", 60)
    for client in clients * 2:
        client.sendall(b"a")
    now, grown = site.vitals(), site.peak() - before.memory
    print(f"grown by {grown / 2000 / 1024:.1f} KiB each, {len(now.threads) - len(before.threads)} threads more")
    assert now.in_flight == 2000
    assert len(now.threads) <= len(before.threads) + 4
    assert grown < 2000 * 16 * 1024
    upstream.kill()
    assert site.quiet_vitals().in_flight == 0
