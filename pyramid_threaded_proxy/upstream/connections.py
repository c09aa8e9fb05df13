"""Connections to upstreams: made in the loop, kept while they are idle, looked at before use."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from pyramid_threaded_proxy.exceptions import ConnectFailed, ConnectTimedOut
from pyramid_threaded_proxy.loop.endpoint import FOREVER, Endpoint, LoopOfTasks, Owner
from pyramid_threaded_proxy.loop.poller import READ
from pyramid_threaded_proxy.loop.promise import Promise
from pyramid_threaded_proxy.loop.waits import Kept, Returning
from pyramid_threaded_proxy.upstream.connecting import Address, Race, Secure
from pyramid_threaded_proxy.upstream.names import REFRESH_SECONDS, Names, is_name
from pyramid_threaded_proxy.upstream.origin import UNIX, Origin
from pyramid_threaded_proxy.upstream.tls import Tls, new_context, reason_of

log = logging.getLogger("pyramid_threaded_proxy.upstream")

#: Seconds after which an idle connection is dropped: sooner than most servers do it themselves.
IDLE_SECONDS = 30.0
#: Seconds after which one of more than `keepalive` is: under load it is wanted again long before.
SURPLUS_SECONDS = 1.0
#: How many times `keepalive` may be kept for so long.
MOST_SURPLUS = 4
#: Seconds for which an address that failed is tried after the others.
FAILED_SECONDS = 300.0

NO_TLS = Tls()


class Connection:
    """An open connection to an upstream. Belongs to one exchange, or to its pool while it is idle."""

    __slots__ = ("address", "endpoint", "idle_since", "keepalive", "made", "pool", "reused", "sock")

    def __init__(self, endpoint: Endpoint, pool: OriginPool, address: Address) -> None:
        self.sock = endpoint.sock
        self.endpoint = endpoint
        self.pool = pool
        self.address = address
        self.made = time.monotonic()
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
            stray = self.sock.recv(1, socket.MSG_PEEK if self.endpoint.raw else 0)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if stray:
            self.pool.note_stray_bytes()
        return False


class OriginPool(Owner):
    """The connections to one origin.

    What is made belongs to the steps that asked for it. Everything else runs in the first loop's thread where that
    loop (`home`) watches the idle ones, else in the one thread that has just used or wants to use a connection: a
    deque's ends are safe to use from several.
    """

    def __init__(
        self,
        origin: Origin,
        home: Callable[[], LoopOfTasks] | None,
        names: Names,
        context: Callable[[], Promise[ssl.SSLContext]] | None = None,
        server_name: str | None = None,
    ) -> None:
        self.origin = origin
        self.name = str(origin)
        self._home = home
        self._names = names
        self._context = context
        self._server_name = server_name or origin.host.strip("[]")
        self._idle: deque[Connection] = deque()  # the one used last at the right
        self._timed_by: LoopOfTasks | None = None  # the loop that will call `on_timer`
        self._due = FOREVER  # when it will do so next
        self._failed: dict[Address, float] = {}  # when an address did so last, by `time.monotonic()`
        self._is_name = is_name(origin)
        self._valid: frozenset[Address] | None = None  # the addresses that the name has; None where that is no matter
        self._watch = NameWatch(self, names) if self._is_name and home is not None else None
        self._refused: float | None = None  # since when it refuses, after it had accepted; by `time.monotonic()`
        self._accepted = False  # it has accepted one
        #: Whether bytes have come behind whole answers.
        self.sends_stray_bytes = False

    def note_stray_bytes(self) -> None:
        """Bytes came behind a whole answer. Said once."""
        if not self.sends_stray_bytes:
            self.sends_stray_bytes = True
            log.warning(
                "%s sends bytes behind whole answers (RFC 9112 6.3): they are dropped with the connection", self.name
            )

    @property
    def idle(self) -> int:
        """How many connections are kept for the next exchange. Any thread."""
        return len(self._idle)

    # Making

    def connect(self, timeout: float, begun: float | None = None) -> Returning[Connection]:
        """Steps: a connection that is made within `timeout` seconds, look-up and TLS included.

        They are counted from now on, or since it was `begun`, by `time.monotonic()`. Raises `ConnectFailed`,
        `ConnectTimedOut`, and `DescriptorsExhausted` where no socket can be made.
        """
        deadline = (time.monotonic() if begun is None else begun) + timeout
        try:
            addresses = yield from self._addresses(deadline)
            secure = None if self._context is None else (yield from self._securing(deadline))
            race = Race(self.name, addresses, secure)
            try:
                attempt = yield from race.run(timeout, deadline)
            finally:
                for address in race.failed:
                    self._failed[address] = time.monotonic()
        except ConnectTimedOut:
            raise ConnectTimedOut(f"{self.name}: not connected after {timeout:g} s") from None
        except ConnectFailed:
            if self._accepted and self._refused is None:
                self._refused = time.monotonic()
            raise
        if self._failed:
            self._failed.pop(attempt.address, None)
        self._accepted, self._refused = True, None
        return Connection(attempt.endpoint, self, attempt.address)

    def starts_anew(self, limit: float) -> bool:
        """Whether it seems to: it has accepted connections, and has refused them for less than `limit` seconds."""
        return self._refused is not None and time.monotonic() - self._refused < limit

    def _addresses(self, deadline: float) -> Returning[list[Address]]:
        """Steps: where to connect to; what has failed lately comes last, across look-ups too."""
        origin = self.origin
        if origin.scheme == UNIX:
            return [Address(socket.AF_UNIX, origin.path)]
        if self._is_name:
            hosts = yield from self._names.look_up(origin, max(0.0, deadline - time.monotonic()))
            self.has_now(hosts)
        else:
            hosts = [origin.address or origin.host.strip("[]")]
        addresses = [Address.of(host, origin.port) for host in hosts]
        if self._failed and len(addresses) > 1:
            old = time.monotonic() - FAILED_SECONDS
            self._failed = {address: when for address, when in self._failed.items() if when > old}
            addresses.sort(key=lambda address: self._failed.get(address, 0.0))
        return addresses

    def _securing(self, deadline: float) -> Returning[Secure]:
        """Steps: what makes a TLS socket of one. The first time a thread has to read the certificates."""
        assert self._context is not None
        promise = self._context()
        if not promise.kept:
            yield Kept(promise, max(0.0, deadline - time.monotonic()), ConnectTimedOut)
        try:
            context = promise.result()
        except (OSError, ValueError) as error:
            raise ConnectFailed(f"{self.name}: TLS failed: {reason_of(error)}") from None

        def secure(sock: socket.socket) -> ssl.SSLSocket:
            # A ragged end is told: without close_notify nobody knows whether an answer that ends so is whole.
            return context.wrap_socket(
                sock, server_hostname=self._server_name, suppress_ragged_eofs=False, do_handshake_on_connect=False
            )

        return secure

    # Keeping

    def take(self, look: bool = True, oldest: float = 0.0) -> Connection | None:
        """An idle connection that is still good, if it can be the one used last; None if there is none.

        None that was made before `oldest`, by `time.monotonic()`. A request that can be sent again needs no `look` at
        the very last moment: that costs a system call, and the loop that watches the connection has dropped what ended
        before its present turn.
        """
        if self._home is None and self._idle:
            self._drop_old(time.monotonic())  # no loop does
            if self._is_name and self._names.known(self.origin) is None:
                self.close()  # the name may have moved, and nobody has asked
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.made < oldest:
                connection.close()
                continue
            unsure = look or not connection.is_watched()
            if unsure and not look and self._idle and self._idle[0].is_watched():
                self._idle.append(connection)
                connection, unsure = self._idle.popleft(), connection.made < oldest
            if not unsure or connection.is_quiet():
                connection.reused = True
                return connection
            connection.close()

    def give_back(self, connection: Connection, keepalive: int, oldest: float = 0.0) -> None:
        """Keep a connection whose last message ended exactly where its framing says.

        None that was made before `oldest`, or to an address that the name no longer has. Of more than `keepalive` the
        oldest are dropped: soon, where a loop watches them, else at once.
        """
        idle = self._idle
        if not keepalive or connection.made < oldest:
            return connection.close()
        if self._valid is not None and connection.address not in self._valid:
            return connection.close()
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
            if self._watch is not None:
                self._watch.used(loop)
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
                if not connection.is_quiet():
                    self._idle.remove(connection)
                    connection.close()
                return
        # Taken already, by an exchange that waits for something else first.
        endpoint.wanted = 0
        if endpoint.loop is not None:
            endpoint.loop.disarm(endpoint, events)

    def has_now(self, hosts: list[str]) -> None:
        """The name has these addresses: idle connections to others are closed, and those in use not kept."""
        valid = frozenset(Address.of(host, self.origin.port) for host in hosts)
        if valid == self._valid:
            return
        self._valid = valid
        for connection in list(self._idle):
            if connection.address not in valid:
                try:
                    self._idle.remove(connection)
                except ValueError:
                    continue  # another thread has just taken it, where no loop watches
                connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def leave(self) -> None:
        """Let go of a parent process's idle connections: without a word to its poller, which a fork shares."""
        while self._idle:
            self._idle.pop().sock.close()


