"""From settings to policies: what each exchange of a route needs to know, found out once."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from pyramid.interfaces import (
    IDefaultCSRFOptions,
)
from pyramid.registry import Registry

from pyramid_threaded_proxy.app.declared import Declared
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.routes import RequestPolicy, Route
from pyramid_threaded_proxy.hooks import Hooks
from pyramid_threaded_proxy.http.fields import AnswerFields, RequestFields
from pyramid_threaded_proxy.http.rules import RequestRules, ResponseRules
from pyramid_threaded_proxy.http.target import UpstreamPattern
from pyramid_threaded_proxy.limits.admission import Limits
from pyramid_threaded_proxy.relay.prepared import AnswerPolicy
from pyramid_threaded_proxy.settings.load import ProcessSettings, RouteSettings
from pyramid_threaded_proxy.upstream.balance import Balancer, Upstream
from pyramid_threaded_proxy.upstream.connections import split_url
from pyramid_threaded_proxy.upstream.health import Health
from pyramid_threaded_proxy.upstream.origin import UNIX
from pyramid_threaded_proxy.upstream.tls import Tls, new_context

log = logging.getLogger("pyramid_threaded_proxy.route")


def request_policy(settings: RouteSettings, process: ProcessSettings, drop: frozenset[str]) -> RequestPolicy:
    """Compile the request's side; `drop` are lower-case names that stay home besides. Raises `ValueRefused`."""
    rules = RequestRules.compile(settings.request_set, settings.request_add, settings.request_remove)
    return RequestPolicy(
        request_fields=RequestFields(
            own_cookies=process.own_cookies,
            cookies=settings.request_cookies,
            authorization=settings.request_authorization == "pass",
            drop=drop | rules.names,
        ),
        rules=rules,
        via=f"1.1 {process.via}" if process.via else "",
        preserve_host=settings.preserve_host,
        forwarded=settings.forwarded,
        upgrade=frozenset(settings.upgrade),
        origins=frozenset(settings.origins),
        max_body=settings.max_body,
    )


def answer_policy(
    settings: RouteSettings, process: ProcessSettings, hooks: Hooks, bases: tuple[str, ...], private: bool
) -> AnswerPolicy:
    """Compile the answer's side; `bases` are the URLs whose Location is mapped back. Raises `ValueRefused`."""
    return AnswerPolicy(
        retries=settings.retries,
        keepalive=settings.keepalive,
        tls=tls_of(settings),
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        send_timeout=settings.send_timeout,
        idle_timeout=settings.idle_timeout,
        max_head=settings.max_head,
        buffer=settings.buffer,
        total_timeout=settings.total_timeout,
        limits=Limits(settings.max_exchanges, settings.max_exchanges_per_user),
        answer_fields=AnswerFields(
            own_cookies=process.own_cookies,
            rewrite_cookies=settings.rewrite_cookies,
            rewrite_location=settings.rewrite_location,
            bases=bases,
            private=private,
        ),
        rules=ResponseRules.compile(
            settings.response_set, settings.response_add, settings.response_default, settings.response_remove
        ),
        hooks=hooks,
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


def tls_of(settings: RouteSettings) -> Tls:
    """What the settings say of TLS, with the files looked into now. Raises `ValueRefused`."""
    tls = Tls(
        settings.tls_verify,
        settings.tls_ca_file,
        settings.tls_cert_file,
        settings.tls_key_file,
        settings.tls_server_name,
    )
    if tls.ca_file is not None or tls.cert_file is not None:
        new_context(tls)
    if not tls.verify:
        log.warning("%s: tls.verify is false: whoever answers in an upstream's place is believed", settings.name)
    return tls


def make_hooks(settings: RouteSettings, resolve: Callable[[str, Any], Any]) -> Hooks:
    """The hooks of a route; `resolve` turns a dotted name into what it names, and is told the setting's key."""
    return Hooks(
        request=resolve("hooks.request", settings.hooks_request),
        response=resolve("hooks.response", settings.hooks_response),
        headers=resolve("hooks.headers", settings.hooks_headers),
        complete=resolve("hooks.complete", settings.hooks_complete),
        error=resolve("hooks.error", settings.hooks_error),
    )


#: Pyramid's own defaults, where the application sets none.
_CSRF_HEADER = "X-CSRF-Token"
_EXPRESSION = re.compile(r"\{([A-Za-z_]\w*):((?:[^{}]|\{[^{}]*\})*)\}")


def compiled_route(registry: Registry, engine: Engine, declared: Declared) -> Route:
    settings = declared.settings
    balancer = Balancer(tuple(_upstream(settings, url) for url in settings.upstream), settings.balance)
    csrf = _csrf_header(registry, settings)
    return Route(
        name=settings.name,
        settings=settings,
        mount=declared.mount,
        balancer=balancer,
        methods=None if settings.methods is None else frozenset(settings.methods) | _implied(settings.methods),
        request=request_policy(settings, engine.settings, frozenset({csrf} if csrf else ())),
        answer=answer_policy(
            settings,
            engine.settings,
            declared.hooks,
            bases=location_bases(settings, balancer),
            private=settings.cache == "private" and not settings.public,
        ),
    )


def _upstream(settings: RouteSettings, url: str) -> Upstream:
    origin, base = split_url(url)
    pattern = None if settings.pattern is None else UpstreamPattern(base, _several(settings.pattern))
    health = Health(settings.health_fails, settings.health_pause, probed=settings.health_path is not None)
    return Upstream(url, origin, base, pattern, health)


def _csrf_header(registry: Registry, settings: RouteSettings) -> str | None:
    """The lower-case name of the field that the application's CSRF check reads, where this route is checked."""
    defaults = registry.queryUtility(IDefaultCSRFOptions)
    checked = settings.require_csrf
    if checked is None:
        checked = defaults is not None and bool(defaults.require_csrf)
    header = _CSRF_HEADER if defaults is None else defaults.header
    return header.lower() if checked and header else None


def _implied(methods: tuple[str, ...]) -> set[str]:
    return {"HEAD"} if "GET" in methods else set()


def _several(pattern: str) -> frozenset[str]:
    """The placeholders whose expression matches slashes."""
    return frozenset(name for name, expression in _EXPRESSION.findall(pattern) if re.fullmatch(expression, "a/b"))
