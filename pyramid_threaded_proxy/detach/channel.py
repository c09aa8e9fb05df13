"""Waitress's channel: taken out of waitress's hands for an exchange, and given back.

The one module that knows waitress's inside. What it relies on, beyond the documented API, in waitress 3.x:

* ``BaseWSGIServer.channel_class``, ``HTTPChannel.task_class`` and ``parser_class``;
  ``environ["waitress.client_disconnected"]`` is a method bound to the live channel;
* ``HTTPChannel``: ``service`` (lets a BaseException of its task pass, so that its epilogue is skipped; what that does),
  ``requests``, ``requests_lock``, ``outbuf_lock`` (re-entrant), ``total_outbufs_len``, ``current_outbuf_count``,
  ``_flush_some`` (sends with ``send``), ``connected``, ``socket``, ``_fileno`` (None once closed), ``_map``,
  ``server``, ``adj``, ``addr``, ``will_close``, ``close_when_flushed``, ``readable`` (what it looks at),
  ``handle_read`` (reads with ``recv``), ``handle_close``, ``close``;
* ``WSGITask``: ``finish``, ``service``, ``wrote_header``, ``status``, ``response_headers``, ``close_on_finish``,
  ``set_close_on_finish``, ``build_response_header`` (reads ``request.headers["CONNECTION"]``);
* ``BaseWSGIServer``: ``active_channels``, ``trigger`` (``pull_trigger(thunk)`` runs the thunk on the main thread;
  its ``_physical_pull``, ``recv`` (before the thunks), ``close``, ``_closed``), ``adj.ident``, ``adj.trusted_proxy``,
  ``adj.trusted_proxy_headers``, ``adj.asyncore_use_poll``;
* of a process that stops: ``wasyncore.loop``, ``wasyncore.dispatcher.close``; ``BaseWSGIServer``: ``socket``,
  ``readable``, ``handle_accept``, ``adj.backlog``, ``task_dispatcher`` (``queue``, ``active_count``); the trigger's
  ``handle_read`` (KeyboardInterrupt that is raised behind its thunks ends the loop); ``HTTPChannel``: ``request`` (one
  that is partly received), ``creation_time``, ``last_activity`` (the same until something is received);
* ``HTTPRequestParser``: ``received``, ``parse_header``, ``headers``, ``chunked``, ``completed``, ``version``,
  ``connection_close``, ``get_body_stream``, ``body_rcv``; ``HTTPChannel.received`` makes one for each request,
  and stops where it is told that all bytes were taken.

``tests/test_waitress_contract.py`` fails the day one of these changes.

While nothing is detached a channel is waitress's own but for ``service``, ``readable``, the rare ``handle_close`` and
``close``, and what it does with bytes behind a request that asks for an upgrade: those are kept, and never run. While
its exchange is in the relay, and while it waits there behind one that lasted, its class is `_DetachedChannel`, which
waitress's main thread neither reads, writes, times out nor closes.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from types import FrameType
from typing import IO, Any, Protocol

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer
from waitress.task import WSGITask
from waitress.trigger import trigger as Trigger

from pyramid_threaded_proxy.exceptions import ClientGone
from pyramid_threaded_proxy.exchange import Fields
from pyramid_threaded_proxy.limits.descriptors import SELECT_LIMIT
from pyramid_threaded_proxy.loop import stopping
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.loop import current_loop
from pyramid_threaded_proxy.loop.poller import READ, wait_for
from pyramid_threaded_proxy.loop.syscalls import Receiver

log = logging.getLogger("pyramid_threaded_proxy.detach")

#: Bytes that a client may send behind a request for an upgrade, before that is answered.
MOST_EARLY = 256 * 1024
#: Seconds that a new connection's first request may be under way when the process is told to stop.
FIRST_REQUEST = 1.0
#: SO_LINGER for a close that resets the connection: the peer can't take what it has for a whole answer.
_RESET = struct.pack("ii", 1, 0)


def new_status() -> str:
    """The status that waitress is told for a response that stands for a detach.

    It is recognised by its identity: middleware that answers anew gives another one. A string made at run time is an
    object of its own; a subclass of str would be refused by waitress before 3.0.2.
    """
    return " ".join(("200", "OK"))


class Handover(Protocol):
    """What a response leaves on the channel that it was called for."""

    status: str  # from `new_status`

    def take(self, channel: DetachedConnection, fields: Fields) -> None:
        """The channel is detached: relay. `fields` are those that waitress was given for the answer."""

    def abandon(self) -> None:
        """The task ended otherwise: nothing was detached, and nothing will be sent upstream."""


class _Detach(BaseException):
    """Ends waitress's task in place of an answer. A BaseException: waitress's channel catches Exception alone."""

    def __init__(self, handover: Handover, fields: Fields) -> None:
        self.handover = handover
        self.fields = fields


class _Parser(HTTPRequestParser):
    """A request that asks for another protocol keeps what comes behind it: those bytes may not be HTTP any more.

    Stock waitress would read them as the next request and run it, even where the upgrade is denied. Fed by waitress's
    main thread.
    """

    asks_upgrade = False
    early = b""

    def received(self, data: bytes) -> int:
        taken: int = HTTPRequestParser.received(self, data)
        if self.asks_upgrade and self.completed and taken < len(data):
            self.early += data[taken:]
            return len(data)
        return taken

    def parse_header(self, header_plus: bytes) -> None:
        HTTPRequestParser.parse_header(self, header_plus)
        headers = self.headers
        self.asks_upgrade = "UPGRADE" in headers
        if self.body_rcv is None:
            # waitress would answer 100 and take the next request for the rest of this one (RFC 9110 10.1.1).
            self.expect_continue = False
        if self.chunked and "CONTENT_LENGTH" in headers:
            # Two lengths: whoever stands in front may have taken the other one (RFC 9112 6.1).
            self.connection_close = True


class _Task(WSGITask):
    """A task that can end with a detach. Lives in one waitress worker thread."""

    def service(self) -> None:
        channel = self.channel
        try:
            WSGITask.service(self)
            if self.request.asks_upgrade:
                self.close_on_finish = True
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
        if self.request.asks_upgrade:
            self.set_close_on_finish()
        WSGITask.finish(self)

    def build_response_header(self) -> bytes:
        if _is_last(self.channel):
            self.request.headers["CONNECTION"] = "close"
        head: bytes = WSGITask.build_response_header(self)
        return head


def _end_task(channel: Any) -> None:
    handover, channel.handover = channel.handover, None
    ends, channel.task_ends = channel.task_ends, ()
    if handover is not None:
        handover.abandon()
    for end in ends:
        end()


def _is_last(channel: Any) -> bool:
    """Whether the process stops, and the client has sent no request behind the present one."""
    return channel.server.trigger.stopping and len(channel.requests) <= 1


class DetachableChannel(HTTPChannel):
    """A waitress channel that can be detached.

    `handover` and `task_ends` are touched by the one worker thread that runs its task; all else as in waitress.
    """

    parser_class = _Parser
    task_class = _Task
    handover: Handover | None = None
    task_ends: tuple[Callable[[], None], ...] = ()
    unasked = True  # main thread: not in its poll yet; what it hears is of an earlier connection with this number
    spoiled = False  # main thread: bytes came that belong to no request
    unread = False  # main thread: bytes came behind the request in work, and wait
    unwatched = True  # main thread: waitress's loop does not hear of the client's next bytes unless it is woken
    asked_out = False  # under outbuf_lock: it is, or will be, out of waitress's tables
    hung_up = False  # under outbuf_lock: waitress wanted to close the connection while it was detached
    claim: Callable[[], None] | None = None  # under outbuf_lock: set while idle and detached; gets it back
    loop_ended = False  # under outbuf_lock: waitress's loop is over and will not close anything any more

    def __init__(self, server: Any, sock: socket.socket, addr: Any, adj: Any, map: Any = None) -> None:
        """Main thread, for a new connection. One that `select` can't take would end waitress's loop: it is closed."""
        HTTPChannel.__init__(self, server, sock, addr, adj, map)
        self.__dict__ = {**_DEFAULTS, **self.__dict__}
        _make_ours(server.trigger)
        if self._fileno >= SELECT_LIMIT and not adj.asyncore_use_poll:
            self.close()
            _warn_of_select()

    def received(self, data: bytes) -> bool:
        """Main thread. What comes behind a request for an upgrade stays raw, and is never run."""
        if self.requests or self.spoiled:
            with self.requests_lock:
                last = self.requests[-1] if self.requests else None
                if last is not None and last.asks_upgrade:
                    self.spoiled = True
                    last.early += data
                    if len(last.early) > MOST_EARLY:
                        self.will_close = True
                    return True
                if self.spoiled:  # such bytes were lost with a request that was answered without an upgrade
                    self.will_close = True
                    return False
        return bool(HTTPChannel.received(self, data))

    def readable(self) -> bool:
        """Main thread, each turn. Stock waitress does not wait for a client whose request is in work.

        This one does, and leaves unread what comes: so that nobody has to wake its loop when an exchange ends.
        """
        self.unasked = False
        self.unwatched = True  # before the look: whoever ends the request meanwhile wakes the loop once too often
        if self.will_close or self.close_when_flushed or self.total_outbufs_len:
            return False
        if len(self.requests) <= self.adj.channel_request_lookahead:
            self.unread = False
        elif self.unread:
            return False
        self.unwatched = False
        return True

    def recv(self, buffer_size: int) -> bytes:
        """Main thread. The beginning of a request without letting go of the interpreter's lock (see `syscalls`)."""
        data: bytes | None = None
        if self.request is None and type(self.socket) is socket.socket:  # what an SSLSocket has is not for us
            data = self.server.trigger.receiver.take(self.socket)
        return data or HTTPChannel.recv(self, buffer_size)

    def handle_read(self) -> None:
        if len(self.requests) > self.adj.channel_request_lookahead:
            self.unread = True
        elif not self.unasked:
            HTTPChannel.handle_read(self)

    def service(self) -> None:
        """Run one request in a worker thread."""
        try:
            HTTPChannel.service(self)
        except _Detach as detach:
            self._detach(detach.handover, detach.fields)

    def _detach(self, handover: Handover, fields: Fields) -> None:
        """Worker thread. Under the lock that `handle_close` needs, so that the socket can't be closed in between."""
        connection = None
        with self.outbuf_lock:
            if self.connected:
                connection = DetachedConnection(self)
                self.__class__ = _DetachedChannel
        if connection is not None:
            try:
                handover.take(connection, fields)
            except BaseException:  # no thread or descriptor could be had: nobody else will give it back
                handover.abandon()
                connection.break_off()
                raise
        else:
            handover.abandon()
            _run_epilogue(self, close=True)

    def handle_close(self) -> None:
        if self.unasked:
            return
        # The lock: a channel is not closed while it is being detached. It is re-entrant, and rarely taken here.
        with self.outbuf_lock:
            if type(self) is DetachableChannel:
                HTTPChannel.handle_close(self)
            else:  # detached while this thread waited for the lock
                self.handle_close()

    def close(self) -> None:
        with self.outbuf_lock:
            if type(self) is DetachableChannel:
                HTTPChannel.close(self)
            else:
                self.close()


