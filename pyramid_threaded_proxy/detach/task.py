"""A task of waitress's that can end with a detach, and the parser that knows when not to go on."""

from __future__ import annotations

import socket
from typing import Any, Protocol

from waitress.parser import HTTPRequestParser, get_header_lines
from waitress.task import WSGITask

from pyramid_threaded_proxy.detach.asked_first import Unread, asks_anybody, left_unread
from pyramid_threaded_proxy.detach.late_body import BodyFault, LateBody
from pyramid_threaded_proxy.http.names import Fields


def new_status() -> str:
    """The status that waitress is told for a response that stands for a detach.

    It is recognised by its identity: middleware that answers anew gives another one. A string made at run time is an
    object of its own; a subclass of str would be refused by waitress before 3.0.2.
    """
    return " ".join(("200", "OK"))


class Handover(Protocol):
    """What a response leaves on the channel that it was called for."""

    status: str  # from `new_status`

    def take(self, channel: Any, fields: Fields) -> None:
        """The channel is detached, this is its `channel.DetachedConnection`: relay.

        `fields` are those that waitress was given for the answer.
        """

    def abandon(self) -> None:
        """The task ended otherwise: nothing was detached, and nothing will be sent upstream."""


class Detach(BaseException):
    """Ends waitress's task in place of an answer. A BaseException: waitress's channel catches Exception alone."""

    def __init__(self, handover: Handover, fields: Fields) -> None:
        self.handover = handover
        self.fields = fields


class Answered(BaseException):
    """Ends waitress's task behind an answer on a connection that lasts: stock waitress would wake its loop each time,
    which watches the client already (see `epilogue`). A BaseException as `Detach` is."""


class Parser(HTTPRequestParser):
    """A request that asks for another protocol keeps what comes behind it: those bytes may not be HTTP any more.

    Stock waitress would read them as the next request and run it, even where the upgrade is denied. And one that
    streams its body is complete with its head: what comes behind that is left `unread`. Fed by waitress's main thread.
    """

    asks_upgrade = False
    early = b""
    error: Any = None
    unread: Unread | None = None
    late_body: LateBody | None = None

    def received(self, data: bytes) -> int:
        in_body = self.body_rcv is not None
        taken: int = HTTPRequestParser.received(self, data)
        if not in_body and self.body_rcv is not None and asks_anybody():
            taken = self._begin_body(data, taken)
        if self.asks_upgrade and self.completed and taken < len(data):
            self.early += data[taken:]
            return len(data)
        return taken

    def _begin_body(self, data: bytes, taken: int) -> int:
        """The head is complete, and a body is due: hand the request over now, where that is wanted."""
        early = data[taken:]
        unread = left_unread(self, early)
        if unread is None:
            return taken
        self.expect_continue = False
        if self.error is None and unread.length is not None and len(early) >= unread.length:
            return taken  # there is nothing to wait for
        self.error = None  # its length: who wants none of it does not mind
        self.unread, self.completed = unread, True
        return len(data)

    def parse_header(self, header_plus: bytes) -> None:
        HTTPRequestParser.parse_header(self, header_plus)
        headers = self.headers
        if ", " in headers.get("COOKIE", ""):
            headers["COOKIE"] = _cookies_of(header_plus)
        self.asks_upgrade, self.unread = "UPGRADE" in headers, None
        if self.body_rcv is None:
            # waitress would answer 100 and take the next request for the rest of this one (RFC 9110 10.1.1).
            self.expect_continue = False
        if self.chunked and "CONTENT_LENGTH" in headers:
            # Two lengths: whoever stands in front may have taken the other one (RFC 9112 6.1). Nobody may take it for
            # the body's, which has none before it is read (RFC 9112 6.3).
            self.connection_close = True
            del headers["CONTENT_LENGTH"]


def _cookies_of(head: bytes) -> str:
    """The Cookie fields of a head that waitress took, joined as cookies are (RFC 6265 4.2.1): it joins them by commas,
    which are part of a value then."""
    fields = [line.partition(b":") for line in get_header_lines(head.partition(b"\r\n")[2])]
    values = [value.strip(b" \t").decode("latin-1") for name, _, value in fields if name.lower() == b"cookie"]
    return "; ".join(filter(None, values))


class Task(WSGITask):
    """A task that can end with a detach. Lives in one waitress worker thread."""

    joins = False  # the head is not sent alone

    def service(self) -> None:
        channel = self.channel
        try:
            WSGITask.service(self)
            if self.request.asks_upgrade:
                self.close_on_finish = True
        except Detach:
            channel.handover, channel.task_ends = None, ()
            raise
        except BodyFault as fault:
            self._refuse_body(fault.error)
        finally:
            # Before the channel's epilogue: after it the next request may run in another thread.
            if channel.task_ends:
                _end_task(channel)
        if not self.close_on_finish:
            raise Answered

    def finish(self) -> None:
        handover = self.channel.handover
        if handover is not None and self.status is handover.status and not self.wrote_header:
            if (unread := self.request.unread) is not None and unread.fault is not None:
                raise unread.fault  # somebody has hidden it: a part of the body is gone, and what is left is none
            raise Detach(handover, self.response_headers)
        if self.request.asks_upgrade:
            self.set_close_on_finish()
        WSGITask.finish(self)

    def write(self, data: bytes) -> None:
        """The head waits for the first of the body, and goes out with it (see `small_messages`)."""
        if self.wrote_header or not data:
            WSGITask.write(self, data)
            return
        channel, self.joins = self.channel, True
        try:
            WSGITask.write(self, data)
        finally:
            if head := channel.head:  # nothing was to follow it
                channel.head = b""
                channel.write_soon(head)

    def _refuse_body(self, error: Any) -> None:
        """The request ends as one does whose body waitress would not take."""
        self.close_on_finish = True
        if error is not None and not self.wrote_header:
            self.request.error = error
            self.channel.error_task_class(self.channel, self.request).service()

    def build_response_header(self) -> bytes:
        # Where the body was not read to its end, nobody knows what comes behind it.
        channel = self.channel
        if self.request.unread is not None or (channel.server.trigger.stopping and is_last(channel)):
            self.request.headers["CONNECTION"] = "close"
        head: bytes = WSGITask.build_response_header(self)
        if self.joins:
            channel.head, head = head, b""
        return head


def _end_task(channel: Any) -> None:
    handover, channel.handover = channel.handover, None
    ends, channel.task_ends = channel.task_ends, ()
    if handover is not None:
        handover.abandon()
    for end in ends:
        end()


def is_last(channel: Any) -> bool:
    """Whether the process stops, and the client has sent no request behind the present one."""
    return channel.server.trigger.stopping and len(channel.requests) <= 1 and not _has_sent_more(channel)


def _has_sent_more(channel: Any) -> bool:
    """Whether another request has begun, in waitress or still in the socket."""
    if channel.request is not None:
        return True
    if channel.requests and channel.requests[0].unread is not None:
        return False  # what is in the socket is its body
    try:
        return bool(channel.socket.recv(1, socket.MSG_PEEK))
    except (OSError, ValueError):  # nothing has come, or it was closed meanwhile
        return False
