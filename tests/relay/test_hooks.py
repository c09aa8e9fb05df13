"""The hooks: when they run, where, and what they may change."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPPaymentRequired
from pyramid.response import Response
from pyramid.threadlocal import get_current_request
from webob import Request
from webob import Response as WebObResponse

from pyramid_threaded_proxy.exchange import Exchange
from tests.support.origin import MakeOrigin, answering, echo, in_turn
from tests.support.site import MakeSite, fetching, route
from tests.support.waiting import wait_until
from tests.support.wire import Wire

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Theirs: 1\r\nContent-Length: 5\r\n\r\nhello"

#: What the hooks by dotted name have seen.
seen: list[tuple[str, str]] = []


def note(exchange: Exchange) -> None:
    """A hook by dotted name."""
    seen.append((exchange.route, threading.current_thread().name))


def note_request(request: Any, exchange: Exchange) -> None:
    """A request hook by dotted name."""
    assert get_current_request() is request
    note(exchange)


def note_error(exchange: Exchange) -> Response:
    """An error hook by dotted name, that answers."""
    note(exchange)
    return Response(f"sorry: {type(exchange.error).__name__}", status=503)


def test_hooks_by_dotted_name(origin: MakeOrigin, site: MakeSite) -> None:
    """A route's hooks are named in its settings; request runs in waitress's thread, the others in the pool's."""
    seen.clear()
    keys = {f"hooks__{name}": f"{__name__}.note" for name in ("response", "headers", "complete")}
    keys.update(hooks__request=f"{__name__}.note_request", hooks__error=f"{__name__}.note_error")
    where = site(route("r", origin(in_turn(echo, answering(b"x"))).url, **keys))
    assert where.get("/r/", {"Connection": "close"}).status == 200
    wait_until(lambda: len(seen) == 4, "all hooks")
    assert [name for name, _ in seen] == ["r"] * 4
    assert ["waitress" in thread for _, thread in seen] == [True, False, False, False]
    assert all(thread.startswith("pproxy-pool") for _, thread in seen[1:])


def test_an_error_hook_by_dotted_name(origin: MakeOrigin, site: MakeSite) -> None:
    """The error hook answers in place of the relay's own page."""
    where = site(route("r", origin(answering(b"")).url, hooks__error=f"{__name__}.note_error"))
    answer = where.get("/r/")
    assert (answer.status, answer.body) == (503, b"sorry: UpstreamGone")


# request


def test_a_request_hook_changes_everything(origin: MakeOrigin, site: MakeSite) -> None:
    """Method, URL, fields and body are sent as the hook left them; framing is made anew."""
    first, second = origin(echo), origin(echo)

    def on_request(request: Any, exchange: Exchange) -> None:
        exchange.request.method = "PUT"
        exchange.request.url = second.url + "/else?x=1"
        exchange.request.headers["X-New"] = "yes"
        exchange.request.headers["Content-Length"] = "999"
        exchange.request.headers["Transfer-Encoding"] = "chunked"
        del exchange.request.headers["Via"]
        exchange.request.body = b"changed"

    answer = fetching(site, first.url, on_request=on_request).get("/f", {"Accept-Encoding": "gzip"})
    head, _, body = answer.body.decode().partition("\r\n\r\n")
    first_line, *fields = head.split("\r\n")
    assert (first_line, body) == ("PUT /else?x=1 HTTP/1.1", "changed")
    fields = [field for field in fields if not field.startswith("X-Request-Id: ")]
    assert sorted(fields) == ["Accept-Encoding: gzip", "Content-Length: 7", f"Host: {second.authority}", "X-New: yes"]
    assert first.accepted == 0