#: What a channel's attributes begin with. Each channel has them in a dict of its own: CPython reads a default from a
#: class, and any attribute of an object whose class was changed, four times as slowly.
_DEFAULTS = {
    name: value
    for name in dir(DetachableChannel)
    if isinstance(value := getattr(DetachableChannel, name), (bool, int, tuple, type(None))) and name[:2] != "__"
}


class _Trigger(Trigger):
    """Waitress's trigger, made safe for threads that outlive its loop.

    Stock waitress writes to the number of its pipe even after that was closed, when it may be another's.
    """

    pulled = False
    guard: threading.Lock  # so that the pipe is not closed while it is written to
    away: set[DetachableChannel]  # main thread: those out of waitress's tables, of all servers in its loop
    receiver: Receiver  # main thread
    stopping = False  # the process stops: connections end with their present answer
    look: Callable[[], None] | None = None  # what a stop does at each turn

    def _physical_pull(self) -> None:
        if self.pulled:
            return  # the main thread has not looked yet, and will see this one's reason too
        with self.guard:
            if not self.pulled and not self._closed:
                self.pulled = True
                Trigger._physical_pull(self)

    def recv(self, size: int) -> bytes:
        """Main thread. Cleared behind the read, which may take a later pull's byte too, and before anything is done."""
        try:
            return bytes(Trigger.recv(self, size))
        finally:
            self.pulled = False

    def handle_read(self) -> None:
        Trigger.handle_read(self)
        if self.look is not None:  # not a thunk: what those raise is swallowed, and it may end the loop
            self.look()

    def close(self) -> None:
        """The loop is over. `wasyncore.close_all` closes the channels that it finds; these it doesn't."""
        with self.guard:
            Trigger.close(self)
        for channel in list(self.away):
            if channel.server.trigger is self:
                channel.close()


