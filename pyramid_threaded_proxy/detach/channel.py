"""A channel that can be detached, the same one while it is, and the relay's handle on it.

They are one state machine, which is why they stay together. While nothing is detached a channel is waitress's own but
for ``service``, ``readable``, how it receives and sends what is small, the rare ``handle_close`` and ``close``, and
what it does with bytes behind a request that asks for an upgrade: those are kept, and never run. While its exchange is
in the relay, and while it waits there behind one that lasted, its class is `DetachedChannel`, which waitress's main
thread neither reads, writes, times out nor closes.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Callable
from functools import cache, partial
from typing import IO, Any

from waitress.channel import HTTPChannel

from pyramid_threaded_proxy.detach.asked_first import Unread, is_full
from pyramid_threaded_proxy.detach.closing import linger
from pyramid_threaded_proxy.detach.crowd import accept_many
from pyramid_threaded_proxy.detach.epilogue import pop_request, run_epilogue
from pyramid_threaded_proxy.detach.late_body import is_empty, read_late
from pyramid_threaded_proxy.detach.server import WaitressLoop
from pyramid_threaded_proxy.detach.small_messages import SmallMessages
from pyramid_threaded_proxy.detach.tables import settle
from pyramid_threaded_proxy.detach.task import Answered, Detach, Handover, Parser, Task, is_last
from pyramid_threaded_proxy.detach.trigger import make_ours
from pyramid_threaded_proxy.detach.turns import take_turns
from pyramid_threaded_proxy.exceptions import ClientGone
from pyramid_threaded_proxy.http.names import Fields
from pyramid_threaded_proxy.limits.descriptors import SELECT_LIMIT
from pyramid_threaded_proxy.loop import stopping
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.loop import Loop, current_loop

log = logging.getLogger("pyramid_threaded_proxy.detach")

#: Bytes that a client may send behind a request for an upgrade, before that is answered.
MOST_EARLY = 256 * 1024
#: SO_LINGER for a close that resets the connection: the peer can't take what it has for a whole answer.
_RESET = struct.pack("ii", 1, 0)


class DetachableChannel(SmallMessages):
    """A waitress channel that can be detached.

    `handover` and `task_ends` are touched by the one worker thread that runs its task; all else as in waitress.
    """

    will_close: bool
    parser_class = Parser
    task_class = Task
    handover: Handover | None = None
    task_ends: tuple[Callable[[], None], ...] = ()
    unasked = True  # main thread: not in its poll yet; what it hears is of an earlier connection with this number
    spoiled = False  # main thread: bytes came that belong to no request
    unread = False  # main thread: bytes came behind the request in work, and wait
    unwatched = True  # main thread: waitress's loop does not hear of the client's next bytes unless it is woken
    asked_out = False  # under outbuf_lock: it is, or will be, out of waitress's tables
    hung_up = False  # under outbuf_lock: waitress wanted to close the connection while it was detached
    read_elsewhere = False  # other threads have read bodies from the socket: what it was heard of may be gone
    asked: Parser | None = None  # a request whose head was handed over, until another one is run
    ended = False  # its end has been said, or is to be a reset: it does not linger
    claim: Callable[[], None] | None = None  # under outbuf_lock: set while idle and detached; gets it back
    loop_ended = False  # under outbuf_lock: waitress's loop is over and will not close anything any more

    def __init__(self, server: Any, sock: socket.socket, addr: Any, adj: Any, map: Any = None) -> None:
        """Main thread, for a new connection. One that `select` can't take would end waitress's loop: it is closed."""
        HTTPChannel.__init__(self, server, sock, addr, adj, map)
        self.__dict__ = {**_DEFAULTS, **self.__dict__}
        make_ours(server.trigger)
        self.resting = server.trigger.resting
        take_turns(server.task_dispatcher)
        accept_many(server)
        if self._fileno >= SELECT_LIMIT and not adj.asyncore_use_poll:
            self.close()
            _warn_of_select()

    @property
    def state(self) -> str:
        """Who has the connection: ``waitress``, the ``relay``, which may keep it ``idle``, or nobody (``closed``)."""
        return "closed" if self._fileno is None else "waitress"

    def is_detached(self) -> bool:
        """Under outbuf_lock, or it may change at once."""
        return type(self) is DetachedChannel

    def __repr__(self) -> str:
        said = [name for name in _FLAGS if getattr(self, name)]
        return f"<{type(self).__name__} {self.addr} {', '.join([self.state, *said])}>"

    def received(self, data: bytes) -> bool:
        """Main thread. What comes behind a request for an upgrade stays raw, and is never run; nor is what comes on a
        connection that is about to be closed, which waitress 3.0.0 would run."""
        if self.will_close or self.close_when_flushed:
            return False
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
        if self.writable():
            return False
        if not self.requests or not is_full(self):
            self.unread = False
        elif self.unread:
            return False
        self.unwatched = False
        resting = self.resting
        return not (resting.wanted and resting.take(self))

    def rests(self) -> bool:
        """Main thread. Whether it wants nothing but its client's next bytes."""
        return not (self.unread or self.writable())

    def del_channel(self, map: Any = None) -> None:
        """Main thread, before the socket is closed; once the loop is over, whoever closes it."""
        self.resting.drop(self._fileno)
        HTTPChannel.del_channel(self, map)

    def handle_read(self) -> None:
        if self.requests and is_full(self):
            self.unread = True
        elif not self.unasked and not (self.read_elsewhere and is_empty(self.socket)):
            HTTPChannel.handle_read(self)
            trigger = self.server.trigger
            trigger.crowd.one_more(self.server.task_dispatcher)
            if self.request is not None:
                trigger.bodies.take_more(self)

    def service(self) -> None:
        """Run one request in a worker thread."""
        request = self.requests[0]
        self.asked = None
        if request.unread is not None:
            self.asked, self.read_elsewhere = request, True
            read_late(self, request)
        try:
            HTTPChannel.service(self)
        except Answered:
            run_epilogue(self, close=False)
        except Detach as detach:
            self._detach(detach.handover, detach.fields)
        else:
            self.resting.wake(self)

    def _detach(self, handover: Handover, fields: Fields) -> None:
        """Worker thread. Under the lock that `handle_close` needs, so that the socket can't be closed in between."""
        connection = None
        with self.outbuf_lock:
            if self.connected:
                connection = DetachedConnection(self)
                self.__class__ = DetachedChannel
        if connection is not None:
            try:
                handover.take(connection, fields)
            except BaseException:  # no thread or descriptor could be had: nobody else will give it back
                handover.abandon()
                connection.break_off()
                raise
        else:
            handover.abandon()
            run_epilogue(self, close=True)

    def handle_close(self) -> None:
        if self.unasked:
            return
        lingers = self._lingers_in() if self.will_close else None  # not under the lock: it may start the loop
        # The lock: a channel is not closed while it is being detached. It is re-entrant, and rarely taken here.
        with self.outbuf_lock:
            if type(self) is DetachableChannel:
                linger(self, lingers)
                HTTPChannel.handle_close(self)
            else:  # detached while this thread waited for the lock
                self.handle_close()

    def _lingers_in(self) -> Loop | None:
        """Where the connection is read on a little, so that its client can read the answer; None where no need is."""
        if self.server.trigger.stopping:
            loop: Loop | None = self.server.trigger.loop
            return loop
        if self.asked is not None and (unread := self.asked.unread) is not None:
            return unread.application.loop_for_refused()
        return None

    def close(self) -> None:
        with self.outbuf_lock:
            if type(self) is DetachableChannel:
                HTTPChannel.close(self)
            else:
                self.close()


