"""Which requests are taken for ones of a route that streams, by method, path and Host alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.events import NewResponse
from pyramid.tweens import INGRESS

from tests.support.origin import MakeOrigin, echo
from tests.support.site import NOWHERE, MakeSite, route
from tests.support.uploads import chunks, put, put_chunked
from tests.support.wire import get, read_answer

STREAMS = {"request__buffering": "false"}


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """The applications made here are asked by no site of a later test."""
    yield
    while _made:
        _made.pop().close()


_made: list[Any] = []


def asks(settings: dict[str, Any], configure: Any = None) -> Any:
    """What the application says of requests."""
    config = Configurator(settings=settings)
    config.include("pyramid_threaded_proxy")
    if configure is not None:
        configure(config)
    config.make_wsgi_app()
    _made.append(config.registry["pyramid_threaded_proxy.engine"])
    return _made[-1].streamed


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
    mounts = _made[-1].mounts
    assert not streamed.asks_first("PUT", "/site/r/x", "a")
    assert not mounts.is_proxied("/site/r/x", "a")
    mounts.learn("/site")
    for path in ("/site/r/x", "/r/x"):
        assert streamed.asks_first("PUT", path, "a")
        assert mounts.is_proxied(path, "a")
    for number in range(100):
        mounts.learn(f"/{number}")
    assert not mounts.is_proxied("/site/r/x", "a")
    assert streamed.asks_first("PUT", "/r/x", "a")


@pytest.mark.parametrize("who", ["hook", "tween", "subscriber"])
@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
def test_what_somebody_has_read_is_sent(origin: MakeOrigin, site: MakeSite, who: str, chunked: bool) -> None:
    """A body that was to stream and was read after all, even behind the view, goes up from where it was received."""
    read: list[bytes] = []

    def configure(config: Configurator) -> None:
        if who == "tween":
            config.add_tween(f"{__name__}.reading_tween", under=INGRESS)
        if who == "subscriber":
            config.add_subscriber(lambda event: read.append(raw(event.request)), NewResponse)

    keys = {"hooks__request": f"{__name__}.reading_hook"} if who == "hook" else {}
    where = site(route("r", origin(echo).url, **STREAMS, **keys), configure=configure)
    client = where.client()
    client.send(put_chunked("/r/x") if chunked else put("/r/x", 5000))
    client.send(chunks(bytes(5000), 1000) if chunked else bytes(5000))
    head, _, body = read_answer(client)[2].partition(b"\r\n\r\n")
    assert body == bytes(5000)
    assert b"Content-Length: 5000" in head
    assert b"Transfer-Encoding" not in head
    client.send(get("/r/next"))
    assert read_answer(client)[2].startswith(b"GET /next ")
    client.close()


def raw(request: Any) -> bytes:
    return request.environ["wsgi.input"].read()  # type: ignore[no-any-return]


def reading_hook(request: Any, exchange: Any) -> None:
    assert raw(request) == (bytes(5000) if request.method == "PUT" else b"")


def reading_tween(handler: Any, registry: Any) -> Any:
    def tween(request: Any) -> Any:
        response = handler(request)
        reading_hook(request, None)
        return response

    return tween


def test_what_was_read_is_held_to_max_body(origin: MakeOrigin, site: MakeSite) -> None:
    """A chunked body that a hook has read, and that is too large, goes no further."""
    keys = {"hooks__request": f"{__name__}.reading_hook", "max_body": "4000"}
    where = site(route("r", origin(lambda wire: wire.wait_closed()).url, **STREAMS, **keys))
    client = where.client()
    client.send(put_chunked("/r/x") + chunks(bytes(5000), 1000))
    assert read_answer(client)[0].startswith("HTTP/1.1 413 ")
    client.close()


def test_a_hook_may_send_another_body(origin: MakeOrigin, site: MakeSite) -> None:
    """Where a hook sends something else, the client's body is left unread and the connection is closed."""
    where = site(route("r", origin(echo).url, **STREAMS, hooks__request=f"{__name__}.replacing_hook"))
    client = where.client()
    client.send(put("/r/x", 5000))
    _, fields, body = read_answer(client)
    assert body.endswith(b"\r\n\r\nother")
    assert fields["connection"] == "close"
    client.close()


def replacing_hook(request: Any, exchange: Any) -> None:
    exchange.request.body = b"other"


def test_pyramid_retry_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """With pyramid_retry the log says what to set; with that set it says nothing."""
    for settings, said in (({}, True), ({"retry.attempts": "1"}, False)):
        caplog.clear()
        asks(route("r", NOWHERE, **STREAMS) | settings, lambda config: config.include("pyramid_retry"))
        assert ("retry.attempts = 1" in caplog.text) is said


@pytest.mark.parametrize("how", ["file", "iterable"])
def test_what_a_view_makes_of_the_body_is_received_first(origin: MakeOrigin, site: MakeSite, how: str) -> None:
    """A file or an iterable may read the request's body, which no thread of the pool's may wait for: so it is received
    in the request's own thread, and one that breaks off is never sent."""
    upstream = origin(echo)

    def view(request: Any) -> Any:
        file = request.body_file
        body = file if how == "file" else iter(lambda: file.read(1000), b"")
        return request.proxy_fetch(upstream.url, method="POST", body=body)

    def configure(config: Configurator) -> None:
        config.add_route("own", "/r/own", header="X-Own")
        config.add_view(view, route_name="own")

    where = site(route("r", upstream.url, **STREAMS), configure=configure)
    client = where.client()
    client.send(put("/r/own", 5000, "X-Own: 1"))
    client.send(bytes(4999))
    client.half_close()
    assert client.rest() == b""
    client.close()
    assert upstream.accepted == 0
    client = where.client()
    client.send(put("/r/own", 5000, "X-Own: 1"))
    client.send(bytes(5000))
    assert bytes(1000) in read_answer(client)[2]
    client.close()
    assert upstream.accepted == 1


def test_fetching_with_the_requests_body(origin: MakeOrigin, site: MakeSite) -> None:
    """A view below a mount that fetches with the request's body sends all of it, received first or as it comes."""
    upstream = origin(echo)

    def configure(config: Configurator) -> None:
        for name, keys in (("whole", {}), ("flowing", {"request_buffering": False})):
            config.add_route(name, f"/r/{name}", header="X-Own")
            config.add_view(
                lambda request, keys=keys: request.proxy_fetch(upstream.url, method="POST", body=request, **keys),
                route_name=name,
            )

    where = site(route("r", upstream.url, **STREAMS), configure=configure)
    for name in ("whole", "flowing"):
        client = where.client()
        client.send(put(f"/r/{name}", 200_000, "X-Own: 1"))
        client.send(bytes(200_000))
        assert read_answer(client)[2].endswith(b"\r\n\r\n" + bytes(200_000))
        client.close()
