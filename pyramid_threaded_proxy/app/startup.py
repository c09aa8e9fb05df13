"""When the application is created: the checks on the whole of it, and what depends on them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from pyramid.events import ApplicationCreated
from pyramid.interfaces import (
    IRoutesMapper,
    ISecurityPolicy,
    ISessionFactory,
    ITweens,
)
from pyramid.registry import Registry
from pyramid.security import NO_PERMISSION_REQUIRED
from zope.interface import implementedBy

from pyramid_threaded_proxy.app.compile import compile_route, probed
from pyramid_threaded_proxy.app.declared import ENGINE, TWEEN, Declared, all_declared, guards
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.status import unguarded_status
from pyramid_threaded_proxy.exceptions import ValueRefused
from pyramid_threaded_proxy.settings.errors import SettingsError

log = logging.getLogger("pyramid_threaded_proxy.config")


def application_created(event: ApplicationCreated) -> None:
    """Settle what depends on the whole configuration. Raises `SettingsError` with every fault found."""
    registry = event.app.registry
    every = all_declared(registry)
    engine: Engine = registry[ENGINE]
    faults = [
        *_taken_names(registry, every),
        *_unguarded(registry, every),
        *unguarded_status(registry, engine.settings),
        *_missing_tween(registry),
        *_compile_all(registry, engine, every),
    ]
    if faults:
        raise SettingsError(faults)
    engine.router = event.app
    engine.probes.probed += filter(None, map(probed, engine.routes.values()))
    mapper = registry.queryUtility(IRoutesMapper)
    if mapper is not None:
        _put_last(mapper, every)
        _warn_of_taken_mounts(mapper, every)
    _warn_of_cookies(registry, engine, every)
    _unburden(registry)


def _compile_all(registry: Registry, engine: Engine, every: list[Declared]) -> Iterator[str]:
    """The faults that show when settings are compiled; what has none is the engine's then."""
    for declared in every:
        name, inner = declared.settings.name, _mounts_inside(declared, every)
        try:
            engine.routes[name] = compile_route(registry, engine.settings, declared, inner)
        except ValueRefused as error:
            yield f"proxy.routes.{name}: {error}"


def _unburden(registry: Registry) -> None:
    """With any listener at all Pyramid sends four events a request; who waits for this one has been told by now."""
    created = (implementedBy(ApplicationCreated),)
    others = [handler for handler in registry.registeredHandlers() if handler.required != created]
    registry.has_listeners = bool(others or list(registry.registeredSubscriptionAdapters()))


def _taken_names(registry: Registry, every: list[Declared]) -> Iterator[str]:
    """Pyramid lets an application's route replace an included one without a word: our view would answer at its URL."""
    mapper = registry.queryUtility(IRoutesMapper)
    seen: dict[str, Declared] = {}
    for declared in every:
        name = declared.settings.name
        if name in seen:
            yield f"proxy.routes.{name}: declared twice, by {seen[name].origin} and by {declared.origin}"
        elif mapper.get_route(name).pregenerator not in [other.mark for other in every]:
            yield f"proxy.routes.{name}: the application has a route of that name, which took its place; rename one"
        seen[name] = declared


def _unguarded(registry: Registry, every: list[Declared]) -> Iterator[str]:
    policy, default, csrf = now = guards(registry)
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


def _mounts_inside(outer: Declared, every: list[Declared]) -> tuple[str, ...]:
    """What other routes take below the mount of this one, from there on."""
    if outer.settings.prefix is None:
        return ()
    below = outer.mount + "/"
    return tuple(
        one.mount[len(outer.mount) :]
        for one in every
        if one.settings.prefix is not None and one.mount.startswith(below) and one.place < outer.place
    )


def _put_last(mapper: Any, every: list[Declared]) -> None:
    """Ours behind the application's own, however late those were added."""
    marks = {declared.mark: declared.place for declared in every}
    ours = [route for route in mapper.routelist if route.pregenerator in marks]
    ours.sort(key=lambda route: marks[route.pregenerator])
    mapper.routelist[:] = [route for route in mapper.routelist if route.pregenerator not in marks] + ours


def _warn_of_taken_mounts(mapper: Any, every: list[Declared]) -> None:
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


def _warn_of_cookies(registry: Registry, engine: Engine, every: list[Declared]) -> None:
    if engine.settings.own_cookies_given or all(one.settings.request_cookies == frozenset() for one in every):
        return
    if registry.queryUtility(ISessionFactory) is not None or registry.queryUtility(ISecurityPolicy) is not None:
        log.warning(
            "proxy.own_cookies is not set: of the application's cookies only %s are kept from upstreams; "
            "name the session's and the login's cookies there",
            ", ".join(sorted(engine.settings.own_cookies)),
        )