_FLAGS = ("unasked", "spoiled", "unread", "unwatched", "asked_out", "hung_up", "loop_ended")
#: What a channel's attributes begin with. Each channel has them in a dict of its own: CPython reads a default from a
#: class, and any attribute of an object whose class was changed, four times as slowly.
_DEFAULTS = {
    name: value
    for name in dir(DetachableChannel)
    if isinstance(value := getattr(DetachableChannel, name), (bool, int, tuple, bytes, type(None))) and name[:2] != "__"
}


@cache
def _warn_of_select() -> None:
    """Once in a process is enough: there will be many."""
    log.warning(
        "a new connection was closed: select() can't take descriptors from %d on; set waitress's "
        "asyncore_use_poll = true",
        SELECT_LIMIT,
    )


class DetachedChannel(DetachableChannel):
    """A channel whose connection the relay owns: for an exchange, or to wait for the next request behind a long one.

    Waitress's main thread learns that bytes came, and does nothing.
    """

    @property
    def state(self) -> str:
        return "relay" if self.claim is None else "idle"

    def readable(self) -> bool:
        self.unwatched = True
        if self.unread:
            return False
        self.unwatched = False
        resting = self.resting
        return not (resting.wanted and resting.take(self))

    def writable(self) -> bool:
        return False

    def handle_read(self) -> None:
        self.unread = True

    def handle_write(self) -> None:
        """Seen writable in the turn in which it was detached."""

    def handle_close(self) -> None:
        with self.outbuf_lock:
            if type(self) is not DetachedChannel:  # given back while this thread waited for the lock
                return self.handle_close()
            self.hung_up = self.unread = True
            claim = self.claim
        if claim is not None:
            claim()

    def close(self) -> None:
        """Waitress's loop is over, and its server closes all channels."""
        with self.outbuf_lock:
            if type(self) is not DetachedChannel:
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

    __slots__ = ("_behind", "_channel", "_keep_alive", "_request", "endpoint", "minor", "pending", "server_name")

    def __init__(self, channel: DetachableChannel) -> None:
        request = channel.requests[0]
        self._channel = channel
        self._request = request
        self._behind = b""
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
        unread = self._request.unread
        return self._keep_alive and (unread is None or unread.flows) and not is_last(self._channel)

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

    def unread_body(self) -> Unread | None:
        """The request's body, where it was left in the socket."""
        unread: Unread | None = self._request.unread
        return unread

    def received_body(self) -> tuple[IO[bytes], int]:
        """The file that waitress has received the body in, and its length."""
        receiver = self._request.body_rcv
        return receiver.getfile(), len(receiver)

    def body_flows(self, flows: bool) -> None:
        """Whether the request is answered while its body still flows."""
        if (unread := self._request.unread) is not None:
            unread.flows = flows

    def body_ended(self, behind: bytes) -> None:
        """The body was read to its end; what came `behind` it begins the next request, once this one is over."""
        self._request.unread, self._behind = None, behind

    def join_stop(self, relay: stopping.Relaying, lingers: Loop) -> None:
        """When the process is told to stop, it lets the exchanges of `relay` end first."""
        loop = WaitressLoop(self._channel, lingers)
        self._on_main_thread(lambda: stopping.join(loop, relay))

    def on_lasting(self) -> None:
        """Leave waitress's tables: an entry costs its main thread a look each turn."""
        with self._channel.outbuf_lock:
            self._channel.asked_out = True
        self._on_main_thread(partial(settle, self._channel))

    def _on_main_thread(self, thunk: Callable[[], None]) -> None:
        """Never while holding `outbuf_lock`: the trigger runs its thunks under a lock of its own."""
        self._channel.server.trigger.pull_trigger(thunk)

    def return_to_server(self, close: bool) -> None:
        """End the request, and return the connection to waitress: for its next request, or to be closed.

        One that is out of waitress's tables stays so, and detached, until the loop hears of its client's next bytes.
        """
        channel = self._channel
        close = close or self._request.unread is not None
        if close:
            linger(channel, current_loop())
        else:
            if self._behind:
                channel.received(self._behind)  # detached still: waitress itself reads nothing meanwhile
            if channel.asked_out and self._rest():
                return
        with channel.outbuf_lock:
            channel.__class__ = DetachableChannel
            hung_up = channel.hung_up
            channel.hung_up = False
            settles = channel.asked_out or hung_up or channel.will_close
            if channel.loop_ended:
                channel.close()
        run_epilogue(channel, close or hung_up)
        if settles:
            self._on_main_thread(partial(settle, self._channel))

    def _rest(self) -> bool:
        """Have this thread's loop wait for the client's next bytes; whether it does. No more than waitress allows."""
        channel = self._channel
        trigger: Any = channel.server.trigger
        loop = current_loop()
        if trigger.stopping or loop is None or loop.dead:
            return False
        if len(channel._map) + len(trigger.away) >= channel.adj.connection_limit:
            return False
        if channel.hung_up or channel.will_close or channel.loop_ended or not pop_request(channel):
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
        self._on_main_thread(partial(settle, self._channel))

    def break_off(self) -> None:
        """Close the connection with a reset: what the client has is no whole answer."""
        try:
            self.endpoint.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            pass  # gone already
        self._channel.will_close = self._channel.ended = True
        self.return_to_server(close=True)
