"""Connections to upstreams: made in a pool thread, kept while they are idle, looked at before use.

The one module that knows urllib3. It is used for what it is good at: reading URLs, connecting, and the exceptions
that tell failures apart. What goes over the connection afterwards is ours.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import zip_longest
from urllib.parse import quote, unquote

from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationParseError, NewConnectionError
from urllib3.util import parse_url

from pyramid_threaded_proxy.exceptions import ConnectFailed, ConnectTimedOut, ValueRefused
from pyramid_threaded_proxy.http.names import PORTS
from pyramid_threaded_proxy.loop.endpoint import FOREVER, Endpoint, LoopOfTasks, Owner, TlsEndpoint
from pyramid_threaded_proxy.loop.poller import READ
from pyramid_threaded_proxy.upstream.origin import UNIX, Origin
from pyramid_threaded_proxy.upstream.tls import Tls, new_context, reason_of

#: Seconds after which an idle connection is dropped: sooner than most servers do it themselves.
IDLE_SECONDS = 30.0
#: Seconds after which one of more than `keepalive` is: under load it is wanted again long before.
SURPLUS_SECONDS = 1.0
#: How many times `keepalive` may be kept for so long.
MOST_SURPLUS = 4
#: Seconds for which the addresses of a name are believed.
LOOK_UP_SECONDS = 10.0

NO_TLS = Tls()


def split_url(url: str) -> tuple[Origin, str]:
    """Split an upstream's URL into its origin and the rest, byte for byte. Raises `ValueRefused`."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or (scheme not in PORTS and scheme != UNIX):
        raise ValueRefused(f"{url!r}: an upstream's URL begins with http://, https:// or http+unix://")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    authority, target = rest[:end], rest[end:]
    if scheme == UNIX:
        return Origin(UNIX, _socket_path(url, authority), 0), target
    try:
        parsed = parse_url(f"http://{authority}")
    except LocationParseError as error:
        raise ValueRefused(f"{url!r}: {error}") from None
    if not parsed.host or parsed.auth is not None or "@" in authority:
        raise ValueRefused(f"{url!r}: host[:port] is wanted, without a user")
    if parsed.port == 0:
        raise ValueRefused(f"{url!r}: port 0 can't be connected to")
    return Origin(scheme, parsed.host, parsed.port or PORTS[scheme]), target


def _socket_path(url: str, authority: str) -> str:
    """The path of a Unix socket, escaped in one way: so that equal paths are one origin."""
    path = unquote(authority)
    if not path.startswith("/") or "\0" in path:
        raise ValueRefused(f"{url!r}: the escaped path of a socket is wanted, such as http+unix://%2Frun%2Fapp.sock/")
    return quote(path, safe="")


