"""Long-lived exchanges stay authorized: the permission is asked for again, and a no ends the exchange."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyramid.authorization import Allow
from pyramid.config import Configurator
from pyramid.events import NewRequest, NewResponse
from pyramid.httpexceptions import HTTPForbidden, HTTPFound, HTTPNotFound
from pyramid.request import Request
from pyramid.response import Response
from pyramid.tweens import INGRESS
from webtest import TestApp

from pyramid_threaded_proxy.relay.recheck import QUESTION
from tests.support.origin import MakeOrigin, beginning, echo, silent
from tests.support.site import MakeSite, Policy, Site, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, Wire, received

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
GET = b"GET /r/x HTTP/1.1\r\nHost: a\r\nX-User: alice\r\n\r\n"


class Viewers:
    """Who may view, which a test changes while exchanges last. `turned` replaces the answer of later questions."""

    def __init__(self) -> None:
        self.allowed = {"alice"}
        self.asked: list[Request] = []
        self.turned: Callable[[], Any] | None = None
        self.answers: list[int] = []

    def factory(self, request: Request) -> Any:
        self.asked.append(request)
        if self.turned is not None:
            self.turned()
        viewers = self

        class Context:
            __acl__ = tuple((Allow, user, "view") for user in viewers.allowed)

        return Context()

    def configure(self, config: Configurator) -> None:
        config.set_security_policy(Policy())
        config.set_root_factory(self.factory)
        config.add_subscriber(lambda event: self.answers.append(event.response.status_int), NewResponse)


@pytest.fixture
def viewers() -> Viewers:
    return Viewers()


def rechecked(upstream: str, interval: str = "20ms", **keys: str) -> dict[str, str]:
    return route("r", upstream, permission="view", recheck=interval, **keys)


def begun(site: Site) -> Wire:
    """A client that has the beginning of an answer."""
    client = site.client()
    client.send(GET)
    client.until(b"hello\r\n")
    return client


# What a no does


def test_before_the_head_it_is_403(origin: MakeOrigin, site: MakeSite, viewers: Viewers, sockets: int) -> None:
    """A client that still waits gets the 403 page, and its connection serves the next request."""
    upstream = origin(silent)
    made = site(rechecked(upstream.url), configure=viewers.configure, sockets=sockets)
    client = made.client()
    client.send(GET)
    wait_until(lambda: len(viewers.asked) > 2, "two more questions")
    viewers.allowed.clear()
    first, fields = client.head()
    assert first == "HTTP/1.1 403 Forbidden"
    assert b"You may not go on" in client.exactly(int(fields["content-length"]))
    wait_until(lambda: upstream.wires[0].sock.fileno() < 0, "the upstream's end")
    client.send(GET)
    assert client.head()[0] == "HTTP/1.1 403 Forbidden"
    assert upstream.accepted == 1
    client.close()


def test_after_the_head_it_is_a_broken_connection(origin: MakeOrigin, site: MakeSite, viewers: Viewers) -> None:
    """A client that has the head sees its connection reset: the answer can't be taken for a whole one."""
    made = site(rechecked(origin(beginning).url), configure=viewers.configure)
    client = begun(made)
    viewers.allowed.clear()
    assert client.is_reset()


