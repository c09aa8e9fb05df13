"""From settings to policies: what each exchange of a route needs to know, found out once."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pyramid.interfaces import (
    IDefaultCSRFOptions,
)
from pyramid.registry import Registry

from pyramid_threaded_proxy.app.declared import Declared
from pyramid_threaded_proxy.app.routes import Inner, RequestPolicy, Route, Rules
from pyramid_threaded_proxy.app.settled import settled_names
from pyramid_threaded_proxy.hooks import NAMES, Hooks
from pyramid_threaded_proxy.http.fields import AnswerFields, AnswerRules, RequestFields
from pyramid_threaded_proxy.http.names import OF_A_FRONT, OVERRIDES
from pyramid_threaded_proxy.http.public import Told
from pyramid_threaded_proxy.http.query import QueryRules
from pyramid_threaded_proxy.http.rules import RequestRules, ResponseRules
from pyramid_threaded_proxy.http.target import UpstreamPattern
from pyramid_threaded_proxy.limits.admission import Limits
from pyramid_threaded_proxy.relay.prepared import AnswerPolicy, Timeouts
from pyramid_threaded_proxy.settings.load import ProcessSettings, RouteSettings
from pyramid_threaded_proxy.upstream.balance import Balancer, Upstream
from pyramid_threaded_proxy.upstream.health import Health
from pyramid_threaded_proxy.upstream.origin import UNIX
from pyramid_threaded_proxy.upstream.probes import Probed
from pyramid_threaded_proxy.upstream.tls import Tls, new_context
from pyramid_threaded_proxy.upstream.urls import split_url

log = logging.getLogger("pyramid_threaded_proxy.route")


def compile_rules(
    settings: RouteSettings,
    process: ProcessSettings,
    hooks: Hooks,
    *,
    bases: tuple[str, ...] = (),
    drop: frozenset[str] = frozenset(),
) -> Rules:
    """Compile what holds for each exchange. Raises `ValueRefused`.

    `bases` are the URLs whose Location is mapped back, `drop` lower-case names of request fields that stay home.
    """
    methods = settings.methods
    return Rules(
        name=settings.name,
        methods=None if methods is None else frozenset(methods) | ({"HEAD"} if "GET" in methods else set()),
        request=_request_policy(settings, process, drop),
        answer=_answer_policy(settings, process, hooks, bases),
    )


def _request_policy(settings: RouteSettings, process: ProcessSettings, drop: frozenset[str]) -> RequestPolicy:
    rules = RequestRules.compile(settings.request_set, settings.request_add, settings.request_remove)
    ours = {process.request_id_header.lower()} | ({"traceparent", "tracestate"} if process.trace == "drop" else set())
    if process.fronted:
        ours |= OF_A_FRONT
    fields = RequestFields(
        own_cookies=process.own_cookies,
        cookies=settings.request_cookies,
        authorization=settings.request_authorization == "pass",
        drop=drop
        | rules.names
        | ours
        | process.own_fields
        | (frozenset() if settings.request_overrides == "pass" else OVERRIDES),
        only=settings.request_only,
    )
    return RequestPolicy(
        settings=settings,
        fields=fields,
        rules=rules,
        via=process.via,
        query=QueryRules(settings.query_remove, settings.query_only, settings.query_set),
        request_id_header=process.request_id_header,
        upgrade=frozenset(settings.upgrade),
        origins=frozenset(settings.origins),
    )


def _answer_policy(
    settings: RouteSettings, process: ProcessSettings, hooks: Hooks, bases: tuple[str, ...]
) -> AnswerPolicy:
    fields = AnswerFields(
        AnswerRules(
            own_cookies=process.own_cookies,
            rewrite_cookies=settings.rewrite_cookies,
            rewrite_location=settings.rewrite_location,
            bases=bases,
            told=_told(settings),
            drop=frozenset({process.request_id_header.lower()}),
            private=settings.cache == "private" and not settings.public,
            only=settings.response_only,
            dropped_cookie=_DroppedCookies(settings.name),
        )
    )
    rules = ResponseRules.compile(
        settings.response_set, settings.response_add, settings.response_default, settings.response_remove
    )
    return AnswerPolicy(
        settings=settings,
        timeouts=timeouts_of(settings),
        tls=tls_of(settings),
        limits=Limits(settings.max_exchanges, settings.max_exchanges_per_user),
        answer_fields=fields,
        rules=rules,
        hooks=hooks,
        request_id_header=process.request_id_header,
    )


def _told(settings: RouteSettings) -> Told:
    """What of the public place the upstream is told, by the fields that go up."""
    fields = settings.forwarded
    removed = {name.lower() for name in settings.request_remove}
    return Told(
        prefix=fields in ("x-forwarded", "both") and "x-forwarded-prefix" not in removed,
        host=settings.preserve_host or fields != "none",
        scheme=fields != "none",
    )


class _DroppedCookies:
    """Says once of each own cookie that a route's upstream sets it. Any thread."""

    def __init__(self, route: str) -> None:
        self._route = route
        self._said: set[str] = set()

    def __call__(self, name: str) -> None:
        if name not in self._said:
            self._said.add(name)
            log.warning(
                "%s: the upstream sets the cookie %r, which never reaches the client because proxy.own_cookies names "
                "it as the application's own: a login there will not last; rename one of the two",
                self._route,
                name,
            )


def timeouts_of(settings: RouteSettings) -> Timeouts:
    """The time-outs of one route's exchanges."""
    return Timeouts(
        settings.connect_timeout,
        settings.read_timeout,
        settings.send_timeout,
        settings.idle_timeout,
        settings.total_timeout,
    )


