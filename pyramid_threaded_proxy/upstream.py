"""Connections to upstreams: made by urllib3 in a pool thread, kept while they are idle, looked at before use.

The one module that knows urllib3. It is used for what it is good at: reading URLs, look-up, connect, and the
exceptions that tell them apart. What goes over the connection afterwards is ours.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable

from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.util import parse_url

from pyramid_threaded_proxy.exceptions import ConnectFailed, ConnectTimedOut, ValueRefused
from pyramid_threaded_proxy.origin import Origin
from pyramid_threaded_proxy.poller import READ
from pyramid_threaded_proxy.scheduler import Loop
from pyramid_threaded_proxy.tasks import Endpoint, Owner

#: Idle connections kept for one upstream.
KEEPALIVE = 32


def split_url(url: str) -> tuple[Origin, str]:
    """Split an upstream's URL into its origin and the rest, byte for byte. Raises `ValueRefused`."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() != "http":
        raise ValueRefused(f"{url!r}: an upstream's URL begins with http://")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    authority, target = rest[:end], rest[end:]
    try:
        parsed = parse_url(f"http://{authority}")
    except LocationParseError as error:
        raise ValueRefused(f"{url!r}: {error}") from None
    if not parsed.host or parsed.auth is not None or "@" in authority:
        raise ValueRefused(f"{url!r}: host[:port] is wanted, without a user")
    if parsed.port == 0:
        raise ValueRefused(f"{url!r}: port 0 can't be connected to")
    return Origin("http", parsed.host, parsed.port or 80), target


def addresses_of(origin: Origin) -> list[str]:
    """The addresses that an origin's name has at this moment. May block. Raises `ConnectFailed`."""
    try:
        found = socket.getaddrinfo(origin.host.strip("[]"), origin.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectFailed(f"{origin}: {error.strerror}") from None
    return [str(address[4][0]) for address in found]


class Connection:
    """An open connection to an upstream. Belongs to one exchange, or to its pool while it is idle."""

    __slots__ = ("endpoint", "pool", "reused", "sock")

    def __init__(self, sock: socket.socket, pool: OriginPool) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.endpoint = Endpoint(sock)
        self.pool = pool
        self.reused = False

    def close(self) -> None:
        """Close it. In the thread of the loop that watches it."""
        self.endpoint.close()

    def is_quiet(self) -> bool:
        """Whether an idle connection can be used: neither closed, nor anything received that nobody asked for."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


class OriginPool(Owner):
    """The connections to one origin.

    `connect` runs in a pool thread, which owns the connection until it hands it over. Everything else runs in the
    first loop's thread where that loop (`home`) watches the idle ones, else in the one thread that has just used or
    wants to use a connection: a deque's ends are safe to use from several.
    """

    def __init__(self, origin: Origin, home: Callable[[], Loop] | None) -> None:
        self.origin = origin
        self._home = home
        self.name = str(origin)
        self._idle: deque[Connection] = deque()

    def connect(self, timeout: float) -> Connection:
        """Open a connection within `timeout` seconds. Raises `ConnectFailed` or `ConnectTimedOut`."""
        host, port = self.origin.host, self.origin.port
        connection = HTTPConnection(self.origin.address or host.strip("[]"), port, timeout=timeout)
        try:
            connection.connect()
        except NameResolutionError:
            raise ConnectFailed(f"{self.name}: the name {host!r} can't be resolved") from None
        except NewConnectionError as error:  # to urllib3 a kind of ConnectTimeoutError
            raise ConnectFailed(f"{self.name}: {_reason(error)}") from None
        except ConnectTimeoutError:
            raise ConnectTimedOut(f"{self.name}: not connected after {timeout:g} s") from None
        except (HTTPError, OSError) as error:
            raise ConnectFailed(f"{self.name}: {_reason(error)}") from None
        sock, connection.sock = connection.sock, None
        assert sock is not None
        return Connection(sock, self)

    def take(self) -> Connection | None:
        """The idle connection that was used last and is still good; None if there is none."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_quiet():
                connection.reused = True
                return connection
            connection.close()

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose last message ended exactly where its framing says."""
        if len(self._idle) >= KEEPALIVE:
            connection.close()
            return
        if self._home is not None:
            self._home().want(connection.endpoint, READ, self)
        self._idle.append(connection)

    def on_event(self, endpoint: Endpoint, events: int) -> None:
        """The upstream closed an idle connection, or sent what nobody asked for: it is of no more use."""
        for connection in self._idle:
            if connection.endpoint is endpoint:
                self._idle.remove(connection)
                connection.close()
                return
        # Taken already, by an exchange that waits for something else first.
        endpoint.wanted = 0
        if endpoint.loop is not None:
            endpoint.loop.disarm(endpoint, events)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def leave(self) -> None:
        """Let go of a parent process's idle connections: without a word to its poller, which a fork shares."""
        while self._idle:
            self._idle.pop().sock.close()


def _reason(error: Exception) -> str:
    """What the operating system said, without urllib3's wrapping."""
    cause = error.__cause__ or error.__context__ or error
    return str(getattr(cause, "strerror", None) or cause)


class Upstreams:
    """The pools of all origins, made as they are needed.

    Exchanges in loops and streamed ones have pools of their own: an idle connection is watched by a loop, or by
    nobody. The lock guards the table alone.
    """

    def __init__(self, home: Callable[[], Loop]) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._pools: dict[tuple[Origin, bool], OriginPool] = {}

    def pool(self, origin: Origin, watched: bool) -> OriginPool:
        """The pool for `origin`; `watched` for exchanges that run in a loop."""
        if self._pid != os.getpid():
            self._leave_parents()
        pool = self._pools.get((origin, watched))
        if pool is None:
            with self._lock:
                pool = self._pools.setdefault((origin, watched), OriginPool(origin, self._home if watched else None))
        return pool

    def _leave_parents(self) -> None:
        """A forked child never uses its parent's connections: each would get what the other asked for."""
        with self._lock:
            if self._pid != os.getpid():
                pools, self._pools = self._pools, {}
                self._pid = os.getpid()
                for pool in pools.values():
                    pool.leave()

    def pools(self) -> Iterable[OriginPool]:
        """All pools that there are."""
        return list(self._pools.values())
