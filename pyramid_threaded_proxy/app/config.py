"""Configuration: from settings and `config.add_proxy_route` to Pyramid's own routes and views.

Actions do what can be done while the application is still being configured. What depends on the whole of it, the order
of routes, names that were taken, permissions that nobody checks, is settled when the application is created.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from pyramid.config import Configurator
from pyramid.events import ApplicationCreated
from pyramid.interfaces import (
    IDefaultCSRFOptions,
    IDefaultPermission,
    IRoutesMapper,
    ISecurityPolicy,
    ISessionFactory,
    ITweens,
)
from pyramid.path import AssetResolver
from pyramid.registry import Registry
from pyramid.security import NO_PERMISSION_REQUIRED
from pyramid.tweens import EXCVIEW
from zope.interface import implementedBy

from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.request_methods import ProxyExchanges, RequestMethod, proxy_fetch, proxy_forward
from pyramid_threaded_proxy.app.routes import (
    Route,
    answer_policy,
    escaped_path,
    location_bases,
    make_hooks,
    request_policy,
)
from pyramid_threaded_proxy.app.views import ProxyView
from pyramid_threaded_proxy.detach.access import install
from pyramid_threaded_proxy.exceptions import ValueRefused
from pyramid_threaded_proxy.hooks import Hooks
from pyramid_threaded_proxy.http.target import UpstreamPattern
from pyramid_threaded_proxy.settings.errors import SettingsError
from pyramid_threaded_proxy.settings.load import RouteSettings, load_settings, route_from_keywords
from pyramid_threaded_proxy.upstream.balance import Balance, Upstream
from pyramid_threaded_proxy.upstream.connections import split_url
from pyramid_threaded_proxy.upstream.health import Health

log = logging.getLogger("pyramid_threaded_proxy.config")

ENGINE = "pyramid_threaded_proxy.engine"
TWEEN = "pyramid_threaded_proxy.tween.proxy_tween_factory"
CATEGORY = "proxied routes"

#: Pyramid's own defaults, where the application sets none.
_CSRF_HEADER = "X-CSRF-Token"
_EXPRESSION = re.compile(r"\{([A-Za-z_]\w*):((?:[^{}]|\{[^{}]*\})*)\}")


def include(config: Configurator) -> None:
    """What ``config.include("pyramid_threaded_proxy")`` does: nothing is started by it."""
    settings = load_settings(config.registry.settings or {}, _path)
    config.registry[ENGINE] = Engine(config.registry, settings.process)
    install()
    config.add_directive("add_proxy_route", add_proxy_route)
    config.add_request_method(RequestMethod(proxy_fetch), "proxy_fetch")
    config.add_request_method(RequestMethod(proxy_forward), "proxy_forward")
    config.add_request_method(ProxyExchanges(config.registry[ENGINE].in_flight), "proxy_exchanges")
    config.add_tween(TWEEN, under=EXCVIEW)
    config.add_subscriber(_application_created, ApplicationCreated)
    faults: list[str] = []
    for route in settings.routes:
        try:
            _declare(config, route, "the settings")
        except SettingsError as error:
            faults += error.faults
    if faults:
        raise SettingsError(faults)


def _path(spec: str) -> str:
    """The path of a file given by path or asset spec."""
    if ":" in spec and not os.path.isabs(spec):
        return str(AssetResolver().resolve(spec).abspath())
    return os.path.abspath(spec)


def add_proxy_route(config: Configurator, name: str, **keys: Any) -> None:
    """Declare a proxied route; the keys are those of ``proxy.routes.NAME``, with ``_`` for ``.``.

    Raises `SettingsError` at once for what is wrong with the keys; conflicts show when the configuration is committed.
    """
    _declare(config, route_from_keywords(name, keys), "add_proxy_route()")


class _Mark:
    """A route's pregenerator that changes nothing: by it our route is told from another one of the same name."""

    def __call__(self, request: Any, elements: Any, kw: Any) -> Any:
        return elements, kw


class _Declared:
    """A declared route, until the application is created."""

    def __init__(self, settings: RouteSettings, hooks: Hooks, mount: str, origin: str, sequence: int) -> None:
        self.settings = settings
        self.hooks = hooks
        self.mount = mount
        self.origin = origin
        self.sequence = sequence
        self.mark = _Mark()
        #: Security policy, default permission and CSRF options that its view was derived with.
        self.seen: tuple[Any, Any, Any] | None = None

    @property
    def place(self) -> tuple[int, bool, int, int]:
        """Where it stands: by `order`, patterns before prefixes, the longest prefix first, then as declared."""
        prefix = self.settings.prefix
        return (self.settings.order, prefix is not None, -len(prefix or ""), self.sequence)


def _all_declared(registry: Registry) -> list[_Declared]:
    return registry.setdefault("pyramid_threaded_proxy.declared", [])  # type: ignore[no-any-return]


