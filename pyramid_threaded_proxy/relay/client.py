"""Who gets the answer: a detached connection, or whatever WSGI server called us.

A relay writes to either in the same words: `open` with the final head, then the body, then `close`.
"""

from __future__ import annotations

import socket
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol

from pyramid_threaded_proxy.exceptions import ClientTimedOut, RelayFailed
from pyramid_threaded_proxy.http.framing import CHUNKED, CLOSE, Framing
from pyramid_threaded_proxy.http.head import check_field, render_head
from pyramid_threaded_proxy.http.names import Fields, NameTable
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.loop import Loop
from pyramid_threaded_proxy.loop.poller import WRITE
from pyramid_threaded_proxy.loop.stopping import Relaying
from pyramid_threaded_proxy.loop.syscalls import send
from pyramid_threaded_proxy.loop.waits import Ready, Steps, Wait
from pyramid_threaded_proxy.relay.transfer import client_gone, send_to_client

_REASONS = {int(status): status.phrase for status in HTTPStatus}


#: Fields that a server sends of itself, where the upstream has not (RFC 9110 6.6.1, 10.2.4).
_ABOUT_US: NameTable[str] = NameTable(lambda name: name.lower() if name.lower() in ("date", "server") else "")


class Unread(Protocol):
    """A request body that its server has left in the socket."""

    #: What has come of it, and perhaps of what is behind it.
    early: bytes
    #: Whether the client waits for a 100 before it sends the body.
    expects: bool
    #: Whether it is read for the upstream: nobody else may.
    streams: bool


class Channel(Protocol):
    """A connection that its server has let go of for the time being (see `detach`)."""

    endpoint: Endpoint
    minor: int
    server_name: str

    @property
    def keep_alive(self) -> bool:
        """Whether the client may send another request. What the head says is final."""

    @property
    def pending(self) -> bool:
        """Whether there was earlier output to be written."""

    def pending_output(self) -> bool:
        """Write what the server still had to send; whether some of it is left."""

    def early_bytes(self) -> bytes:
        """What came behind a request for an upgrade. May block for a moment."""

    def unread_body(self) -> Unread | None:
        """The request's body, where the server has left it in the socket."""

    def body_flows(self, flows: bool) -> None:
        """Whether the request is answered while its body is still being read: then the connection may outlast both."""

    def body_ended(self, behind: bytes) -> None:
        """The body was read to its end; `behind` was read too, and belongs to the next request."""

    def join_stop(self, relay: Relaying, lingers: Loop) -> None:
        """Let the exchanges of `relay` end first when the process is told to stop; `lingers` is one of its loops."""

    def on_lasting(self) -> None:
        """The exchange lasts: spare the server what an idle connection costs it."""

    def return_to_server(self, close: bool) -> None:
        """Return the connection: ready for its next request, or to be closed once all is flushed."""

    def break_off(self) -> None:
        """Close the connection so that the client can't take what it has for a whole answer."""


class Client(Protocol):
    """The relay's side of the client."""

    minor: int
    passes_framing: bool  # whether a chunked body goes on with its chunks, or as data alone
    opened: bool

    @property
    def endpoint(self) -> Endpoint | None:
        """The client's socket, where we have it."""

    def is_ready(self) -> bool:
        """Whether the answer may be written at once."""

    def ready(self) -> Steps:
        """Steps: until the answer may be written."""

    def interim(self, status: int, reason: str, fields: Fields) -> bytes:
        """The bytes of an interim answer (RFC 9110 15.2); empty where the client can't have one."""

    def open(self, status: int, reason: str, fields: Fields, framing: Framing, length: int | None) -> bytes:
        """Begin the answer; returns the bytes to write before its body."""

    def switch(self, reason: str, fields: Fields, protocol: str) -> bytes:
        """Begin another protocol (RFC 9110 15.2.2); returns the bytes of the 101."""

    def early_bytes(self) -> bytes:
        """What the client sent before it had the 101. A pool thread."""

    def unread_body(self) -> Unread | None:
        """The request's body, where it is still in the client's socket."""

    def body_flows(self, flows: bool) -> None:
        """Whether it is answered while its body still flows: if the connection lasts shows behind both then."""

    def body_ended(self, behind: bytes) -> None:
        """The body was read to its end, and `behind`, which is the next request's."""

    def send(self, data: bytes | memoryview) -> Steps:
        """Steps: write everything."""

    def send_now(self, data: bytes | memoryview) -> bytes | memoryview:
        """Write what can be written at once; returns the rest."""

    def answered(self) -> None:
        """The answer is whole, and the upstream still takes the request: the client may leave."""

    def close(self) -> None:
        """The answer is whole."""

    def break_off(self) -> None:
        """The answer is not whole, and the client must be able to tell."""


class _Clock:
    """The Date field, made once a second. Any thread: the pair is replaced as one."""

    def __init__(self) -> None:
        self._known = (0, "")

    def date(self) -> str:
        now = int(time.time())
        second, text = self._known
        if second != now:
            text = formatdate(now, usegmt=True)
            self._known = (now, text)
        return text


_clock = _Clock()


def reason_phrase(status: int, reason: str) -> str:
    """The reason that came with the status, or the usual one."""
    return reason or _REASONS.get(status, "")


