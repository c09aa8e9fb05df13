"""What was permitted becomes what is sent: from a Pyramid request and an upstream target to a `ProxyResponse`.

It runs in the thread of the request, after the permission and CSRF are settled, and does no I/O. Faults of the
client's are raised as `RequestRefused`; `http_error` turns them into what the application's exception views render.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from pyramid.httpexceptions import (
    HTTPBadRequest,
    HTTPException,
    HTTPMethodNotAllowed,
    HTTPRequestEntityTooLarge,
)
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy.accesslog import access_log
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.environ import check_message, client_body, given_body, log_values, public_url
from pyramid_threaded_proxy.app.response import ProxyResponse
from pyramid_threaded_proxy.app.routes import RequestPolicy, Route
from pyramid_threaded_proxy.app.upgrade import asked_protocols
from pyramid_threaded_proxy.detach.access import peer, sent_method
from pyramid_threaded_proxy.exceptions import RequestRefused, TargetRefused, ValueRefused
from pyramid_threaded_proxy.exchange import Body, Exchange, UpstreamRequest
from pyramid_threaded_proxy.hooks import RequestHook
from pyramid_threaded_proxy.http.forwarded import forwarded_fields
from pyramid_threaded_proxy.http.head import check_field
from pyramid_threaded_proxy.http.names import CONNECTION_FIELDS, Fields
from pyramid_threaded_proxy.http.target import check_upstream_target
from pyramid_threaded_proxy.relay.prepared import AnswerPolicy, PreparedExchange
from pyramid_threaded_proxy.relay.recheck import Check
from pyramid_threaded_proxy.upstream.balance import UpstreamChoice
from pyramid_threaded_proxy.upstream.connections import split_url
from pyramid_threaded_proxy.upstream.origin import Origin

#: Methods that a server expects a body of, so that its absence must be said (RFC 9110 8.6).
_WITH_BODY = ("POST", "PUT", "PATCH")
#: Methods that make something else of a connection (RFC 9110 9.3.6, 9.3.8).
NEVER = ("CONNECT", "TRACE")


def http_error(error: RequestRefused) -> HTTPException:
    """The HTTP exception that tells the client which rule its request breaks."""
    if error.status == 413:
        return HTTPRequestEntityTooLarge(error.rule)
    return HTTPBadRequest(error.rule)


def choose(route: Route, request: Request) -> UpstreamChoice:
    """The upstream for this request, by its user, or where nobody is logged in by the client's address."""
    balance = route.balancer
    if not balance.by_user:
        return balance.choose("")
    return balance.choose(str(request.authenticated_userid or request.environ.get("REMOTE_ADDR")))


class TemplateValues(dict[str, str | None]):
    """What the templates of `request.set` may name, found out only when one of them does."""

    _MADE: Mapping[str, Callable[[Request, Exchange], str | None]] = {
        "userid": lambda request, exchange: exchange.userid,
        "client_addr": lambda request, exchange: exchange.client_addr,
        "host": lambda request, exchange: request.host,
        "scheme": lambda request, exchange: request.scheme,
        "route": lambda request, exchange: exchange.route,
        "request_id": lambda request, exchange: exchange.request_id,
    }

    def __init__(self, request: Request, exchange: Exchange) -> None:
        super().__init__()
        self._request = request
        self._exchange = exchange

    def __missing__(self, name: str) -> str | None:
        made = self._MADE.get(name)
        if made is not None:
            return made(self._request, self._exchange)
        matched = self._request.matchdict[name]
        return "/".join(matched) if isinstance(matched, tuple) else str(matched)


def forward(
    request: Request,
    engine: Engine,
    route: str,
    origin: Origin,
    target: str,
    sending: RequestPolicy,
    answering: AnswerPolicy,
    mount: str | None,
    prefix: str | None,
    recheck: tuple[float, Check] | None = None,
    permit: Callable[[Origin], Origin] | None = None,
    choice: UpstreamChoice | None = None,
    methods: frozenset[str] | None = None,
) -> Response:
    """Forward the client's request to `target` at `origin`; returns what a `request` hook returns, if it does.

    `mount` is the public path of the upstream's base (None: nothing is rewritten), `prefix` that of X-Forwarded-Prefix.
    `choice` says which of a route's upstreams `origin` is, where it is one; `methods` are those that it allows.
    """
    environ = request.environ
    _check_method(methods, environ["REQUEST_METHOD"])
    check_message(environ)
    body = client_body(environ, sending.max_body)
    fields = _own_fields(request, origin, sending, prefix)
    sent = UpstreamRequest(environ["REQUEST_METHOD"], str(origin), target, fields, body)
    exchange = new_exchange(request, engine, route, sent)
    if sending.rules:
        sent.fields = sending.rules.apply(sent.fields, TemplateValues(request, exchange))
    upgrade = asked_protocols(request, sending, body)
    if choice is not None and choice.target_of is not None:
        choice.keep_host = sending.preserve_host
    return finish(
        request,
        engine,
        exchange,
        origin,
        answering,
        mount,
        sending.preserve_host,
        upgrade=upgrade,
        recheck=recheck,
        permit=permit,
        choice=choice,
    )


