"""A declared route, until the application is created."""

from __future__ import annotations

from typing import Any

from pyramid.interfaces import (
    IDefaultCSRFOptions,
    IDefaultPermission,
    ISecurityPolicy,
)
from pyramid.registry import Registry

from pyramid_threaded_proxy.hooks import Hooks
from pyramid_threaded_proxy.settings.load import RouteSettings

ENGINE = "pyramid_threaded_proxy.engine"
TWEEN = "pyramid_threaded_proxy.tween.proxy_tween_factory"
CATEGORY = "proxied routes"


class Mark:
    """A route's pregenerator that changes nothing: by it our route is told from another one of the same name."""

    def __call__(self, request: Any, elements: Any, kw: Any) -> Any:
        return elements, kw


class Declared:
    """A declared route, until the application is created."""

    def __init__(self, settings: RouteSettings, hooks: Hooks, mount: str, origin: str, sequence: int) -> None:
        self.settings = settings
        self.hooks = hooks
        self.mount = mount
        self.origin = origin
        self.sequence = sequence
        self.mark = Mark()
        #: Security policy, default permission and CSRF options that its view was derived with.
        self.seen: tuple[Any, Any, Any] | None = None

    @property
    def place(self) -> tuple[bool, int, int, bool, int, int]:
        """Where it stands: those `before` the application's own first, then by `order`, those for a host before those
        for any, patterns before prefixes, the longest prefix first, then as declared."""
        prefix = self.settings.prefix
        host = self.settings.host
        general = 2 if host is None else 1 if host.startswith("*") else 0
        return (
            not self.settings.before,
            self.settings.order,
            general,
            prefix is not None,
            -len(prefix or ""),
            self.sequence,
        )


def all_declared(registry: Registry) -> list[Declared]:
    return registry.setdefault("pyramid_threaded_proxy.declared", [])  # type: ignore[no-any-return]


def guards(registry: Registry) -> tuple[Any, Any, Any]:
    """Security policy, default permission and CSRF options, as views are derived with them."""
    kinds = (ISecurityPolicy, IDefaultPermission, IDefaultCSRFOptions)
    policy, permission, csrf = (registry.queryUtility(kind) for kind in kinds)
    return policy, permission, csrf
