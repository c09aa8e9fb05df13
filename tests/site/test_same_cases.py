"""The same routes, hooks, limits and errors under waitress, gunicorn's two workers and WebTest."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pyramid.authorization import Allow, Authenticated
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy import Exchange
from pyramid_threaded_proxy.limits.admission import Limits
from tests.support.origin import Origin
from tests.support.servers import ENGINE, SERVERS, Ask, under_waitress
from tests.support.site import Policy
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import OriginWire, received

WITH_WAITRESS = {"waitress": under_waitress, **{name: how for name, how in SERVERS.items() if name != "wsgiref"}}


class Root:
    """Whoever is logged in may view."""

    __acl__ = [(Allow, Authenticated, "view")]  # noqa: RUF012

    def __init__(self, request: Request) -> None:
        pass


# Hooks


def on_request(request: Request, exchange: Exchange) -> Response | None:
    if exchange.request.target == "/instead-of-asking":
        return Response("not asked", status=202)
    exchange.request.headers["X-Asked-By"] = request.authenticated_userid or "nobody"
    return None


def on_response(exchange: Exchange) -> Response | None:
    return Response("another answer", status=203) if exchange.request.target == "/replaced" else None


def on_headers(exchange: Exchange) -> None:
    if exchange.request.target == "/hook-raises":
        raise RuntimeError("a fault of the application's")
    exchange.response.headers["X-Hook"] = f"{exchange.route} {exchange.response.status}"
    if exchange.request.target == "/teapot":
        exchange.response.status = 418


def on_error(exchange: Exchange) -> Response | None:
    exchange.registry["ended"].append(type(exchange.error).__name__)
    return Response("sorry", status=500) if exchange.request.target == "/garbage-sorry" else None


def on_complete(exchange: Exchange) -> None:
    exchange.registry["ended"].append(f"whole {exchange.stats.bytes_up}/{exchange.stats.bytes_down}")


def application(upstream: str) -> Any:
    """An application with a route for each subject, and views that take places and tell how exchanges ended."""
    config = Configurator(settings={"proxy.max_exchanges": "3", "proxy.own_cookies": "session"}, root_factory=Root)
    config.include("pyramid_threaded_proxy")
    config.set_security_policy(Policy())
    config.registry["ended"] = []
    held: list[Any] = []

    def take(request: Request) -> Response:
        """Take a place, as an exchange of `route` for `user` would."""
        route, user = request.matchdict["route"], request.params.get("user")
        held.append(request.registry[ENGINE].admission.admit(route, user, Limits(None, 9)))
        return Response()

    def free(request: Request) -> Response:
        while held:
            held.pop().release()
        return Response()

    def tell(request: Request) -> Response:
        ended, request.registry["ended"][:] = list(request.registry["ended"]), []
        return Response(json_body=[request.registry[ENGINE].admission.in_flight, ended])

    config.add_proxy_route(
        "hooked", prefix="/hooked", upstream=upstream, public=True, hooks_request=on_request, hooks_error=on_error,
        hooks_response=on_response, hooks_headers=on_headers, hooks_complete=on_complete,
    )  # fmt: skip
    config.add_proxy_route(
        "changed", prefix="/changed", upstream=upstream + "/base", public=True, request_set={"X-User": "{userid}"},
        request_add={"X-Added": "{route} {scheme}"}, request_remove=["X-Unwanted"], request_authorization="pass",
        response_set={"X-Frame-Options": "DENY"}, response_default={"X-Maybe": "ours"},
        response_remove=["X-Powered-By"],
    )  # fmt: skip
    config.add_proxy_route("inner", prefix="/changed/inner", upstream=upstream + "/inner", public=True)
    config.add_proxy_route("shop", pattern="/shops/{shop}/*rest", upstream=upstream + "/s/{shop}/{rest}", public=True)
    config.add_proxy_route("private", prefix="/private", upstream=upstream, permission="view")
    config.add_proxy_route("few", prefix="/few", upstream=upstream, public=True, max_exchanges=1)
    config.add_proxy_route("each", prefix="/each", upstream=upstream, public=True, max_exchanges_per_user=1)
    config.add_proxy_route(
        "strict", prefix="/strict", upstream=upstream, public=True, methods="GET POST", max_body=1000,
        read_timeout=0.2, health_fails=0,
    )  # fmt: skip
    config.add_proxy_route("gone", prefix="/gone", upstream="http://127.0.0.1:1", public=True, health_fails=0)
    for view, pattern in ((take, "/take/{route}"), (free, "/free"), (tell, "/tell")):
        config.add_route(view.__name__, pattern)
        config.add_view(view, route_name=view.__name__)
    return config.make_wsgi_app()


def script(wire: OriginWire) -> None:
    """An upstream that sends the request back, unless its path says otherwise."""
    while (request := wire.request()) is not None:
        path = request.target.partition("?")[0]
        if path.startswith("/garbage"):
            return wire.send(b"garbage\r\n\r\n")
        if path == "/silent":
            return wire.wait_closed()
        if path == "/ambiguous":
            return wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        if path.endswith("/moved"):
            wire.answer(b"", f"Location: http://{request.one('Host')}/base/there", status="302 Found")
        else:
            wire.answer(
                b"" if request.method == "HEAD" else request.raw, "Content-Type: text/plain", "X-Powered-By: magic",
                "Set-Cookie: session=stolen", "Set-Cookie: theirs=1; Path=/",
            )  # fmt: skip


@pytest.fixture(scope="module", params=WITH_WAITRESS)
def ask(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Asks the application under one of the servers; one process serves the whole module."""
    with ExitStack() as stack:
        upstream = stack.enter_context(Origin(script))
        folder = tmp_path_factory.mktemp("server")
        yield stack.enter_context(WITH_WAITRESS[request.param](application, upstream.url, folder))


