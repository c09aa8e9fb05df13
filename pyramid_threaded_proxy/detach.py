"""Waitress's channel: taken out of waitress's hands for an exchange, and given back.

The one module that knows waitress's inside. What it relies on, beyond the documented API, in waitress 3.x:

* ``BaseWSGIServer.channel_class``, ``HTTPChannel.task_class``; ``environ["waitress.client_disconnected"]`` is a
  method bound to the live channel;
* ``HTTPChannel``: ``service`` (lets a BaseException of its task pass, so that its epilogue is skipped), ``requests``,
  ``outbuf_lock`` (re-entrant), ``total_outbufs_len``, ``_flush_some``, ``_flush_exception``, ``connected``, ``socket``,
  ``_fileno``, ``_map``, ``server``, ``adj``, ``addr``, ``will_close``, ``handle_close``, ``close``;
* ``WSGITask``: ``finish``, ``service``, ``wrote_header``, ``status``, ``response_headers``, ``close_on_finish``;
* ``BaseWSGIServer``: ``active_channels``, ``trigger`` (``pull_trigger(thunk)`` runs the thunk on the main thread),
  ``adj.ident``, ``adj.trusted_proxy``, ``adj.trusted_proxy_headers``, ``adj.max_request_body_size``;
* ``HTTPRequestParser``: ``version``, ``connection_close``, ``get_body_stream``.

``tests/test_waitress_contract.py`` fails the day one of these changes.

While nothing is detached a channel is waitress's own but for ``service`` and the rare ``handle_close`` and ``close``.
While its exchange is in the relay its class is `_DetachedChannel`, which waitress's main thread neither reads,
writes, times out nor closes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol

from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer
from waitress.task import WSGITask

from pyramid_threaded_proxy.exchange import Fields
from pyramid_threaded_proxy.tasks import Endpoint

#: SO_LINGER for a close that resets the connection: the peer can't take what it has for a whole answer.
_RESET = struct.pack("ii", 1, 0)


class DetachStatus(str):
    """The status that waitress is told for a response that stands for a detach.

    It is recognised by its identity: middleware that answers anew gives another one.
    """

    __slots__ = ()


class Handover(Protocol):
    """What a response leaves on the channel that it was called for."""

    status: DetachStatus

    def take(self, channel: DetachedConnection, fields: Fields) -> None:
        """The channel is detached: relay. `fields` are those that waitress was given for the answer."""

    def abandon(self) -> None:
        """The task ended otherwise: nothing was detached, and nothing will be sent upstream."""


class _Detach(BaseException):
    """Ends waitress's task in place of an answer. A BaseException: waitress's channel catches Exception alone."""

    def __init__(self, handover: Handover, fields: Fields) -> None:
        self.handover = handover
        self.fields = fields


class _Task(WSGITask):
    """A task that can end with a detach. Lives in one waitress worker thread."""

    def service(self) -> None:
        channel = self.channel
        try:
            WSGITask.service(self)
        except _Detach:
            channel.handover, channel.task_ends = None, ()
            raise
        finally:
            # Before the channel's epilogue: after it the next request may run in another thread.
            if channel.task_ends:
                _end_task(channel)

    def finish(self) -> None:
        handover = self.channel.handover
        if handover is not None and self.status is handover.status and not self.wrote_header:
            raise _Detach(handover, self.response_headers)
        WSGITask.finish(self)


def _end_task(channel: Any) -> None:
    handover, channel.handover = channel.handover, None
    ends, channel.task_ends = channel.task_ends, ()
    if handover is not None:
        handover.abandon()
    for end in ends:
        end()


class DetachableChannel(HTTPChannel):
    """A waitress channel that can be detached.

    `handover` and `task_ends` are touched by the one worker thread that runs its task; all else as in waitress.
    """

    task_class = _Task
    handover: Handover | None = None
    task_ends: tuple[Callable[[], None], ...] = ()
    asked_out = False  # under outbuf_lock: it is, or will be, out of waitress's tables
    hung_up = False  # under outbuf_lock: waitress wanted to close the connection while it was detached
    loop_ended = False  # under outbuf_lock: waitress's loop is over and will not close anything any more

    def service(self) -> None:
        """Run one request in a worker thread."""
        try:
            HTTPChannel.service(self)
        except _Detach as detach:
            self._detach(detach.handover, detach.fields)

    def _detach(self, handover: Handover, fields: Fields) -> None:
        """Worker thread. Under the lock that `handle_close` needs, so that the socket can't be closed in between."""
        with self.outbuf_lock:
            connected = self.connected
            if connected:
                self.__class__ = _DetachedChannel
        connection = DetachedConnection(self)
        if connected:
            handover.take(connection, fields)
        else:
            handover.abandon()
            _run_epilogue(self, close=True)

    def handle_close(self) -> None:
        # The lock: a channel is not closed while it is being detached. It is re-entrant, and rarely taken here.
        with self.outbuf_lock:
            HTTPChannel.handle_close(self)

    def close(self) -> None:
        with self.outbuf_lock:
            HTTPChannel.close(self)