def _make_ours(trigger: Any) -> None:
    if type(trigger) is not _Trigger:
        others = [entry.away for entry in trigger._map.values() if type(entry) is _Trigger]
        trigger.guard, trigger.away, trigger.receiver = threading.Lock(), (*others, set())[0], Receiver()
        trigger.__class__ = _Trigger


@cache
def _warn_of_select() -> None:
    """Once in a process is enough: there will be many."""
    log.warning("a new connection was closed: select() can't take descriptors from %d on; set waitress's "
                "asyncore_use_poll = true", SELECT_LIMIT)


class _DetachedChannel(DetachableChannel):
    """A channel whose connection the relay owns: for an exchange, or to wait for the next request behind a long one.

    Waitress's main thread learns that bytes came, and does nothing.
    """

    def readable(self) -> bool:
        self.unwatched = True
        if self.unread:
            return False
        self.unwatched = False
        return True

    def writable(self) -> bool:
        return False

    def handle_read(self) -> None:
        self.unread = True

    def handle_write(self) -> None:
        """Seen writable in the turn in which it was detached."""

    def handle_close(self) -> None:
        with self.outbuf_lock:
            if type(self) is not _DetachedChannel:  # given back while this thread waited for the lock
                return self.handle_close()
            self.hung_up = self.unread = True
            claim = self.claim
        if claim is not None:
            claim()

    def close(self) -> None:
        """Waitress's loop is over, and its server closes all channels."""
        with self.outbuf_lock:
            if type(self) is not _DetachedChannel:
                return self.close()
            self.hung_up = self.loop_ended = True
            claim = self.claim
        if claim is not None:
            claim()

    def handle_error(self) -> None:
        self.handle_close()

    def send(self, data: bytes, do_close: bool = True) -> int:
        """Unlike waitress's it lets an error pass: waitress would take it for a client that is slow."""
        try:
            return int(self.socket.send(data))
        except BlockingIOError:
            return 0

    def cancel(self) -> None:
        self.hung_up = True


