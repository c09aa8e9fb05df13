"""The values of one exchange, as hooks, events and the access log see them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from webob.headers import ResponseHeaders

from pyramid_threaded_proxy.exceptions import ValueRefused
from pyramid_threaded_proxy.http.names import Fields

#: Ids that were made and not given out yet: one call of the system's for many. Appending and taking are single steps.
_fresh_ids: list[str] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_ids.clear)  # a child's ids are its own


def new_request_id() -> str:
    """32 hexadecimal digits that nobody can guess. Any thread."""
    try:
        return _fresh_ids.pop()
    except IndexError:
        digits = os.urandom(16 * 64).hex()
        _fresh_ids.extend(digits[start : start + 32] for start in range(32, len(digits), 32))
        return digits[:32]


class Body:
    """A request body to be sent upstream; `repeatable` tells whether it can be sent twice.

    Exactly one of the sources is set: `data`, `file` (with `length` bytes from its beginning), or `chunks`, which
    is read in a pool thread and sent chunked; or it `streams`, and then comes from the client's socket. What a view or
    hook gave is `owned`, and closed on every path.
    """

    __slots__ = ("begun", "chunks", "data", "ended", "file", "length", "limit", "owned", "start", "streams", "unread")

    def __init__(
        self,
        data: bytes | None = None,
        file: IO[bytes] | None = None,
        chunks: Iterator[bytes] | None = None,
        length: int | None = None,
        start: int | None = None,
        owned: bool = False,
    ) -> None:
        self.data = data
        self.file = file
        self.chunks = chunks
        self.length = len(data) if data is not None else length
        self.owned = owned
        self.start = start  # where the file's body begins; None: it can't be read twice
        self.unread = length or 0  # bytes of the file that were not read yet, while it is sent in blocks
        self.streams = False
        self.limit: int | None = None  # bytes that one which streams may have; None stands for any number
        self.begun = False  # of one that streams: bytes were taken that nobody has any more
        self.ended = False  # the same: all of it was taken

    @classmethod
    def of_client(cls, length: int | None, limit: int) -> Body:
        """The client's own body, which waits in its socket; `length` is None for a chunked one."""
        made = cls(length=length)
        made.streams, made.limit = True, limit
        return made

    @property
    def repeatable(self) -> bool:
        """Whether the body can be sent a second time."""
        if self.streams:
            return not self.begun
        return self.data is not None or (self.file is not None and self.start is not None)

    def close(self) -> None:
        """Close what a view or hook gave; the client's own body is the server's. May run code of the application's."""
        close = getattr(self.chunks if self.file is None else self.file, "close", None)
        if self.owned and close is not None:
            close()


class UpstreamRequest:
    """What is asked of the upstream. A `request` hook may change `method`, `url`, `headers` and `body`."""

    __slots__ = ("_headers", "_url", "body", "fields", "method", "origin", "target")

    def __init__(self, method: str, origin: str, target: str, fields: Fields, body: Body | None) -> None:
        #: In upper case. A `request` hook may change it.
        self.method = method
        self.origin = origin  # "http://host:port", as the pools know it
        self.target = target
        self.fields = fields
        #: A `request` hook may set bytes, a file or an iterable of bytes; None stands for no body.
        self.body = body
        self._headers: ResponseHeaders | None = None
        self._url: str | None = None

    @property
    def url(self) -> str:
        """The upstream's URL. Setting one that points elsewhere sends the exchange there."""
        return self._url if self._url is not None else self.origin + self.target

    @url.setter
    def url(self, value: str) -> None:
        self._url = value

    @property
    def changed_url(self) -> str | None:
        """The URL that a hook has set, if one has."""
        return self._url

    def close_body(self) -> None:
        """Close what a view or hook gave to be sent: it will not be. May run code of the application's."""
        if self.body is not None:
            self.body.close()

    def settle(self, origin: str, target: str, fields: Fields) -> None:
        """The hook is done: this is what is sent."""
        self.origin, self.target, self.fields = origin, target, fields
        self._url = self._headers = None

    @property
    def headers(self) -> ResponseHeaders:
        """The fields, as WebOb's case-insensitive multi-dict; changes count until the request is sent."""
        if self._headers is None:
            self._headers = ResponseHeaders.view_list(self.fields)
        return self._headers

    def final_fields(self) -> Fields:
        """The fields as they stand now, whoever changed them."""
        return self.fields if self._headers is None else list(self._headers.items())


