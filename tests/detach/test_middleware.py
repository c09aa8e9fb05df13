"""WSGI middleware, tweens and servers around a detach: what they add is kept, and what they answer stands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.events import NewResponse
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer
from webob import Request

from pyramid_threaded_proxy.detach.access import install
from pyramid_threaded_proxy.detach.channel import DetachableChannel
from tests.support.detaching import connections, servers
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, own_view, route
from tests.support.waiting import wait_until
from tests.support.wire import body, get, post, read_answer

Middleware = Callable[[Any], Any]


def proxied(environ: dict[str, Any]) -> bool:
    return bool(environ["PATH_INFO"].startswith("/r"))


# Middleware that answers itself


def raises(app: Any) -> Any:
    """Raises after the application was called: waitress answers 500."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        result: Iterable[bytes] = app(environ, start_response)
        if proxied(environ):
            raise RuntimeError("after the call")
        return result

    return middleware


def raises_in_iteration(app: Any) -> Any:
    """Raises when the server asks for the first bytes."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield from app(environ, start_response)
        if proxied(environ):
            raise RuntimeError("in the iteration")

    return middleware


def answers_anew(app: Any) -> Any:
    """Drops the application's answer and gives its own."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not proxied(environ):
            return app(environ, start_response)  # type: ignore[no-any-return]
        app(environ, lambda *arguments: None)
        start_response("418 I'm a teapot", [("Content-Length", "5")])
        return [b"mine!"]

    return middleware


def answers_anew_with_exc_info(app: Any) -> Any:
    """Has passed the application's status on, and replaces it as an error handler does."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        result: Iterable[bytes] = app(environ, start_response)
        if not proxied(environ):
            return result
        try:
            raise RuntimeError("found later")
        except RuntimeError:
            start_response("418 I'm a teapot", [("Content-Length", "5")], sys.exc_info())
        return [b"mine!"]

    return middleware


def answers_anew_without_a_body(app: Any) -> Any:
    """Its own empty answer, with another status, is not taken for ours."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not proxied(environ):
            return app(environ, start_response)  # type: ignore[no-any-return]
        app(environ, lambda *arguments: None)
        start_response("418 I'm a teapot", [("Content-Length", "0")])
        return []

    return middleware


def writes(app: Any) -> Any:
    """Uses the write callable of the application's own start_response."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def started(status: str, headers: Any, exc_info: Any = None) -> Any:
            write = start_response(status, [*headers, ("Content-Length", "5")], exc_info)
            write(b"mine!")
            return write

        return app(environ, started if proxied(environ) else start_response)  # type: ignore[no-any-return]

    return middleware


def appends(app: Any) -> Any:
    """Adds bytes behind the application's."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield from app(environ, start_response)
        if proxied(environ):
            yield b"mine!"

    return middleware


ANSWERING = [
    (raises, 500, None),
    (raises_in_iteration, 500, None),
    (answers_anew, 418, b"mine!"),
    (answers_anew_with_exc_info, 418, b"mine!"),
    (answers_anew_without_a_body, 418, b""),
    (writes, 200, b"mine!"),
    (appends, 200, b"mine!"),
]


@pytest.mark.parametrize(("middleware", "status", "expected"), ANSWERING, ids=[row[0].__name__ for row in ANSWERING])
def test_middleware_that_answers_itself(
    origin: MakeOrigin, site: MakeSite, sockets: int, middleware: Middleware, status: int, expected: bytes | None
) -> None:
    """Its answer stands, nothing goes upstream, the place is given back, the next request is an ordinary one."""
    upstream = origin(echo)
    app = site(route("r", upstream.url), configure=own_view, wrap=middleware, sockets=sockets, threads=1)
    answer = app.get("/r/x", method="POST", body=b"data")
    assert answer.status == status
    assert expected is None or answer.body == expected
    wait_until(lambda: app.engine.admission.in_flight == 0, "the place")
    assert app.get("/own").body == b"own"
    assert upstream.accepted == 0


