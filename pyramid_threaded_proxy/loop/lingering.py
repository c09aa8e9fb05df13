"""Clients' connections that were answered and are to be closed: read on a little, so that no reset takes the answer.

A socket that is closed with bytes in it that nobody has read resets the connection, and the client loses what it has
not read of its answer (RFC 9112 9.6). So our sending side is closed first, and what still comes, a request that crossed
the close or a late line end, is read and dropped until the client closes too.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections import deque

from pyramid_threaded_proxy.loop.endpoint import Endpoint, LoopOfTasks, Owner
from pyramid_threaded_proxy.loop.poller import READ

try:
    import fcntl
    import termios
except ImportError:  # pragma: no cover: not a Unix
    fcntl = termios = None  # type: ignore[assignment]

log = logging.getLogger("pyramid_threaded_proxy.lingering")

#: Seconds that a client has to close, or to take more of what was sent.
SECONDS = 2.0
#: Bytes of a client's that are dropped.
MOST_DROPPED = 1024 * 1024
#: Connections of one loop that linger: of more the oldest close at once.
MOST = 1000
_AT_ONCE = 64 * 1024


class _Left:
    """What one connection may still do: until when, how many bytes, and how many of ours its client has not taken."""

    __slots__ = ("bytes", "due", "unsent")

    def __init__(self, due: float, unsent: int) -> None:
        self.due = due
        self.bytes = MOST_DROPPED
        self.unsent = unsent


class Lingering(Owner):
    """Those of one loop. In its thread alone, but for `take` and `busy`."""

    def __init__(self, loop: LoopOfTasks) -> None:
        self._loop = loop
        self._coming: deque[socket.socket] = deque()
        self._known: dict[Endpoint, _Left] = {}  # in the order in which they are due
        self._looks = False

    @property
    def busy(self) -> bool:
        """Whether a client may still lose its answer. Any thread."""
        return bool(self._coming or self._known)

    def take(self, sock: socket.socket) -> None:
        """Own a socket that does not block and has been written to for the last time. Any thread."""
        self._coming.append(sock)
        self._loop.post(self._begin)

    def _begin(self) -> None:
        while self._coming:
            sock = self._coming[0]
            endpoint = Endpoint(sock)
            try:
                sock.shutdown(socket.SHUT_WR)
                self._known[endpoint] = _Left(self._loop.now + SECONDS, _unsent(sock))
                self._loop.want(endpoint, READ, self)
            except (OSError, ValueError):
                self._close(endpoint)  # the client has left already
            finally:
                self._coming.popleft()  # behind it: until then this is busy
        if len(self._known) > MOST:
            self._close(next(iter(self._known)))
        self._look()

    def on_event(self, endpoint: Endpoint, events: int) -> None:
        """The client says something that nobody waits for, or has closed."""
        left = self._known.get(endpoint)
        if left is None:
            return
        try:
            for _ in range(4):  # others have their turn
                count = len(endpoint.sock.recv(_AT_ONCE))
                left.bytes -= count
                if not count or left.bytes < 0:
                    return self._close(endpoint)
        except BlockingIOError:
            pass
        except OSError:
            self._close(endpoint)

    def on_timer(self, now: float) -> None:
        """Close what has had its time (`timers.Timed`); one that still takes bytes of ours has it once more."""
        self._looks = False
        while self._known:
            endpoint, left = next(iter(self._known.items()))
            if now < left.due:
                break
            unsent = _unsent(endpoint.sock)
            if 0 < unsent < left.unsent:
                del self._known[endpoint]
                left.due, left.unsent = now + SECONDS, unsent
                self._known[endpoint] = left
            else:
                self._close(endpoint)
        self._look()

    def close_all(self) -> None:
        """The loop ends."""
        while self._coming:
            self._coming.popleft().close()
        for endpoint in list(self._known):
            self._close(endpoint)

    def _look(self) -> None:
        if self._known and not self._looks:
            self._looks = True
            self._loop.call_at(self, next(iter(self._known.values())).due)

    def _close(self, endpoint: Endpoint) -> None:
        self._known.pop(endpoint, None)
        try:
            endpoint.close()
        except OSError:
            log.exception("closing a client's connection failed")


def _unsent(sock: socket.socket) -> int:
    """Bytes that were written and the other end has not acknowledged; 0 where the system does not say."""
    if fcntl is None:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0