def _declare(config: Configurator, settings: RouteSettings, origin: str) -> None:
    """One action for the conflicts and the introspectable; route and view are Pyramid's own."""
    every = _all_declared(config.registry)
    hooks, factory = _imported(config, settings)
    declared = _Declared(settings, hooks, _mount(config.route_prefix, settings), origin, len(every))
    every.append(declared)
    intr = config.introspectable(CATEGORY, settings.name, settings.name, "proxied route")
    intr.update({key: getattr(settings, key) for key in type(settings).__dataclass_fields__})
    intr["upstream"] = " ".join(settings.upstream)
    intr["mount"] = declared.mount
    intr.relate("routes", settings.name)
    config.add_route(settings.name, _pyramid_pattern(settings), factory=factory, pregenerator=declared.mark)

    def remember() -> None:
        """Runs when the view is derived: what it asks then is what it will ask."""
        declared.seen = _guards(config.registry)

    # After the route: under autocommit the introspectable is related to it at once.
    config.action(("proxied route", settings.name), remember, introspectables=(intr,))
    config.add_view(
        ProxyView(config.registry[ENGINE], settings.name),
        route_name=settings.name,
        permission=NO_PERMISSION_REQUIRED if settings.public else settings.permission,
        require_csrf=settings.require_csrf,
    )


def _guards(registry: Registry) -> tuple[Any, Any, Any]:
    """Security policy, default permission and CSRF options, as views are derived with them."""
    kinds = (ISecurityPolicy, IDefaultPermission, IDefaultCSRFOptions)
    policy, permission, csrf = (registry.queryUtility(kind) for kind in kinds)
    return policy, permission, csrf


def _imported(config: Configurator, settings: RouteSettings) -> tuple[Hooks, Any]:
    """The hooks and the factory that dotted names stand for. Raises `SettingsError` for all that can't be imported."""
    faults: list[str] = []

    def resolve(key: str, value: Any) -> Any:
        try:
            return config.maybe_dotted(value)
        except Exception as error:  # importing a module can raise anything
            faults.append(f"proxy.routes.{settings.name}.{key}: {value!r} can't be imported: {error}")

    found = make_hooks(settings, resolve), resolve("factory", settings.factory)
    if faults:
        raise SettingsError(faults)
    return found


def _mount(route_prefix: str | None, settings: RouteSettings) -> str:
    """The public path of the route, escaped, without a slash at its end; a pattern's is what stands before its first
    placeholder: cookies of its upstream are confined to that. Raises `SettingsError`."""
    outer = "/" + route_prefix.strip("/") if route_prefix else ""
    if settings.prefix is None:
        pattern = outer + "/" + (settings.pattern or "").lstrip("/")
        return _escaped(re.split(r"[{*:]", pattern, maxsplit=1)[0].rpartition("/")[0])
    if "{" in outer:
        key = f"proxy.routes.{settings.name}.prefix"
        raise SettingsError([f"{key}: the route prefix {route_prefix!r} has placeholders: give `pattern` instead"])
    return (_escaped(outer) + settings.prefix).rstrip("/")


def _escaped(path: str) -> str:
    return escaped_path(path.encode().decode("latin-1")).rstrip("/")


def _pyramid_pattern(settings: RouteSettings) -> str:
    """The mount itself and all below it, as Pyramid's pattern; it reads unescaped paths."""
    if settings.pattern is not None:
        return settings.pattern
    prefix = unquote(settings.prefix or "").rstrip("/")
    return prefix + ("{proxied:(?:/.*)?}" if prefix else "/{proxied:.*}")


# When the application is created


def _application_created(event: ApplicationCreated) -> None:
    """Settle what depends on the whole configuration. Raises `SettingsError` with every fault found."""
    registry = event.app.registry
    every = _all_declared(registry)
    faults = [*_taken_names(registry, every), *_unguarded(registry, every), *_missing_tween(registry)]
    engine: Engine = registry[ENGINE]
    engine.router = event.app
    for declared in every:
        try:
            inner = _mounts_inside(declared, every)
            engine.routes[declared.settings.name] = replace(_compiled(registry, engine, declared), inner=inner)
        except ValueRefused as error:
            faults.append(f"proxy.routes.{declared.settings.name}: {error}")
    if faults:
        raise SettingsError(faults)
    engine.probes.routes += [route for route in engine.routes.values() if route.settings.health_path is not None]
    mapper = registry.queryUtility(IRoutesMapper)
    if mapper is not None:
        _put_last(mapper, every)
        _warn_of_taken_mounts(mapper, every)
    _warn_of_cookies(registry, engine, every)
    _unburden(registry)


def _unburden(registry: Registry) -> None:
    """With any listener at all Pyramid sends four events a request; who waits for this one has been told by now."""
    created = (implementedBy(ApplicationCreated),)
    others = [handler for handler in registry.registeredHandlers() if handler.required != created]
    registry.has_listeners = bool(others or list(registry.registeredSubscriptionAdapters()))