class DetachedConnection:
    """The relay's handle on a detached channel (`client.Channel`). Touched by the task that owns it alone."""

    __slots__ = ("_channel", "_keep_alive", "endpoint", "minor", "pending", "server_name")

    def __init__(self, channel: DetachableChannel) -> None:
        request = channel.requests[0]
        self._channel = channel
        self.endpoint = Endpoint(channel.socket)
        self.minor = 1 if request.version == "1.1" else 0
        # Bytes behind a request for an upgrade were never HTTP: there is no next request to wait for.
        self._keep_alive = not request.connection_close and not request.asks_upgrade
        self.server_name: str = channel.adj.ident or ""
        # Nothing can be added to it from now on.
        self.pending = bool(channel.total_outbufs_len)

    @property
    def keep_alive(self) -> bool:
        """Whether another request can come. Until the head is written: the process may be told to stop."""
        return self._keep_alive and not _is_last(self._channel)

    def pending_output(self) -> bool:
        """Write what waitress still had to send, a pipelined predecessor's answer; whether some is left.

        Raises `ClientGone` when the connection is broken.
        """
        channel = self._channel
        if channel.total_outbufs_len:
            try:
                with channel.outbuf_lock:
                    channel._flush_some(do_close=False)
            except OSError as error:
                raise ClientGone(error.strerror or str(error)) from None
        return bool(channel.total_outbufs_len)

    def early_bytes(self) -> bytes:
        """What the client sent behind its request for an upgrade. Waits for waitress's main thread: a pool thread."""
        settled = threading.Event()
        # A read that was under way when the channel was detached is over once the main thread runs something else.
        self._on_main_thread(settled.set)
        settled.wait(1.0)
        early: bytes = self._channel.requests[0].early
        return early

    def join_stop(self, relay: stopping.Relaying) -> None:
        """When the process is told to stop, it lets the exchanges of `relay` end first."""
        loop = ServerLoop(self._channel)
        self._on_main_thread(lambda: stopping.join(loop, relay))

    def last(self) -> None:
        """Leave waitress's tables: an entry costs its main thread a look each turn."""
        with self._channel.outbuf_lock:
            self._channel.asked_out = True
        self._on_main_thread(self._settle)

    def _settle(self) -> None:
        """Main thread. In its tables or out of them, as the channel is at this moment: the last one decides right."""
        channel = self._channel
        with channel.outbuf_lock:
            fd, away = channel._fileno, channel.server.trigger.away
            if fd is None or channel.loop_ended:  # closed, or nobody's business any more
                away.discard(channel)
                return
            detached = type(channel) is _DetachedChannel
            channel.asked_out = detached
            (away.add if detached else away.discard)(channel)
            if channel.will_close and not detached:  # not when it can be written to: that may be never
                return channel.handle_close()
            for table in (channel._map, channel.server.active_channels):
                if detached:
                    table.pop(fd, None)
                else:
                    table[fd] = channel

    def _on_main_thread(self, thunk: Callable[[], None]) -> None:
        """Never while holding `outbuf_lock`: the trigger runs its thunks under a lock of its own."""
        self._channel.server.trigger.pull_trigger(thunk)

    def give_back(self, close: bool) -> None:
        """End the request, and return the connection to waitress: for its next request, or to be closed.

        One that is out of waitress's tables stays so, and detached, until the loop hears of its client's next bytes.
        """
        channel = self._channel
        if channel.asked_out and not close and self._rest():
            return
        with channel.outbuf_lock:
            channel.__class__ = DetachableChannel
            hung_up = channel.hung_up
            channel.hung_up = False
            settle = channel.asked_out or hung_up or channel.will_close
            if channel.loop_ended:
                channel.close()
        _run_epilogue(channel, close or hung_up)
        if settle:
            self._on_main_thread(self._settle)

    def _rest(self) -> bool:
        """Have this thread's loop wait for the client's next bytes; whether it does. No more than waitress allows."""
        channel = self._channel
        trigger: Any = channel.server.trigger
        loop = current_loop()
        if trigger.stopping or loop is None or loop.dead:
            return False
        if len(channel._map) + len(trigger.away) >= channel.adj.connection_limit:
            return False
        if channel.hung_up or channel.will_close or channel.loop_ended or not _pop_request(channel):
            return False
        endpoint = Endpoint(channel.socket)
        with channel.outbuf_lock:
            channel.claim = lambda: loop.post(loop.idle_clients.let_go, endpoint)
            wanted = bool(channel.hung_up)
        try:
            loop.idle_clients.keep(endpoint, self._wake_up, channel.adj.channel_timeout)
        except Exception:
            log.exception("a client can't be waited for in the loop")
            self._wake_up()
        if wanted:
            loop.idle_clients.let_go(endpoint)
        return True

    def _wake_up(self) -> None:
        """The loop's thread: the client says something, or waitress wants the connection."""
        channel = self._channel
        with channel.outbuf_lock:
            channel.claim = None
            channel.__class__ = DetachableChannel
            channel.will_close = channel.will_close or channel.hung_up
            channel.hung_up = False
            if channel.loop_ended:
                channel.close()
        self._on_main_thread(self._settle)

    def break_off(self) -> None:
        """Close the connection with a reset: what the client has is no whole answer."""
        try:
            self.endpoint.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            pass  # gone already
        self._channel.will_close = True
        self.give_back(close=True)