def _check_method(allowed: frozenset[str] | None, method: str) -> None:
    """After authorization: what a route allows is nobody's business who may not use it."""
    if method in NEVER or (allowed is not None and method not in allowed):
        known = allowed or {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
        raise HTTPMethodNotAllowed(headers={"Allow": ", ".join(sorted(known))})


def _own_fields(request: Request, origin: Origin, sending: RequestPolicy, prefix: str | None) -> Fields:
    """The client's fields that may go up, Host first, and what we say of the client ourselves."""
    environ = request.environ
    client_host = environ.get("HTTP_HOST")
    host = client_host if sending.preserve_host and client_host else origin.authority
    fields = [("Host", host), *sending.request_fields.select(environ)]
    if sending.via:
        fields.append(("Via", sending.via))
    if sending.forwarded != "none":
        address, trusted = peer(environ)
        fields += forwarded_fields(
            sending.forwarded,
            peer=address,
            host=client_host or request.host,
            scheme=environ["wsgi.url_scheme"],
            mount=prefix,
            trusted=trusted,
            environ=environ,
        )
    return fields


def new_exchange(request: Request, engine: Engine, route: str, sent: UpstreamRequest) -> Exchange:
    """The exchange for a request, of whoever the security policy says is asking."""
    environ, userid = request.environ, request.authenticated_userid
    exchange = Exchange(
        route, sent, None if userid is None else str(userid), environ.get("REMOTE_ADDR"), engine.registry
    )
    if access_log.isEnabledFor(logging.INFO):
        exchange.log_values = log_values(environ)
    return exchange


def finish(
    request: Request,
    engine: Engine,
    exchange: Exchange,
    origin: Origin,
    answering: AnswerPolicy,
    mount: str | None,
    preserve_host: bool,
    *,
    upgrade: tuple[str, ...] = (),
    recheck: tuple[float, Check] | None = None,
    permit: Callable[[Origin], Origin] | None = None,
    choice: UpstreamChoice | None = None,
) -> Response:
    """Run the `request` hook, settle the framing, and say what to fetch.

    `permit` judges an origin that the hook has set, and may pin its address.
    """
    hook = answering.hooks.request
    if hook is not None:
        given = exchange.request.body
        try:
            instead = _run_request_hook(hook, request, exchange)
            if instead is None:
                if exchange.request.changed_url is not None:
                    choice = None  # whatever it says now, this was the hook's choice
                changed = _after_hook(exchange.request, origin, preserve_host)
                if changed != origin:
                    origin = changed if permit is None else permit(changed)
        except BaseException:
            _close_unsent(given)
            raise
        if instead is not None:
            _close_unsent(given)
            return instead
    exchange.request.fields += framing_fields(exchange.request.method, exchange.request.body)
    if upgrade:
        exchange.request.fields += [("Connection", "Upgrade"), ("Upgrade", ", ".join(upgrade))]
    return ProxyResponse(
        engine,
        PreparedExchange(
            exchange,
            origin,
            answering,
            head_only=sent_method(request.environ) == "HEAD",
            accept=request.environ.get("HTTP_ACCEPT", ""),
            public_url=public_url(request),
            mount=mount,
            upgrade=upgrade,
            recheck=recheck,
            choice=choice,
        ),
    )


def _close_unsent(body: Body | None) -> None:
    """There will be no exchange to close what the view gave."""
    if body is not None:
        body.close()


def _run_request_hook(hook: RequestHook, request: Request, exchange: Exchange) -> Response | None:
    answer = hook(request, exchange)
    if answer is not None and not isinstance(answer, Response):
        kind = type(answer).__name__
        raise TypeError(f"the request hook of {exchange.route} returned {kind}, not a response or None")
    return answer


def _after_hook(sent: UpstreamRequest, origin: Origin, preserve_host: bool) -> Origin:
    """Hold what a hook changed to the rules that everything sent is held to. Raises `ValueRefused`."""
    sent.body = given_body(sent.body)
    target = sent.target
    if sent.changed_url is not None:
        changed, target = split_url(sent.changed_url)
        target = target if target.startswith("/") else "/" + target
        try:
            check_upstream_target(target)
        except TargetRefused as error:
            raise ValueRefused(f"a request hook set a url that can't be sent: {error.rule}") from None
        if changed == origin._replace(address=None):
            changed = origin
        elif not preserve_host:
            sent.headers["Host"] = changed.authority
        origin = changed
    fields = [field for field in sent.final_fields() if field[0].lower() not in CONNECTION_FIELDS]
    for name, value in [(sent.method, ""), *fields]:
        check_field(name, value)
    if sent.method in NEVER:
        raise ValueRefused(f"a request hook set the method {sent.method}, which is never sent")
    sent.settle(str(origin), target, fields)
    return origin


def framing_fields(method: str, body: Body | None) -> Fields:
    """The framing of the request, made from what we hold and never copied (RFC 9112 6)."""
    if body is None:
        return [("Content-Length", "0")] if method in _WITH_BODY else []
    if body.length is None:
        return [("Transfer-Encoding", "chunked")]
    return [("Content-Length", str(body.length))]
