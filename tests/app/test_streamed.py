"""Which requests are taken for ones of a route that streams, by method, path and Host alone."""

from __future__ import annotations

from typing import Any

import pytest
from pyramid.config import Configurator

from tests.support.site import NOWHERE, route

STREAMS = {"request__buffering": "false"}


def asks(settings: dict[str, Any], configure: Any = None) -> Any:
    """What the application says of requests."""
    config = Configurator(settings=settings)
    config.include("pyramid_threaded_proxy")
    if configure is not None:
        configure(config)
    config.make_wsgi_app()
    streamed = config.registry["pyramid_threaded_proxy.engine"].streamed
    return streamed


def test_nobody_is_asked_where_nothing_streams() -> None:
    """An application whose routes all buffer does not speak up."""
    assert asks(route("r", NOWHERE)) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/r", True), ("/r/", True), ("/r/a/b", True), ("/rx", False), ("/", False), ("/x/r", False), ("/R/a", False),
     ("/r/\xc3\xa4", True), ("/r/\xff", False), ("//r", False)],
)  # fmt: skip
def test_a_prefix(path: str, expected: bool) -> None:
    """A mount and what is below it; escapes that no route matches are nobody's."""
    assert asks(route("r", NOWHERE, **STREAMS)).asks_first("PUT", path, "a") is expected


def test_a_pattern() -> None:
    """What the pattern matches, not all below what it begins with."""
    keys = {"pattern": "/shops/{shop:[0-9]+}/files/*rest", "upstream": NOWHERE + "/{shop}/{rest}", "public": "true"}
    streamed = asks({f"proxy.routes.r.{key}": value for key, value in (keys | {"request.buffering": "false"}).items()})
    assert streamed.asks_first("PUT", "/shops/7/files/a/b", "a")
    assert not streamed.asks_first("PUT", "/shops/seven/files/a", "a")
    assert not streamed.asks_first("PUT", "/shops/7", "a")


def test_a_route_prefix() -> None:
    """A route that is declared below a route prefix is found there."""

    def inner(config: Configurator) -> None:
        config.add_proxy_route("r", prefix="/r", upstream=NOWHERE, public=True, request_buffering=False)

    streamed = asks({}, lambda config: config.include(inner, route_prefix="/shop"))
    assert streamed.asks_first("PUT", "/shop/r/x", "a")
    assert not streamed.asks_first("PUT", "/r/x", "a")


def test_nested_mounts() -> None:
    """The innermost mount decides, whichever of the two streams."""
    outer = route("o", NOWHERE, **STREAMS) | route("i", NOWHERE) | {"proxy.routes.i.prefix": "/o/i"}
    assert asks(outer).asks_first("PUT", "/o/x", "a")
    assert not asks(outer).asks_first("PUT", "/o/i/x", "a")
    inner = route("o", NOWHERE) | route("i", NOWHERE, **STREAMS) | {"proxy.routes.i.prefix": "/o/i"}
    assert not asks(inner).asks_first("PUT", "/o/x", "a")
    assert asks(inner).asks_first("PUT", "/o/i/x", "a")


def test_hosts() -> None:
    """A route for a host has requests for that host alone, unless it is not known yet what that is."""
    streamed = asks(route("h", NOWHERE, host="files.example", prefix="/", **STREAMS))
    assert streamed.asks_first("PUT", "/x", "files.example:8080")
    assert not streamed.asks_first("PUT", "/x", "www.example")
    assert streamed.asks_first("PUT", "/x", None)


def test_routes_in_front() -> None:
    """Where one of the application's own routes is in front it has the request, as far as path and method tell."""

    def configure(config: Configurator) -> None:
        config.add_route("all", "/r/all")
        config.add_route("post", "/r/post", request_method="POST")
        config.add_route("head", "/r/head", header="X-A")

    streamed = asks(route("r", NOWHERE, **STREAMS), configure)
    assert not streamed.asks_first("PUT", "/r/all", "a")
    assert not streamed.asks_first("POST", "/r/post", "a")
    assert streamed.asks_first("PUT", "/r/post", "a")
    assert streamed.asks_first("PUT", "/r/head", "a")


def test_script_names_are_learnt() -> None:
    """Under a SCRIPT_NAME that was heard of, a mount is found; only so many are remembered."""
    streamed = asks(route("r", NOWHERE, **STREAMS))
    assert not streamed.asks_first("PUT", "/site/r/x", "a")
    streamed.learn("/site")
    assert streamed.asks_first("PUT", "/site/r/x", "a")
    assert streamed.asks_first("PUT", "/r/x", "a")
    for number in range(100):
        streamed.learn(f"/{number}")
    assert len(streamed._names) == 16
    assert streamed.asks_first("PUT", "/r/x", "a")
