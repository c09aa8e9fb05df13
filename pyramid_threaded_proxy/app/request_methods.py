"""``request.proxy_fetch`` and ``request.proxy_forward``: a view of the application's own says what to fetch."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial, update_wrapper
from typing import Any

from pyramid.httpexceptions import HTTPBadGateway
from pyramid.path import DottedNameResolver
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy.app.compile import compile_rules, location_bases, make_hooks
from pyramid_threaded_proxy.app.copy_source import Place, copy_sources
from pyramid_threaded_proxy.app.declared import ENGINE
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.environ import ClientRequest, given_body
from pyramid_threaded_proxy.app.prepare import (
    NEVER,
    TemplateValues,
    balancing_user,
    finish,
    http_error,
    new_exchange,
    prepare,
    upstream_query,
    via_field,
)
from pyramid_threaded_proxy.app.refusals import note_refusal, reason_of
from pyramid_threaded_proxy.app.routes import RequestPolicy, Route, Rules
from pyramid_threaded_proxy.app.second_target import BelowMount, SecondTargets, has_second_target, refused_anywhere
from pyramid_threaded_proxy.exceptions import ConnectFailed, ProxyError, RequestRefused, TargetRefused, ValueRefused
from pyramid_threaded_proxy.exchange import Body, Exchange, UpstreamRequest
from pyramid_threaded_proxy.hooks import Hooks
from pyramid_threaded_proxy.http.head import check_field
from pyramid_threaded_proxy.http.names import CONNECTION_FIELDS, Fields
from pyramid_threaded_proxy.http.public import Public
from pyramid_threaded_proxy.http.target import check_upstream_target, join
from pyramid_threaded_proxy.limits.in_flight import InFlight
from pyramid_threaded_proxy.relay.destination import Destination, UpstreamChoice
from pyramid_threaded_proxy.relay.prepared import Check, Recheck
from pyramid_threaded_proxy.settings.errors import SettingsError
from pyramid_threaded_proxy.settings.load import ProcessSettings, RouteSettings, fetch_settings, overlaid
from pyramid_threaded_proxy.upstream.balance import Upstream
from pyramid_threaded_proxy.upstream.origin import Origin
from pyramid_threaded_proxy.upstream.urls import split_url

log = logging.getLogger("pyramid_threaded_proxy.request")

#: Seconds for which the thread of a request waits for a name, where `proxy.fetch.allow` has to know its addresses.
LOOK_UP_PATIENCE = 5.0
#: Fields of the client's that a new GET or HEAD takes along: what comes back is for this client's cache and decoder.
_TAKEN_ALONG = (
    "Range",
    "Accept-Encoding",
    "If-Match",
    "If-None-Match",
    "If-Modified-Since",
    "If-Unmodified-Since",
    "If-Range",
)

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


def proxy_fetch(
    request: Request,
    url: str,
    *,
    method: str = "GET",
    headers: Headers | None = None,
    body: Any = None,
    recheck_with: Check | None = None,
    **keywords: Any,
) -> Response:
    """Answer with what a new request to `url` brings; returns a `ProxyResponse` to be returned by the view.

    None of the client's fields go along but those in `headers`, and Range, Accept-Encoding and conditional fields
    where the method is GET or HEAD. `body` is bytes, a file, an iterable of bytes, or the request itself. Hooks are
    given as `on_request`, `on_response`, `on_headers`, `on_body`, `on_complete` and `on_error` (see `hooks.Hooks`).
    Further keywords are the keys of a route; `recheck` goes with ``recheck_with=callable(exchange)``, which is asked
    in a thread for such questions. Raises `ValueRefused` for what can't be sent, `SettingsError` for a bad key,
    `ProxyTargetRefused` for an upstream that `proxy.fetch.allow` doesn't let in.
    """
    engine: Engine = request.registry[ENGINE]
    hooks = Hooks.taken_from(keywords)
    settings = fetch_settings("proxy_fetch", keywords, "proxy_fetch()")
    if settings.upgrade:
        raise ValueRefused("proxy_fetch(upgrade=…): a new request is never switched; proxy_forward() can be")
    rules = _with_hooks(_rules(settings, engine.settings, ()), hooks)
    origin, target = _checked_url(url)
    permit = partial(_permitted, engine)
    destination = Destination(permit(origin), target, permit=permit)
    check_field(method, "")
    if method in NEVER:
        raise ValueRefused(f"proxy_fetch() never sends {method}")
    client = ClientRequest(request)
    exchange = new_exchange(client, rules, UpstreamRequest(method, str(origin), target, [], None))
    _fill(exchange, client, headers, body, rules)
    public = Public(client.public_url(), None)
    return finish(client, exchange, rules, destination, public, _recheck(settings, recheck_with))


def proxy_forward(
    request: Request,
    url_or_route_name: str,
    path: str = "",
    *,
    mount: str | None = None,
    recheck_with: Check | None = None,
    **keywords: Any,
) -> Response:
    """Forward the client's request as a declared route would; returns a `ProxyResponse` to be returned by the view.

    `path`, escaped and without a query, is joined to the upstream of the route that is named; a URL is taken as given.
    The client's query is added where there is none. The view's own permission counts, the route's is not asked.
    `mount` is the public path that the upstream's own URLs and cookies are mapped to; without it they are left.
    Raises `ValueRefused` for what can't be sent, `SettingsError` for a bad key, `ProxyTargetRefused` for a URL that
    `proxy.fetch.allow` doesn't let in.
    """
    engine: Engine = request.registry[ENGINE]
    hooks = Hooks.taken_from(keywords)
    given = fetch_settings("proxy_forward", keywords, "proxy_forward()")
    route = engine.routes.get(url_or_route_name)
    if route is None:
        rules = _with_hooks(_rules(given, engine.settings, (url_or_route_name,)), hooks)
    else:
        rules = _with_hooks(_of_route(engine, route, given, keywords), hooks)
    client = ClientRequest(request)
    try:
        if route is None:
            destination = _url_destination(engine, client, url_or_route_name, path, rules, mount)
        else:
            destination = _route_destination(route, client, path, rules, mount)
        public = Public(client.public_url(), mount, mount)
        return prepare(client, rules, destination, public, _recheck(given, recheck_with))
    except RequestRefused as error:
        note_refusal(request, rules.name, reason_of(error))
        raise http_error(error) from None


def _url_destination(
    engine: Engine, client: ClientRequest, url: str, path: str, rules: Rules, mount: str | None
) -> Destination:
    """Where a URL goes, with the client's query where it has none."""
    permit = partial(_permitted, engine)
    origin = permit(_checked_url(url)[0])
    query = upstream_query(client, rules, mount, client.raw_target()[1])
    if has_second_target(client.environ):
        copy_sources(client.environ, refused_anywhere, None, rules.request.settings.request_overrides == "pass")
        SecondTargets(client, refused_anywhere, keep_host=False)
    return Destination(origin, _url_target(url, path, query), permit=permit)