def test_a_tunnel_closes(origin: MakeOrigin, site: MakeSite, viewers: Viewers) -> None:
    """A switched connection is closed on both sides."""

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(SWITCH)
        wire.wait_closed()

    upstream = origin(script)
    made = site(rechecked(upstream.url, upgrade="websocket"), configure=viewers.configure)
    client = made.client()
    client.send(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert client.head()[0].startswith("HTTP/1.1 101 ")
    viewers.allowed.clear()
    assert client.is_reset()
    wait_until(lambda: upstream.wires[0].sock.fileno() < 0, "the upstream's end")


def test_while_the_answer_is_yes_nothing_happens(origin: MakeOrigin, site: MakeSite, viewers: Viewers) -> None:
    """Repeated questions leave the exchange alone, are answered with 204, and ask the upstream nothing."""
    enough = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        assert enough.wait(10)
        wire.answer(b"whole")

    upstream = origin(script)
    made = site(rechecked(upstream.url), configure=viewers.configure)
    client = made.client()
    client.send(GET)
    wait_until(lambda: viewers.answers.count(204) >= 3, "three answers")
    enough.set()
    assert client.until(b"\r\n\r\nwhole").startswith(b"HTTP/1.1 200 OK")
    assert set(viewers.answers) == {200, 204}
    assert upstream.accepted == 1
    client.close()


# How it asks


def test_the_question_is_a_get_without_the_body(origin: MakeOrigin, site: MakeSite, viewers: Viewers) -> None:
    """A POST is asked for again as a GET of the same target with the same fields, whatever methods and CSRF say."""
    held = threading.Event()
    bodies: list[bytes] = []

    def script(wire: OriginWire) -> None:
        request = wire.request()
        assert request is not None
        bodies.append(request.body)
        assert held.wait(10)
        wire.answer(b"done")

    made = site(rechecked(origin(script).url, methods="POST", require_csrf="false"), configure=viewers.configure)
    client = made.client()
    client.send(
        b"POST /r/a%2Fb?q=1 HTTP/1.1\r\nHost: a\r\nX-User: alice\r\nCookie: c=1\r\nContent-Type: text/x\r\n"
        b"Content-Length: 4\r\n\r\nbody"
    )
    wait_until(lambda: viewers.answers.count(204) >= 2, "two answers")
    held.set()
    client.until(b"done")
    client.close()
    assert bodies == [b"body"]
    again = viewers.asked[1]
    assert (again.method, again.path_info, again.query_string) == ("GET", "/r/a/b", "q=1")
    assert (again.headers["X-User"], again.cookies["c"], again.host) == ("alice", "1", "a")
    assert (again.content_length, again.content_type, again.environ["wsgi.input"].read()) == (None, "", b"")


def test_each_question_has_a_transaction_of_its_own(origin: MakeOrigin, site: MakeSite, viewers: Viewers) -> None:
    """With pyramid_tm the factory works in a fresh transaction, which ends with the question."""
    transactions: list[Any] = []
    viewers.turned = lambda: transactions.append(viewers.asked[-1].tm.get())

    def configure(config: Configurator) -> None:
        config.include("pyramid_tm")
        viewers.configure(config)

    made = site(
        rechecked(origin(beginning).url) | {"tm.manager_hook": "pyramid_tm.explicit_manager"}, configure=configure
    )
    client = begun(made)
    wait_until(lambda: len(transactions) > 3, "three more transactions")
    viewers.allowed.clear()
    assert client.is_reset()
    assert len(set(map(id, transactions))) == len(transactions)
    assert [found.status for found in transactions[:-1]] == ["Committed"] * (len(transactions) - 1)


def test_tweens_run(origin: MakeOrigin, site: MakeSite, viewers: Viewers) -> None:
    """A no of a tween's ends the exchange, although the view behind it would have said yes."""

    def configure(config: Configurator) -> None:
        viewers.configure(config)
        config.registry["test.refusing"] = refusing = threading.Event()
        viewers.turned = lambda: refusing.set() if len(viewers.asked) > 1 else None
        config.add_tween(f"{__name__}.refusing_tween", under=INGRESS)

    made = site(rechecked(origin(silent).url), configure=configure)
    assert made.get("/r/x", {"X-User": "alice"}).status == 403


def refusing_tween(handler: Callable[[Request], Any], registry: Any) -> Callable[[Request], Any]:
    """Looks at what comes out of the application, as one that checks signatures or quotas might."""

    def tween(request: Request) -> Any:
        response = handler(request)
        return HTTPForbidden() if registry["test.refusing"].is_set() else response

    return tween


def _raise(error: Exception) -> Callable[[], None]:
    def turned() -> None:
        raise error

    return turned


@pytest.mark.parametrize(
    "turned",
    [_raise(RuntimeError("no database")), _raise(HTTPFound("/login")), _raise(HTTPNotFound()), _raise(HTTPForbidden())],
    ids=["exception", "redirect", "not-found", "forbidden"],
)
@pytest.mark.parametrize("polite", [False, True], ids=["plain", "views-that-say-200"])
def test_anything_else_means_no(
    origin: MakeOrigin, site: MakeSite, viewers: Viewers, turned: Callable[[], None], polite: bool
) -> None:
    """An exception, a redirect, a 404 or a 403 ends it, also where the application renders them as 200 or 204."""

    def configure(config: Configurator) -> None:
        viewers.configure(config)
        if polite:
            config.add_exception_view(lambda error, request: Response(status=204), context=Exception)
            config.add_forbidden_view(lambda request: Response("please log in"))
            config.add_notfound_view(lambda request: Response("nothing here"))

    made = site(rechecked(origin(beginning).url), configure=configure)
    client = begun(made)
    viewers.turned = turned
    assert client.is_reset()


def test_a_client_can_not_ask(origin: MakeOrigin, site: MakeSite, viewers: Viewers) -> None:
    """Nothing that a client, or a server's environ, says as text makes the view answer 204: it proxies."""

    def wrap(application: Any) -> Any:
        def middleware(environ: dict[str, Any], start_response: Any) -> Any:
            for key, value in list(environ.items()):
                if key.startswith("HTTP_X_ENVIRON"):
                    environ[QUESTION] = value
            return application(environ, start_response)

        return middleware

    made = site(rechecked(origin(echo).url, interval="1h"), configure=viewers.configure, wrap=wrap)
    fields = {"X-User": "alice", "X-Environ": "1", QUESTION: "1", "Pyramid-Threaded-Proxy.Recheck": "1"}
    assert received(made.get(f"/r/x?{QUESTION}=1", fields)).target == f"/x?{QUESTION}=1"
    assert viewers.answers == [200]


def test_the_questions_stop_with_the_exchange(origin: MakeOrigin, site: MakeSite, viewers: Viewers) -> None:
    """After the end of an exchange nobody asks for it again: only the other's questions go on."""
    end = threading.Event()

    def script(wire: OriginWire) -> None:
        request = wire.request()
        assert request is not None
        if request.target == "/short":
            assert end.wait(10)
            wire.answer(b"short")
        wire.wait_closed()

    made = site(rechecked(origin(script).url), configure=viewers.configure)
    short, long = made.client(), made.client()
    short.send(GET.replace(b"/x", b"/short"))
    long.send(GET.replace(b"/x", b"/long"))

    def questions(name: str) -> int:
        return sum(request.path_info.endswith(name) for request in list(viewers.asked))

    wait_until(lambda: questions("/short") > 2 and questions("/long") > 2, "questions for both")
    end.set()
    short.until(b"short")
    wait_until(lambda: len(made.engine.in_flight) == 1, "the end of the short one")
    asked = questions("/short")
    before = questions("/long")
    wait_until(lambda: questions("/long") > before + 5, "five more questions for the other one")
    assert questions("/short") <= asked + 1  # one may have been under way
    short.close()
    long.close()


# Views of the application's own


def fetching(url: str, **keys: Any) -> Callable[[Configurator], None]:
    """An application with a view that fetches and one that forwards, both with `keys`."""

    def configure(config: Configurator) -> None:
        for name in ("proxy_fetch", "proxy_forward"):
            config.add_route(name, f"/{name}")
            config.add_view(lambda request, name=name: getattr(request, name)(f"{url}/x", **keys), route_name=name)

    return configure


@pytest.mark.parametrize("name", ["proxy_fetch", "proxy_forward"])
def test_views_name_whom_to_ask(origin: MakeOrigin, site: MakeSite, name: str) -> None:
    """`recheck_with` is asked with the exchange in a pool thread; a no ends it, and so does an exception."""
    answers: Iterator[Any] = iter([True, True, False])
    asked: list[tuple[str, bool]] = []

    def check(exchange: Any) -> bool:
        asked.append((exchange.request.target, threading.current_thread().name.startswith("pproxy")))
        return bool(next(answers))

    made = site({}, configure=fetching(origin(silent).url, recheck="20ms", recheck_with=check))
    assert made.get(f"/{name}").status == 403
    assert asked == [("/x", True)] * 3
    assert made.get(f"/{name}").status == 403  # the iterator is at its end: StopIteration


@pytest.mark.parametrize("keys", [{"recheck": "1s"}, {"recheck_with": bool}])
def test_how_often_and_whom_go_together(site: MakeSite, keys: dict[str, Any]) -> None:
    """One of the two without the other is an error of the view's that names both."""
    said: list[str] = []

    def said_by(error: Exception, request: Request) -> Response:
        said.append(str(error))
        return Response(status=500)

    def configure(config: Configurator) -> None:
        fetching("http://127.0.0.1:9", **keys)(config)
        config.add_exception_view(said_by, context=ValueError)

    made = site({}, configure=configure)
    assert made.get("/proxy_fetch").status == 500
    assert "`recheck` and `recheck_with` go together" in said[0]


# Where nothing is detached


def test_a_streamed_exchange_is_asked_for_again(origin: MakeOrigin, site: MakeSite, viewers: Viewers) -> None:
    """Under another server the worker thread asks: 403 before the head."""
    made = site(rechecked(origin(silent).url), configure=viewers.configure)
    app = TestApp(made.application)
    viewers.turned = lambda: viewers.allowed.clear() if len(viewers.asked) > 1 else None
    answer = app.get("/r/x", headers={"X-User": "alice"}, status=403)
    assert "You may not go on" in answer.text


@pytest.mark.parametrize("endless", [False, True], ids=["quiet", "flooding"])
def test_a_streamed_body_breaks(origin: MakeOrigin, site: MakeSite, viewers: Viewers, endless: bool) -> None:
    """A no in the middle of a body raises out of the iterator, also where bytes come without a pause."""

    def flooding(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n")
        while True:
            wire.send(bytes(1 << 20))

    made = site(rechecked(origin(flooding if endless else beginning).url), configure=viewers.configure)
    request = Request.blank("/r/x", headers={"X-User": "alice"})
    status, _, body = request.call_application(made.application)
    assert status == "200 OK"
    viewers.allowed.clear()
    with pytest.raises(Exception, match="the answer was no"):
        for _ in body:
            pass
    body.close()


def test_each_question_is_a_new_request(origin: MakeOrigin, site: MakeSite, viewers: Viewers) -> None:
    """NewRequest is sent for each, so what subscribers do for a request they do for a question too."""
    seen: list[Request] = []

    def configure(config: Configurator) -> None:
        viewers.configure(config)
        config.add_subscriber(lambda event: seen.append(event.request), NewRequest)

    made = site(rechecked(origin(silent).url), configure=configure)
    client = made.client()
    client.send(GET)
    wait_until(lambda: len(seen) > 2, "two questions")
    viewers.allowed.clear()
    assert client.head()[0] == "HTTP/1.1 403 Forbidden"
    assert len(set(map(id, seen))) == len(seen)
    assert len({id(request.environ) for request in seen}) == len(seen)
    client.close()
