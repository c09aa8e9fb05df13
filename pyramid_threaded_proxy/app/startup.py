"""When the application is created: the checks on the whole of it, and what depends on them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from pyramid.authentication import BasicAuthAuthenticationPolicy, RemoteUserAuthenticationPolicy
from pyramid.events import ApplicationCreated
from pyramid.interfaces import (
    IAuthenticationPolicy,
    IExecutionPolicy,
    IRoutesMapper,
    ISecurityPolicy,
    ISessionFactory,
    ITweens,
)
from pyramid.predicates import RequestMethodPredicate
from pyramid.registry import Registry
from pyramid.security import NO_PERMISSION_REQUIRED
from zope.interface import implementedBy

from pyramid_threaded_proxy.app.compile import compile_route, probed
from pyramid_threaded_proxy.app.declared import ENGINE, TWEEN, Declared, all_declared, guards
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.host import may_meet
from pyramid_threaded_proxy.app.mounts import Mounts
from pyramid_threaded_proxy.app.routes import Inner, Route
from pyramid_threaded_proxy.app.settled import digest_of
from pyramid_threaded_proxy.app.status import unguarded_status
from pyramid_threaded_proxy.app.streamed import StreamedRoutes
from pyramid_threaded_proxy.app.verify import VerifyPolicy
from pyramid_threaded_proxy.detach.asked_first import ask_first
from pyramid_threaded_proxy.detach.turns import let_wait
from pyramid_threaded_proxy.exceptions import ValueRefused
from pyramid_threaded_proxy.settings.errors import SettingsError
from pyramid_threaded_proxy.settings.table import RouteSettings

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
    mounts = engine.mounts = Mounts(every, engine.settings.verify_prefix)
    let_wait(mounts)
    mapper = registry.queryUtility(IRoutesMapper)
    if mapper is not None:
        _put_in_place(mapper, every)
        _warn_of_taken_mounts(mapper, every)
        _begin_to_stream(mapper, engine, mounts, every)
    _warn_of_cookies(registry, engine, every)
    _warn_of_fields(registry, engine, every)
    if engine.settings.fronted and mapper is not None:
        engine.digest = digest_of(routes_in_order(mapper, engine), engine.settings)
    if engine.settings.verify_prefix is not None:
        event.app.execution_policy = VerifyPolicy(engine, event.app.execution_policy)
    _unburden(registry)


def routes_in_order(mapper: Any, engine: Engine) -> list[Route]:
    """The routes as Pyramid tries them: what is listed, exported and has a digest has this order."""
    return [engine.routes[route.name] for route in mapper.routelist if route.name in engine.routes]


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


def _mounts_inside(outer: Declared, every: list[Declared]) -> tuple[Inner, ...]:
    """What other routes take below the mount of this one, from there on."""
    if outer.settings.prefix is None:
        return ()
    below = outer.mount + "/"
    return tuple(
        Inner(one.mount[len(outer.mount) :], one.settings.host)
        for one in every
        if one.settings.prefix is not None
        and one.mount.startswith(below)
        and one.place < outer.place
        and may_meet(one.settings.host, outer.settings.host)
    )


def _put_in_place(mapper: Any, every: list[Declared]) -> None:
    """Ours behind the application's own, however late those were added; or in front where `before` says so."""
    known = {declared.mark: declared for declared in every}
    ours = [route for route in mapper.routelist if route.pregenerator in known]
    ours.sort(key=lambda route: known[route.pregenerator].place)
    first = [route for route in ours if known[route.pregenerator].settings.before]
    own = [route for route in mapper.routelist if route.pregenerator not in known]
    mapper.routelist[:] = first + own + ours[len(first) :]


def _warn_of_taken_mounts(mapper: Any, every: list[Declared]) -> None:
    marks = {declared.mark for declared in every}
    own = [route for route in mapper.routelist if route.pregenerator not in marks]
    for declared in every:
        if declared.settings.prefix is None:
            continue
        mount = unquote(declared.mount)
        for route in own:
            if not _can_meet(route, declared) or not any(
                route.match(path) is not None for path in (mount or "/", mount + "/x")
            ):
                continue
            log.warning(
                "the application's route %r takes requests below %r from the proxied route %r: "
                "rename one, or set proxy.routes.%s.before = true, which puts it in front",
                route.name,
                mount or "/",
                declared.settings.name,
                declared.settings.name,
            )


