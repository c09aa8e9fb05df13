"""TLS towards upstreams: what a route says of it, and a socket that behaves as a plain one does.

The relay reads and writes plain sockets: what can't move at once is a `BlockingIOError`, an end is an empty read.
`TlsSocket` keeps to that, so that nothing above has to know what it speaks over.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from pyramid_threaded_proxy.exceptions import ValueRefused


@dataclass(frozen=True, slots=True)
class Tls:
    """How an upstream proves who it is, and we who we are. Connections are shared only where this is equal."""

    verify: bool = True
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None


class TlsSocket(ssl.SSLSocket):
    """A TLS socket with the manners of a plain non-blocking one.

    All callers ask for a whole record (16 KiB) or read until it would block: nothing is ever left inside the TLS
    layer, where no poller sees it.
    """

    said_end = False  # our close_notify is out
    over = False  # the peer's has come too: what comes now comes in the clear, from anybody
    _failure: OSError | None = None  # met behind bytes that were good: the next read tells it

    def recv(self, buflen: int = 16384, flags: int = 0) -> bytes:
        """The next bytes; empty after the peer's close_notify. An end without one is an `OSError`."""
        if self.over:
            return b""
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            _would_block()
        except ssl.SSLZeroReturnError:  # said in place of an empty read once we have sent close_notify too
            return b""

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """As `recv`, into a buffer, and as many records as have come and fit: one alone is a small thing to pass on."""
        if flags:
            raise ValueError("TLS knows no flags")
        if self._failure is not None:
            raise self._failure
        if self.over:
            return 0
        read: Callable[[int, memoryview], Any] = self.read  # `recv_into` of `ssl` only checks once more
        view, taken = memoryview(buffer)[:nbytes], 0
        size = len(view)
        try:
            while taken < size and (count := read(size - taken, view[taken:])):
                taken += count
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not taken:
                _would_block()
        except ssl.SSLZeroReturnError:
            pass
        except OSError as error:
            if not taken:
                raise
            # What came before it is good. Asked again, OpenSSL would call it an end whatever it was.
            self._failure = error.with_traceback(None)
        return taken

    def send(self, data: Any, flags: int = 0) -> int:
        """Send what is taken at once. What would block must be sent again from the same byte on."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            _would_block()

    def shutdown(self, how: int) -> None:
        """Say that no more is sent, and go on reading (RFC 8446 6.1).

        `ssl`'s own would go on in the clear. OpenSSL looks for the peer's close_notify at once, and drops data that
        it finds instead: where something has come already, the end of the TCP stream has to do.
        """
        if self.said_end or self._has_something():
            socket.socket.shutdown(self, how)
            return
        self.said_end = True
        try:
            self.unwrap()
            self.over = True
        except ssl.SSLWantReadError:
            pass  # ours is out, the peer's has not come: the usual case

    def _has_something(self) -> bool:
        """Whether bytes, or an end, have come that nobody has read; below the TLS layer."""
        try:
            socket.socket.recv(self, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        return True


def _would_block() -> NoReturn:
    raise BlockingIOError(errno.EAGAIN, "the TLS layer waits") from None


class TlsFileRefused(ValueRefused):
    """The file that the setting `key` names does not hold what it should."""

    def __init__(self, key: str, path: str | None, problem: str) -> None:
        super().__init__(f"{key} {path!r} {problem}")
        self.key = key
        self.problem = problem


def file_faults(tls: Tls) -> Iterator[tuple[str, str]]:
    """The settings whose files can't be used, and why: all that can't be read, or the one that can't be understood."""
    readable = True
    for key, path in (("ca_file", tls.ca_file), ("cert_file", tls.cert_file), ("key_file", tls.key_file)):
        try:
            if path is not None:
                with open(path, "rb"):
                    pass
        except (OSError, ValueError) as error:
            readable = False
            yield f"tls.{key}", f"can't be read: {reason_of(error)}"
    if readable and (tls.ca_file is not None or tls.cert_file is not None):
        try:
            new_context(tls)
        except TlsFileRefused as error:
            yield error.key, error.problem


def new_context(tls: Tls) -> ssl.SSLContext:
    """The context for connections to upstreams; reads files. Raises `ValueRefused` naming the setting at fault."""
    context = _trusting(tls)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # a read must never have to write first
    context.set_alpn_protocols(["http/1.1"])
    context.sslsocket_class = TlsSocket
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.cert_file is not None:
        try:
            context.load_cert_chain(tls.cert_file, tls.key_file, _no_password)
        except (OSError, ValueError) as error:
            key = f" with tls.key_file {tls.key_file!r}" if tls.key_file else ""
            raise TlsFileRefused("tls.cert_file", tls.cert_file, f"can't be used{key}: {reason_of(error)}") from None
    return context


def _trusting(tls: Tls) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=tls.ca_file)
    except (OSError, ValueError) as error:
        raise TlsFileRefused("tls.ca_file", tls.ca_file, f"can't be used: {reason_of(error)}") from None


def _no_password() -> str:
    """Without this OpenSSL would ask the terminal."""
    raise ValueError("the key needs a password: give one that needs none")


def reason_of(error: Exception) -> str:
    """What TLS or the operating system says is wrong, in few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error.strerror or error).lower().replace("_", " ")
    return str(getattr(error, "strerror", None) or error)