def _route_destination(route: Route, client: ClientRequest, path: str, rules: Rules, mount: str | None) -> Destination:
    """Where a path below a route's upstreams goes."""
    query = upstream_query(client, rules, mount, client.raw_target()[1])
    matched = client.request.matchdict or {}
    keep_host = rules.request.settings.preserve_host
    second = None
    if has_second_target(client.environ):
        judge = BelowMount(mount, lambda upstream, rest, query: _route_target(upstream, rest, query, matched))
        place = None if mount is None else Place(mount, route.balancer.upstreams)
        opaque_pass = rules.request.settings.request_overrides == "pass"
        sources = copy_sources(client.environ, judge, place, opaque_pass)
        second = SecondTargets(client, judge, keep_host, sources).at
    choice = UpstreamChoice(
        route.balancer,
        balancing_user(route.balancer, client, rules),
        lambda upstream: _route_target(upstream, path, query, matched),
        keep_host,
        second,
    )
    return Destination(choice.upstream.origin, choice.target, choice)


class RequestMethod:
    """A request method that holds the request weakly.

    Pyramid stores what ``__get__`` gives on each request of the application. A bound method there makes a cycle of it,
    so that requests, and what they hold, live until the garbage collector runs, which costs own views time as well.
    """

    def __init__(self, function: Callable[..., Response]) -> None:
        self._function = function
        update_wrapper(self, function)

    def __get__(self, request: Any, owner: Any = None) -> Callable[..., Response]:
        return partial(self, weakref.ref(request))

    def __call__(self, request: Callable[[], Request | None], *arguments: Any, **keywords: Any) -> Response:
        live = request()
        if live is None:
            raise ReferenceError(f"the request of this {self._function.__name__}() is no more")
        return self._function(live, *arguments, **keywords)


class ProxyExchanges:
    """``request.proxy_exchanges``: what is in flight in this process, and the way to end it.

    A property of Pyramid's would make a class for each request of the application, which costs its own views a fifth
    of their speed. Pyramid sets what a request method's ``__get__`` gives, so that the object itself can be given.
    """

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight

    def __get__(self, request: Any, owner: Any = None) -> InFlight:
        return self._in_flight

    def __call__(self, request: Request) -> InFlight:
        return self._in_flight


def _recheck(settings: RouteSettings, check: Check | None) -> Recheck | None:
    if (settings.recheck is None) != (check is None):
        raise ValueRefused("`recheck` and `recheck_with` go together: how often to ask, and whom")
    return None if settings.recheck is None or check is None else Recheck(settings.recheck, check)


class ProxyTargetRefused(HTTPBadGateway, ProxyError):
    """A view named an upstream that ``proxy.fetch.allow`` doesn't let in; HTTP 502 if nobody catches it."""


def _permitted(engine: Engine, origin: Origin) -> Origin:
    """The origin, with its address where that decides. Waits `LOOK_UP_PATIENCE` at most."""
    allow = engine.allow
    if allow is None or allow.permits_name(origin.scheme, origin.host, origin.port):
        return origin
    if allow.networks:
        try:
            addresses = engine.upstreams.names.look_up_here(origin, LOOK_UP_PATIENCE)
        except ConnectFailed as error:
            raise ProxyTargetRefused("The name of this server can't be resolved.") from error
        for address in addresses:
            if allow.permits_address(address):
                return origin._replace(address=address)
    log.warning("proxy.fetch.allow does not let %s in", origin)
    raise ProxyTargetRefused("This server may not be asked.")