class UpstreamAnswer:
    """The answer's head, as it will reach the client. Hooks may change `status` and `headers`."""

    __slots__ = ("_headers", "_status", "fields", "reader", "reason")

    def __init__(self, status: int, reason: str, fields: Fields) -> None:
        self._status = status
        self.reason = reason
        self.fields = fields
        self._headers: ResponseHeaders | None = None
        #: Who reads the body, while the `response` hook runs.
        self.reader: Callable[[int], bytes | None] | None = None

    def read(self, limit: int) -> bytes | None:
        """The whole body, its content coding undone; None where it is longer than `limit` bytes. Waits for it.

        For the `response` hook alone, while it runs, in its thread. What was read goes on to the client as it came,
        unless the hook answers instead. Raises `RuntimeError` elsewhere, and what ends the exchange: `ReadTimedOut`,
        `UpstreamGone`, or `AnswerRefused` for a coding that can't be undone.
        """
        if self.reader is None:
            raise RuntimeError("exchange.response.read() is for the `response` hook alone, while it runs")
        return self.reader(limit)

    @property
    def status(self) -> int:
        """The status code. Setting another one takes its usual reason phrase along."""
        return self._status

    @status.setter
    def status(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 200 <= value <= 599:
            raise ValueRefused(f"exchange.response.status must be an integer from 200 to 599, not {value!r}")
        if value != self._status:
            self._status = value
            self.reason = ""

    @property
    def headers(self) -> ResponseHeaders:
        """The fields, as WebOb's case-insensitive multi-dict."""
        if self._headers is None:
            self._headers = ResponseHeaders.view_list(self.fields)
        return self._headers

    def final_fields(self) -> Fields:
        """The fields as they stand now, whoever changed them."""
        return self.fields if self._headers is None else list(self._headers.items())


class Stats:
    """What an exchange moved and when. Times are `time.monotonic()`, None for a stage that was not reached."""

    __slots__ = (
        "attempts",
        "authorized",
        "bytes_down",
        "bytes_up",
        "connected",
        "finished",
        "first_byte",
        "started",
        "upstream",
    )

    def __init__(self) -> None:
        #: When it was made, by the view.
        self.started: float = time.monotonic()
        #: When there was a connection to the upstream.
        self.connected: float | None = None
        #: When the head of the final answer was read.
        self.first_byte: float | None = None
        #: When it ended, well or not.
        self.finished: float | None = None
        #: Seconds from the request read to its exchange admitted; None where nobody counts, or the server is another.
        self.authorized: float | None = None
        #: How often an upstream was tried.
        self.attempts = 0
        #: The one that was tried last, as ``http://host:port``.
        self.upstream = ""
        #: Body bytes sent upstream.
        self.bytes_up = 0
        #: Body bytes written to the client.
        self.bytes_down = 0


class Exchange:
    """One client request and its response, from the moment Pyramid has authorized it.

    Made in the thread that called the view, and handed to the relay with the detach; from then on only the relay,
    or the one pool thread that runs a hook for it, touches it.
    """

    __slots__ = (
        "_request_id",
        "client_addr",
        "error",
        "log_values",
        "registry",
        "request",
        "response",
        "route",
        "span",
        "state",
        "stats",
        "userid",
    )

    def __init__(
        self,
        route: str,
        request: UpstreamRequest,
        userid: str | None,
        client_addr: str | None,
        registry: Any,
        request_id: str | None = None,
    ) -> None:
        #: The name of the proxied route, or of the fetch.
        self.route = route
        #: What is sent upstream.
        self.request = request
        #: What came back, as the client will get it; None until the upstream's head is there.
        self.response: UpstreamAnswer | None = None
        #: The exception that ended it early.
        self.error: Exception | None = None
        #: Who is logged in, as the security policy says; None for nobody.
        self.userid = userid
        #: The client's address, as waitress trusts it.
        self.client_addr = client_addr
        #: The application's registry.
        self.registry = registry
        #: The application's own: whatever its hooks want to remember.
        self.state: dict[str, Any] = {}
        #: What was moved, and when.
        self.stats = Stats()
        #: Method, path without query, protocol, referer without query and user agent: for the access log.
        self.log_values: tuple[str, str, str, str, str] = ("-", "-", "-", "-", "-")
        #: OpenTelemetry's span of it, where the request has one.
        self.span: Any = None
        self._request_id = request_id

    @property
    def request_id(self) -> str:
        """32 hexadecimal digits, made by us; or what a trusted peer has called this request."""
        if self._request_id is None:
            self._request_id = new_request_id()
        return self._request_id

    @property
    def stage(self) -> str:
        """How far it is: ``admitted``, ``asking`` its upstream, ``answering`` its client or ``switched``, ``ended``."""
        stats = self.stats
        if stats.finished is not None:
            return "ended"
        if stats.first_byte is None:
            return "asking" if stats.attempts else "admitted"
        return "switched" if self.response is not None and self.response.status == 101 else "answering"

    def __repr__(self) -> str:
        status = self.response.status if self.response is not None else None
        return f"<Exchange {self.route} {self.request.method} {self.request.origin} status={status} {self.stage}>"