@pytest.mark.parametrize("what", ["raises", "returns"])
def test_a_request_hook_that_answers_is_the_views_own(origin: MakeOrigin, site: MakeSite, what: str) -> None:
    """What the hook raises goes through exception views, what it returns through callbacks; nothing is sent."""
    upstream = origin(echo)

    def on_request(request: Any, exchange: Exchange) -> Response:
        if what == "raises":
            raise LookupError("no such thing")
        request.add_response_callback(lambda request, response: response.headers.update({"X-Late": "1"}))
        return Response("instead", status=202)

    def configure(config: Configurator) -> None:
        config.add_exception_view(lambda error, request: Response("own page", status=404), context=LookupError)

    answer = fetching(site, upstream.url, configure, on_request=on_request).get("/f")
    assert (answer.status, answer.body) == ((404, b"own page") if what == "raises" else (202, b"instead"))
    assert (answer.one("X-Late"), upstream.accepted) == (None if what == "raises" else "1", 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda sent: setattr(sent, "method", "GE T"),
        lambda sent: setattr(sent, "method", "CONNECT"),
        lambda sent: setattr(sent, "url", "http://a/b\r\nX: y"),
        lambda sent: setattr(sent, "url", "http://a/../b"),
        lambda sent: setattr(sent, "url", "ftp://a/"),
        lambda sent: setattr(sent, "body", "text"),
        lambda sent: sent.headers.add("X", "a\r\nb"),
        lambda sent: sent.headers.add("X", "a\0b"),
        lambda sent: sent.headers.add("X Y", "a"),
        lambda sent: sent.headers.add("X", "\N{SNOWMAN}"),
    ],
)
def test_a_request_hook_can_not_smuggle(origin: MakeOrigin, site: MakeSite, change: Callable[[Any], None]) -> None:
    """What can't be written is the application's fault, 500, and nothing is sent."""
    upstream = origin(echo)

    def configure(config: Configurator) -> None:
        config.add_exception_view(lambda error, request: Response(str(error), status=500), context=Exception)

    def on_request(request: Any, exchange: Exchange) -> None:
        change(exchange.request)

    where = fetching(site, upstream.url, configure, on_request=on_request)
    assert (where.get("/f").status, upstream.accepted) == (500, 0)


# response


def pieces() -> Iterator[bytes]:
    """A body in pieces, an empty one among them."""
    yield from (b"one ", b"", b"two")


@pytest.mark.parametrize(
    ("make", "status", "body", "length"),
    [
        (lambda: Response("pyramid"), 200, b"pyramid", "7"),
        (lambda: WebObResponse("webob", status=201), 201, b"webob", "5"),
        (lambda: WebObResponse(app_iter=pieces()), 200, b"one two", None),
        (lambda: WebObResponse(app_iter=pieces(), content_length=7), 200, b"one two", "7"),
        (lambda: WebObResponse(status=204), 204, b"", None),
        (lambda: Response(json={"a": 1}, status=418), 418, b'{"a":1}', "7"),
    ],
    ids=["pyramid", "webob", "generator", "generator with length", "no body", "json"],
)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_response_hook_answers_instead(
    origin: MakeOrigin,
    site: MakeSite,
    make: Callable[[], Any],
    status: int,
    body: bytes,
    length: str | None,
    version: str,
) -> None:
    """Any WebOb response replaces the upstream's, whose body and connection are dropped."""
    upstream = origin(answering(OK))
    where = fetching(site, upstream.url, on_response=lambda exchange: make())
    if version == "1.0":
        received = where.raw(b"GET /f HTTP/1.0\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 %d " % status)
        assert received.partition(b"\r\n\r\n")[2] == body
        return
    answer = where.get("/f")
    assert (answer.status, answer.body, answer.one("Content-Length")) == (status, body, length)
    assert answer.one("X-Theirs") is None
    wait_until(lambda: upstream.wires[0].sock.fileno() < 0, "the upstream's connection to be closed")


