"""Active probes: upstreams of routes with `health.path` are asked whether they are well, every `health.interval`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from pyramid_threaded_proxy.exceptions import ExchangeFailed, ReadTimedOut, UpstreamGone
from pyramid_threaded_proxy.http.head import HeadReader, render_head
from pyramid_threaded_proxy.loop.loop import Loop
from pyramid_threaded_proxy.loop.poller import READ
from pyramid_threaded_proxy.loop.scheduler import Scheduler
from pyramid_threaded_proxy.loop.waits import Ready, Returning, Steps
from pyramid_threaded_proxy.upstream.balance import Upstream
from pyramid_threaded_proxy.upstream.connections import Connection, Upstreams
from pyramid_threaded_proxy.upstream.tls import Tls

#: Seconds: an upstream that needs longer to say that it is well is not.
PATIENCE = 5.0

#: Told of a change, for the reason that is given, in the loop: it waits for nothing.
Tell = Callable[[str, Upstream, str], None]


class Probed(NamedTuple):
    """One route's upstreams that are asked, and how."""

    route: str
    upstreams: tuple[Upstream, ...]
    #: Absolute on the upstream.
    path: str
    #: Seconds between two questions.
    interval: float
    #: Seconds to connect, and to wait for the answer; `PATIENCE` at most.
    patience: tuple[float, float]
    max_head: int
    tls: Tls


class Probes:
    """All probes of an application in one process. They begin with its first exchange, and anew after a fork."""

    def __init__(self, scheduler: Scheduler, upstreams: Upstreams, tell: Tell) -> None:
        self.scheduler = scheduler
        self._upstreams = upstreams
        self._tell = tell
        self._lock = threading.Lock()
        #: The loop that the present probes wait in; those of another one end.
        self.loop: Loop | None = None
        #: Complete once the application is created.
        self.probed: list[Probed] = []

    def start(self) -> None:
        """Start the probes, unless they run. Any thread, for each exchange."""
        if not self.probed or self.scheduler.start() is self.loop:
            return
        with self._lock:
            loop = self.scheduler.start()
            if loop is self.loop:
                return
            self.loop = loop
        for probed in self.probed:
            for upstream in probed.upstreams:
                _Probe(self, loop, probed, upstream).begin()

    def stop(self) -> None:
        """No probe begins any more. Any thread."""
        with self._lock:
            self.loop = None

    def ask(self, probed: Probed, upstream: Upstream) -> Steps:
        """Steps: ask one upstream, and note what it says."""
        health = upstream.health
        try:
            status = yield from self.status(probed, upstream, watched=True)
        except (ExchangeFailed, OSError) as error:
            reason = f"its probe failed: {error}"
        else:
            reason = "" if 200 <= status < 400 else f"its probe was answered with {status}"
        if health.probe_failed() if reason else health.probe_succeeded():
            self._tell(probed.route, upstream, reason)

    def status(self, probed: Probed, upstream: Upstream, watched: bool = False) -> Returning[int]:
        """Steps: ask one upstream, and note nothing; `watched` in a loop. Raises `ExchangeFailed` and `OSError`."""
        connect, read = (min(seconds, PATIENCE) for seconds in probed.patience)
        connection = yield from self._upstreams.pool(upstream.origin, watched, probed.tls).connect(connect)
        try:
            fields = [("Host", upstream.origin.authority), ("Connection", "close")]
            request = render_head(f"GET {probed.path} HTTP/1.1", fields)
            return (yield from _answer(connection, request, read, probed.max_head))
        finally:
            connection.close()


def _answer(connection: Connection, request: bytes, timeout: float, max_head: int) -> Returning[int]:
    """Steps: the status of the final answer, within `timeout` seconds."""
    endpoint, reader, deadline = connection.endpoint, HeadReader(max_head), time.monotonic() + timeout
    endpoint.sock.send(request)  # a new connection takes as much at once
    while True:
        try:
            yield Ready(endpoint, READ, max(0.0, deadline - time.monotonic()), ReadTimedOut)
            data = endpoint.sock.recv(65536)
        except BlockingIOError:
            continue
        except ReadTimedOut:
            raise ReadTimedOut(f"no answer after {timeout:g} s") from None
        if not data:
            raise UpstreamGone("closed without an answer")
        while data and (head := reader.feed(data)) is not None:
            if head.status >= 200:
                return head.status
            data = reader.rest


class _Probe:
    """Asks one upstream again and again; holds no thread."""

    def __init__(self, probes: Probes, loop: Loop, probed: Probed, upstream: Upstream) -> None:
        self._probes = probes
        self._loop = loop
        self._probed = probed
        self._upstream = upstream

    def begin(self) -> None:
        """Ask for the first time. Any thread."""
        self._loop.post(self._start)

    def _start(self) -> None:
        self._probes.scheduler.task(self._ask()).start()

    def _ask(self) -> Steps:
        try:
            yield from self._probes.ask(self._probed, self._upstream)
        finally:
            if self._probes.loop is self._loop:
                self._loop.call_at(self, self._loop.now + self._probed.interval)

    def on_timer(self, now: float) -> None:
        """The interval is over (`timers.Timed`)."""
        if self._probes.loop is self._loop:
            self._start()
