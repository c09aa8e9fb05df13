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
from pyramid_threaded_proxy.app.declared import ENGINE
from pyramid_threaded_proxy.app.environ import (
    ClientRequest,
    given_body,
)
from pyramid_threaded_proxy.app.refusals import note_refusal
from pyramid_threaded_proxy.app.response import ProxyResponse
from pyramid_threaded_proxy.app.routes import RequestPolicy, Rules
from pyramid_threaded_proxy.app.upgrade import asked_protocols
from pyramid_threaded_proxy.detach.access import peer
from pyramid_threaded_proxy.exceptions import RequestRefused, TargetRefused, ValueRefused
from pyramid_threaded_proxy.exchange import Body, Exchange, UpstreamRequest
from pyramid_threaded_proxy.hooks import RequestHook
from pyramid_threaded_proxy.http.forwarded import forwarded_fields
from pyramid_threaded_proxy.http.head import check_field
from pyramid_threaded_proxy.http.names import CONNECTION_FIELDS, Fields
from pyramid_threaded_proxy.http.target import check_upstream_target
from pyramid_threaded_proxy.relay.destination import Destination
from pyramid_threaded_proxy.relay.prepared import PreparedExchange, Public, Recheck
from pyramid_threaded_proxy.upstream.balance import Balancer
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


def balancing_user(balancer: Balancer, client: ClientRequest) -> str:
    """Who counts for the choice among upstreams: the user, or where nobody is logged in the client's address."""
    if len(balancer.upstreams) == 1:
        return ""
    return str(client.request.authenticated_userid or client.environ.get("REMOTE_ADDR"))


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


def prepare(
    client: ClientRequest, rules: Rules, destination: Destination, public: Public, recheck: Recheck | None = None
) -> Response:
    """Say how the client's own request goes to `destination`; returns what a `request` hook returns, if it does.

    Raises `RequestRefused` for what is wrong with the request, HTTP 403 and 405, and whatever the hook raises.
    """
    environ, sending = client.environ, rules.request
    _check_method(client, rules)
    client.check_message()
    body = client.body(sending.settings.max_body)
    fields = _own_fields(client, destination.origin, sending, public.prefix)
    sent = UpstreamRequest(environ["REQUEST_METHOD"], str(destination.origin), destination.target, fields, body)
    exchange = new_exchange(client, rules, sent)
    if sending.request_id_header:
        fields.append((sending.request_id_header, exchange.request_id))
    if sending.rules:
        sent.fields = sending.rules.apply(sent.fields, TemplateValues(client.request, exchange))
    upgrade = asked_protocols(client, sending, body)
    return finish(client, exchange, rules, destination, public, recheck, upgrade)


def _check_method(client: ClientRequest, rules: Rules) -> None:
    """After authorization: what a route allows is nobody's business who may not use it."""
    allowed, method = rules.methods, client.environ["REQUEST_METHOD"]
    if method in NEVER or (allowed is not None and method not in allowed):
        note_refusal(client.request, rules.name, "method")
        known = allowed or {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
        raise HTTPMethodNotAllowed(headers={"Allow": ", ".join(sorted(known))})


def _own_fields(client: ClientRequest, origin: Origin, sending: RequestPolicy, prefix: str | None) -> Fields:
    """The client's fields that may go up, Host first, and what we say of the client ourselves."""
    environ, settings = client.environ, sending.settings
    client_host = environ.get("HTTP_HOST")
    host = client_host if settings.preserve_host and client_host else origin.authority
    fields = [("Host", host), *sending.fields.select(environ)]
    if sending.via:
        fields.append(("Via", sending.via))
    if settings.forwarded != "none":
        address, trusted = peer(environ)
        fields += forwarded_fields(
            settings.forwarded,
            peer=address,
            host=client_host or client.request.host,
            scheme=environ["wsgi.url_scheme"],
            mount=prefix,
            trusted=trusted,
            environ=environ,
        )
    return fields


def new_exchange(client: ClientRequest, rules: Rules, sent: UpstreamRequest) -> Exchange:
    """The exchange for a request, of whoever the security policy says is asking."""
    request = client.request
    userid = request.authenticated_userid
    exchange = Exchange(
        rules.name,
        sent,
        None if userid is None else str(userid),
        client.environ.get("REMOTE_ADDR"),
        request.registry,
        client.given_id(rules.request.request_id_header),
    )
    if access_log.isEnabledFor(logging.INFO) or request.registry[ENGINE].status is not None:
        exchange.log_values = client.log_values()
    return exchange


def finish(
    client: ClientRequest,
    exchange: Exchange,
    rules: Rules,
    destination: Destination,
    public: Public,
    recheck: Recheck | None = None,
    upgrade: tuple[str, ...] = (),
) -> Response:
    """Run the `request` hook, settle the framing, and say what to fetch."""
    hook = rules.answer.hooks.request
    if hook is not None:
        instead = _ask_request_hook(hook, client.request, exchange, destination, rules.request.settings.preserve_host)
        if instead is not None:
            return instead
    exchange.request.fields += framing_fields(exchange.request.method, exchange.request.body)
    if upgrade:
        exchange.request.fields += [("Connection", "Upgrade"), ("Upgrade", ", ".join(upgrade))]
    prepared = PreparedExchange(
        exchange,
        rules.answer,
        destination,
        public,
        head_only=client.wants_head_alone(),
        accept=client.environ.get("HTTP_ACCEPT", ""),
    )
    prepared.upgrade, prepared.recheck = upgrade, recheck
    return ProxyResponse(client.request.registry[ENGINE], prepared, client)


def _ask_request_hook(
    hook: RequestHook, request: Request, exchange: Exchange, destination: Destination, preserve_host: bool
) -> Response | None:
    """What the hook answers instead; where it goes on, what it has changed counts."""
    given = exchange.request.body
    try:
        instead = _run_request_hook(hook, request, exchange)
        if instead is None:
            was_turned = exchange.request.changed_url is not None
            origin = _after_hook(exchange.request, destination.origin, preserve_host)
            if was_turned:
                destination.turn_to(origin)
    except BaseException:
        _close_unsent(given)
        raise
    if instead is not None:
        _close_unsent(given)
    return instead


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
