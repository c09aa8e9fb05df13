"""Fetches: a `ProxyResponse` says what to fetch, and becomes an exchange only when the server calls it.

``request.proxy_fetch`` sends a new request, ``request.proxy_forward`` the client's own, as a declared route does.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from pyramid.httpexceptions import HTTPException, HTTPServiceUnavailable, HTTPTooManyRequests
from pyramid.response import Response

from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.detach.access import at_task_end, channel_of, descriptor_of, offer
from pyramid_threaded_proxy.detach.channel import DetachableChannel, DetachedConnection
from pyramid_threaded_proxy.detach.task import new_status
from pyramid_threaded_proxy.events import ExchangeStarted
from pyramid_threaded_proxy.exceptions import (
    DescriptorsExhausted,
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
#: Where the environ refers to the slot that its request was given.
SLOT = "pyramid_threaded_proxy.place"


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

    def __init__(self, engine: Engine, prepared: PreparedExchange) -> None:
        self.__dict__ = _BLANK.copy()
        self.headerlist: Fields = []  # its own: the one thing of these that changes in place
        self._engine = engine
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
        """Take a slot for the exchange, or the one that an earlier try of this request has. Raises `TooManyExchanges`,
        and `UpstreamsResting` where nobody can be asked.

        It is given back when the task ends without a detach, or with the last response that has it. A response that
        was admitted already, by the tween of a subrequest, keeps its slot.
        """
        prepared = self._pending()
        if prepared.choice is not None and prepared.choice.resting:
            raise UpstreamsResting(prepared.exchange.route, prepared.choice.balancer.retry_after())
        known = environ.get(SLOT)
        earlier = known() if known is not None else None
        slot = prepared.slot or earlier
        channel = channel_of(environ)
        if slot is None or not slot.held:
            exchange = prepared.exchange
            try:
                if channel is not None:
                    self._check_descriptors(channel)
                slot = self._engine.admission.admit(exchange.route, exchange.userid, prepared.policy.limits)
            except TooManyExchanges as error:
                self._engine.limit_log.reached(error)
                raise
        if slot is not earlier:
            environ[SLOT] = weakref.ref(slot)  # weak: an environ is often part of a cycle, and so dies late
            if channel is not None:
                at_task_end(channel, slot.release)
        is_new, prepared.slot = prepared.slot is None, slot
        registry = self._engine.registry
        if is_new and registry.has_listeners:
            registry.notify(ExchangeStarted(prepared.exchange))

    def _check_descriptors(self, channel: DetachableChannel) -> None:
        """The client's own socket tells how many are open."""
        number, with_select = descriptor_of(channel)
        if with_select:
            self._engine.descriptors.with_select()
        try:
            self._engine.descriptors.check(number)
        except DescriptorsExhausted as error:
            raise TooManyExchanges("open files") from error

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
        channel = channel_of(environ)
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


def unavailable(error: TooManyExchanges | UpstreamsResting) -> HTTPException:
    """The HTTP exception for an exchange that was not admitted."""
    kind = HTTPTooManyRequests if error.status == 429 else HTTPServiceUnavailable
    resting = isinstance(error, UpstreamsResting)
    what = "The server behind this page does not answer." if resting else "Too many requests are in progress."
    return kind(f"{what} Please try again later.", headers={"Retry-After": str(error.retry_after)})


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
        if self._prepared.slot is not None:
            self._prepared.slot.release()
