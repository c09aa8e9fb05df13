"""The Pyramid application of all runs: one permission, one view of its own. `benchmark.ini` declares the routes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyramid.authorization import ACLHelper, Allow, Everyone
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy.app.declared import ENGINE

USER = "alice"
_BODY = b"x" * 1024


class Policy:
    """A security policy: everybody is the same user, and ACLs are asked."""

    def __init__(self) -> None:
        self._acls = ACLHelper()

    def identity(self, request: Request) -> str:
        return USER

    authenticated_userid = identity

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        return self._acls.permits(context, [Everyone, USER], permission)

    def remember(self, request: Request, userid: str, **kw: Any) -> list[tuple[str, str]]:
        return []

    def forget(self, request: Request, **kw: Any) -> list[tuple[str, str]]:
        return []


class Root:
    """The context of every view."""

    __acl__ = ((Allow, USER, "view"),)

    def __init__(self, request: Request) -> None:
        pass


def own(context: Root, request: Request) -> Response:
    """1 KiB with one field set: what the small answers of an upstream are compared with."""
    response = Response(_BODY, content_type="text/plain")
    response.headers["X-Frame-Options"] = "DENY"
    return response


def looked_at(exchange: Any, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """A body filter that looks at each byte and changes none."""
    for chunk in chunks:
        yield chunk.replace(b"never there", b"")


def counted(config: Any) -> None:
    """For ``pyramid.includes``, behind the add-on: exchanges are counted, as with `status.prefix` or a collector."""
    config.registry[ENGINE].count()


def main(global_config: dict[str, str], **settings: str) -> Any:
    """The application, for ``paste.app_factory``."""
    with Configurator(settings=settings, root_factory=Root) as config:
        config.set_security_policy(Policy())
        config.add_route("own", "/own")
        config.add_view(own, route_name="own", permission="view")
        return config.make_wsgi_app()
