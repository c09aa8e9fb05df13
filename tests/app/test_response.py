"""`ProxyResponse`: what to fetch, not the fetched thing."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.events import NewRequest, NewResponse
from pyramid.request import Request
from pyramid.response import Response
from pyramid.tweens import EXCVIEW

from pyramid_threaded_proxy import ProxyResponse, ProxyResponseError
from tests.support.origin import MakeOrigin, answering, echo
from tests.support.site import NOWHERE, MakeSite, with_view
from tests.support.waiting import wait_until


@pytest.fixture
def fetched(site: MakeSite) -> ProxyResponse:
    """What `request.proxy_fetch` returned; nothing is sent by that."""
    found: list[ProxyResponse] = []

    def view(request: Request) -> Response:
        found.append(request.proxy_fetch(NOWHERE + "/x"))
        return Response("kept")

    assert site(configure=with_view(view)).get("/own").body == b"kept"
    return found[0]


def test_it_is_an_empty_200(fetched: ProxyResponse) -> None:
    """It is a Pyramid response without fields that reads as 200, and tells in a log line what it will fetch."""
    assert isinstance(fetched, Response)
    assert fetched.headerlist == []
    assert (fetched.status, fetched.status_int, fetched.status_code) == ("200 OK", 200, 200)
    assert repr(fetched) == f"<ProxyResponse <Exchange proxy_fetch GET {NOWHERE} status=None admitted>>"


def test_two_share_nothing_that_changes(fetched: ProxyResponse) -> None:
    """Each is made of copies of a blank one's attributes: whatever changes in place must be its own."""
    blank = Response(headerlist=[], app_iter=())
    other = ProxyResponse(fetched._engine, fetched._prepared, fetched._client)  # type: ignore[arg-type]
    assert vars(blank).items() <= vars(other).items()
    shared = [name for name in vars(blank) if vars(other)[name] is vars(fetched)[name]]
    kinds = {type(vars(other)[name]) for name in shared}
    assert kinds <= {str, tuple, type(None), bool, int}, "WebOb keeps something new that changes"
    other.headers["X-One"] = "1"
    assert fetched.headerlist == [] != other.headerlist


EMPTY = {"body": b"", "text": "", "json": None, "json_body": None, "ubody": "", "unicode_body": "", "app_iter": []}
BODY = [*EMPTY, "body_file"]
#: A file and a line.
PLACE = r"\S+\.py:[0-9]+"


@pytest.mark.parametrize("name", EMPTY)
def test_its_body_reads_as_empty(name: str, fetched: ProxyResponse, caplog: pytest.LogCaptureFixture) -> None:
    """Software that looks at what a view returned finds an empty body, and the log says once who looked."""
    for _ in range(2):
        assert getattr(fetched, name) == EMPTY[name]
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(rf"a proxied response of proxy_fetch was read in {PLACE}: it reads as empty, .*", line)
    assert f"{__file__}:" in line


@pytest.mark.parametrize("name", BODY)
def test_its_body_is_not_set(name: str, fetched: ProxyResponse) -> None:
    """Setting or deleting its body, in whatever form, raises an error that says what to do instead."""
    for access in (lambda: setattr(fetched, name, b"x"), lambda: delattr(fetched, name)):
        with pytest.raises(ProxyResponseError, match=r"has no body yet.*`response` or `headers` hook"):
            access()


def test_what_was_read_may_be_written_back(fetched: ProxyResponse) -> None:
    """A tween that looks for something to replace writes back what it read; a view that empties the body is wrong."""
    with pytest.raises(ProxyResponseError, match="has no body yet"):
        fetched.body = b""
    fetched.body = fetched.body.replace(b"a", b"b")
    with pytest.raises(ProxyResponseError, match="has no body yet"):
        fetched.body = fetched.body + b"x"


@pytest.mark.parametrize("name", ["encode_content", "decode_content", "md5_etag"])
def test_an_etag_or_compression_changes_nothing(name: str, fetched: ProxyResponse) -> None:
    """What asks for one of what is not here yet goes on, and sets no field."""
    assert getattr(fetched, name)() is None
    assert fetched.headerlist == []


def test_it_is_not_copied(fetched: ProxyResponse) -> None:
    """A copy would be the same exchange twice."""
    with pytest.raises(ProxyResponseError, match="has no body yet"):
        fetched.copy()