@pytest.mark.parametrize("middleware", [answers_anew, answers_anew_with_exc_info, answers_anew_without_a_body])
def test_nothing_stays_behind_on_the_channel(
    origin: MakeOrigin, site: MakeSite, sockets: int, middleware: Middleware
) -> None:
    """Requests on the same connection after an abandoned exchange: an own view, another abandoned one, an own view."""
    upstream = origin(echo)
    app = site(route("r", upstream.url), configure=own_view, wrap=middleware, sockets=sockets)
    client = app.client()
    client.send((post("/r/x", b"data") + get("/own")) * 3)
    for _ in range(3):
        assert read_answer(client)[0] == "HTTP/1.1 418 I'm a teapot"
        assert body(client) == b"own"
    (channel,) = connections(app)
    assert channel.handover is None
    assert channel.task_ends == ()
    client.close()
    wait_until(lambda: app.engine.admission.in_flight == 0, "the places")
    assert upstream.accepted == 0


def test_an_application_that_is_called_twice(origin: MakeOrigin, site: MakeSite, sockets: int) -> None:
    """Middleware that calls the application again gets the second answer relayed, and the first one's place is free."""
    upstream = origin(echo)

    def again(app: Any) -> Any:
        def middleware(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            app(dict(environ), lambda *arguments: None)
            return app(environ, start_response)  # type: ignore[no-any-return]

        return middleware

    app = site({**route("r", upstream.url), "proxy.max_exchanges": "2"}, wrap=again, sockets=sockets)
    for _ in range(5):
        assert app.get("/r/x").status == 200
        wait_until(lambda: app.engine.admission.in_flight == 0, "the places")
    assert upstream.accepted == 1


# Middleware that passes our answer on


def adds_fields(app: Any) -> Any:
    """Adds fields, framing among them, as start_response comes by."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def started(status: str, headers: Any, exc_info: Any = None) -> Any:
            added = [("X-Added", "yes"), ("Set-Cookie", "m=1"), ("Content-Length", "0")]
            return start_response(status, [*headers, *added], exc_info)

        return app(environ, started if proxied(environ) else start_response)  # type: ignore[no-any-return]

    return middleware


class ClosingIterator:
    """What paste-like middleware returns: an iterator over the application's answer that closes it in the end."""

    def __init__(self, app_iter: Iterable[bytes]) -> None:
        self._app_iter = app_iter
        self._iterator = iter(app_iter)
        self.closed = 0

    def __iter__(self) -> ClosingIterator:
        return self

    def __next__(self) -> bytes:
        return next(self._iterator)

    def close(self) -> None:
        self.closed += 1
        close = getattr(self._app_iter, "close", None)
        if close is not None:
            close()


def passes_through_a_generator(app: Any) -> Any:
    """Yields what the application yields, and calls it no sooner than the server asks for bytes."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        environ["test.seen"] = True
        yield from app(environ, start_response)

    return middleware


def passes_through_an_iterator(app: Any) -> Any:
    return lambda environ, start_response: ClosingIterator(app(environ, start_response))


def passes_through_webob(app: Any) -> Any:
    """WebOb's own way: a response object is made of the application's answer, and called."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        response = Request(environ).get_response(app)
        response.headers["X-WebOb"] = "yes"
        return response(environ, start_response)  # type: ignore[no-any-return]

    return middleware


def makes_a_list(app: Any) -> Any:
    return lambda environ, start_response: list(app(environ, start_response))


@pytest.mark.parametrize(
    "middleware",
    [adds_fields, passes_through_a_generator, passes_through_an_iterator, passes_through_webob, makes_a_list],
)
def test_middleware_that_passes_through(
    origin: MakeOrigin, site: MakeSite, sockets: int, middleware: Middleware
) -> None:
    """Pipelined own and relayed answers come in order through middleware; what it adds is on the client's answer."""
    app = site(route("r", origin(echo).url), configure=own_view, wrap=middleware, sockets=sockets)
    client = app.client()
    client.send((get("/r/1") + post("/r/2", b"data")) * 3)
    for _ in range(3):
        _, fields, data = read_answer(client)
        assert data.startswith(b"GET /1 ")
        assert fields.get("x-added") == ("yes" if middleware is adds_fields else None)
        assert fields.get("x-webob") == ("yes" if middleware is passes_through_webob else None)
        assert body(client).endswith(b"data")
    client.close()
    assert app.get("/own").body == b"own"


def test_the_application_is_closed_before_the_relay(origin: MakeOrigin, site: MakeSite, sockets: int) -> None:
    """The iterable that middleware returned is closed once, before anything goes upstream."""
    made: list[ClosingIterator] = []
    closed_when_asked = []

    def script(wire: Any) -> None:
        while wire.request() is not None:
            closed_when_asked.append([iterator.closed for iterator in made])
            wire.answer(b"ok")

    def middleware(app: Any) -> Any:
        def call(environ: dict[str, Any], start_response: Any) -> ClosingIterator:
            made.append(ClosingIterator(app(environ, start_response)))
            return made[-1]

        return call

    app = site(route("r", origin(script).url), wrap=middleware, sockets=sockets)
    assert app.get("/r/x").body == b"ok"
    assert closed_when_asked == [[1]]
    assert [iterator.closed for iterator in made] == [1]


# The application's own fields


def field_tween(handler: Any, registry: Any) -> Any:
    """Adds a field, and framing that must not get through."""

    def tween(request: Any) -> Any:
        response = handler(request)
        response.headers["Strict-Transport-Security"] = "max-age=1"
        response.headers["Content-Length"] = "7"
        return response

    return tween


def adds_everywhere(config: Configurator) -> None:
    """Fields from a tween, a response callback and a NewResponse subscriber."""

    def add_callback(event: Any) -> None:
        def callback(request: Any, response: Any) -> None:
            response.set_cookie("session", "1")

        event.request.add_response_callback(callback)

    def on_response(event: NewResponse) -> None:
        event.response.headers["X-Subscriber"] = "yes"

    config.add_tween(f"{__name__}.field_tween")
    config.add_subscriber(add_callback, "pyramid.events.NewRequest")
    config.add_subscriber(on_response, NewResponse)
    own_view(config)


def test_fields_of_the_application_are_kept(origin: MakeOrigin, site: MakeSite, sockets: int) -> None:
    """What tweens, response callbacks and NewResponse subscribers add is on the answer; framing among it is not."""

    def script(wire: Any) -> None:
        while wire.request() is not None:
            wire.answer(b"the upstream's", "X-Subscriber: upstream", "Set-Cookie: theirs=1")

    answer = site(route("r", origin(script).url), configure=adds_everywhere, sockets=sockets).get("/r/x")
    assert answer.body == b"the upstream's"
    assert answer.one("Strict-Transport-Security") == "max-age=1"
    assert answer.one("X-Subscriber") == "yes"
    assert answer.one("Content-Length") == "14"
    assert [value.split(";")[0] for value in answer.all("Set-Cookie")] == ["theirs=1", "session=1"]


# Servers that are not ours


def test_a_stock_channel_streams(
    origin: MakeOrigin, site: MakeSite, sockets: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a server makes channels of its own, the same exchange is streamed, and that is said once."""
    app = site(route("r", origin(echo).url), configure=own_view, sockets=sockets)
    for server in servers(app):
        server.channel_class = HTTPChannel
    client = app.client()
    for number in range(3):
        client.send(post(f"/r/{number}", b"data"))
        assert body(client).endswith(b"data")
        assert [type(channel) for channel in connections(app)] == [HTTPChannel]
    client.send(get("/own"))
    assert body(client) == b"own"
    client.close()
    assert len([record for record in caplog.records if "can't be detached" in record.getMessage()]) == 1


def test_a_foreign_channel_class_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that has set a channel class of its own keeps it."""

    class Foreign(HTTPChannel):
        """Somebody else's."""

    monkeypatch.setattr(BaseWSGIServer, "channel_class", Foreign)
    install()
    assert BaseWSGIServer.channel_class is Foreign


def test_install_twice_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two applications in a process share the channel class."""
    monkeypatch.setattr(BaseWSGIServer, "channel_class", HTTPChannel)
    install()
    install()
    assert BaseWSGIServer.channel_class is DetachableChannel
