"""Without waitress the same exchange is streamed: WebTest, wsgiref, and gunicorn's sync and threaded workers."""

from __future__ import annotations

import http.client
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy import ClientGone, Exchange, UpstreamGone
from tests.support.origin import MakeOrigin, Origin, Script
from tests.support.servers import ENGINE, SERVERS, Ask
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import Closed, OriginWire, received

# The application, in this process or in gunicorn's


def application(upstream: str) -> Any:
    """An application with a proxied route, hooks, and views that tell how it fares."""
    config = Configurator(settings={"proxy.max_exchanges": "2", "pyramid.includes": "pyramid_threaded_proxy"})
    state = {"complete": 0, "error": "", "streaming": 0, "held": []}

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            state["streaming"] += "can't be detached" in record.getMessage()

    def on_headers(exchange: Exchange) -> None:
        exchange.response.headers["X-Hook"] = exchange.route
        exchange.response.headers["Connection"] = "close"

    def on_complete(exchange: Exchange) -> None:
        state["complete"] += 1

    def on_error(exchange: Exchange) -> Response | None:
        state["error"] = type(exchange.error).__name__
        return Response("instead", status=504) if "garbage" in exchange.request.target else None

    def tell(request: Request) -> Response:
        engine = request.registry[ENGINE]
        return Response(json_body={**state, "held": None, "in_flight": engine.admission.in_flight})

    def take(request: Request) -> Response:
        state["held"] = [request.registry[ENGINE].admission.admit() for _ in range(2)]
        return Response()

    def free(request: Request) -> Response:
        while state["held"]:
            state["held"].pop().release()
        return Response()

    def fetch(request: Request) -> Any:
        chunks = iter([b"abc", b"de"])
        return request.proxy_fetch(upstream + "/plain", method="POST", body=chunks)

    logging.getLogger("pyramid_threaded_proxy").addHandler(Listener())
    config.add_proxy_route(
        "r", prefix="/r", upstream=upstream, public=True,
        hooks_headers=on_headers, hooks_complete=on_complete, hooks_error=on_error,
    )  # fmt: skip
    config.add_proxy_route("small", prefix="/small", upstream=upstream, public=True, max_body=10)
    for view in (tell, take, free, fetch):
        config.add_route(view.__name__, f"/{view.__name__}")
        config.add_view(view, route_name=view.__name__)
    return config.make_wsgi_app()


def whole_request(wire: OriginWire) -> Any:
    try:
        return wire.request()
    except Closed:
        return None


