"""Fetches: a `ProxyResponse` says what to fetch, and becomes an exchange only when the server calls it.

``request.proxy_fetch`` sends a new request, ``request.proxy_forward`` the client's own, as a declared route does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from pyramid.response import Response
from webob.response import ResponseBodyFile

from pyramid_threaded_proxy.app.admit import SLOT, admit, unavailable
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.environ import ClientRequest
from pyramid_threaded_proxy.app.refusals import note_refusal, reason_of
from pyramid_threaded_proxy.app.sent_body import settle_body
from pyramid_threaded_proxy.app.tracing import begin_span, end_span
from pyramid_threaded_proxy.detach.access import channel_of, offer
from pyramid_threaded_proxy.detach.channel import DetachableChannel, DetachedConnection
from pyramid_threaded_proxy.detach.task import new_status
from pyramid_threaded_proxy.exceptions import (
    ProxyResponseError,
    TooManyExchanges,
    UpstreamsResting,
    ValueRefused,
)
from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.http.head import check_field
from pyramid_threaded_proxy.http.names import CONNECTION_FIELDS, Fields
from pyramid_threaded_proxy.relay.prepared import PreparedExchange

log = logging.getLogger("pyramid_threaded_proxy.response")

#: What a response without fields and body consists of: WebOb takes long to come to the same again and again.
_BLANK = dict(vars(Response(headerlist=[], app_iter=())))


_NO_BODY = (
    "a ProxyResponse has no body yet: it says what to fetch. Change the answer with a `response` or `headers` hook."
)
_NO_STATUS = (
    "a ProxyResponse has no status yet: it reads as 200 until its upstream is asked. Change the answer's status "
    "with a `headers` hook."
)


def _refuse_body(self: ProxyResponse, *_: Any) -> None:
    self._refuse(_NO_BODY)


def _refuse_status(self: ProxyResponse, *_: Any) -> None:
    self._refuse(_NO_STATUS)


def _refuse_copy(self: ProxyResponse) -> NoReturn:
    """It would be the same exchange twice; and there is nothing to go on with."""
    raise ProxyResponseError(_NO_BODY)


def _nothing(self: ProxyResponse, *_: Any, **__: Any) -> None:
    """What asks for an ETag, or for compression, changes nothing: the bytes are not here."""
    self._read()


def _empty(value: Any) -> property:
    """A body in one of its forms: empty to who reads it, and an error to who sets it to something else.

    Software that changes bodies writes back what it has read, changed or not (pyramid_debugtoolbar).
    """

    def read(self: ProxyResponse) -> Any:
        self._read()
        return value

    def write(self: ProxyResponse, new: Any) -> None:
        if not self._was_read or new != value:
            _refuse_body(self)

    return property(read, write, _refuse_body)


def _read_iterable(self: ProxyResponse) -> list[bytes]:
    self._read()
    return []


def _read_file(self: ProxyResponse) -> ResponseBodyFile:
    """WebOb's is for writing alone, and so is an error as soon as it is used."""
    return ResponseBodyFile(self)


