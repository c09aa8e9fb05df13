"""Fetches: a `ProxyResponse` says what to fetch, and becomes an exchange only when the server calls it.

``request.proxy_fetch`` sends a new request, ``request.proxy_forward`` the client's own, as a declared route does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from pyramid.response import Response

from pyramid_threaded_proxy.app.admit import SLOT, admit, unavailable
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.environ import ClientRequest
from pyramid_threaded_proxy.detach.access import channel_of, offer
from pyramid_threaded_proxy.detach.channel import DetachableChannel, DetachedConnection
from pyramid_threaded_proxy.detach.task import new_status
from pyramid_threaded_proxy.exceptions import (
    ProxyResponseError,
    TooManyExchanges,
    UpstreamsResting,
    ValueRefused,
)
from pyramid_threaded_proxy.http.head import check_field
from pyramid_threaded_proxy.http.names import CONNECTION_FIELDS, Fields
from pyramid_threaded_proxy.relay.prepared import PreparedExchange

log = logging.getLogger("pyramid_threaded_proxy.response")

#: What a response without fields and body consists of: WebOb takes long to come to the same again and again.
_BLANK = dict(vars(Response(headerlist=[], app_iter=())))


def _no_body(self: Any, *_: Any) -> NoReturn:
    raise ProxyResponseError(
        "a ProxyResponse has no body yet: it says what to fetch. Change the answer with a `response` or `headers` hook."
    )


def _fixed_status(self: Any, *_: Any) -> NoReturn:
    raise ProxyResponseError(
        "a ProxyResponse has no status yet: it reads as 200 until its upstream is asked. Change the answer's status "
        "with a `headers` hook."
    )


class ProxyResponse(Response):
    """What to fetch, not the fetched thing.

    It has no fields of its own and reads as 200. Fields that tweens, callbacks and middleware add are put on the
    answer that the client gets; framing fields among them are ignored. Its body can't be read or set, its status not
    set: `ProxyResponseError`. Used in the thread that runs the request.
    """

    def __init__(self, engine: Engine, prepared: PreparedExchange, client: ClientRequest) -> None:
        self.__dict__ = _BLANK.copy()
        self.headerlist: Fields = []  # its own: the one thing of these that changes in place
        self._engine = engine
        self._client = client
        self._prepared: PreparedExchange | None = prepared
        self.proxy_exchange = prepared.exchange

    body = text = json = json_body = ubody = unicode_body = body_file = property(_no_body, _no_body, _no_body)
    app_iter = property(_no_body, _no_body, _no_body)
    copy = write = encode_content = decode_content = md5_etag = _no_body
    status = property(lambda self: self._status, _fixed_status)
    status_code = status_int = property(lambda self: 200, _fixed_status)

    def __repr__(self) -> str:
        return f"<ProxyResponse {self.proxy_exchange!r}>"

    def admit(self, environ: dict[str, Any]) -> None:
        """Take a slot for the exchange, unless it has one. Raises `TooManyExchanges`, and `UpstreamsResting`."""
        admit(self._engine, self._pending(), environ, self._channel_of(environ))

    def _channel_of(self, environ: dict[str, Any]) -> DetachableChannel | None:
        """The live channel; the request's own is known. Middleware may call the response with another environ."""
        return self._client.channel if environ is self._client.environ else channel_of(environ)

    def _pending(self) -> PreparedExchange:
        if self._prepared is None:
            raise ProxyResponseError("a ProxyResponse can be called once: its exchange is under way already")
        return self._prepared

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        prepared = self._pending()
        fields = self.headerlist
        if fields:
            fields = [field for field in fields if field[0].lower() not in CONNECTION_FIELDS]
            for name, value in fields:
                check_field(name, value)
        if prepared.slot is None:
            try:
                self.admit(environ)
            except (TooManyExchanges, UpstreamsResting) as error:
                return unavailable(error)(environ, start_response)  # type: ignore[no-any-return]
        self._prepared = None
        environ.pop(SLOT, None)  # it is this exchange's: middleware may call the application again
        channel = self._channel_of(environ)
        if channel is None:
            prepared.application_fields = fields
            return self._engine.stream(prepared).start(start_response)
        handover = _Handover(self._engine, prepared)
        offer(channel, handover)
        start_response(handover.status, fields)
        return ()


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
        if fields:
            self._prepared.application_fields = [field for field in fields if _can_be_sent(field)]
        self._engine.relay(self._prepared, channel)

    def abandon(self) -> None:
        """Something else answered, or the client left: nothing goes upstream."""
        body = self._prepared.exchange.request.body
        if body is not None:
            body.close()
        self._prepared.release()