class _Finished:
    """Stands in for the task that the relay has done, so that waitress runs its own epilogue behind it."""

    close_on_finish = False

    def __init__(self, channel: Any, request: Any) -> None:
        del channel.task_class  # before the epilogue, which may let another worker in

    def service(self) -> None:
        """Nothing: the answer is written."""


class _FinishedLast(_Finished):
    """The same, for the last answer on its connection."""

    close_on_finish = True


def _pop_request(channel: DetachableChannel) -> bool:
    """Do what `HTTPChannel.service` does behind its task, where no more than this is to be done; whether it was."""
    with channel.requests_lock:
        if len(channel.requests) > 1 or channel.request is not None:
            return False
        if channel.current_outbuf_count:  # of an earlier answer: the next one begins a buffer of its own
            channel.current_outbuf_count = channel.adj.outbuf_high_watermark
        request = channel.requests.pop()
    request.close()
    channel.last_activity = time.time()
    return True


def _run_epilogue(channel: DetachableChannel, close: bool) -> None:
    """Have waitress end the request: close its body, start the next one or close the connection, wake its loop."""
    if not close and _pop_request(channel):
        # Behind the pop: if the main thread looked before, it has said so.
        if channel.unwatched and channel.connected:
            channel.server.pull_trigger()
        return
    channel.task_class = _FinishedLast if close else _Finished  # type: ignore[assignment]
    HTTPChannel.service(channel)