class ProxyResponse(Response):
    """What to fetch, not the fetched thing.

    It has no fields of its own and reads as 200 with an empty body; the log says once where it was read. Fields that
    tweens, callbacks and middleware add are put on the answer that the client gets; framing fields among them are
    ignored. Setting its body or status would lie to the client: `ProxyResponseError`, which the application's exception
    views see wherever it was done. Used in the thread that runs the request.
    """

    #: Whether its body was read, and so may be written back.
    _was_read = False
    #: Whether it has passed our tween, and with that the exception views.
    _passed = False
    #: What somebody did wrong behind the exception views.
    _fault: ProxyResponseError | None = None

    def __init__(self, engine: Engine, prepared: PreparedExchange, client: ClientRequest) -> None:
        self.__dict__ = _BLANK.copy()
        self.headerlist: Fields = []  # its own: the one thing of these that changes in place
        self._engine = engine
        self._client = client
        self._prepared: PreparedExchange | None = prepared
        #: What its call will begin; its `request` and `state` may be looked at.
        self.proxy_exchange: Exchange = prepared.exchange

    body = _empty(b"")
    text = ubody = unicode_body = _empty("")
    json = json_body = _empty(None)
    app_iter = property(_read_iterable, _refuse_body, _refuse_body)
    body_file = property(_read_file, _refuse_body, _refuse_body)
    write = _refuse_body
    copy = _refuse_copy
    encode_content = decode_content = md5_etag = _nothing
    status = property(lambda self: self._status, _refuse_status)
    status_code = status_int = property(lambda self: 200, _refuse_status)

    def _read(self) -> None:
        self._was_read = True
        self._engine.misuse_log.read(self.proxy_exchange)

    def _refuse(self, why: str) -> None:
        """Raise, where an exception view sees it; behind these, in a subscriber or callback, when it is called."""
        self._engine.misuse_log.written(self.proxy_exchange)
        error = ProxyResponseError(why)
        if not self._passed:
            raise error
        self._fault = error

    def __repr__(self) -> str:
        return f"<ProxyResponse {self.proxy_exchange!r}>"

    def admit(self, environ: dict[str, Any]) -> None:
        """Take a slot for the exchange, unless it has one. Raises `TooManyExchanges`, and `UpstreamsResting`."""
        admit(self._engine, self._pending(), environ, self._channel_of(environ))
        self._passed = True

    def _channel_of(self, environ: dict[str, Any]) -> DetachableChannel | None:
        """The live channel; the request's own is known. Middleware may call the response with another environ."""
        return self._client.channel if environ is self._client.environ else channel_of(environ)

    @property
    def prepared(self) -> PreparedExchange:
        """What would be sent. Raises `ProxyResponseError` once it is."""
        return self._pending()

    def _pending(self) -> PreparedExchange:
        if self._prepared is None:
            raise ProxyResponseError("a ProxyResponse can be called once: its exchange is under way already")
        return self._prepared

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        prepared = self._pending()
        try:
            fields = self._checked_fields()
        except (ProxyResponseError, ValueRefused):
            prepared.exchange.request.close_body()
            # Nobody above us asks the exception views any more.
            instead = self._client.request.invoke_exception_view(reraise=True)
            return instead(environ, start_response)  # type: ignore[no-any-return]
        if prepared.slot is None:
            try:
                self.admit(environ)
            except (TooManyExchanges, UpstreamsResting) as error:
                refusal = unavailable(error)
                note_refusal(self._client.request, prepared.exchange.route, reason_of(error))
                if header := prepared.policy.request_id_header:
                    refusal.headers[header] = prepared.exchange.request_id
                return refusal(environ, start_response)  # type: ignore[no-any-return]
        self._prepared = None
        environ.pop(SLOT, None)  # it is this exchange's: middleware may call the application again
        if prepared.span_parent is not None:
            begin_span(prepared.exchange, prepared.span_parent)
        channel = self._channel_of(environ)
        if channel is None:
            prepared.application_fields = fields
            return self._engine.stream(prepared).start(start_response)
        handover = _Handover(self._engine, prepared)
        offer(channel, handover)
        start_response(handover.status, fields)
        return ()

    def _checked_fields(self) -> Fields:
        """The fields that the application has put on it. Raises `ValueRefused`, and what was done wrong before."""
        if self._fault is not None:
            raise self._fault
        fields = self.headerlist
        if fields:
            fields = [field for field in fields if field[0].lower() not in CONNECTION_FIELDS]
            for name, value in fields:
                check_field(name, value)
        return fields


def _can_be_sent(field: tuple[str, str]) -> bool:
    """Whether a field that middleware added can be written; it is too late to raise anything."""
    try:
        check_field(*field)
    except ValueRefused as error:
        log.error("a field on the answer is left out: %s", error)
        return False
    return True


class _Handover:
    """What a response leaves on waitress's channel (`detach.Handover`). In the worker thread."""

    def __init__(self, engine: Engine, prepared: PreparedExchange) -> None:
        self._engine = engine
        self._prepared = prepared
        self.status = new_status()

    def take(self, channel: DetachedConnection, fields: Fields) -> None:
        request = self._prepared.exchange.request
        if request.body is not None and request.body.streams:
            settle_body(request, request.body, channel)
        if fields:
            self._prepared.application_fields = [field for field in fields if _can_be_sent(field)]
        self._engine.relay(self._prepared, channel)

    def abandon(self) -> None:
        """Something else answered, or the client left: nothing goes upstream."""
        self._prepared.exchange.request.close_body()
        end_span(self._prepared.exchange)
        self._prepared.release()