class SocketClient:
    """A detached connection. Touched by the task's loop alone."""

    passes_framing = True

    def __init__(self, channel: Channel, send_timeout: float) -> None:
        self._channel = channel
        self._send_timeout = send_timeout
        self._close = False
        self.endpoint = channel.endpoint
        self.minor = channel.minor
        self.opened = False

    def is_ready(self) -> bool:
        return not self._channel.pending

    def ready(self) -> Steps:
        """Earlier output, an answer before ours on the same connection, goes first."""
        while self._channel.pending_output():
            yield Ready(self.endpoint, WRITE, self._send_timeout, ClientTimedOut)

    def interim(self, status: int, reason: str, fields: Fields) -> bytes:
        if self.minor == 0:
            return b""
        return render_head(f"HTTP/1.1 {status} {reason_phrase(status, reason)}", fields)

    def open(self, status: int, reason: str, fields: Fields, framing: Framing, length: int | None) -> bytes:
        """Adds what this connection needs: framing (RFC 9112 6), Connection, and Date and Server where they lack."""
        if length is not None:
            fields.append(("Content-Length", str(length)))
        if framing is CHUNKED or framing is CLOSE:
            if self.minor:
                fields.append(("Transfer-Encoding", "chunked"))
            else:
                self._close = True
        self._close = self._close or not self._channel.keep_alive
        if self._close:
            fields.append(("Connection", "close"))
        elif not self.minor:
            fields.append(("Connection", "keep-alive"))
        known = dict(fields)
        if "Date" not in known or "Server" not in known:  # as most servers write them; then nobody needs to look closer
            said = {_ABOUT_US[name] for name in known}
            if "date" not in said:
                fields.append(("Date", _clock.date()))
            if "server" not in said and self._channel.server_name:
                fields.append(("Server", self._channel.server_name))
        opening = render_head(f"HTTP/1.1 {status} {reason_phrase(status, reason)}", fields)
        self.opened = True  # not before: what can't be written leaves room for an error of ours
        return opening

    def switch(self, reason: str, fields: Fields, protocol: str) -> bytes:
        fields += [("Connection", "Upgrade"), ("Upgrade", protocol)]
        opening = render_head(f"HTTP/1.1 101 {reason_phrase(101, reason)}", fields)
        # From now on a half-close is the other protocol's business.
        self.endpoint.may_half_close, self.endpoint.watched = True, False
        self.opened = self._close = True
        return opening

    def early_bytes(self) -> bytes:
        return self._channel.early_bytes()

    def unread_body(self) -> Unread | None:
        return self._channel.unread_body()

    def body_flows(self, flows: bool) -> None:
        self._channel.body_flows(flows)

    def body_ended(self, behind: bytes) -> None:
        self._channel.body_ended(behind)

    def send(self, data: bytes | memoryview) -> Steps:
        return send_to_client(self.endpoint, data, self._send_timeout)

    def send_now(self, data: bytes | memoryview) -> bytes | memoryview:
        try:
            sent = send(self.endpoint, data)
        except BlockingIOError:
            return data
        except OSError as error:
            raise client_gone(error) from None
        return b"" if sent == len(data) else memoryview(data)[sent:]

    def answered(self) -> None:
        self.endpoint.may_half_close, self.endpoint.watched = True, False
        if self._close:
            try:
                self.endpoint.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has left already

    def close(self) -> None:
        self._forget()
        self._channel.return_to_server(self._close)

    def break_off(self) -> None:
        self._forget()
        self._channel.break_off()

    def _forget(self) -> None:
        """Before the socket is another's: a poller must not know it any more when it is closed."""
        self.endpoint.released = True
        if self.endpoint.loop is not None:
            self.endpoint.loop.forget(self.endpoint)


class Output(Wait):
    """Body bytes for the server's ``app_iter``: only the driver of a streamed exchange can take them."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class StreamClient:
    """Another WSGI server, or a test application. Lives in the thread that the server called us on."""

    passes_framing = False
    endpoint: Endpoint | None = None
    minor = 1

    def __init__(self) -> None:
        self.opened = False
        self.broken = False
        self.head: tuple[str, Fields] | None = None

    def is_ready(self) -> bool:
        return True

    def ready(self) -> Steps:
        return
        yield  # makes it a generator: nothing to wait for

    def interim(self, status: int, reason: str, fields: Fields) -> bytes:
        return b""

    def open(self, status: int, reason: str, fields: Fields, framing: Framing, length: int | None) -> bytes:
        if length is not None:
            fields.append(("Content-Length", str(length)))
        for name, value in [("Reason", reason), *fields]:
            check_field(name, value)  # not every server does
        # PEP 3333 wants three digits, a space and a reason that is not empty.
        self.head = (f"{status} {reason_phrase(status, reason) or 'Unknown'}", fields)
        self.opened = True
        return b""

    def switch(self, reason: str, fields: Fields, protocol: str) -> bytes:
        raise RelayFailed("a WSGI server's connection can't be switched")

    def early_bytes(self) -> bytes:
        return b""

    def unread_body(self) -> Unread | None:
        return None

    def body_flows(self, flows: bool) -> None:
        """Nothing streams here: the server has the body."""

    def body_ended(self, behind: bytes) -> None:
        """The same."""

    def send(self, data: bytes | memoryview) -> Any:
        if data:
            yield Output(bytes(data))

    def send_now(self, data: bytes | memoryview) -> bytes | memoryview:
        return data

    def answered(self) -> None:
        pass

    def close(self) -> None:
        pass

    def break_off(self) -> None:
        self.broken = True