def upstream_script(wire: OriginWire) -> None:
    """What the path says; a request that breaks off ends the connection."""
    while (request := whole_request(wire)) is not None:
        if request.target.startswith("/broken"):
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 10\r\n\r\n12345")
            return
        if request.target == "/cut":
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n")
            return
        if request.target == "/close":
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\nuntil the end")
            return
        if request.target == "/garbage":
            wire.send(b"garbage\r\n\r\n")
            return
        if request.target == "/chunked":
            wire.send(b"HTTP/1.1 103 Early\r\n\r\n")
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n")
            wire.send(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n")
        elif request.target == "/nothing":
            wire.send(b"HTTP/1.1 204 Nothing\r\n\r\n")
        else:
            wire.answer(b"" if request.method == "HEAD" else request.raw, "Content-Type: text/plain")


@pytest.fixture(scope="module", params=SERVERS)
def ask(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Asks the application under one of the servers; one process serves the whole module."""
    with ExitStack() as stack:
        upstream = stack.enter_context(Origin(upstream_script))
        yield stack.enter_context(SERVERS[request.param](application, upstream.url, tmp_path_factory.mktemp("server")))


def told(ask: Ask) -> dict[str, Any]:
    return json.loads(ask("/tell").body)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def no_place_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does, afterwards nothing is in flight."""
    yield
    if "ask" in request.fixturenames:
        ask = request.getfixturevalue("ask")
        wait_until(lambda: told(ask)["in_flight"] == 0, "the end of all exchanges")


# The cases


def test_an_answer(ask: Ask) -> None:
    """A request goes up as under waitress, and its answer comes down with its fields."""
    answer = ask("/r/a%20b?c", headers={"X-Own": "1", "X-Forwarded-For": "6.6.6.6"})
    request = received(answer)
    assert request.target == "/a%20b?c"
    assert request.one("X-Own") == "1"
    assert request.one("X-Forwarded-For") in ("127.0.0.1", None)
    assert request.one("X-Forwarded-Prefix") == "/r"
    assert answer.all("Content-Length") == [str(len(answer.body))]


def test_a_head_request(ask: Ask) -> None:
    """HEAD has the head alone."""
    answer = ask("/r/plain", "HEAD")
    assert (answer.status, answer.body, answer.one("X-Hook")) == (200, b"", "r")


def test_an_answer_without_a_body(ask: Ask) -> None:
    """204 has no body."""
    answer = ask("/r/nothing")
    assert (answer.status, answer.reason, answer.body) == (204, "Nothing", b"")


@pytest.mark.parametrize(("path", "body"), [("/r/chunked", b"abcde"), ("/r/close", b"until the end")])
def test_other_framings(path: str, body: bytes, ask: Ask) -> None:
    """A chunked body, after an interim answer that is swallowed, and one that ends with the connection."""
    answer = ask(path)
    assert (answer.status, answer.body) == (200, body)
    assert answer.one("X-Trailer") is None


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_a_request_body(size: int, ask: Ask) -> None:
    """A request body goes up with its length."""
    request = received(ask("/r/plain", "POST", b"x" * size, {"Content-Type": "a/b"}))
    assert (len(request.body), request.one("Content-Length")) == (size, str(size))


def test_a_request_body_over_the_limit(ask: Ask) -> None:
    """A request body over `max_body` is 413."""
    assert ask("/small/plain", "POST", b"x" * 10).status == 200
    assert ask("/small/plain", "POST", b"x" * 11).status == 413


@pytest.mark.parametrize("ask", ["gunicorn-sync", "gunicorn-gthread"], indirect=True)
def test_a_request_body_of_unknown_length(ask: Ask) -> None:
    """A chunked request body goes up chunked; `max_body` is noticed while it is sent."""
    request = received(ask("/r/plain", "POST", iter([b"abc", b"de"])))
    assert (request.one("Transfer-Encoding"), request.body) == ("chunked", b"abcde")
    wait_until(lambda: told(ask)["in_flight"] == 0, "the place")
    assert ask("/small/plain", "POST", iter([b"12345678901"])).status == 413


def test_an_iterable_as_body(ask: Ask) -> None:
    """An iterable that a view gives goes up chunked."""
    request = received(ask("/fetch"))
    assert (request.one("Transfer-Encoding"), request.body) == ("chunked", b"abcde")


def test_refusals(ask: Ask) -> None:
    """Targets are refused as under waitress, as far as the server lets them through."""
    assert ask("/r/%2e%2e/x").status == 400
    assert ask("/r/x%5cy").status == 400
    assert ask("/r/%FF").status == 400


def test_hooks(ask: Ask) -> None:
    """Hooks run; a hop-by-hop field that one sets is left out."""
    before = told(ask)["complete"]
    answer = ask("/r/plain")
    assert answer.one("X-Hook") == "r"
    wait_until(lambda: told(ask)["complete"] == before + 1)


def test_a_failed_exchange(ask: Ask) -> None:
    """An upstream that answers nonsense is an error, which the error hook may turn into a response."""
    answer = ask("/r/garbage")
    assert (answer.status, answer.body) == (504, b"instead")
    assert told(ask)["error"] == "AnswerRefused"


# wsgiref speaks HTTP/1.0: there a body without a length ends with the connection, broken or not.
BROKEN = [(server, path) for server in SERVERS for path in ("/r/broken", "/r/cut")]
BROKEN.remove(("wsgiref", "/r/cut"))


@pytest.mark.parametrize(("ask", "path"), BROKEN, indirect=["ask"])
def test_a_broken_answer(ask: Ask, path: str) -> None:
    """A body that breaks off is raised out of the iterator, so that the client can tell."""
    with pytest.raises((UpstreamGone, http.client.IncompleteRead, ConnectionError)):
        ask(path)
    assert told(ask)["error"] == "UpstreamGone"


def test_limits(ask: Ask) -> None:
    """Above `max_exchanges` there is a 503 with Retry-After, and then there is room again."""
    wait_until(lambda: told(ask)["in_flight"] == 0, "the end of all exchanges")
    ask("/take")
    answer = ask("/r/plain")
    assert (answer.status, answer.one("Retry-After")) == (503, "1")
    ask("/free")
    assert ask("/r/plain").status == 200


def test_streaming_is_said_once(ask: Ask) -> None:
    """That answers are streamed, and hold a worker, is said once in the log."""
    for _ in range(2):
        assert ask("/r/plain").status == 200
    assert told(ask)["streaming"] == 1


# Closer, in this process


@pytest.fixture
def made(origin: MakeOrigin) -> Iterator[Callable[[Script], Any]]:
    """Makes applications whose upstream runs a script."""
    with ExitStack() as stack:

        def make(script: Script) -> Any:
            made = application(origin(script).url)
            stack.callback(made.registry[ENGINE].close)
            return made

        yield make


def test_bytes_do_not_wait_for_the_next_ones(made: Any) -> None:
    """What the upstream has sent is handed on at once: an event stream does not lag behind by an event."""
    more = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        assert more.wait(PATIENCE)
        wire.send(b"6\r\nsecond\r\n0\r\n\r\n")

    chunks = iter(Request.blank("/r/x").get_response(made(script)).app_iter)
    assert next(chunks) == b"first"
    more.set()
    assert list(chunks) == [b"second"]


def test_a_client_that_leaves(made: Any) -> None:
    """Where the server closes the iterable early, the upstream is let go, the hook hears of it, the place is free."""
    gone = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        wire.wait_closed()
        gone.set()

    wsgi = made(script)
    answer = Request.blank("/r/x").get_response(wsgi)
    assert wsgi.registry[ENGINE].admission.in_flight == 1
    answer.app_iter.close()
    assert gone.wait(PATIENCE)
    assert wsgi.registry[ENGINE].admission.in_flight == 0
    assert json.loads(Request.blank("/tell").get_response(wsgi).body)["error"] == ClientGone.__name__


def test_a_server_that_stops_at_the_length(made: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A server that takes exactly the promised bytes and then closes has had a whole answer."""

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.answer(b"12345", "Content-Type: a/b")

    wsgi = made(script)
    answer = Request.blank("/r/x").get_response(wsgi)
    assert next(iter(answer.app_iter)) == b"12345"
    answer.app_iter.close()
    told = json.loads(Request.blank("/tell").get_response(wsgi).body)
    assert (told["error"], told["complete"], told["in_flight"]) == ("", 1, 0)


def test_connections_are_kept(made: Any) -> None:
    """Connections to the upstream are used again; one that it closed meanwhile is noticed before it is used."""
    asked: list[OriginWire] = []
    ended: list[OriginWire] = []

    def script(wire: OriginWire) -> None:
        asked.append(wire)
        for _ in range(3):
            wire.request()
            wire.answer(b"x", "Content-Type: a/b")
        wire.close()
        ended.append(wire)

    wsgi = made(script)
    for number in range(1, 7):
        answer = Request.blank("/r/x", method="POST").get_response(wsgi)
        assert (answer.status_int, answer.body) == (200, b"x")
        wait_until(lambda number=number: len(ended) == number // 3)
    assert len(asked) == 2