class ServerLoop:
    """Waitress's loop, with all the sockets that it listens on (`stopping.Loop`)."""

    def __init__(self, channel: DetachableChannel) -> None:
        self._map = channel._map
        self._trigger = channel.server.trigger
        self._servers: list[Any] = []

    def runs(self, frame: FrameType | None) -> bool:
        while frame is not None and frame.f_code is not wasyncore.loop.__code__:
            frame = frame.f_back
        return frame is not None

    def look_with(self, look: Callable[[], None]) -> None:
        self._trigger.look = look
        # Whether it was pulled is not asked: the main thread may have been interrupted behind its look.
        if not self._trigger._closed:
            Trigger._physical_pull(self._trigger)

    def wake(self) -> None:
        self._trigger.pull_trigger()

    def stop_listening(self) -> None:
        self._servers = [entry for entry in self._map.values() if isinstance(entry, BaseWSGIServer)]
        for server in self._servers:
            _make_ours(server.trigger)
            server.trigger.stopping = True
        for server in self._servers:
            _accept_waiting(server)
        # Behind the last accept: a connection that got the number of one would be taken for it in this turn.
        for server in self._servers:
            wasyncore.dispatcher.close(server)

    def busy(self) -> bool:
        for server in self._servers:
            dispatcher = server.task_dispatcher
            if dispatcher.queue or dispatcher.active_count > 0:
                return True
            if any(map(_is_busy, [*server.active_channels.values(), *server.trigger.away])):
                return True
        return False