def test_nothing_can_be_written_to_it(fetched: ProxyResponse) -> None:
    """`write` is setting the body, by whatever file."""
    for write in (fetched.write, fetched.body_file.write):
        with pytest.raises(ProxyResponseError, match="has no body yet"):
            write(b"x")


@pytest.mark.parametrize(("name", "value"), [("status", "404 Not Found"), ("status_int", 404), ("status_code", 404)])
def test_its_status_is_not_known(name: str, value: Any, fetched: ProxyResponse) -> None:
    """Setting its status raises an error that says what to do instead."""
    with pytest.raises(ProxyResponseError, match=r"has no status yet.*`headers` hook"):
        setattr(fetched, name, value)
    assert fetched.status_int == 200


def lying_view(add: Callable[[Configurator, Callable[[Any], None]], None]) -> Callable[[Configurator, str], None]:
    def configure(config: Configurator, upstream: str) -> None:
        def lie(response: Any) -> None:
            if isinstance(response, ProxyResponse):
                response.status = 404

        with_view(lambda request: request.proxy_fetch(upstream))(config)
        add(config, lie)
        config.add_exception_view(lambda error, request: Response(str(error)), context=ProxyResponseError)

    return configure


def in_subscriber(config: Configurator, lie: Callable[[Any], None]) -> None:
    config.add_subscriber(lambda event: lie(event.response), NewResponse)


def in_callback(config: Configurator, lie: Callable[[Any], None]) -> None:
    def add(event: Any) -> None:
        event.request.add_response_callback(lambda request, response: lie(response))

    config.add_subscriber(add, NewRequest)


TWEENS: list[Callable[[Any], None]] = []


def lying_tween_factory(handler: Any, registry: Any) -> Any:
    def tween(request: Request) -> Response:
        response = handler(request)
        TWEENS[-1](response)
        return response

    return tween


def in_tween_below(config: Configurator, lie: Callable[[Any], None]) -> None:
    TWEENS.append(lie)
    config.add_tween(f"{__name__}.lying_tween_factory", under="pyramid_threaded_proxy.tween.proxy_tween_factory")


def in_tween_above(config: Configurator, lie: Callable[[Any], None]) -> None:
    TWEENS.append(lie)
    config.add_tween(f"{__name__}.lying_tween_factory", over=EXCVIEW)