def ended(ask: Ask) -> list[str]:
    """How the exchanges since the last question ended, once none is in flight."""
    told: list[str] = []

    def all_over() -> bool:
        in_flight, more = json.loads(ask("/tell").body)
        told.extend(more)
        return not in_flight and bool(told)

    wait_until(all_over, "the end of all exchanges")
    return told


# Routes and overrides


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/changed", "/base"),
        ("/changed/", "/base/"),
        ("/changed/a%20b//c?d=%zz&e", "/base/a%20b//c?d=%zz&e"),
        ("/changed/inner/x", "/inner/x"),
        ("/shops/a%20b/c/d?e", "/s/a%20b/c/d?e"),
    ],
)
def test_where_a_request_goes(ask: Ask, path: str, target: str) -> None:
    """The longest prefix wins, the rest and the query go along byte for byte, placeholders are filled in."""
    assert received(ask(path)).target == target


def test_overrides(ask: Ask) -> None:
    """Fields are set, added, removed and defaulted both ways; own cookies stay at home."""
    answer = ask(
        "/changed/x",
        headers={
            "X-User": "ann", "X-Unwanted": "1", "Cookie": "session=mine; other=2", "Authorization": "Basic x",
            "Connection": "X-Hop", "X-Hop": "1",
        },
    )  # fmt: skip
    request = received(answer)
    assert (request.one("X-User"), request.one("X-Added"), request.one("X-Unwanted")) == ("ann", "changed http", None)
    assert (request.one("Cookie"), request.one("Authorization"), request.one("X-Hop")) == ("other=2", "Basic x", None)
    assert (answer.one("X-Frame-Options"), answer.one("X-Maybe"), answer.one("X-Powered-By")) == ("DENY", "ours", None)
    assert answer.all("Set-Cookie") == ["theirs=1; Path=/changed"]


def test_locations_are_mapped_back(ask: Ask) -> None:
    """The upstream's own URL becomes the public one."""
    answer = ask("/changed/moved")
    assert answer.status == 302
    assert (answer.one("Location") or "").endswith("/changed/there")


def test_a_permission(ask: Ask) -> None:
    """Who may not is told 403 and nothing is sent; who may gets the answer."""
    assert ask("/private/x").status == 403
    assert received(ask("/private/x", headers={"X-User": "ann"})).target == "/x"


# Request bodies


