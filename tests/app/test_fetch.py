"""``request.proxy_fetch`` and ``request.proxy_forward``: a view of the application's own says what to fetch."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy import Exchange, SettingsError, ValueRefused
from tests.support.bodies import Chunks
from tests.support.origin import MakeOrigin, answering, echo
from tests.support.site import NOWHERE, MakeSite, with_view
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, received


@pytest.fixture
def answer_of(site: MakeSite) -> Callable[..., Any]:
    """Sends one request to a view, and returns the client's answer."""

    def ask(view: Callable[[Request], Any], path: str = "/own", settings: Any = None, **request: Any) -> Any:
        return site(settings, configure=with_view(view)).get(path, **request)

    return ask


def raised_by(answer_of: Callable[..., Any], view: Callable[[Request], Any], expected: type[Exception]) -> str:
    """The text of what the view raises."""
    found: list[str] = []

    def catching(request: Request) -> Any:
        try:
            view(request)
        except expected as error:
            found.append(str(error))
        return Response("caught")

    assert answer_of(catching).body == b"caught"
    assert found, f"{expected.__name__} was not raised"
    return found[0]


# proxy_fetch: what is sent


def test_a_new_request(origin: MakeOrigin, answer_of: Any) -> None:
    """A fetch is a GET of its own: none of the client's fields go along, nor its query, nor who asked; Via does."""
    upstream = origin(echo)
    client = {"Cookie": "a=1", "Authorization": "x", "X-Own": "1", "User-Agent": "me", "Accept": "a/b"}
    request = received(
        answer_of(lambda request: request.proxy_fetch(upstream.url + "/a%2Fb?c"), "/own?q=1", headers=client)
    )
    assert (request.method, request.target) == ("GET", "/a%2Fb?c")
    fields = {name: value for name, value in request.fields if name not in ("Accept-Encoding", "X-Request-Id")}
    assert fields == {"Host": upstream.authority, "Via": "1.1 pyramid_threaded_proxy"}


ALONG = {
    "Range": "bytes=0-1", "Accept-Encoding": "br", "If-Match": '"a"', "If-None-Match": '"b"', "If-Range": '"c"',
    "If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT", "If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT",
}  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_what_goes_along(method: str, origin: MakeOrigin, site: MakeSite) -> None:
    """Range, Accept-Encoding and conditional fields of the client's go along with GET and HEAD alone."""
    seen: list[Any] = []

    def script(wire: Any) -> None:
        seen.append(wire.request())
        wire.answer()

    upstream = origin(script)
    made = site(configure=with_view(lambda request: request.proxy_fetch(upstream.url, method=method)))
    assert made.get("/own", ALONG).status == 200
    expected = {} if method == "POST" else ALONG
    assert {name: value for name, value in seen[0].fields if name in ALONG} == expected


@pytest.mark.parametrize("headers", [{"X-A": "1", "Range": "mine"}, [("X-A", "1"), ("Range", "mine"), ("X-A", "2")]])
def test_given_headers(headers: Any, origin: MakeOrigin, answer_of: Any) -> None:
    """Given headers, a mapping or pairs, are sent, and go before the client's own."""
    upstream = origin(echo)
    request = received(
        answer_of(lambda request: request.proxy_fetch(upstream.url, headers=headers), headers={"Range": "bytes=0-1"})
    )
    assert request.all("X-A") == (["1"] if isinstance(headers, dict) else ["1", "2"])
    assert request.all("Range") == ["mine"]