def _can_meet(route: Any, declared: Declared) -> bool:
    """Whether a request can be one for both; the application's own OPTIONS view is no accident."""
    if declared.settings.before:
        return False
    for predicate in route.predicates:
        if isinstance(predicate, RequestMethodPredicate):
            ours = set(declared.settings.methods or predicate.val) - {"OPTIONS"}
            return not ours.isdisjoint(predicate.val)
    return True


def _begin_to_stream(mapper: Any, engine: Engine, mounts: Mounts, every: list[Declared]) -> None:
    """From now on requests for routes whose bodies stream are handed over by their heads."""
    names = [one.settings.name for one in every if not one.settings.request_buffering]
    if not names:
        return
    engine.streamed = StreamedRoutes(mapper.routelist, every, mounts, engine.scheduler.start)
    ask_first(engine.streamed)
    policy = engine.registry.queryUtility(IExecutionPolicy)
    if getattr(policy, "__module__", "").split(".")[0] != "pyramid_retry":
        return
    settings = engine.registry.settings or {}
    if settings.get("retry.attempts") == 1 or settings.get("retry.activate_hook"):
        return
    log.warning(
        "pyramid_retry receives whole bodies before anybody is asked, those of %s too, which are to stream: set "
        "retry.attempts = 1, or let a retry.activate_hook return 1 for the requests below them",
        ", ".join(names),
    )


def _warn_of_cookies(registry: Registry, engine: Engine, every: list[Declared]) -> None:
    if engine.settings.own_cookies_given or all(one.settings.request_cookies == frozenset() for one in every):
        return
    policy = _policy(registry)
    if registry.queryUtility(ISessionFactory) is not None or (policy is not None and not _reads_no_cookie(policy)):
        log.warning(
            "proxy.own_cookies is not set: of the application's cookies only %s are kept from upstreams; "
            "name the session's and the login's cookies there",
            ", ".join(sorted(engine.settings.own_cookies)),
        )


def _policy(registry: Registry) -> Any:
    """Who says which user asks: the security policy, or the authentication policy of Pyramid 1 behind it."""
    return registry.queryUtility(IAuthenticationPolicy) or registry.queryUtility(ISecurityPolicy)


def _reads_no_cookie(policy: Any) -> bool:
    """Whether a policy is one of those that are known to look at a field alone."""
    return isinstance(policy, (BasicAuthAuthenticationPolicy, RemoteUserAuthenticationPolicy)) or bool(
        _field_of(policy)
    )


def _field_of(policy: Any) -> str | None:
    """The field that holds the credentials, of a policy that is known to read one: Pyramid's own for a user that a
    front server names, pyramid_jwt's and devpi's."""
    key, name = getattr(policy, "environ_key", None), getattr(policy, "http_header", None)
    if isinstance(key, str) and key.startswith("HTTP_"):
        return "-".join(word.capitalize() for word in key[5:].split("_"))
    if isinstance(name, str):
        return name
    return "X-Devpi-Auth" if type(policy).__module__.split(".")[0] == "devpi_server" else None


def _warn_of_fields(registry: Registry, engine: Engine, every: list[Declared]) -> None:
    policy = _policy(registry)
    name = _field_of(policy)
    if name is None or name.lower() in engine.settings.own_fields | {"authorization", "cookie"}:
        return
    sending = [one.settings.name for one in every if _sends(one.settings, name.lower())]
    if sending:
        log.warning(
            "proxy.own_fields does not name %s, which %s reads: the client's goes upstream on %s; name it there",
            name,
            type(policy).__name__,
            ", ".join(sending),
        )


def _sends(settings: RouteSettings, name: str) -> bool:
    if settings.request_only is not None and name not in settings.request_only:
        return False
    return name not in {other.lower() for other in [*settings.request_remove, *dict(settings.request_set)]}
