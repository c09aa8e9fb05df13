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

from pyramid_threaded_proxy.app.compile import answer_policy, location_bases, make_hooks, request_policy
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.environ import client_body, given_body, raw_target
from pyramid_threaded_proxy.app.prepare import (
    NEVER,
    TemplateValues,
    choose,
    finish,
    forward,
    http_error,
    new_exchange,
)
from pyramid_threaded_proxy.app.routes import RequestPolicy, Route
from pyramid_threaded_proxy.exceptions import ConnectFailed, ProxyError, RequestRefused, TargetRefused, ValueRefused
from pyramid_threaded_proxy.exchange import Body, UpstreamRequest
from pyramid_threaded_proxy.hooks import Hooks
from pyramid_threaded_proxy.http.head import check_field
from pyramid_threaded_proxy.http.names import CONNECTION_FIELDS, Fields
from pyramid_threaded_proxy.http.target import check_upstream_target, join
from pyramid_threaded_proxy.limits.in_flight import InFlight
from pyramid_threaded_proxy.relay.prepared import AnswerPolicy
from pyramid_threaded_proxy.relay.recheck import Check
from pyramid_threaded_proxy.settings.errors import SettingsError
from pyramid_threaded_proxy.settings.load import ProcessSettings, RouteSettings, fetch_settings
from pyramid_threaded_proxy.upstream.balance import Upstream, UpstreamChoice
from pyramid_threaded_proxy.upstream.connections import addresses_of, split_url
from pyramid_threaded_proxy.upstream.origin import Origin

log = logging.getLogger("pyramid_threaded_proxy.request")

ENGINE = "pyramid_threaded_proxy.engine"

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
    on_request: Any = None,
    on_response: Any = None,
    on_headers: Any = None,
    on_complete: Any = None,
    on_error: Any = None,
    recheck_with: Check | None = None,
    **route_keys: Any,
) -> Response:
    """Answer with what a new request to `url` brings; returns a `ProxyResponse` to be returned by the view.

    None of the client's fields go along but those in `headers`, and Range, Accept-Encoding and conditional fields
    where the method is GET or HEAD. `body` is bytes, a file, an iterable of bytes, or the request itself. Further
    keywords are the keys of a route; `recheck` goes with ``recheck_with=callable(exchange)``, which is asked in a pool
    thread. Raises `ValueRefused` for what can't be sent, `SettingsError` for a bad key, `ProxyTargetRefused` for an
    upstream that `proxy.fetch.allow` doesn't let in.
    """
    engine: Engine = request.registry[ENGINE]
    settings = fetch_settings("proxy_fetch", route_keys, "proxy_fetch()")
    if settings.upgrade:
        raise ValueRefused("proxy_fetch(upgrade=…): a new request is never switched; proxy_forward() can be")
    sending, answering = _policies(settings, engine.settings, ())
    hooks = Hooks(on_request, on_response, on_headers, on_complete, on_error)
    answering = replace(answering, hooks=_either(hooks, answering.hooks))
    origin, target = _checked_url(url)
    origin = _permitted(engine, origin)
    check_field(method, "")
    if method in NEVER:
        raise ValueRefused(f"proxy_fetch() never sends {method}")
    sent = UpstreamRequest(method, str(origin), target, [], None)
    exchange = new_exchange(request, engine, "proxy_fetch", sent)
    fields = _new_fields(request, origin, method, headers, sending)
    try:
        sent.body = _fetch_body(request, body, fields, sending)
    except RequestRefused as error:
        raise http_error(error) from None
    sent.fields = sending.rules.apply(fields, TemplateValues(request, exchange))
    return finish(
        request,
        engine,
        exchange,
        origin,
        answering,
        None,
        sending.preserve_host,
        recheck=_recheck(settings, recheck_with),
        permit=partial(_permitted, engine),
    )


def proxy_forward(
    request: Request,
    url_or_route_name: str,
    path: str = "",
    *,
    mount: str | None = None,
    on_request: Any = None,
    on_response: Any = None,
    on_headers: Any = None,
    on_complete: Any = None,
    on_error: Any = None,
    recheck_with: Check | None = None,
    **route_keys: Any,
) -> Response:
    """Forward the client's request as a declared route would; returns a `ProxyResponse` to be returned by the view.

    `path`, escaped and without a query, is joined to the upstream of the route that is named; a URL is taken as given.
    The client's query is added where there is none. The view's own permission counts, the route's is not asked.
    `mount` is the public path that the upstream's own URLs and cookies are mapped to; without it they are left.
    Raises `ValueRefused` for what can't be sent, `SettingsError` for a bad key, `ProxyTargetRefused` for a URL that
    `proxy.fetch.allow` doesn't let in.
    """
    engine: Engine = request.registry[ENGINE]
    given = fetch_settings("proxy_forward", route_keys, "proxy_forward()")
    route = engine.routes.get(url_or_route_name)
    choice = None
    if route is not None:
        sending, answering = _of_route(engine, route, given, route_keys)
        choice = choose(route, request)
        origin = choice.upstream.origin
    else:
        sending, answering = _policies(given, engine.settings, (url_or_route_name,))
        origin = _permitted(engine, _checked_url(url_or_route_name)[0])
    hooks = Hooks(on_request, on_response, on_headers, on_complete, on_error)
    answering = replace(answering, hooks=_either(hooks, answering.hooks))
    name = route.name if route is not None else "proxy_forward"
    try:
        target = _forward_target(request, url_or_route_name, path, route, choice)
        return forward(
            request,
            engine,
            name,
            origin,
            target,
            sending,
            answering,
            mount,
            mount,
            recheck=_recheck(given, recheck_with),
            permit=partial(_permitted, engine) if route is None else None,
            choice=choice,
            methods=None if route is None else route.methods,
        )
    except RequestRefused as error:
        raise http_error(error) from None