def test_a_given_host(origin: MakeOrigin, answer_of: Any) -> None:
    """Host can be given; without it, it is the upstream's own."""
    upstream = origin(echo)
    request = received(answer_of(lambda request: request.proxy_fetch(upstream.url, headers={"host": "virtual"})))
    assert request.all("Host") == ["virtual"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"headers": {"X-A": "a\r\nX-B: b"}}, "X-A"),
        ({"headers": {"X-A": "a\0"}}, "X-A"),
        ({"headers": {"X A": "a"}}, "X A"),
        ({"headers": {"X-A": 1}}, "X-A"),
        ({"headers": {"Content-Length": "5"}}, "Content-Length"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, "Transfer-Encoding"),
        ({"headers": {"Connection": "close"}}, "Connection"),
        ({"method": "GET /x HTTP/1.1\r\n"}, "GET"),
        ({"method": "CONNECT"}, "CONNECT"),
        ({"method": "TRACE"}, "TRACE"),
        ({"url": "ftp://a/"}, "ftp"),
        ({"url": "/only/a/path"}, "/only/a/path"),
        ({"url": "http://a/../b"}, "dot segment"),
        ({"url": "http://a/b c"}, "a/b c"),
        ({"url": "http://a/b\r\nX: y"}, "b"),
        ({"url": "http://a/#b"}, "b"),
        ({"url": "http://user:password@a/"}, "a"),
        ({"url": ""}, ""),
    ],
)
def test_what_can_not_be_sent(arguments: dict[str, Any], named: str, answer_of: Any) -> None:
    """Method, URL and headers that can't be sent are refused in the view, and the fault is named."""
    arguments = {"url": NOWHERE, **arguments}
    assert named in raised_by(answer_of, lambda request: request.proxy_fetch(**arguments), ValueRefused)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"read_timeout": "soon"}, "read_timeout"),
        ({"read_timout": 1}, "did you mean read_timeout"),
        ({"prefix": "/x"}, "prefix"),
        ({"permission": "view"}, "permission"),
        ({"request_set": {"X-A": "{nobody}"}}, "{nobody}"),
        ({"response_set": {"Content-Length": "1"}}, "Content-Length"),
    ],
)
def test_bad_keys(keys: dict[str, Any], named: str, answer_of: Any) -> None:
    """A keyword that is no key of a fetch, or has a bad value, is a `SettingsError` that names it."""
    assert named in raised_by(answer_of, lambda request: request.proxy_fetch(NOWHERE, **keys), SettingsError)


def test_keys_of_a_route(origin: MakeOrigin, answer_of: Any) -> None:
    """Keyword arguments are the keys of a route, with ``_`` for ``.``."""
    upstream = origin(echo)
    keys = {
        "request_set": {"X-Route": "{route} {scheme}"},
        "response_set": {"X-Down": "1"},
        "response_remove": ["Content-Type"],
    }
    answer = answer_of(lambda request: request.proxy_fetch(upstream.url, **keys))
    assert received(answer).one("X-Route") == "proxy_fetch http"
    assert (answer.one("X-Down"), answer.one("Content-Type")) == ("1", None)


# proxy_fetch: bodies


def test_bytes(origin: MakeOrigin, answer_of: Any) -> None:
    """Bytes are sent with their length."""
    upstream = origin(echo)
    request = received(answer_of(lambda request: request.proxy_fetch(upstream.url, method="PUT", body=b"abc")))
    assert (request.body, request.one("Content-Length")) == (b"abc", "3")


@pytest.mark.parametrize(("method", "length"), [("POST", "0"), ("GET", None)])
def test_no_body(method: str, length: str | None, origin: MakeOrigin, answer_of: Any) -> None:
    """Without a body a method that usually has one says so (RFC 9110 8.6)."""
    upstream = origin(echo)
    for body in (None, b""):
        keys = {"method": method, "body": body}
        request = received(answer_of(lambda request, keys=keys: request.proxy_fetch(upstream.url, **keys)))
        assert request.one("Content-Length") == length


def test_a_file(tmp_path: Path, origin: MakeOrigin, answer_of: Any) -> None:
    """A file is sent from where it stands to its end, with its length; a real one and one in memory."""
    upstream = origin(echo)
    path = tmp_path / "body"
    path.write_bytes(b"0123456789" * 20_000)
    with path.open("rb") as real:
        for file in (real, io.BytesIO(path.read_bytes())):
            file.seek(5)
            request = received(
                answer_of(lambda request, file=file: request.proxy_fetch(upstream.url, method="PUT", body=file))
            )
            assert request.one("Content-Length") == "199995"
            assert request.body == path.read_bytes()[5:]


