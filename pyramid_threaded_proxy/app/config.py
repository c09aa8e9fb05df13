"""Configuration: from settings and `config.add_proxy_route` to Pyramid's own routes and views.

Actions do what can be done while the application is still being configured. What depends on the whole of it, the order
of routes, names that were taken, permissions that nobody checks, is settled when the application is created.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote

from pyramid.config import Configurator
from pyramid.events import ApplicationCreated
from pyramid.path import AssetResolver
from pyramid.security import NO_PERMISSION_REQUIRED
from pyramid.tweens import EXCVIEW

from pyramid_threaded_proxy.app.compile import make_hooks, tls_settings
from pyramid_threaded_proxy.app.declared import CATEGORY, ENGINE, TWEEN, Declared, all_declared, guards
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.host import HostPredicate
from pyramid_threaded_proxy.app.request_methods import ProxyExchanges, RequestMethod, proxy_fetch, proxy_forward
from pyramid_threaded_proxy.app.startup import application_created
from pyramid_threaded_proxy.app.status import declare_status, proxy_collector
from pyramid_threaded_proxy.app.views import ProxyView
from pyramid_threaded_proxy.detach.access import install
from pyramid_threaded_proxy.hooks import NAMES
from pyramid_threaded_proxy.http.target import escaped_path
from pyramid_threaded_proxy.settings.load import RouteSettings, load_settings, route_from_keywords
from pyramid_threaded_proxy.upstream.tls import file_faults


def include(config: Configurator) -> None:
    """What ``config.include("pyramid_threaded_proxy")`` does: nothing is started by it."""
    settings = load_settings(config.registry.settings or {}, _path, partial(_faults, config))
    config.registry[ENGINE] = Engine(config.registry, settings.process)
    install()
    config.add_directive("add_proxy_route", add_proxy_route)
    config.add_directive("proxy_collector", proxy_collector)
    config.add_request_method(RequestMethod(proxy_fetch), "proxy_fetch")
    config.add_request_method(RequestMethod(proxy_forward), "proxy_forward")
    config.add_request_method(ProxyExchanges(config.registry[ENGINE].in_flight), "proxy_exchanges")
    config.add_route_predicate("proxied_host", HostPredicate)
    config.add_tween(TWEEN, under=EXCVIEW)
    config.add_subscriber(application_created, ApplicationCreated)
    if settings.process.status_prefix is not None:
        declare_status(config, settings.process)
    for route in settings.routes:
        _declare(config, route, "the settings")


def _path(spec: str) -> str:
    """The path of a file given by path or asset spec."""
    if ":" in spec and not os.path.isabs(spec):
        return str(AssetResolver().resolve(spec).abspath())
    return os.path.abspath(spec)


def add_proxy_route(config: Configurator, name: str, **keys: Any) -> None:
    """Declare a proxied route; the keys are those of ``proxy.routes.NAME``, with ``_`` for ``.``.

    Raises `SettingsError` at once for what is wrong with the keys; conflicts show when the configuration is committed.
    """
    _declare(config, route_from_keywords(name, keys, judge=partial(_faults, config)), "add_proxy_route()")


def _declare(config: Configurator, settings: RouteSettings, origin: str) -> None:
    """One action for the conflicts and the introspectable; route and view are Pyramid's own."""
    every = all_declared(config.registry)
    hooks = make_hooks(settings, lambda key, value: config.maybe_dotted(value))
    factory = config.maybe_dotted(settings.factory)
    declared = Declared(settings, hooks, _mount(config.route_prefix, settings), origin, len(every))
    every.append(declared)
    intr = config.introspectable(CATEGORY, settings.name, settings.name, "proxied route")
    intr.update({key: getattr(settings, key) for key in type(settings).__dataclass_fields__})
    intr["upstream"] = " ".join(settings.upstream)
    intr["mount"] = declared.mount
    intr.relate("routes", settings.name)
    of_host = {} if settings.host is None else {"proxied_host": settings.host}
    config.add_route(settings.name, _pyramid_pattern(settings), factory=factory, pregenerator=declared.mark, **of_host)

    def remember() -> None:
        """Runs when the view is derived: what it asks then is what it will ask."""
        declared.seen = guards(config.registry)

    # After the route: under autocommit the introspectable is related to it at once.
    config.action(("proxied route", settings.name), remember, introspectables=(intr,))
    view = ProxyView(config.registry[ENGINE], settings.name)
    config.add_view(
        view,
        route_name=settings.name,
        permission=NO_PERMISSION_REQUIRED if settings.public else settings.permission,
        require_csrf=settings.require_csrf,
    )
    if settings.preflight == "pass":
        config.add_view(
            view.preflight,
            route_name=settings.name,
            request_method="OPTIONS",
            header=("Origin", "Access-Control-Request-Method"),
            permission=NO_PERMISSION_REQUIRED,
            require_csrf=False,
        )


def _faults(config: Configurator, settings: RouteSettings) -> Iterator[tuple[str, str]]:
    """What is wrong with a route's names and files, and where it is included."""
    for path in (*(f"hooks.{name}" for name in NAMES), "factory"):
        try:
            found = config.maybe_dotted(getattr(settings, path.replace(".", "_")))
        except Exception as error:  # importing a module can raise anything
            yield path, f"can't be imported: {error}"
        else:
            if found is not None and not callable(found):
                yield path, f"is not callable, but a {type(found).__name__}"
    yield from file_faults(tls_settings(settings))
    if settings.prefix is not None and "{" in (config.route_prefix or ""):
        yield "prefix", f"the route prefix {config.route_prefix!r} has placeholders: give `pattern` instead"


def _mount(route_prefix: str | None, settings: RouteSettings) -> str:
    """The public path of the route, escaped, without a slash at its end; a pattern's is what stands before its first
    placeholder: cookies of its upstream are confined to that."""
    outer = "/" + route_prefix.strip("/") if route_prefix else ""
    if settings.prefix is None:
        pattern = outer + "/" + (settings.pattern or "").lstrip("/")
        return _escaped(re.split(r"[{*:]", pattern, maxsplit=1)[0].rpartition("/")[0])
    return (_escaped(outer) + settings.prefix).rstrip("/")


def _escaped(path: str) -> str:
    return escaped_path(path.encode().decode("latin-1")).rstrip("/")


def _pyramid_pattern(settings: RouteSettings) -> str:
    """The mount itself and all below it, as Pyramid's pattern; it reads unescaped paths."""
    if settings.pattern is not None:
        return settings.pattern
    prefix = unquote(settings.prefix or "").rstrip("/")
    return prefix + ("{proxied:(?:/.*)?}" if prefix else "/{proxied:.*}")