def _accept_waiting(server: Any) -> None:
    """Take the connections that clients have made: closing the socket resets them, if no other process has it."""
    for _ in range(server.adj.backlog):
        if not server.readable() or wait_for({server.socket.fileno(): READ}, 0)[1] == 0:
            return
        server.handle_accept()


def _is_busy(channel: Any) -> bool:
    """Whether closing the connection would cost its client an answer. Main thread."""
    if channel._fileno is None:
        return False
    if (type(channel) is _DetachedChannel and channel.claim is None) or channel.requests or channel.request:
        return True
    if channel.total_outbufs_len:
        return True
    if channel.last_activity == channel.creation_time and time.time() - channel.creation_time < FIRST_REQUEST:
        return True
    try:
        return bool(channel.socket.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def install() -> None:
    """Have servers that start from now on make channels that can be detached."""
    if BaseWSGIServer.channel_class is HTTPChannel:
        BaseWSGIServer.channel_class = DetachableChannel


def channel_of(environ: Mapping[str, Any]) -> DetachableChannel | None:
    """The live channel that this request came on, if it can be detached. Worker threads."""
    try:
        channel = environ["waitress.client_disconnected"].__self__
    except (KeyError, AttributeError):
        return None
    return channel if type(channel) is DetachableChannel else None


def offer(channel: DetachableChannel, handover: Handover) -> None:
    """Leave `handover` on the channel; the task that runs on it takes it up, or abandons it, when it ends."""
    if channel.handover is not None:
        channel.handover.abandon()
    channel.handover = handover
    channel.task_ends = channel.task_ends or (_nothing,)


def at_task_end(channel: DetachableChannel, end: Callable[[], None]) -> None:
    """Call `end` when the task that runs on the channel ends without a detach. In the task's worker thread."""
    channel.task_ends = (*channel.task_ends, end)


def _nothing() -> None:
    """Marks a task that has something to look after."""


def descriptor_of(channel: DetachableChannel) -> tuple[int, bool]:
    """The number of the client's socket, -1 when it is closed; and whether waitress's loop uses `select`."""
    number = channel._fileno
    return -1 if number is None else int(number), not channel.adj.asyncore_use_poll


def url_prefix(environ: Mapping[str, Any]) -> str:
    """The prefix that waitress was told its URLs have; "" where there is none."""
    channel = channel_of(environ)
    return str(channel.adj.url_prefix) if channel is not None else ""


def sent_method(environ: Mapping[str, Any]) -> str:
    """The method that the client sent, whatever became of it since: it decides whether an answer has a body."""
    channel = channel_of(environ)
    return str(channel.requests[0].command if channel is not None else environ["REQUEST_METHOD"])


def request_body(channel: DetachableChannel) -> tuple[IO[bytes], int]:
    """The received request body, from its beginning, and its length: whatever the application has read of it."""
    request = channel.requests[0]
    receiver = request.body_rcv
    return request.get_body_stream(), len(receiver) if receiver is not None else 0


_NOTHING: frozenset[str] = frozenset()


def peer(environ: Mapping[str, Any]) -> tuple[str | None, frozenset[str]]:
    """The connection's other end: its address, before any trusted field replaced it, and what it is trusted with.

    That is the lower-case names of forwarded fields. A Unix socket's end has no address.
    """
    channel: Any = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    if channel is None:
        return environ.get("REMOTE_ADDR"), _NOTHING
    adj, address, trusted = getattr(channel, "adj", None), channel.addr[0], _NOTHING
    if adj is not None and adj.trusted_proxy and adj.trusted_proxy in ("*", address):
        # waitress knows no X-Forwarded-Prefix: a trusted peer is trusted with it.
        trusted = frozenset(adj.trusted_proxy_headers or ()) | {"x-forwarded-prefix"}
    return None if channel.addr[1] is None else str(address), trusted
