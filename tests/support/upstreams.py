"""Connections to upstreams without a site, and upstreams that can't be connected to."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any

from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.waits import Returning, Value
from pyramid_threaded_proxy.upstream.connecting import Address
from pyramid_threaded_proxy.upstream.connections import Connection, OriginPool
from pyramid_threaded_proxy.upstream.names import Names
from pyramid_threaded_proxy.upstream.origin import Origin
from tests.support.waiting import wait_until


def driven(steps: Returning[Value]) -> Value:
    """What steps bring, driven by this very thread as a streamed exchange is."""
    error: Exception | None = None
    value: Any = None
    while True:
        try:
            wait = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        value = error = None
        try:
            value = wait.block()
        except Exception as raised:
            error = raised


def connected(pool: OriginPool, timeout: float) -> Connection:
    """A connection of the pool's that is made now."""
    return driven(pool.connect(timeout))


def pool_at(origin: Origin, home: Callable[[], Any] | None = None) -> OriginPool:
    """A pool of no site's."""
    return OriginPool(origin, home, Names())


def connection_on(sock: socket.socket, pool: OriginPool) -> Connection:
    """A connection of the pool's on a socket that is connected already."""
    sock.setblocking(False)
    return Connection(Endpoint(sock), pool, Address.of("127.0.0.1", 1))


class FullBacklog:
    """A listener that accepts nothing, with a backlog that is full: the system drops what comes."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._listener = socket.create_server((host, port), backlog=0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        self._waiting: list[socket.socket] = []
        wait_until(self._is_full, "the backlog to be full")

    def _is_full(self) -> bool:
        sock = socket.socket()
        self._waiting.append(sock)
        sock.settimeout(0.2)
        try:
            sock.connect(self._listener.getsockname())
        except TimeoutError:
            return True
        return False

    def __enter__(self) -> FullBacklog:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for sock in (*self._waiting, self._listener):
            sock.close()
