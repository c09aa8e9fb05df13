"""What was permitted becomes what is sent: from a Pyramid request and an upstream target to a `ProxyResponse`.

It runs in the thread of the request, after the permission and CSRF are settled, and does no I/O. Faults of the
client's are raised as `RequestRefused`; `http_error` turns them into what the application's exception views render.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from pyramid.httpexceptions import (
    HTTPBadGateway,
    HTTPBadRequest,
    HTTPException,
    HTTPForbidden,
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
from pyramid_threaded_proxy.app.own_origin import backends_own_origin
from pyramid_threaded_proxy.app.refusals import note_refusal
from pyramid_threaded_proxy.app.response import ProxyResponse
from pyramid_threaded_proxy.app.routes import RequestPolicy, Rules
from pyramid_threaded_proxy.app.sent_body import framing_fields
from pyramid_threaded_proxy.app.upgrade import asked_protocols
from pyramid_threaded_proxy.exceptions import RequestRefused, TargetRefused, ValueRefused
from pyramid_threaded_proxy.exchange import Body, Exchange, UpstreamRequest
from pyramid_threaded_proxy.hooks import RequestHook
from pyramid_threaded_proxy.http.filtered import fields_asking_plainly
from pyramid_threaded_proxy.http.forwarded import forwarded_fields
from pyramid_threaded_proxy.http.head import check_field
from pyramid_threaded_proxy.http.names import CONNECTION_FIELDS, Fields
from pyramid_threaded_proxy.http.public import Public
from pyramid_threaded_proxy.http.target import check_upstream_target
from pyramid_threaded_proxy.relay.destination import Destination
from pyramid_threaded_proxy.relay.prepared import PreparedExchange, Recheck
from pyramid_threaded_proxy.upstream.balance import Balancer
from pyramid_threaded_proxy.upstream.origin import Origin
from pyramid_threaded_proxy.upstream.urls import split_url

#: Methods that make something else of a connection (RFC 9110 9.3.6, 9.3.8).
NEVER = ("CONNECT", "TRACE")


def http_error(error: RequestRefused) -> HTTPException:
    """The HTTP exception that tells the client which rule its request breaks."""
    if error.status == 413:
        return HTTPRequestEntityTooLarge(error.rule)
    if error.status == 502:
        return HTTPBadGateway(error.rule)
    if error.status == 403:
        return HTTPForbidden(error.rule)
    return HTTPBadRequest(error.rule)


def balancing_user(balancer: Balancer, client: ClientRequest, rules: Rules) -> str:
    """Who counts for the choice among upstreams: the user, or where nobody is logged in the client's address."""
    if len(balancer.upstreams) == 1:
        return ""
    return userid_of(client, rules) or str(client.environ.get("REMOTE_ADDR"))


class TemplateValues(dict[str, str | None]):
    """What templates may name, found out only when one of them does. `exchange` is None while there is none yet."""

    def __init__(
        self, client: ClientRequest, rules: Rules, mount: str | None, exchange: Exchange | None = None
    ) -> None:
        super().__init__()
        self._client = client
        self._rules = rules
        self._mount = mount
        self._exchange = exchange

    _MADE: Mapping[str, Callable[[TemplateValues], str | None]] = {
        "userid": lambda self: userid_of(self._client, self._rules),
        "client_addr": lambda self: self._client.environ.get("REMOTE_ADDR"),
        "host": lambda self: str(self._client.request.host),
        "scheme": lambda self: str(self._client.request.scheme),
        "route": lambda self: self._rules.name,
        "request_id": lambda self: self._client.request_id() if self._exchange is None else self._exchange.request_id,
        "mount": lambda self: self._mount or "",
    }

    def __missing__(self, name: str) -> str | None:
        made = self._MADE.get(name)
        if made is not None:
            return made(self)
        matched = self._client.request.matchdict[name]
        return "/".join(matched) if isinstance(matched, tuple) else str(matched)


def userid_of(client: ClientRequest, rules: Rules) -> str | None:
    """Who asks, by the security policy."""
    userid = None if rules.anonymous else client.request.authenticated_userid
    return None if userid is None else str(userid)


def upstream_query(client: ClientRequest, rules: Rules, mount: str | None, query: str | None) -> str | None:
    """The query that goes upstream, by the rules for its parameters. Raises `ValueRefused`."""
    made = rules.request.query
    if not made:
        return query
    if client.known_request_id is None:
        client.known_request_id = client.given_id(rules.request.request_id_header)
    return made.apply(query, TemplateValues(client, rules, mount))


def prepare(
    client: ClientRequest, rules: Rules, destination: Destination, public: Public, recheck: Recheck | None = None
) -> Response:
    """Say how the client's own request goes to `destination`; returns what a `request` hook returns, if it does.

    Raises `RequestRefused` for what is wrong with the request, HTTP 403 and 405, and whatever the hook raises.
    """
    environ, sending = client.environ, rules.request
    _check_method(client, rules)
    client.check_message()
    body = None if rules.anonymous else client.body(sending.settings)
    fields = destination.fields(_own_fields(client, destination.origin, sending, public.prefix))
    if sending.settings.request_origin == "upstream":
        fields = backends_own_origin(fields, public, destination, sending.origins)
    sent = UpstreamRequest(environ["REQUEST_METHOD"], str(destination.origin), destination.target, fields, body)
    exchange = new_exchange(client, rules, sent)
    if sending.request_id_header:
        fields.append((sending.request_id_header, exchange.request_id))
    if sending.rules:
        sent.fields = sending.rules.apply(sent.fields, TemplateValues(client, rules, public.mount, exchange))
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
    address, trusted, names_users = client.sender()
    tells = settings.forwarded != "none"
    fields = [("Host", host), *sending.fields.select(environ, tells and names_users), *via_field(environ, sending)]
    if tells:
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


def via_field(environ: Mapping[str, Any], sending: RequestPolicy) -> Fields:
    """Our own Via, with the version of the request that was received (RFC 9110 7.6.3)."""
    version = "1.0" if environ.get("SERVER_PROTOCOL") == "HTTP/1.0" else "1.1"
    return [("Via", f"{version} {sending.via}")] if sending.via else []


def new_exchange(client: ClientRequest, rules: Rules, sent: UpstreamRequest) -> Exchange:
    """The exchange for a request, of whoever the security policy says is asking."""
    address, registry = client.environ.get("REMOTE_ADDR"), client.request.registry
    known = client.known_request_id or client.given_id(rules.request.request_id_header)
    exchange = Exchange(rules.name, sent, userid_of(client, rules), address, registry, known)
    if access_log.isEnabledFor(logging.INFO) or registry[ENGINE].status is not None:
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
    if rules.answer.filters:
        exchange.request.fields = fields_asking_plainly(exchange.request.fields)
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
    if not any(name.lower() == "host" for name, _ in fields):
        fields.insert(0, ("Host", origin.authority))  # every request has one (RFC 9112 3.2)
    for name, value in [(sent.method, ""), *fields]:
        check_field(name, value)
    if sent.method in NEVER:
        raise ValueRefused(f"a request hook set the method {sent.method}, which is never sent")
    sent.settle(str(origin), target, fields)
    return origin