def _forward_target(request: Request, url: str, path: str, route: Route | None, choice: UpstreamChoice | None) -> str:
    """The target at the URL, or at the chosen upstream of the route, which can then be made for another one too."""
    _, query = raw_target(request.environ)
    if route is None or choice is None:
        return _url_target(url, path, query)
    matched = request.matchdict or {}
    if len(route.balancer.upstreams) > 1:
        choice.target_of = lambda upstream: _route_target(upstream, path, query, matched)
    return _route_target(choice.upstream, path, query, matched)


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


def _recheck(settings: RouteSettings, check: Check | None) -> tuple[float, Check] | None:
    if (settings.recheck is None) != (check is None):
        raise ValueRefused("`recheck` and `recheck_with` go together: how often to ask, and whom")
    return None if settings.recheck is None or check is None else (settings.recheck, check)


class ProxyTargetRefused(HTTPBadGateway, ProxyError):
    """A view named an upstream that ``proxy.fetch.allow`` doesn't let in; HTTP 502 if nobody catches it."""


def _permitted(engine: Engine, origin: Origin) -> Origin:
    """The origin, with its address where that decides. Looking a name up may block for as long as the system lets."""
    allow = engine.allow
    if allow is None or allow.permits_name(origin.scheme, origin.host, origin.port):
        return origin
    if allow.networks:
        try:
            addresses = addresses_of(origin)
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


def _of_route(
    engine: Engine, route: Route, given: RouteSettings, keys: Mapping[str, Any]
) -> tuple[RequestPolicy, AnswerPolicy]:
    """A declared route's own policies, or those with the keys that the view changes."""
    if not keys:
        return route.request, route.answer
    settings = replace(route.settings, **{key: getattr(given, key) for key in keys})
    sending, answering = _policies(settings, engine.settings, location_bases(settings, route.balancer))
    return sending, replace(answering, hooks=_either(answering.hooks, route.answer.hooks))


@lru_cache(maxsize=256)
def _policies(
    settings: RouteSettings, process: ProcessSettings, bases: tuple[str, ...]
) -> tuple[RequestPolicy, AnswerPolicy]:
    """Compiled once for each set of keys that views use."""
    hooks = make_hooks(settings, _imported)
    return (
        request_policy(settings, process, frozenset()),
        answer_policy(settings, process, hooks, bases, private=settings.cache == "private"),
    )


def _imported(key: str, value: Any) -> Any:
    try:
        return DottedNameResolver().maybe_resolve(value)
    except Exception as error:  # importing a module can raise anything
        keyword = key.replace(".", "_")
        raise SettingsError(
            [f"{keyword} (proxy_fetch() or proxy_forward()): {value!r} can't be imported: {error}"]
        ) from error


def _either(first: Hooks, second: Hooks) -> Hooks:
    """Each hook of `first`, or where it has none that of `second`."""
    names = ("request", "response", "headers", "complete", "error")
    return Hooks(**{name: getattr(first, name) or getattr(second, name) for name in names})


def _checked_url(url: str) -> tuple[Origin, str]:
    origin, target = split_url(url)
    target = target if target.startswith("/") else "/" + target
    try:
        check_upstream_target(target)
    except TargetRefused as error:
        raise ValueRefused(f"{url!r} can't be fetched: {error.rule}") from None
    return origin, target


def _new_fields(
    request: Request, origin: Origin, method: str, headers: Headers | None, sending: RequestPolicy
) -> Fields:
    given = list(headers.items() if isinstance(headers, Mapping) else headers or ())
    for name, value in given:
        check_field(name, value)
        if name.lower() in CONNECTION_FIELDS:
            raise ValueRefused(f"proxy_fetch(headers=…): {name} is made by the relay")
    names = {name.lower() for name, _ in given}
    fields = [] if "host" in names else [("Host", origin.authority)]
    fields += given
    if method in ("GET", "HEAD"):
        for name in _TAKEN_ALONG:
            value = request.headers.get(name)
            if value is not None and name.lower() not in names:
                fields.append((name, value))
    if sending.via:
        fields.append(("Via", sending.via))
    return fields


def _fetch_body(request: Request, body: Any, fields: Fields, sending: RequestPolicy) -> Body | None:
    """The body to send; the request itself stands for its body, and then its Content-Type goes along."""
    if body is not request:
        return given_body(body)
    content_type = request.environ.get("CONTENT_TYPE")
    if content_type and not any(name.lower() == "content-type" for name, _ in fields):
        fields.append(("Content-Type", content_type))
    return client_body(request.environ, sending.max_body)