@pytest.mark.parametrize("size", [1, 1000, 70_000, 2_000_000])
def test_a_request_body(ask: Ask, size: int) -> None:
    """A body goes up whole, and is counted; so is what comes back."""
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    answer = ask("/hooked/x", "PUT", body, {"Content-Type": "a/b"})
    assert received(answer).body == body
    assert ended(ask) == [f"whole {size}/{len(answer.body)}"]


def test_a_head_request(ask: Ask) -> None:
    """HEAD has the head alone."""
    answer = ask("/hooked/x", "HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert ended(ask) == ["whole 0/0"]


# Hooks


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/instead-of-asking", 202, b"not asked"),
        ("/replaced", 203, b"another answer"),
        ("/garbage-sorry", 500, b"sorry"),
    ],
)
def test_a_hook_answers(ask: Ask, path: str, status: int, body: bytes) -> None:
    """The request, response and error hooks may answer in the upstream's place."""
    answer = ask("/hooked" + path)
    assert (answer.status, answer.body) == (status, body)


def test_what_hooks_change(ask: Ask) -> None:
    """Fields of the request and the answer, and its status."""
    answer = ask("/hooked/x", headers={"X-User": "ann"})
    assert received(answer).one("X-Asked-By") == "ann"
    assert answer.one("X-Hook") == "hooked 200"
    assert ask("/hooked/teapot").status == 418


def test_a_hook_that_raises(ask: Ask) -> None:
    """It is 500, its message stays here, and the error hook hears of it."""
    ask("/tell")
    answer = ask("/hooked/hook-raises")
    assert answer.status == 500
    assert b"fault" not in answer.body
    assert ended(ask) == ["HookFailed"]


# Limits


@pytest.fixture
def take(ask: Ask) -> Iterator[Any]:
    """Takes places; all are given back in the end."""
    wait_until(lambda: json.loads(ask("/tell").body)[0] == 0, "the end of all exchanges")
    yield lambda route, user="": ask(f"/take/{route}" + (f"?user={user}" if user else ""))
    ask("/free")


def test_the_limit_of_a_route(ask: Ask, take: Any) -> None:
    """Above a route's `max_exchanges` there is 503 with Retry-After, on that route alone."""
    take("few")
    answer = ask("/few/x")
    assert (answer.status, answer.one("Retry-After")) == (503, "1")
    assert ask("/hooked/x").status == 200
    ask("/free")
    assert ask("/few/x").status == 200


def test_the_limit_of_a_user(ask: Ask, take: Any) -> None:
    """Above `max_exchanges_per_user` there is 429 with Retry-After, for that user alone."""
    take("each", "ann")
    answer = ask("/each/x", headers={"X-User": "ann"})
    assert (answer.status, answer.one("Retry-After")) == (429, "1")
    assert ask("/each/x", headers={"X-User": "bob"}).status == 200


def test_the_limit_of_the_process(ask: Ask, take: Any) -> None:
    """Above `max_exchanges` there is 503 on every route, and the application's own pages go on."""
    for _ in range(3):
        take("other")
    assert (ask("/few/x").status, ask("/hooked/x").status, ask("/tell").status) == (503, 503, 200)


# Errors


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/strict/%2e%2e/x", 400),
        ("/strict/garbage", 502),
        ("/strict/ambiguous", 502),
        ("/gone/x", 502),
        ("/strict/silent", 504),
    ],
)
def test_errors(ask: Ask, path: str, status: int) -> None:
    """What the client sees is what the table of errors says."""
    began = time.monotonic()
    assert ask(path).status == status
    assert time.monotonic() - began < PATIENCE / 2


def test_methods_and_sizes(ask: Ask) -> None:
    """405 with Allow, and 413."""
    answer = ask("/strict/x", "DELETE")
    assert answer.status == 405
    assert set((answer.one("Allow") or "").replace(",", " ").split()) == {"GET", "HEAD", "POST"}
    assert ask("/strict/x", "POST", b"x" * 1000).status == 200
    assert ask("/strict/x", "POST", b"x" * 1001).status == 413


def test_errors_are_what_the_client_accepts(ask: Ask) -> None:
    """An error of the relay's is JSON for who asks for that."""
    answer = ask("/strict/garbage", headers={"Accept": "application/json"})
    assert (answer.status, json.loads(answer.body)["code"]) == (502, "502 Bad Gateway")
