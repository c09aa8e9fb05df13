"""The status page's routes and views: declared with the include, checked when the application is created."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyramid.config import Configurator
from pyramid.registry import Registry

from pyramid_threaded_proxy.app.declared import ENGINE, guards
from pyramid_threaded_proxy.settings.load import ProcessSettings
from pyramid_threaded_proxy.status.views import PATHS, ROUTE, StatusViews

_SEEN = "pyramid_threaded_proxy.status_seen"


def declare_status(config: Configurator, settings: ProcessSettings) -> None:
    """Routes and views below `status.prefix`; from now on exchanges are counted."""
    prefix, seen, control = settings.status_prefix, settings.status_permission, settings.status_control_permission
    assert prefix is not None
    views = StatusViews(config.registry[ENGINE].count(), control)
    shown = [("", views.page, seen), ("json", views.data, seen), ("metrics", views.metrics, seen)]
    for word, view, permission in [*shown, *([("act", views.act, control)] if control else [])]:
        name, method = f"{ROUTE}.{word}".rstrip("."), "POST" if word == "act" else "GET"
        config.add_route(name, prefix.rstrip("/") + PATHS[word])
        # Its own forms are checked by itself, whatever the application checks.
        config.add_view(view, route_name=name, request_method=method, permission=permission, require_csrf=False)
    config.action(("proxied status", prefix), lambda: config.registry.setdefault(_SEEN, guards(config.registry)))


def proxy_collector(config: Configurator) -> Any:
    """``config.proxy_collector()``: what a registry of `prometheus_client` can register; counting begins with it.

    Raises `ImportError` without `prometheus_client` (extra ``metrics``).
    """
    from pyramid_threaded_proxy.status.metrics import ProxyCollector

    return ProxyCollector(config.registry[ENGINE].count())


def unguarded_status(registry: Registry, settings: ProcessSettings) -> Iterator[str]:
    """Faults: nobody would be asked, or somebody else than the views were made with."""
    if settings.status_prefix is None:
        return
    policy = guards(registry)[0]
    if policy is None:
        yield "proxy.status.permission: would be asked of nobody: the application has no security policy; set one"
    elif registry.get(_SEEN, (policy,))[0] is not policy:
        yield "proxy.status: the security policy was set after its views were made: set it before config.commit()"