def _taken_names(registry: Registry, every: list[_Declared]) -> Iterator[str]:
    """Pyramid lets an application's route replace an included one without a word: our view would answer at its URL."""
    mapper = registry.queryUtility(IRoutesMapper)
    seen: dict[str, _Declared] = {}
    for declared in every:
        name = declared.settings.name
        if name in seen:
            yield f"proxy.routes.{name}: declared twice, by {seen[name].origin} and by {declared.origin}"
        elif mapper.get_route(name).pregenerator not in [other.mark for other in every]:
            yield f"proxy.routes.{name}: the application has a route of that name, which took its place; rename one"
        seen[name] = declared


def _unguarded(registry: Registry, every: list[_Declared]) -> Iterator[str]:
    policy, default, csrf = now = _guards(registry)
    for declared in every:
        settings = declared.settings
        key = f"proxy.routes.{settings.name}"
        seen = declared.seen or now
        if settings.require_csrf is None and seen[2] is not csrf:
            yield f"{key}: the CSRF options were set after its view was made: set them before config.commit()"
        if settings.public:
            continue
        if seen[0] is not policy or (settings.permission is None and seen[1] != default):
            yield (
                f"{key}: the security policy or default permission was set after its view was made, which would not "
                "ask it: set it before config.commit(), and with autocommit before the include"
            )
        if settings.permission is None and default in (None, NO_PERMISSION_REQUIRED):
            yield (
                f"{key}: nobody would be asked: it has no `permission`, and the application has no default permission; "
                f"set {key}.permission, or {key}.public = true"
            )
        elif policy is None:
            yield (
                f"{key}.permission: {settings.permission or default!r} would be asked of nobody: "
                "the application has no security policy; set one, or make the route public"
            )


def _missing_tween(registry: Registry) -> Iterator[str]:
    tweens = registry.queryUtility(ITweens)
    if tweens is not None and tweens.explicit and TWEEN not in [name for name, _ in tweens.explicit]:
        yield f"pyramid.tweens: {TWEEN} is missing; put it below pyramid.tweens.excview_tween_factory"


def _mounts_inside(outer: _Declared, every: list[_Declared]) -> tuple[str, ...]:
    """What other routes take below the mount of this one, from there on."""
    if outer.settings.prefix is None:
        return ()
    below = outer.mount + "/"
    return tuple(
        one.mount[len(outer.mount) :]
        for one in every
        if one.settings.prefix is not None and one.mount.startswith(below) and one.place < outer.place
    )


def _compiled(registry: Registry, engine: Engine, declared: _Declared) -> Route:
    settings = declared.settings
    balance = Balance(tuple(_upstream(settings, url) for url in settings.upstream), settings.balance)
    csrf = _csrf_header(registry, settings)
    return Route(
        name=settings.name,
        settings=settings,
        mount=declared.mount,
        balance=balance,
        methods=None if settings.methods is None else frozenset(settings.methods) | _implied(settings.methods),
        request=request_policy(settings, engine.settings, frozenset({csrf} if csrf else ())),
        answer=answer_policy(
            settings,
            engine.settings,
            declared.hooks,
            bases=location_bases(settings, balance),
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


def _put_last(mapper: Any, every: list[_Declared]) -> None:
    """Ours behind the application's own, however late those were added."""
    marks = {declared.mark: declared.place for declared in every}
    ours = [route for route in mapper.routelist if route.pregenerator in marks]
    ours.sort(key=lambda route: marks[route.pregenerator])
    mapper.routelist[:] = [route for route in mapper.routelist if route.pregenerator not in marks] + ours


def _warn_of_taken_mounts(mapper: Any, every: list[_Declared]) -> None:
    marks = {declared.mark for declared in every}
    own = [route for route in mapper.routelist if route.pregenerator not in marks]
    for declared in every:
        if declared.settings.prefix is None:
            continue
        mount = unquote(declared.mount)
        for route in own:
            if route.match(mount or "/") is not None or route.match(mount + "/x") is not None:
                log.warning(
                    "the application's route %r takes requests below %r from the proxied route %r",
                    route.name,
                    mount or "/",
                    declared.settings.name,
                )


def _warn_of_cookies(registry: Registry, engine: Engine, every: list[_Declared]) -> None:
    if engine.settings.own_cookies_given or all(one.settings.request_cookies == frozenset() for one in every):
        return
    if registry.queryUtility(ISessionFactory) is not None or registry.queryUtility(ISecurityPolicy) is not None:
        log.warning(
            "proxy.own_cookies is not set: of the application's cookies only %s are kept from upstreams; "
            "name the session's and the login's cookies there",
            ", ".join(sorted(engine.settings.own_cookies)),
        )