def test_a_file_of_unknown_length(origin: MakeOrigin, answer_of: Any) -> None:
    """What can't tell its length, such as a decompressing pipe, is sent chunked."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.inner = gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(b"abc" * 50_000)))

        def read(self, size: int = -1) -> bytes:
            return self.inner.read(size)

    upstream = origin(echo)
    request = received(answer_of(lambda request: request.proxy_fetch(upstream.url, method="PUT", body=Pipe())))
    assert (request.one("Transfer-Encoding"), request.one("Content-Length")) == ("chunked", None)
    assert request.body == b"abc" * 50_000


def test_an_iterable(origin: MakeOrigin, answer_of: Any) -> None:
    """An iterable is sent chunked, its empty pieces left out, read once and closed once."""
    upstream = origin(echo)
    body = Chunks(b"abc", b"", bytearray(b"de"), memoryview(b"f"))
    answer = answer_of(lambda request: request.proxy_fetch(upstream.url, method="POST", body=body))
    assert received(answer).one("Transfer-Encoding") == "chunked"
    assert received(answer).body == b"abcdef"
    wait_until(lambda: (body.begun, body.closed) == (1, 1))


@pytest.mark.parametrize("chunk", [KeyError("broken"), "text", 1])
def test_an_iterable_that_fails(chunk: Any, origin: MakeOrigin, answer_of: Any) -> None:
    """An iterable that raises, or gives what is not bytes, ends the exchange with 500, and is closed."""
    body = Chunks(b"abc", chunk)

    def script(wire: OriginWire) -> None:
        wire.until(b"\r\n\r\n3\r\nabc\r\n")
        wire.wait_closed()

    upstream = origin(script)
    answer = answer_of(lambda request: request.proxy_fetch(upstream.url, method="PUT", body=body))
    assert answer.status == 500
    wait_until(lambda: body.closed == 1)


def test_an_iterable_is_closed_without_an_upstream(answer_of: Any) -> None:
    """An iterable is closed where no connection could be made, and is not even begun."""
    body = Chunks(b"abc")
    assert answer_of(lambda request: request.proxy_fetch(NOWHERE, method="PUT", body=body)).status == 502
    wait_until(lambda: (body.begun, body.closed) == (0, 1))


def test_an_iterable_is_closed_where_nothing_is_fetched(origin: MakeOrigin, answer_of: Any) -> None:
    """An iterable is closed where the view answers otherwise, or where a hook answers instead."""
    forgotten, replaced = Chunks(b"abc"), Chunks(b"abc")

    def view(request: Request) -> Response:
        request.proxy_fetch(NOWHERE, body=forgotten)
        return request.proxy_fetch(NOWHERE, body=replaced, on_request=lambda request, exchange: Response("instead"))

    assert answer_of(view).body == b"instead"
    wait_until(lambda: (forgotten.closed, replaced.closed) == (1, 1))


def test_an_iterable_whose_close_fails(origin: MakeOrigin, site: MakeSite) -> None:
    """A `close` that raises spoils nothing: the answer is whole and the place is given back."""

    class Stubborn(Chunks):
        def close(self) -> None:
            raise KeyError("won't close")

    upstream = origin(echo)
    made = site(
        {"proxy.max_exchanges": "1"},
        configure=with_view(lambda request: request.proxy_fetch(upstream.url, method="PUT", body=Stubborn(b"abc"))),
    )
    for _ in range(2):
        assert made.get("/own").status == 200
        wait_until(lambda: made.engine.admission.in_flight == 0)


def test_an_iterable_is_never_sent_again(origin: MakeOrigin, site: MakeSite) -> None:
    """On a kept connection that turns out to be closed, an iterable is not sent a second time."""
    upstream = origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    bodies: list[Chunks] = []

    def view(request: Request) -> Any:
        bodies.append(Chunks(b"abc"))
        return request.proxy_fetch(upstream.url, method="PUT", body=bodies[-1])

    made = site(configure=with_view(view))
    for _ in range(5):
        made.get("/own")
    wait_until(lambda: [body.closed for body in bodies] == [1] * 5)
    assert [body.begun for body in bodies if body.begun > 1] == []


@pytest.mark.parametrize("body", ["text", {"a": "b"}, 5])
def test_what_is_no_body(body: Any, answer_of: Any) -> None:
    """Text, mappings and other things are no body."""
    text = raised_by(answer_of, lambda request: request.proxy_fetch(NOWHERE, method="PUT", body=body), TypeError)
    assert text.endswith(f"not {type(body).__name__}")


@pytest.mark.parametrize("size", [0, 10, 2_000_000])
def test_the_requests_own_body(size: int, origin: MakeOrigin, answer_of: Any) -> None:
    """The request stands for its body, its type and its length, however much of it the view has read."""
    upstream = origin(echo)

    def view(request: Request) -> Any:
        assert len(request.body_file.read(size // 2)) == size // 2
        return request.proxy_fetch(upstream.url, method="POST", body=request)

    body = b"0123456789" * (size // 10)
    request = received(answer_of(view, method="POST", body=body, headers={"Content-Type": "a/b", "X-Other": "1"}))
    assert request.body == body
    assert request.one("Content-Length") == str(size)
    assert (request.one("Content-Type"), request.one("X-Other")) == ("a/b", None)


def test_the_requests_own_body_with_another_type(origin: MakeOrigin, answer_of: Any) -> None:
    """A given Content-Type goes before the request's."""
    upstream = origin(echo)

    def view(request: Request) -> Any:
        return request.proxy_fetch(upstream.url, method="POST", body=request, headers={"content-type": "c/d"})

    answer = answer_of(view, method="POST", body=b"x", headers={"Content-Type": "a/b"})
    assert received(answer).all("Content-Type") == ["c/d"]