class _DetachedChannel(DetachableChannel):
    """A channel whose connection the relay owns. Waitress's main thread sees something that never has work for it."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return False

    def handle_read(self) -> None:
        """Seen readable in the turn in which it was detached: the bytes wait."""

    def handle_write(self) -> None:
        """Likewise."""

    def handle_close(self) -> None:
        with self.outbuf_lock:
            if type(self) is _DetachedChannel:
                self.hung_up = True
            else:  # given back while this thread waited for the lock
                self.handle_close()

    def close(self) -> None:
        """A server with two listening sockets closes every channel of its map when it stops, and its loop is over."""
        with self.outbuf_lock:
            if type(self) is _DetachedChannel:
                self.hung_up = self.loop_ended = True
            else:
                self.close()

    def handle_error(self) -> None:
        self.handle_close()

    def cancel(self) -> None:
        self.hung_up = True


class DetachedConnection:
    """The relay's handle on a detached channel (`client.Channel`). Touched by the task that owns it alone."""

    __slots__ = ("_channel", "endpoint", "keep_alive", "minor", "server_name")

    def __init__(self, channel: DetachableChannel) -> None:
        request = channel.requests[0]
        self._channel = channel
        self.endpoint = Endpoint(channel.socket)
        self.minor = 1 if request.version == "1.1" else 0
        self.keep_alive = not request.connection_close
        self.server_name: str = channel.adj.ident or ""

    def pending_output(self) -> bool:
        """Write what waitress still had to send, a pipelined predecessor's answer; whether some is left."""
        channel = self._channel
        if channel.total_outbufs_len:
            with channel.outbuf_lock:
                channel._flush_exception(channel._flush_some, do_close=False)
        return bool(channel.total_outbufs_len and not channel.will_close)

    def last(self) -> None:
        """Leave waitress's tables: an entry costs its main thread a look each turn."""
        with self._channel.outbuf_lock:
            self._channel.asked_out = True
        self._on_main_thread(self._settle)

    def _settle(self) -> None:
        """Main thread. In its tables or out of them, as the channel is at this moment; so the last one decides right."""
        channel = self._channel
        with channel.outbuf_lock:
            fd = channel._fileno
            if channel.socket is None or channel.loop_ended:
                return
            detached = type(channel) is _DetachedChannel
            channel.asked_out = detached
            for table in (channel._map, channel.server.active_channels):
                if detached:
                    table.pop(fd, None)
                else:
                    table[fd] = channel

    def _on_main_thread(self, thunk: Callable[[], None]) -> None:
        """Never while holding `outbuf_lock`: the trigger runs its thunks under a lock of its own."""
        trigger = self._channel.server.trigger
        if not trigger._closed:
            trigger.pull_trigger(thunk)

    def give_back(self, close: bool) -> None:
        """Return the connection for its next request, or to be closed. It is waitress's afterwards."""
        channel = self._channel
        with channel.outbuf_lock:
            channel.__class__ = DetachableChannel
            hung_up = channel.hung_up
            channel.hung_up = False
            settle = channel.asked_out or hung_up
            if channel.loop_ended:
                channel.close()
        _run_epilogue(channel, close or hung_up)
        if settle:
            self._on_main_thread(self._settle)

    def break_off(self) -> None:
        """Close the connection with a reset: what the client has is no whole answer."""
        try:
            self.endpoint.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            pass  # gone already
        self.give_back(close=True)


class _Finished:
    """Stands in for the task that the relay has done, so that waitress runs its own epilogue behind it."""

    def __init__(self, close: bool) -> None:
        self.close_on_finish = close

    def service(self) -> None:
        """Nothing: the answer is written."""


def _run_epilogue(channel: DetachableChannel, close: bool) -> None:
    """Have waitress end the request: close its body, start the next one or close the connection, wake its loop."""

    def finished(channel: Any, request: Any) -> _Finished:
        del channel.task_class  # before the epilogue, which may let another worker in
        return _Finished(close)

    channel.task_class = finished  # type: ignore[assignment]
    HTTPChannel.service(channel)


def install() -> None:
    """Have servers that start from now on make channels that can be detached."""
    if BaseWSGIServer.channel_class is HTTPChannel:
        BaseWSGIServer.channel_class = DetachableChannel


def channel_of(environ: Mapping[str, Any]) -> DetachableChannel | None:
    """The live channel that this request came on, if it can be detached. Worker threads."""
    channel = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    return channel if type(channel) is DetachableChannel else None


def offer(channel: DetachableChannel, handover: Handover) -> None:
    """Leave `handover` on the channel; the task that runs on it takes it up, or abandons it, when it ends."""
    if channel.handover is not None:
        channel.handover.abandon()
    channel.handover = handover
    at_task_end(channel, _nothing)


def at_task_end(channel: DetachableChannel, end: Callable[[], None]) -> None:
    """Call `end` when the task that runs on the channel ends without a detach. In the task's worker thread."""
    channel.task_ends = (*channel.task_ends, end)


def _nothing() -> None:
    """Marks a task that has something to look after."""


def request_body(channel: DetachableChannel) -> tuple[IO[bytes], int]:
    """The received request body, from its beginning, and its length: whatever the application has read of it."""
    request = channel.requests[0]
    receiver = request.body_rcv
    return request.get_body_stream(), len(receiver) if receiver is not None else 0


def trusted_fields(environ: Mapping[str, Any]) -> frozenset[str]:
    """The lower-case names of the forwarded fields that waitress trusts this request's peer with; empty: none."""
    channel: Any = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    adj = getattr(channel, "adj", None)
    if adj is None or not adj.trusted_proxy:
        return frozenset()
    if adj.trusted_proxy != "*" and adj.trusted_proxy != channel.addr[0]:
        return frozenset()
    # waitress knows no X-Forwarded-Prefix: a trusted peer is trusted with it.
    return frozenset(adj.trusted_proxy_headers or ()) | {"x-forwarded-prefix"}


def peer_address(environ: Mapping[str, Any]) -> str | None:
    """The address of the connection's other end, before any trusted field replaced it."""
    channel = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    if channel is not None:
        return str(channel.addr[0]) if channel.addr[1] is not None else None
    return environ.get("REMOTE_ADDR")