def _url_target(url: str, path: str, query: str | None) -> str:
    if path:
        raise ValueRefused("proxy_forward(): `path` is joined to a route's upstream; a URL is taken as given")
    target = _checked_url(url)[1]
    target = target if "?" in target or query is None else f"{target}?{query}"
    check_upstream_target(target)
    return target


def _route_target(upstream: Upstream, path: str, query: str | None, matched: Mapping[str, Any]) -> str:
    if "?" in path or "#" in path:
        raise ValueRefused(f"proxy_forward(path={path!r}): a path is wanted, escaped and without a query")
    if upstream.pattern is not None:
        target = upstream.pattern.expand(matched, query)
    else:
        target = join(upstream.base, path, query)
    check_upstream_target(target)
    return target


def _of_route(engine: Engine, route: Route, given: RouteSettings, keys: Mapping[str, Any]) -> Rules:
    """A declared route's own rules, or those with the keys that the view changes."""
    if not keys:
        return route.rules
    # The view's own permission counts, so that the answer is for whoever has it.
    settings = replace(overlaid(route.settings, given, keys), public=False)
    rules = _rules(settings, engine.settings, location_bases(settings, route.balancer))
    return replace(rules, answer=replace(rules.answer, hooks=rules.answer.hooks.or_else(route.rules.answer.hooks)))


@lru_cache(maxsize=256)
def _rules(settings: RouteSettings, process: ProcessSettings, bases: tuple[str, ...]) -> Rules:
    """Compiled once for each set of keys that views use."""
    return compile_rules(settings, process, make_hooks(settings, _imported), bases=bases)


def _with_hooks(rules: Rules, hooks: Hooks) -> Rules:
    """The same with the hooks that the call has brought; they go before those of the keys."""
    return replace(rules, answer=replace(rules.answer, hooks=hooks.or_else(rules.answer.hooks)))


def _imported(key: str, value: Any) -> Any:
    try:
        found = DottedNameResolver().maybe_resolve(value)
    except Exception as error:  # importing a module can raise anything
        raise _hook_fault(key, value, f"can't be imported: {error}") from error
    if found is not None and not callable(found):
        raise _hook_fault(key, value, "is not callable")
    return found


def _hook_fault(key: str, value: Any, problem: str) -> SettingsError:
    return SettingsError([f"{key.replace('.', '_')} (proxy_fetch() or proxy_forward()): {value!r} {problem}"])


def _checked_url(url: str) -> tuple[Origin, str]:
    origin, target = split_url(url)
    target = target if target.startswith("/") else "/" + target
    try:
        check_upstream_target(target)
    except TargetRefused as error:
        raise ValueRefused(f"{url!r} can't be fetched: {error.rule}") from None
    return origin, target


def _fill(exchange: Exchange, client: ClientRequest, headers: Headers | None, body: Any, rules: Rules) -> None:
    """Give a new request its fields and its body."""
    sent, sending = exchange.request, rules.request
    fields = _new_fields(client, sent, headers, sending)
    if sending.request_id_header and not any(name.lower() == sending.request_id_header.lower() for name, _ in fields):
        fields.append((sending.request_id_header, exchange.request_id))
    try:
        sent.body = _fetch_body(client, body, fields, sending)
    except RequestRefused as error:
        note_refusal(client.request, exchange.route, reason_of(error))
        raise http_error(error) from None
    sent.fields = sending.rules.apply(fields, TemplateValues(client, rules, None, exchange))


def _new_fields(
    client: ClientRequest, sent: UpstreamRequest, headers: Headers | None, sending: RequestPolicy
) -> Fields:
    given = list(headers.items() if isinstance(headers, Mapping) else headers or ())
    for name, value in given:
        check_field(name, value)
        if name.lower() in CONNECTION_FIELDS:
            raise ValueRefused(f"proxy_fetch(headers=…): {name} is made by the relay")
    names = {name.lower() for name, _ in given}
    fields = [] if "host" in names else [("Host", split_url(sent.origin)[0].authority)]
    fields += given
    if sent.method in ("GET", "HEAD"):
        for name in _TAKEN_ALONG:
            value = client.request.headers.get(name)
            if value is not None and name.lower() not in names:
                fields.append((name, value))
    return fields + via_field(client.environ, sending)


def _fetch_body(client: ClientRequest, body: Any, fields: Fields, sending: RequestPolicy) -> Body | None:
    """The body to send; the request itself stands for its body, and then its Content-Type goes along."""
    if body is not client.request:
        if body is not None and not isinstance(body, (bytes, bytearray, memoryview)):
            client.receive(sending.settings)  # a file or an iterable may read the client's, in another thread
        return given_body(body)
    content_type = client.environ.get("CONTENT_TYPE")
    if content_type and not any(name.lower() == "content-type" for name, _ in fields):
        fields.append(("Content-Type", content_type))
    return client.body(sending.settings)
