"""The body of a request that was handed over by its head: received when somebody reads it, as waitress would have.

It runs through waitress's own receivers, in the worker thread of the request, which waits for the client meanwhile.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any
from weakref import WeakKeyDictionary

from waitress.parser import HTTPRequestParser
from waitress.utilities import BadRequest, RequestEntityTooLarge

from pyramid_threaded_proxy.detach.asked_first import Unread
from pyramid_threaded_proxy.loop.poller import READ, WRITE, wait_for

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

#: Seconds that each body may be waited for in all before its thread counts as waiting.
FREE = 1.0
#: How many threads wait for a client, by waitress's dispatcher. Under `_lock`.
waiting: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_lock = threading.Lock()


class RequestTimeout(BadRequest):
    """The client sent nothing of its body for waitress's `channel_timeout`."""

    code = 408
    reason = "Request Timeout"


class TooManyWaiting(BadRequest):
    """As many threads as may already wait for bodies that the application reads."""

    code = 503
    reason = "Service Unavailable"


class BodyFault(BaseException):
    """A body can't be received: ends the task as waitress ends a request with such a body, by `error` or by a close.

    A BaseException, so that no view takes a part for the whole.
    """

    def __init__(self, error: Any = None) -> None:
        self.error = error


class LateBody:
    """``wsgi.input`` of such a request: whatever is asked of it, the body is received first. The worker's thread."""

    def __init__(self, channel: Any, request: Any) -> None:
        self._channel = channel
        self._request = request

    def received(self) -> IO[bytes]:
        """The file that waitress has received the body in. Waits for the client; raises `BodyFault`."""
        receive_late(self._channel, self._request)
        file: IO[bytes] = self._request.body_rcv.getfile()
        return file

    def read(self, size: int | None = -1) -> bytes:
        return self.received().read(-1 if size is None else size)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.received())

    def __next__(self) -> bytes:
        return next(self.received())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.received(), name)


def read_late(channel: Any, request: Any) -> None:
    """Have what the application reads of the request's body be received by then. Before it is called."""
    late = request.late_body = LateBody(channel, request)
    request.get_body_stream = lambda: late


def receive_late(channel: Any, request: Any) -> None:
    """Receive what is left of the body, if something is. The request's worker thread, which waits.

    Raises `BodyFault`: once for all, as what was received up to there is no body; `OSError` where it streams.
    """
    unread: Unread | None = request.unread
    if unread is None:
        return
    if unread.streams:
        raise OSError("the request's body is on its way upstream")
    if unread.fault is not None:
        raise unread.fault
    try:
        behind = _receive(channel, request, unread)
    except BaseException as fault:
        unread.fault = fault
        raise
    channel.last_activity = time.time()
    # In this order: until it is known what came behind the body, the main thread reads nothing.
    channel.received(behind)
    request.unread = None


def _receive(channel: Any, request: Any, unread: Unread) -> bytes:
    """Receive the body; what came behind it."""
    if unread.length is not None and unread.length >= channel.adj.max_request_body_size:
        raise BodyFault(RequestEntityTooLarge(f"exceeds max_body of {channel.adj.max_request_body_size}"))
    # A descriptor of its own: waitress's main thread may close the channel's meanwhile.
    with _own_socket(channel) as sock:
        patience = _Patience(channel, sock)
        if unread.expects:
            _say_continue(channel, unread, patience)
        request.completed, data, unread.early = False, unread.early, b""
        while True:
            taken = HTTPRequestParser.received(request, data) if data else 0
            if request.error is not None:
                error, request.error = request.error, None
                raise BodyFault(error)
            if request.completed:
                return data[taken:]
            data = _next(channel, sock, patience)


def _own_socket(channel: Any) -> socket.socket:
    with channel.outbuf_lock:
        if not channel.connected:
            raise BodyFault
        own: socket.socket = channel.socket.dup()
    return own


def _say_continue(channel: Any, unread: Unread, patience: _Patience) -> None:
    """Behind what waitress still has to send: an answer to an earlier request on the connection."""
    unread.expects = False
    channel.write_soon(_CONTINUE)
    while channel.total_outbufs_len and channel.connected:
        with channel.outbuf_lock:
            channel._flush_some(do_close=False)
        if channel.total_outbufs_len:
            patience.wait(WRITE)


def _next(channel: Any, sock: socket.socket, patience: _Patience) -> bytes:
    while True:
        try:
            data = sock.recv(channel.adj.recv_bytes)
        except BlockingIOError:
            patience.wait(READ)
        except OSError:
            raise BodyFault from None
        else:
            if not data:
                raise BodyFault
            return data


class _Patience:
    """Waits for the client of one body."""

    def __init__(self, channel: Any, sock: socket.socket) -> None:
        self._channel = channel
        self._sock = sock
        self._free = FREE

    def wait(self, events: int) -> None:
        """Until there is one of them; raises `BodyFault`."""
        if self._free > 0:
            began = time.monotonic()
            ready = self._ready(events, self._free)
            self._free -= time.monotonic() - began
            if ready:
                return
        with _a_place(self._channel):
            if not self._ready(events, self._channel.adj.channel_timeout):
                raise BodyFault(RequestTimeout("nothing came of the request's body"))

    def _ready(self, events: int, timeout: float) -> bool:
        return bool(wait_for({self._sock.fileno(): events}, timeout)[1])


@contextmanager
def _a_place(channel: Any) -> Iterator[None]:
    """Half of waitress's threads may wait at a time: slow senders can't take those of all others.

    Stock waitress waits for bodies in its main thread, so nothing bounds how many are slow there.
    """
    dispatcher, most = channel.server.task_dispatcher, max(1, channel.adj.threads // 2)
    with _lock:
        if waiting.get(dispatcher, 0) >= most:
            raise BodyFault(TooManyWaiting("too many request bodies are waited for"))
        waiting[dispatcher] = waiting.get(dispatcher, 0) + 1
    try:
        yield
    finally:
        with _lock:
            waiting[dispatcher] -= 1


def is_empty(sock: socket.socket) -> bool:
    """Whether there is nothing to read, not even an end: waitress would take that for a broken connection."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