@pytest.mark.parametrize("add", [in_subscriber, in_callback, in_tween_below, in_tween_above])
def test_who_sets_its_status(add: Any, origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """Wherever it is set, the application's exception view shows the error; nothing is sent, no slot is lost."""
    upstream = origin(echo)
    made = site(configure=lambda config: lying_view(add)(config, upstream.url))
    assert made.get("/own").body.startswith(b"a ProxyResponse has no status yet")
    assert upstream.accepted == 0
    wait_until(lambda: made.engine.admission.in_flight == 0)
    assert [
        record.getMessage() for record in caplog.records if f"was to be changed in {__file__}:" in record.getMessage()
    ]


def test_an_error_that_is_swallowed(origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """Who catches the error has changed nothing, and the log says where it was tried."""
    upstream = origin(answering(b"HTTP/1.1 201 Made\r\nContent-Length: 2\r\n\r\nhi"))

    def view(request: Request) -> Response:
        response = request.proxy_fetch(upstream.url)
        with suppress(ProxyResponseError):
            response.body = b"x"
        return response  # type: ignore[no-any-return]

    answer = site(configure=with_view(view)).get("/own")
    assert (answer.status, answer.body) == (201, b"hi")
    assert any("was to be changed in" in record.getMessage() for record in caplog.records)


def test_tweens_that_look_at_bodies(origin: MakeOrigin, site: MakeSite) -> None:
    """One for ETags, one for compression and one that logs bodies leave the upstream's answer as it is."""
    upstream = origin(answering(b'HTTP/1.1 200 OK\r\nETag: "theirs"\r\nContent-Length: 2\r\n\r\nhi'))

    def look(response: Any) -> None:
        response.conditional_response = True
        response.md5_etag(set_content_md5=True)
        response.encode_content("gzip", lazy=True)
        assert (len(response.body), response.content_length, str(response)) == (0, None, "200 OK")

    TWEENS.append(look)

    def configure(config: Configurator) -> None:
        with_view(lambda request: request.proxy_fetch(upstream.url))(config)
        config.add_tween(f"{__name__}.lying_tween_factory")

    answer = site(configure=configure).get("/own", {"Accept-Encoding": "gzip"})
    assert (answer.body, answer.one("ETag"), answer.one("Content-Encoding")) == (b"hi", '"theirs"', None)
    assert answer.one("Content-MD5") is None


def test_what_is_set_on_it(origin: MakeOrigin, site: MakeSite) -> None:
    """Fields and cookies set on it are on the client's answer; framing and hop-by-hop fields are ignored."""
    upstream = origin(answering(b"HTTP/1.1 201 Made\r\nContent-Type: a/b\r\nETag: x\r\nContent-Length: 2\r\n\r\nhi"))

    def view(request: Request) -> Response:
        response = request.proxy_fetch(upstream.url)
        response.set_cookie("mine", "1")
        response.content_type = "text/csv"
        response.content_length = 99
        response.headers.update({"Transfer-Encoding": "chunked", "Connection": "X-A", "X-A": "1", "Upgrade": "h2c"})
        response.cache_expires(10)
        return response  # type: ignore[no-any-return]

    answer = site(configure=with_view(view)).get("/own")
    assert (answer.status, answer.reason, answer.body) == (201, "Made", b"hi")
    assert answer.all("Content-Length") == ["2"]
    assert (answer.one("Content-Type") or "").startswith("text/csv")
    assert (answer.one("X-A"), answer.one("ETag"), answer.one("Upgrade")) == ("1", "x", None)
    assert answer.one("Transfer-Encoding") is None
    assert answer.one("Set-Cookie") == "mine=1; Path=/"
    assert answer.one("Cache-Control") == "max-age=10"


@pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\0b"])
def test_a_control_character_set_on_it(value: str, origin: MakeOrigin, site: MakeSite) -> None:
    """A field with CR, LF or NUL never reaches the client: the answer is an error."""

    def view(request: Request) -> Response:
        response = request.proxy_fetch(origin(echo).url)
        response.headerlist.append(("X-Bad", value))
        return response  # type: ignore[no-any-return]

    answer = site(configure=with_view(view)).get("/own")
    assert answer.status == 500
    assert answer.one("X-Bad") is None


def test_a_control_character_of_middleware(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """A field with NUL that middleware added, which waitress lets through, is left out, and the log names it."""
    upstream = origin(echo)

    def adding(application: Any) -> Any:
        def add(environ: dict[str, Any], start_response: Any) -> Any:
            def start(status: str, fields: list[tuple[str, str]], *rest: Any) -> Any:
                return start_response(status, [*fields, ("X-Bad", "a\0b"), ("X-Good", "c")], *rest)

            return application(environ, start)

        return add

    made = site(configure=with_view(lambda request: request.proxy_fetch(upstream.url)), wrap=adding)
    answer = made.get("/own")
    assert (answer.status, answer.one("X-Bad"), answer.one("X-Good")) == (200, None, "c")
    assert any("X-Bad" in record.getMessage() for record in caplog.records)


def test_it_can_be_called_once(fetched: ProxyResponse) -> None:
    """Calling it starts the exchange; a second call raises, and starts none."""
    statuses: list[str] = []
    iterable = fetched({"REQUEST_METHOD": "GET"}, lambda status, fields: statuses.append(status))
    assert b"".join(iterable)
    assert statuses == ["502 Bad Gateway"]
    with pytest.raises(ProxyResponseError, match="can be called once"):
        fetched({"REQUEST_METHOD": "GET"}, lambda status, fields: None)


def test_a_head_request(origin: MakeOrigin, site: MakeSite) -> None:
    """A HEAD request to a view that fetches with GET gets the head alone, and the connection goes on."""
    upstream = origin(echo)
    made = site(configure=with_view(lambda request: request.proxy_fetch(upstream.url)))
    client = made.client()
    client.send(b"HEAD /own HTTP/1.1\r\nHost: a\r\n\r\nGET /own HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    head, rest = client.until(b"\r\n\r\n"), client.rest()
    client.close()
    assert b"Content-Length: " in head
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")
