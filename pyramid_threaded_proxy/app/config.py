"""Configuration: from settings and `config.add_proxy_route` to Pyramid's own routes and views.

Actions do what can be done while the application is still being configured. What depends on the whole of it, the order
of routes, names that were taken, permissions that nobody checks, is settled when the application is created.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import unquote

from pyramid.config import Configurator
from pyramid.events import ApplicationCreated
from pyramid.path import AssetResolver
from pyramid.security import NO_PERMISSION_REQUIRED
from pyramid.tweens import EXCVIEW

from pyramid_threaded_proxy.app.compile import make_hooks
from pyramid_threaded_proxy.app.declared import CATEGORY, ENGINE, TWEEN, Declared, all_declared, guards
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.request_methods import ProxyExchanges, RequestMethod, proxy_fetch, proxy_forward
from pyramid_threaded_proxy.app.startup import application_created
from pyramid_threaded_proxy.app.status import declare_status, proxy_collector
from pyramid_threaded_proxy.app.views import ProxyView
from pyramid_threaded_proxy.detach.access import install
from pyramid_threaded_proxy.hooks import Hooks
from pyramid_threaded_proxy.http.target import escaped_path
from pyramid_threaded_proxy.settings.errors import SettingsError
from pyramid_threaded_proxy.settings.load import RouteSettings, load_settings, route_from_keywords


def include(config: Configurator) -> None:
    """What ``config.include("pyramid_threaded_proxy")`` does: nothing is started by it."""
    settings = load_settings(config.registry.settings or {}, _path)
    config.registry[ENGINE] = Engine(config.registry, settings.process)
    install()
    config.add_directive("add_proxy_route", add_proxy_route)
    config.add_directive("proxy_collector", proxy_collector)
    config.add_request_method(RequestMethod(proxy_fetch), "proxy_fetch")
    config.add_request_method(RequestMethod(proxy_forward), "proxy_forward")
    config.add_request_method(ProxyExchanges(config.registry[ENGINE].in_flight), "proxy_exchanges")
    config.add_tween(TWEEN, under=EXCVIEW)
    config.add_subscriber(application_created, ApplicationCreated)
    if settings.process.status_prefix is not None:
        declare_status(config, settings.process)
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


def _declare(config: Configurator, settings: RouteSettings, origin: str) -> None:
    """One action for the conflicts and the introspectable; route and view are Pyramid's own."""
    every = all_declared(config.registry)
    hooks, factory = _imported(config, settings)
    declared = Declared(settings, hooks, _mount(config.route_prefix, settings), origin, len(every))
    every.append(declared)
    intr = config.introspectable(CATEGORY, settings.name, settings.name, "proxied route")
    intr.update({key: getattr(settings, key) for key in type(settings).__dataclass_fields__})
    intr["upstream"] = " ".join(settings.upstream)
    intr["mount"] = declared.mount
    intr.relate("routes", settings.name)
    config.add_route(settings.name, _pyramid_pattern(settings), factory=factory, pregenerator=declared.mark)

    def remember() -> None:
        """Runs when the view is derived: what it asks then is what it will ask."""
        declared.seen = guards(config.registry)

    # After the route: under autocommit the introspectable is related to it at once.
    config.action(("proxied route", settings.name), remember, introspectables=(intr,))
    config.add_view(
        ProxyView(config.registry[ENGINE], settings.name),
        route_name=settings.name,
        permission=NO_PERMISSION_REQUIRED if settings.public else settings.permission,
        require_csrf=settings.require_csrf,
    )


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