class NameWatch:
    """Has a pool's name looked up again as it ages, as long as connections to it are used or kept. In the loop."""

    def __init__(self, pool: OriginPool, names: Names) -> None:
        self._pool = pool
        self._names = names
        self._loop: LoopOfTasks | None = None
        self._used = False

    def used(self, loop: LoopOfTasks) -> None:
        """A connection was used."""
        self._used = True
        if self._loop is not loop:
            self._loop = loop
            loop.call_at(self, loop.now + REFRESH_SECONDS)

    def on_timer(self, now: float) -> None:
        """Time to ask (`timers.Timed`)."""
        loop = self._loop
        if loop is None or loop.thread is not threading.current_thread():
            return
        if not self._used and not self._pool.idle:
            self._loop = None
            return
        self._used = False
        promise = self._names.ask(self._pool.origin)
        promise.when_kept(self, lambda: loop.post(self._heed))
        loop.call_at(self, now + REFRESH_SECONDS)

    def _heed(self) -> None:
        """An answer is here; a failure changes nothing."""
        if (hosts := self._names.known(self._pool.origin)) is not None:
            self._pool.has_now(hosts)


def _patience(connection: Connection, kept: int) -> float:
    """Seconds that the connection may be one of so many idle ones."""
    return IDLE_SECONDS if kept <= connection.keepalive else SURPLUS_SECONDS


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
        self._contexts: dict[Tls, Promise[ssl.SSLContext]] = {}
        self.names = Names()

    def pool(self, origin: Origin, watched: bool, tls: Tls = NO_TLS) -> OriginPool:
        """The pool for `origin`; `watched` for exchanges that run in a loop."""
        if self._pid != os.getpid():
            self._leave_parents()
        key = (origin, watched, tls if origin.scheme == "https" else None)
        pool = self._pools.get(key)
        if pool is None:
            home = self._home if watched else None
            context = (lambda: self._context(tls)) if origin.scheme == "https" else None
            with self._lock:
                made = OriginPool(origin, home, self.names, context, tls.server_name)
                pool = self._pools.setdefault(key, made)
        return pool

    def _context(self, tls: Tls) -> Promise[ssl.SSLContext]:
        """One context for all that say the same, made in a thread of its own: it reads the certificates, once."""
        with self._lock:
            promise = self._contexts.get(tls)
            if promise is not None:
                return promise
            promise = self._contexts[tls] = Promise()
        try:
            threading.Thread(target=self._make_context, args=(tls, promise), name="pproxy-tls", daemon=True).start()
        except RuntimeError:
            self._make_context(tls, promise)  # the system has no thread to give
        return promise

    def _make_context(self, tls: Tls, promise: Promise[ssl.SSLContext]) -> None:
        try:
            promise.keep(new_context(tls))
        except Exception as error:
            with self._lock:
                self._contexts.pop(tls, None)  # the next one tries again
            promise.keep(None, error)

    def _leave_parents(self) -> None:
        """A forked child never uses its parent's connections: each would get what the other asked for."""
        with self._lock:
            if self._pid != os.getpid():
                pools, self._pools = self._pools, {}
                self._contexts, self.names = {}, Names()
                self._pid = os.getpid()
                for pool in pools.values():
                    pool.leave()

    def pools(self) -> Iterable[OriginPool]:
        """All pools that there are."""
        return list(self._pools.values())