def test_the_requests_own_body_over_the_limit(answer_of: Any) -> None:
    """`max_body` holds for the request's own body."""

    def view(request: Request) -> Any:
        return request.proxy_fetch(NOWHERE, method="POST", body=request, max_body=2)

    answer = answer_of(view, method="POST", body=b"123")
    assert answer.status == 413


# Hooks


def test_hooks_by_argument_and_by_key(origin: MakeOrigin, answer_of: Any) -> None:
    """A hook may be an argument or a key; the argument goes before the key of the same hook."""
    upstream = origin(echo)
    heard: list[str] = []

    def noting(word: str) -> Callable[[Exchange], None]:
        return lambda exchange: heard.append(word)

    keys = {
        "on_headers": noting("argument"),
        "hooks_headers": noting("key"),
        "hooks_complete": noting("complete"),
        "hooks_response": f"{__name__}.hear_nothing",
    }
    answer = answer_of(lambda request: request.proxy_fetch(upstream.url, **keys))
    assert answer.status == 200
    wait_until(lambda: heard == ["argument", "complete"])


def hear_nothing(exchange: Exchange) -> None:
    """A hook that is named by its dotted name."""


def test_a_dotted_name_that_leads_nowhere(answer_of: Any) -> None:
    """A hook that can't be imported is a `SettingsError` that names the key and the value."""
    text = raised_by(answer_of, lambda request: request.proxy_fetch(NOWHERE, hooks_error="nowhere.x"), SettingsError)
    assert text.startswith("hooks_error (proxy_fetch() or proxy_forward()): ")
    assert "'nowhere.x'" in text


def test_nothing_is_rewritten(origin: MakeOrigin, answer_of: Any) -> None:
    """A fetch has no public path: Location and cookies of its upstream are left, but never the application's own."""
    fields = "Location: /x\r\nSet-Cookie: a=1; Path=/; Domain=b\r\nSet-Cookie: session=evil\r\nContent-Length: 0"
    upstream = origin(answering(f"HTTP/1.1 302 Found\r\n{fields}\r\n\r\n".encode()))
    answer = answer_of(lambda request: request.proxy_fetch(upstream.url))
    assert (answer.status, answer.one("Location")) == (302, "/x")
    assert answer.all("Set-Cookie") == ["a=1; Path=/; Domain=b"]
