"""Connecting without holding a thread: to whichever of a name's addresses answers first (RFC 8305), TLS included.

Addresses are tried one after the other, the next one after `NEXT_AFTER` seconds while the first goes on. What is opened
is closed on every path, but the one that wins.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from pyramid_threaded_proxy.exceptions import ConnectFailed, ConnectTimedOut, DescriptorsExhausted
from pyramid_threaded_proxy.loop.endpoint import FOREVER, Endpoint, TlsEndpoint
from pyramid_threaded_proxy.loop.poller import READ, WRITE
from pyramid_threaded_proxy.loop.waits import AnyReady, Returning, TimeIsUp
from pyramid_threaded_proxy.upstream.tls import reason_of

#: Seconds after which the next address is tried as well (RFC 8305 5).
NEXT_AFTER = 0.25
#: Seconds that an address has for TLS before the next one is tried as well: it is there, and only slow or far.
NEXT_AFTER_TLS = 1.0
#: Seconds after which a Unix socket whose backlog is full is tried again: nothing tells when there is room.
AGAIN_AFTER = 0.02

#: Makes a TLS socket, which has not spoken yet, of a connected one.
Secure = Callable[[socket.socket], ssl.SSLSocket]

_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)
_CONNECTED = (0, errno.EISCONN)
_UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK, errno.EAGAIN)


#: Linux's word for what `_is_established` asks; a system call that lets no other thread of Python's take its turn.
_TCP_INFO = getattr(socket, "TCP_INFO", None)
_ESTABLISHED = b"\x01"


def _is_established(sock: socket.socket) -> bool:
    return _TCP_INFO is not None and sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1) == _ESTABLISHED


class Address(NamedTuple):
    """Where to connect to, as a socket takes it."""

    family: int
    where: Any

    @classmethod
    def of(cls, host: str, port: int) -> Address:
        """That of an address in text, with its port."""
        return cls(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port))


class _Attempt:
    """One socket, on its way to one address."""

    __slots__ = ("_secure", "address", "connected", "endpoint", "sock", "wants")

    def __init__(self, address: Address, secure: Secure | None) -> None:
        self.address = address
        self.sock = socket.socket(address.family, socket.SOCK_STREAM | _NONBLOCK)
        self.endpoint = Endpoint(self.sock)
        self.connected = False
        self.wants = WRITE  # what it waits for; 0: that time goes by
        self._secure = secure

    def go_on(self) -> bool:
        """Do what can be done at once; whether all is done. Raises `OSError` and `ValueError`."""
        if not self.connected and not self._connect():
            return False
        return self._secure is None or self._shake_hands()

    def _connect(self) -> bool:
        family, where = self.address
        if not _NONBLOCK:
            self.sock.setblocking(False)
        result = self.sock.connect_ex(where)
        if result == errno.EINPROGRESS and _is_established(self.sock):
            result = 0  # to this machine, it is done by now
        if result in _UNDER_WAY:
            again = family not in (socket.AF_INET, socket.AF_INET6) and result != errno.EINPROGRESS
            self.wants = 0 if again else WRITE
            return False
        if result not in _CONNECTED:
            raise OSError(result, os.strerror(result))
        if family in (socket.AF_INET, socket.AF_INET6):
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connected = True
        return True

    def _shake_hands(self) -> bool:
        if self.endpoint.raw:
            assert self._secure is not None
            if self.endpoint.loop is not None:
                self.endpoint.loop.forget(self.endpoint)
            self.sock = self._secure(self.sock)
            self.endpoint = TlsEndpoint(self.sock)
        try:
            self.sock.do_handshake()  # type: ignore[attr-defined]
        except ssl.SSLWantReadError:
            self.wants = READ
            return False
        except ssl.SSLWantWriteError:
            self.wants = WRITE
            return False
        return True

    def close(self) -> None:
        self.endpoint.close()
        self.sock.close()


class Race:
    """The attempts to connect to one origin, called `name` in messages. Belongs to the steps that run it."""

    def __init__(self, name: str, addresses: list[Address], secure: Secure | None) -> None:
        self._name = name
        self._left = deque(addresses)
        self._secure = secure
        self._waiting: list[_Attempt] = []
        self._failure: ConnectFailed | None = None
        self._next_at = 0.0  # when the next address is tried; by `time.monotonic()`
        #: Those that were no good, or slower than one that was tried after them.
        self.failed: list[Address] = []

    def run(self, timeout: float, deadline: float) -> Returning[_Attempt]:
        """Steps: the first that is connected before `deadline`.

        Raises `ConnectFailed`, the last failure where all have failed, and `ConnectTimedOut`, which says `timeout`;
        `DescriptorsExhausted` where no socket can be made.
        """
        try:
            while True:
                now = time.monotonic()
                if not self._waiting and not self._left:
                    raise self._failure or ConnectFailed(f"{self._name}: the name has no address")
                if now >= deadline:
                    self.failed.extend(attempt.address for attempt in self._waiting)
                    raise ConnectTimedOut(f"{self._name}: not connected after {timeout:g} s")
                if self._left and (not self._waiting or now >= self._next_at):
                    ready = self._begin(now)
                else:
                    ready = yield from self._wait(now, deadline)
                for attempt in ready:
                    if self._goes_on(attempt):
                        return attempt
        finally:
            for attempt in self._waiting:
                attempt.close()

    def _begin(self, now: float) -> list[_Attempt]:
        try:
            attempt = _Attempt(self._left.popleft(), self._secure)
        except OSError as error:
            if self._waiting:
                self._left.clear()
                return []
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise DescriptorsExhausted(f"{self._name}: {error.strerror}") from None
            raise ConnectFailed(f"{self._name}: {error.strerror}") from None
        self._waiting.append(attempt)
        self._next_at = now + NEXT_AFTER
        return [attempt]

    def _wait(self, now: float, deadline: float) -> Returning[list[_Attempt]]:
        """Steps: those that may go on."""
        by_time = [attempt for attempt in self._waiting if not attempt.wants]
        until = min(deadline, self._next_at if self._left else FOREVER, now + AGAIN_AFTER if by_time else FOREVER)
        wanted = {attempt.endpoint: attempt.wants for attempt in self._waiting if attempt.wants}
        try:
            endpoint, _ = yield AnyReady(wanted, until - now)
        except TimeIsUp:
            return by_time
        return [attempt for attempt in self._waiting if attempt.endpoint is endpoint]

    def _goes_on(self, attempt: _Attempt) -> bool:
        """Let it do what it can; whether it has won."""
        connected = attempt.connected
        try:
            done = attempt.go_on()
        except (OSError, ValueError) as error:
            self._waiting.remove(attempt)
            attempt.close()
            self.failed.append(attempt.address)
            self._failure = ConnectFailed(f"{self._name}: {_reason(attempt, error)}")
            self._failure.temporary = not attempt.connected
            return False
        if done:
            self.failed.extend(slow.address for slow in self._waiting[: self._waiting.index(attempt)])
            self._waiting.remove(attempt)
        elif attempt.connected and not connected:
            self._next_at = max(self._next_at, time.monotonic() + NEXT_AFTER_TLS)
        return done


def _reason(attempt: _Attempt, error: Exception) -> str:
    """What the operating system said, or TLS."""
    if attempt.connected:
        return f"TLS failed: {reason_of(error)}"
    return str(getattr(error, "strerror", None) or error)