def addresses_of(origin: Origin) -> list[str]:
    """The addresses that an origin's name has at this moment; none for a Unix socket.

    In the system's order, but families alternate, so that a broken one costs one try (RFC 8305 4). May block for
    as long as the system lets. Raises `ConnectFailed`.
    """
    if origin.scheme == UNIX:
        return []
    try:
        found = socket.getaddrinfo(origin.host.strip("[]"), origin.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no name that can be looked up"
        raise ConnectFailed(f"{origin}: the name {origin.host!r} can't be resolved: {reason}") from None
    first = found[0][0]
    ours = [str(address[0]) for family, *_, address in found if family == first]
    others = [str(address[0]) for family, *_, address in found if family != first]
    pairs = zip_longest(dict.fromkeys(ours), dict.fromkeys(others))
    return [address for pair in pairs for address in pair if address is not None]


class Connection:
    """An open connection to an upstream. Belongs to one exchange, or to its pool while it is idle."""

    __slots__ = ("endpoint", "idle_since", "keepalive", "pool", "reused", "sock")

    def __init__(self, sock: socket.socket, pool: OriginPool) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.endpoint = TlsEndpoint(sock) if isinstance(sock, ssl.SSLSocket) else Endpoint(sock)
        self.pool = pool
        self.reused = False
        self.idle_since = 0.0  # by `time.monotonic()`
        self.keepalive = 0  # beyond how many idle ones it is one too many

    def close(self) -> None:
        """Close it. In the thread of the loop that watches it."""
        if not self.endpoint.raw:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except (OSError, ValueError):
                pass  # broken already, or its last write was cut short
        self.endpoint.close()

    def is_watched(self) -> bool:
        """Whether its loop would have heard of it, had it ended before this turn; TLS may hold bytes back."""
        loop = self.endpoint.loop
        return loop is not None and self.endpoint.raw and self.idle_since < loop.heard

    def is_quiet(self) -> bool:
        """Whether an idle connection can be used: neither closed, nor anything received that nobody asked for.

        What TLS itself has to say, such as new session tickets, is taken here and is no noise.
        """
        try:
            self.sock.recv(1, socket.MSG_PEEK if self.endpoint.raw else 0)
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

    def __init__(
        self,
        origin: Origin,
        home: Callable[[], LoopOfTasks] | None,
        context: Callable[[], ssl.SSLContext] | None = None,
        server_name: str | None = None,
    ) -> None:
        self.origin = origin
        self._home = home
        self._context = context
        self._server_name = server_name
        self.name = str(origin)
        self._idle: deque[Connection] = deque()  # the one used last at the right
        self._timed_by: LoopOfTasks | None = None  # the loop that will call `on_timer`
        self._due = FOREVER  # when it will do so next
        self._known: tuple[float, list[str]] = (0.0, [])  # until when these addresses are believed

    @property
    def idle(self) -> int:
        """How many connections are kept for the next exchange. Any thread."""
        return len(self._idle)

    # Making

    def connect(self, timeout: float) -> Connection:
        """Open a connection within `timeout` seconds. Raises `ConnectFailed` or `ConnectTimedOut`.

        All addresses of a name are tried, each within its share of the time that is left.
        """
        deadline = time.monotonic() + timeout
        if self.origin.scheme == UNIX:
            return Connection(self._connect_unix(timeout), self)
        failure: ConnectFailed | None = None
        addresses = self._addresses()
        for tried, address in enumerate(addresses):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                return Connection(self._connect_to(address, left / (len(addresses) - tried), timeout), self)
            except ConnectFailed as error:
                failure = error
                self._put_last(address)
        raise failure or self._timed_out(timeout)

    def _addresses(self) -> list[str]:
        if self.origin.address is not None:
            return [self.origin.address]
        until, addresses = self._known
        if time.monotonic() >= until:
            addresses = addresses_of(self.origin)
            self._known = (time.monotonic() + LOOK_UP_SECONDS, addresses)
        return addresses

    def _put_last(self, address: str) -> None:
        """The next connection begins with an address that has not just failed."""
        until, addresses = self._known
        self._known = (until, [*(other for other in addresses if other != address), address])

    def _connect_to(self, address: str, share: float, timeout: float) -> socket.socket:
        """Connect to one address within `share` seconds, TLS included."""
        end = time.monotonic() + share
        connection = HTTPConnection(address, self.origin.port, timeout=share)
        try:
            connection.connect()
        except NewConnectionError as error:  # to urllib3 a kind of ConnectTimeoutError
            raise ConnectFailed(f"{self.name}: {_reason(error)}") from None
        except ConnectTimeoutError:
            raise self._timed_out(timeout) from None
        except (HTTPError, OSError) as error:
            raise ConnectFailed(f"{self.name}: {_reason(error)}") from None
        sock, connection.sock = connection.sock, None
        assert sock is not None
        return sock if self.origin.scheme == "http" else self._secured(sock, end, timeout)

    def _secured(self, sock: socket.socket, end: float, timeout: float) -> ssl.SSLSocket:
        assert self._context is not None
        try:
            context = self._context()
            sock.settimeout(max(0.001, end - time.monotonic()))
            name = self._server_name or self.origin.host.strip("[]")
            # A ragged end is told: without close_notify nobody knows whether an answer that ends so is whole.
            return context.wrap_socket(sock, server_hostname=name, suppress_ragged_eofs=False)
        except TimeoutError:
            sock.close()
            raise self._timed_out(timeout) from None
        except (OSError, ValueError) as error:
            sock.close()
            raise ConnectFailed(f"{self.name}: TLS failed: {reason_of(error)}") from None

    def _connect_unix(self, timeout: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A listener with a full backlog is waited for only by a blocking socket, and this is its time-out.
            whole = int(timeout)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", whole, int(timeout % 1 * 1e6)))
            sock.connect(self.origin.path)
        except BlockingIOError:
            sock.close()
            raise self._timed_out(timeout) from None
        except (OSError, ValueError) as error:
            sock.close()
            raise ConnectFailed(f"{self.name}: {getattr(error, 'strerror', None) or error}") from None
        return sock

    def _timed_out(self, timeout: float) -> ConnectTimedOut:
        return ConnectTimedOut(f"{self.name}: not connected after {timeout:g} s")

    # Keeping

    def take(self, look: bool = True) -> Connection | None:
        """An idle connection that is still good, if it can be the one used last; None if there is none.

        A request that can be sent again needs no `look` at the very last moment: that costs a system call, and the
        loop that watches the connection has dropped what ended before its present turn.
        """
        if self._home is None and self._idle:
            self._drop_old(time.monotonic())  # no loop does
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            unsure = look or not connection.is_watched()
            if unsure and not look and self._idle and self._idle[0].is_watched():
                self._idle.append(connection)
                connection, unsure = self._idle.popleft(), False
            if not unsure or connection.is_quiet():
                connection.reused = True
                return connection
            connection.close()

    def give_back(self, connection: Connection, keepalive: int) -> None:
        """Keep a connection whose last message ended exactly where its framing says.

        Of more than `keepalive` the oldest are dropped: soon, where a loop watches them, else at once.
        """
        idle = self._idle
        if len(idle) >= keepalive and (self._home is None or len(idle) >= MOST_SURPLUS * keepalive):
            return connection.close()
        connection.keepalive = keepalive
        if self._home is None:
            connection.idle_since = time.monotonic()
            self._drop_old(connection.idle_since)
            idle.append(connection)
        else:
            loop = connection.endpoint.loop or self._home()  # it came to this loop with its last wait
            loop.want(connection.endpoint, READ, self)
            connection.idle_since = loop.now
            idle.append(connection)
            if self._timed_by is not loop or len(idle) > keepalive:
                self._look_with(loop, loop.now + _patience(connection, len(idle)))

    def _look_with(self, loop: LoopOfTasks, due: float) -> None:
        if self._timed_by is not loop:
            self._timed_by, self._due = loop, FOREVER
        if due < self._due:
            self._due = due
            loop.call_at(self, due)

    def on_timer(self, now: float) -> None:
        """Drop what has been idle for long (`timers.Timed`); in the loop that watches it."""
        loop = self._timed_by
        if loop is None or now < self._due:
            return  # called for what was due before another look came first
        self._drop_old(now)
        self._timed_by = None
        if self._idle:
            oldest = self._idle[0]
            self._look_with(loop, oldest.idle_since + _patience(oldest, len(self._idle)))

    def _drop_old(self, now: float) -> None:
        idle = self._idle
        while True:
            try:
                connection = idle.popleft()
            except IndexError:
                return
            if now - connection.idle_since < _patience(connection, len(idle) + 1):
                idle.appendleft(connection)
                return
            connection.close()

    def on_event(self, endpoint: Endpoint, events: int) -> None:
        """The upstream closed an idle connection, or sent what nobody asked for: it is of no more use."""
        for connection in self._idle:
            if connection.endpoint is endpoint:
                if endpoint.raw or not connection.is_quiet():
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


def _patience(connection: Connection, kept: int) -> float:
    """Seconds that the connection may be one of so many idle ones."""
    return IDLE_SECONDS if kept <= connection.keepalive else SURPLUS_SECONDS


def _reason(error: Exception) -> str:
    """What the operating system said, without urllib3's wrapping."""
    cause = error.__cause__ or error.__context__ or error
    return str(getattr(cause, "strerror", None) or cause)


class Upstreams:
    """The pools of all origins, made as they are needed.

    Exchanges in loops and streamed ones have pools of their own: an idle connection is watched by a loop, or by
    nobody. So have exchanges that differ in what they say of TLS. The lock guards the table alone.
    """

    def __init__(self, home: Callable[[], LoopOfTasks]) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._pools: dict[tuple[Origin, bool, Tls | None], OriginPool] = {}
        self._contexts: dict[Tls, ssl.SSLContext] = {}

    def pool(self, origin: Origin, watched: bool, tls: Tls = NO_TLS) -> OriginPool:
        """The pool for `origin`; `watched` for exchanges that run in a loop."""
        if self._pid != os.getpid():
            self._leave_parents()
        key = (origin, watched, tls if origin.scheme == "https" else None)
        pool = self._pools.get(key)
        if pool is None:
            home = self._home if watched else None
            with self._lock:
                made = OriginPool(origin, home, lambda: self._context(tls), tls.server_name)
                pool = self._pools.setdefault(key, made)
        return pool

    def _context(self, tls: Tls) -> ssl.SSLContext:
        """One context for all that say the same. A pool thread: it reads the certificates, once."""
        context = self._contexts.get(tls)
        if context is None:
            context = self._contexts.setdefault(tls, new_context(tls))
        return context

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