def location_bases(settings: RouteSettings, balancer: Balancer) -> tuple[str, ...]:
    """The URLs that a route's upstreams may have in their Location; none where paths don't map one to one."""
    if settings.pattern is not None:
        return ()
    # A Unix socket has no name that a Location could hold, but the one in its Host field.
    return tuple(
        f"http://{one.origin.authority}{one.base}" if one.origin.scheme == UNIX else one.url
        for one in balancer.upstreams
    )


def tls_settings(settings: RouteSettings) -> Tls:
    """What the settings say of TLS."""
    return Tls(
        settings.tls_verify,
        settings.tls_ca_file,
        settings.tls_cert_file,
        settings.tls_key_file,
        settings.tls_server_name,
    )


def tls_of(settings: RouteSettings) -> Tls:
    """The same, with the files looked into now. Raises `ValueRefused`."""
    tls = tls_settings(settings)
    if tls.ca_file is not None or tls.cert_file is not None:
        new_context(tls)
    if not tls.verify:
        log.warning("%s: tls.verify is false: whoever answers in an upstream's place is believed", settings.name)
    return tls


def make_hooks(settings: RouteSettings, resolve: Callable[[str, Any], Any]) -> Hooks:
    """The hooks of a route; `resolve` turns a dotted name into what it names, and is told the setting's key."""
    return Hooks(**{name: resolve(f"hooks.{name}", getattr(settings, f"hooks_{name}")) for name in NAMES})


#: Pyramid's own defaults, where the application sets none.
_CSRF_HEADER = "X-CSRF-Token"
_EXPRESSION = re.compile(r"\{([A-Za-z_]\w*):((?:[^{}]|\{[^{}]*\})*)\}")


def compile_route(registry: Registry, process: ProcessSettings, declared: Declared, inner: tuple[Inner, ...]) -> Route:
    """A declared route as exchanges need it; `inner` are the mounts of others below it. Raises `ValueRefused`."""
    settings = declared.settings
    balancer = Balancer(tuple(_upstream(settings, url) for url in settings.upstream), settings.balance)
    csrf = _csrf_header(registry, settings)
    rules = compile_rules(
        settings,
        process,
        declared.hooks,
        bases=location_bases(settings, balancer),
        drop=frozenset({csrf} if csrf else ()),
    )
    preflight = None if settings.preflight == "ask" else _preflight_rules(settings, process, declared.hooks, rules)
    return Route(
        settings,
        rules,
        declared.mount,
        balancer,
        inner,
        preflight,
        wants_slash=_wants_slash(settings, balancer),
        settled=settled_names(rules),
    )


#: What a browser says in a preflight (Fetch 4.8), and nothing of who asks.
_OF_A_PREFLIGHT = frozenset({
    "origin", "access-control-request-method", "access-control-request-headers",
    "access-control-request-private-network", "accept", "accept-language", "user-agent", "referer",
})  # fmt: skip


def _preflight_rules(settings: RouteSettings, process: ProcessSettings, hooks: Hooks, rules: Rules) -> Rules:
    """Rules for a request that nobody was asked about: neither overrides nor the `request` hook, which may name a user
    or hold a key of ours."""
    bare = replace(
        settings, methods=("OPTIONS",), request_set=(), request_add=(), request_only=_OF_A_PREFLIGHT,
        request_authorization="drop", request_cookies=frozenset(), query_set=(), upgrade=(),
    )  # fmt: skip
    made = compile_rules(bare, process, replace(hooks, request=None))
    return replace(made, answer=replace(rules.answer, hooks=replace(hooks, request=None)), anonymous=True)


def _wants_slash(settings: RouteSettings, balancer: Balancer) -> bool:
    if settings.pattern is not None:
        return False
    if settings.slash is None:
        return all(one.base == "" or one.base.endswith("/") for one in balancer.upstreams)
    return settings.slash == "redirect"


def probed(route: Route) -> Probed | None:
    """What the active probes of a route need to know; None where it has none."""
    settings = route.settings
    if settings.health_path is None:
        return None
    policy = route.rules.answer
    return Probed(
        route=settings.name,
        upstreams=route.balancer.upstreams,
        path=settings.health_path,
        interval=settings.health_interval,
        patience=(policy.timeouts.connect, policy.timeouts.read),
        max_head=settings.max_head,
        tls=policy.tls,
    )


def _upstream(settings: RouteSettings, url: str) -> Upstream:
    origin, base = split_url(url)
    pattern = None if settings.pattern is None else UpstreamPattern(base, _several(settings.pattern))
    probed, alone = settings.health_path is not None, len(settings.upstream) == 1
    health = Health(settings.health_fails, settings.health_pause, probed, alone)
    return Upstream(url, origin, base, pattern, health)


def _csrf_header(registry: Registry, settings: RouteSettings) -> str | None:
    """The lower-case name of the field that the application's CSRF check reads, where this route is checked."""
    defaults = registry.queryUtility(IDefaultCSRFOptions)
    checked = settings.require_csrf
    if checked is None:
        checked = defaults is not None and bool(defaults.require_csrf)
    header = _CSRF_HEADER if defaults is None else defaults.header
    return header.lower() if checked and header else None


def _several(pattern: str) -> frozenset[str]:
    """The placeholders whose expression matches slashes."""
    return frozenset(name for name, expression in _EXPRESSION.findall(pattern) if re.fullmatch(expression, "a/b"))