@pytest.mark.parametrize(
    "made",
    [
        lambda: WebObResponse(app_iter=_breaking()),
        lambda: WebObResponse(app_iter=iter([b"short"]), content_length=10),
        lambda: WebObResponse(app_iter=iter([b"long"]), content_length=3),
    ],
    ids=["raises", "short", "long"],
)
def test_a_response_whose_body_breaks_is_broken_off(
    origin: MakeOrigin, site: MakeSite, made: Callable[[], Any]
) -> None:
    """A body that is not what its head said is never ended as if it were whole."""
    client = fetching(site, origin(answering(OK)).url, on_response=lambda exchange: made()).client()
    client.send(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
    assert _until_reset(client).count(b"HTTP/1.1 ") <= 1
    client.close()


def _until_reset(client: Wire) -> bytes:
    """What came before the connection was reset; one that ended in order fails the test."""
    received = b""
    while True:
        try:
            data = client.receive()
        except ConnectionResetError:
            return received
        assert data, f"ended in order after {received!r}"
        received += data


def _breaking() -> Iterator[bytes]:
    yield b"start"
    raise RuntimeError("the application's own fault")


def test_a_response_is_closed(origin: MakeOrigin, site: MakeSite) -> None:
    """The body of a hook's response is closed, whole or not asked for (HEAD)."""
    closed = threading.Semaphore(0)

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

        def close(self) -> None:
            closed.release()

    where = fetching(site, origin(answering(OK)).url, on_response=lambda exchange: WebObResponse(app_iter=Body()))
    for method, body in [("GET", b"x"), ("HEAD", b"")]:
        assert where.get("/f", method=method).body == body
        assert closed.acquire(timeout=10)


# headers


def test_a_headers_hook_sees_the_overrides_and_has_the_last_word(origin: MakeOrigin, site: MakeSite) -> None:
    """Status and fields can be changed after the declared overrides; framing fields stay the relay's."""

    def on_headers(exchange: Exchange) -> None:
        answer = exchange.response
        assert answer is not None
        assert answer.headers["x-declared"] == "1"
        answer.headers["X-Declared"] = "2"
        answer.headers["Content-Length"] = "1"
        answer.headers["Connection"] = "close"
        del answer.headers["X-Theirs"]
        answer.status = 206

    where = fetching(site, origin(answering(OK)).url, on_headers=on_headers, response_set={"X-Declared": "1"})
    answer = where.get("/f")
    assert (answer.status, answer.reason, answer.body) == (206, "Partial Content", b"hello")
    assert (answer.one("X-Declared"), answer.one("X-Theirs"), answer.one("Content-Length")) == ("2", None, "5")
    assert answer.one("Connection") is None


@pytest.mark.parametrize("status", [204, 304])
def test_a_headers_hook_may_take_the_body_away(origin: MakeOrigin, site: MakeSite, status: int) -> None:
    """A status that has no body drops it, and the client's connection stays in step."""
    where = fetching(
        site,
        origin(in_turn(answering(OK), answering(OK))).url,
        on_headers=lambda exchange: setattr(exchange.response, "status", status),
    )
    client = where.client()
    for _ in range(2):
        client.send(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.head()[0].startswith(f"HTTP/1.1 {status} ")
    client.close()


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"],
)
def test_a_headers_hook_may_give_a_status_that_has_a_body(origin: MakeOrigin, site: MakeSite, answer: bytes) -> None:
    """Where there is none, the client is told so and does not wait for it."""
    upstream = origin(answering(answer))
    got = fetching(site, upstream.url, on_headers=lambda exchange: setattr(exchange.response, "status", 200)).get("/f")
    assert (got.status, got.body, got.one("Content-Length")) == (200, b"", "0")


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: setattr(answer, "status", 99),
        lambda answer: setattr(answer, "status", "200 OK"),
        lambda answer: setattr(answer, "status", True),
        lambda answer: answer.headers.add("X", "a\r\nSet-Cookie: x=y"),
        lambda answer: answer.headers.add("X", "a\nb"),
        lambda answer: answer.headers.add("X", "a\0"),
        lambda answer: answer.headers.add("X:", "a"),
        lambda answer: answer.headers.add("X", "\N{SNOWMAN}"),
        lambda answer: answer.headers.add("X", 5),
        lambda answer: 1 / 0,
    ],
)
def test_a_headers_hook_can_not_smuggle(origin: MakeOrigin, site: MakeSite, change: Callable[[Any], Any]) -> None:
    """What can't be written is 500 with a whole page, and the client's connection lives on."""
    good = False

    def on_headers(exchange: Exchange) -> None:
        if not good:
            change(exchange.response)

    where = fetching(site, origin(in_turn(answering(OK), answering(OK))).url, on_headers=on_headers)
    client = where.client()
    client.send(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
    first, fields = client.head()
    page = client.exactly(int(fields["content-length"]))
    assert (first, b"Set-Cookie" in page) == ("HTTP/1.1 500 Internal Server Error", False)
    good = True
    client.send(b"GET /f HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert client.rest().endswith(b"hello")
    client.close()


def test_a_headers_hook_can_not_smuggle_through_another_server(origin: MakeOrigin, site: MakeSite) -> None:
    """Where the answer is streamed by a server that checks nothing, a bad value is 500 all the same."""

    def on_headers(exchange: Exchange) -> None:
        assert exchange.response is not None
        exchange.response.headers.add("X", "a\r\nSet-Cookie: x=y")

    where = fetching(site, origin(answering(OK)).url, on_headers=on_headers)
    answer = Request.blank("/f").get_response(where.application)
    assert (answer.status_int, answer.headers.getall("X"), b"Set-Cookie" in answer.body) == (500, [], False)


# complete and error


def test_a_complete_hook_has_the_figures(origin: MakeOrigin, site: MakeSite) -> None:
    """When the last byte is written the stats are all there."""
    done: list[Exchange] = []
    where = fetching(
        site, origin(answering(OK)).url, method="POST", body=b"four", on_complete=done.append, headers={"A": "b"}
    )
    where.get("/f")
    wait_until(lambda: done)
    stats, (exchange,) = done[0].stats, done
    assert (stats.bytes_up, stats.bytes_down, stats.attempts) == (4, 5, 1)
    assert stats.connected is not None
    assert stats.first_byte is not None
    assert stats.finished is not None
    assert stats.started <= stats.connected <= stats.first_byte <= stats.finished
    assert (exchange.error, exchange.route, exchange.client_addr) == (None, "proxy_fetch", "127.0.0.1")
    assert re.fullmatch("[0-9a-f]{32}", exchange.request_id)


def test_complete_is_for_whole_answers_and_error_for_others(origin: MakeOrigin, site: MakeSite) -> None:
    """Exactly one of the two runs; the error hook sees what failed, and without an answer of its own 502 stands."""
    called: list[str] = []
    where = fetching(
        site,
        origin(in_turn(answering(OK), answering(b"x"))).url,
        on_complete=lambda exchange: called.append("complete"),
        on_error=lambda exchange: called.append(type(exchange.error).__name__),
    )
    assert where.get("/f").status == 200
    wait_until(lambda: called)
    assert where.get("/f").status == 502
    assert called == ["complete", "AnswerRefused"]


def test_an_error_hook_after_the_head_can_not_answer(origin: MakeOrigin, site: MakeSite) -> None:
    """The error hook is told, but what the client has is broken off."""
    told: list[str] = []

    def on_error(exchange: Exchange) -> Response:
        told.append(type(exchange.error).__name__)
        return Response("instead")

    broken = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    client = fetching(site, origin(answering(broken)).url, on_error=on_error).client()
    client.send(b"GET /f HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"instead" not in _until_reset(client)
    wait_until(lambda: told == ["UpstreamGone"])
    client.close()


@pytest.mark.parametrize("name", ["response", "headers", "error", "complete"])
def test_a_hook_that_raises_is_logged_and_not_shown(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Its traceback is in the log; the client gets 500, or what it got anyway."""

    def hook(exchange: Exchange) -> None:
        raise RuntimeError("secret")

    upstream = origin(answering(OK if name != "error" else b"x"))
    answer = fetching(site, upstream.url, **{f"on_{name}": hook}).get("/f")
    assert answer.status == {"complete": 200, "error": 502}.get(name, 500)
    assert b"secret" not in answer.body
    wait_until(lambda: [entry for entry in caplog.records if entry.exc_info])
    (record,) = [entry for entry in caplog.records if entry.exc_info]
    assert (record.levelno, str(record.exc_info[1])) == (logging.ERROR, "secret")  # type: ignore[index]


def test_a_hook_that_returns_something_else_is_at_fault(origin: MakeOrigin, site: MakeSite) -> None:
    """A response hook returns a response or None; anything else is 500."""
    assert fetching(site, origin(answering(OK)).url, on_response=lambda exchange: "text").get("/f").status == 500


@pytest.mark.parametrize("how", ["raised", "returned"])
@pytest.mark.parametrize("hook", ["on_response", "on_error"])
def test_an_http_exception(hook: str, how: str, origin: MakeOrigin, site: MakeSite) -> None:
    """One of Pyramid's, raised or returned, is the answer, with its page in a form that the client accepts."""

    def refuse(exchange: Exchange) -> Any:
        error = HTTPPaymentRequired("Not this one.", headers={"X-Own": "1"})
        if how == "raised":
            raise error
        return error

    url = origin(answering(OK)).url if hook == "on_response" else "http://127.0.0.1:9"
    answer = fetching(site, url, **{hook: refuse}).get("/f", {"Accept": "application/json"})
    assert (answer.status, answer.one("X-Own"), answer.one("Content-Type")) == (402, "1", "application/json")
    assert b"Not this one." in answer.body
