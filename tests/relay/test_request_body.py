"""Requests on their way up: bodies of every origin, byte for byte, and upstreams that answer before the end."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator

from tests.support.bodies import content
from tests.support.origin import MakeOrigin, answering, echo, in_turn
from tests.support.site import MakeSite, Site, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, Request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Taking:
    """A script that keeps the requests that it gets."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            self.requests.append(request)
            wire.send(OK)


def fetching(site: MakeSite, url: str, body: Callable[[Any], Any], **keywords: Any) -> Site:
    """A site whose view at ``/f`` fetches `url` with POST and what `body` makes of the request."""

    def configure(config: Configurator) -> None:
        config.add_route("f", "/f")
        config.add_view(
            lambda request: request.proxy_fetch(url, method="POST", body=body(request), **keywords), route_name="f"
        )

    return site(configure=configure)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 600_000, 20 << 20])
def test_a_body_goes_up_as_it_came(origin: MakeOrigin, site: MakeSite, size: int) -> None:
    """Bodies from memory and from waitress's temporary file arrive whole, with their length."""
    taking, body = Taking(), content(size)
    assert site(route("r", origin(taking).url)).get("/r/x", method="POST", body=body).status == 200
    (request,) = taking.requests
    assert hashlib.sha256(request.body).digest() == hashlib.sha256(body).digest()
    assert request.one("Content-Length") == str(size)


def test_the_message_is_exactly_what_it_should_be(origin: MakeOrigin, site: MakeSite) -> None:
    """Nothing is added to, or taken from, the bytes of a request, but what is documented."""
    taking = Taking()
    where = site(
        {
            "proxy.via": "me",
            "proxy.request_id.header": "",
            **route("r", (upstream := origin(taking)).url + "/base", forwarded="none"),
        }
    )
    client = where.client()
    fields = b"Host: a\r\nX-Empty:\r\nContent-Length: 2\r\nAccept: */*\r\n\r\n"
    client.send(b"PUT /r/a//b%2F;x?q=%zz&r HTTP/1.1\r\n" + fields + b"\0\xff")
    client.head()
    client.close()
    assert (
        taking.requests[0].raw
        == (
            f"PUT /base/a//b%2F;x?q=%zz&r HTTP/1.1\r\nHost: {upstream.authority}\r\nX-Empty: \r\nAccept: */*\r\n"
            "Via: 1.1 me\r\nContent-Length: 2\r\n\r\n"
        ).encode()
        + b"\0\xff"
    )


@pytest.mark.parametrize("size", [0, 5, 3 << 20])
def test_a_chunked_request_gets_a_length(origin: MakeOrigin, site: MakeSite, size: int) -> None:
    """waitress takes a chunked body whole; it goes up with Content-Length and without its chunks."""
    taking, body = Taking(), content(size)
    client = site(route("r", origin(taking).url)).client()
    client.send(b"POST /r/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for at in range(0, size, 70_000):
        piece = body[at : at + 70_000]
        client.send(b"%x;x=y\r\n%b\r\n" % (len(piece), piece))
    client.send(b"0\r\n\r\n")
    assert client.head()[0] == "HTTP/1.1 200 OK"
    client.close()
    (request,) = taking.requests
    assert (request.body == body, request.one("Content-Length")) == (True, str(size))
    assert request.one("Transfer-Encoding") is None


def test_post_without_a_body_says_so(origin: MakeOrigin, site: MakeSite) -> None:
    """A method that usually has a body goes up with Content-Length: 0 where it has none; GET with nothing."""
    taking = Taking()
    where = site(route("r", origin(taking).url))
    where.get("/r/", method="POST")
    where.get("/r/")
    assert [request.one("Content-Length") for request in taking.requests] == ["0", None]


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("size", [1, 300_000, 20 << 20], ids=["small", "memory", "file"])
def test_an_early_answer_reaches_the_client(origin: MakeOrigin, site: MakeSite, size: int, reset: bool) -> None:
    """An upstream that refuses a body after its head is heard, though it closes on what it has not read."""

    def script(wire: OriginWire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!")
        if reset:
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            wire.half_close()
            wire.wait_closed()

    upstream = origin(in_turn(script, echo))
    where = site(route("r", upstream.url))
    answer = where.get("/r/", method="POST", body=content(size))
    # After a reset the kernel may have thrown the answer away; then it is the upstream that failed.
    assert (answer.status, answer.body) == (413, b"no!") or (reset and answer.status == 502)
    assert where.get("/r/").body.startswith(b"GET / ")


def test_an_early_answer_ends_the_connection(origin: MakeOrigin, site: MakeSite) -> None:
    """Where the body was not sent whole, the connection is not used again, whatever the answer says."""
    over = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(OK)
        over.wait(30)  # longer than any client waits

    upstream = origin(in_turn(script, echo))
    where = site(route("r", upstream.url))
    assert where.get("/r/", method="POST", body=bytes(20 << 20)).body == b"ok"
    assert where.get("/r/").body.startswith(b"GET / ")
    over.set()
    assert upstream.accepted == 2


@pytest.mark.parametrize("source", ["memory", "file", "object"])
def test_an_upstream_that_never_reads_is_504(origin: MakeOrigin, site: MakeSite, source: str) -> None:
    """After `send_timeout` without a byte taken the client gets 504 and its connection lives on."""
    over = threading.Event()
    upstream = origin(lambda wire: over.wait(10) and None)
    if source == "file":
        where, path = site(route("r", upstream.url, send_timeout="200ms")), "/r/"
    else:
        made = {"memory": lambda request: bytes(20 << 20), "object": lambda request: BytesIO(bytes(20 << 20))}[source]
        where, path = fetching(site, upstream.url, made, send_timeout="200ms"), "/f"
    answer = where.get(path, method="POST", body=bytes(20 << 20) if source == "file" else None)
    over.set()
    assert answer.status == 504
    assert answer.one("Connection") is None


def test_a_body_may_be_anything_that_has_bytes(origin: MakeOrigin, site: MakeSite, tmp_path: Path) -> None:
    """bytes, files, file-likes and the request itself go up with their length, an iterable in chunks."""
    taking = Taking()
    url = origin(taking).url
    (tmp_path / "file").write_bytes(b"file" * 50_000)
    files = [(tmp_path / "file").open("rb") for _ in range(2)]
    files[1].seek(4)
    cases: list[tuple[Callable[[Any], Any], bytes, bool]] = [
        (lambda request: b"bytes", b"bytes", False),
        (lambda request: files[0], b"file" * 50_000, False),
        (lambda request: files[1], b"file" * 49_999, False),
        (lambda request: BytesIO(b"x" * 200_000), b"x" * 200_000, False),
        (lambda request: iter([b"a", b"", bytearray(b"b" * 70_000)]), b"a" + b"b" * 70_000, True),
        (lambda request: request, b"own", False),
        (lambda request: None, b"", False),
    ]
    for make, expected, chunked in cases:
        answer = fetching(site, url, make).get("/f", method="POST", body=b"own")
        assert answer.status == 200
        request = taking.requests.pop()
        assert request.body == expected
        assert (request.one("Transfer-Encoding"), request.one("Content-Length")) == (
            ("chunked", None) if chunked else (None, str(len(expected)))
        )
    for file in files:
        file.close()


class Closing:
    """An iterator that knows that it was closed, and in which thread it ran."""

    def __init__(self, pieces: Iterator[Any]) -> None:
        self._pieces = pieces
        self.closed = 0
        self.threads: set[str] = set()

    def __iter__(self) -> Closing:
        return self

    def __next__(self) -> Any:
        self.threads.add(threading.current_thread().name)
        return next(self._pieces)

    def close(self) -> None:
        self.closed += 1


def _raising() -> Iterator[Any]:
    yield b"start"
    raise RuntimeError("the application's own fault")


@pytest.mark.parametrize(
    ("pieces", "status"),
    [(lambda: iter([b"all", b" of it"]), 200), (_raising, 500), (lambda: iter(["text"]), 500)],
    ids=["whole", "raises", "not bytes"],
)
def test_an_iterable_runs_in_a_pool_thread_and_is_closed(
    origin: MakeOrigin, site: MakeSite, pieces: Callable[[], Iterator[Any]], status: int
) -> None:
    """An application's iterable runs in a pool thread, its faults are 500, and it is closed once on every path."""
    body = Closing(pieces())

    def script(wire: OriginWire) -> None:
        with suppress(AssertionError):  # the body may break off
            echo(wire)

    where = fetching(site, origin(script).url, lambda request: body)
    assert where.get("/f").status == status
    wait_until(lambda: body.closed)
    assert body.closed == 1
    assert all(name.startswith("pproxy-pool") for name in body.threads)


def test_an_iterable_is_closed_when_nobody_listens(origin: MakeOrigin, site: MakeSite) -> None:
    """Where the connection fails, the iterable was never begun, and is closed all the same."""
    upstream = origin(echo)
    upstream.stop_listening()
    body = Closing(iter([b"x"]))
    assert fetching(site, upstream.url, lambda request: body).get("/f").status == 502
    wait_until(lambda: body.closed)
    assert (body.closed, body.threads) == (1, set())


def test_an_upstream_may_answer_an_iterable_early(origin: MakeOrigin, site: MakeSite) -> None:
    """An endless body ends with the upstream's early answer."""

    answered = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        answered.set()
        wire.wait_closed()

    def endless() -> Iterator[bytes]:
        yield b"x"
        assert answered.wait(10)
        while True:
            yield b"x"  # so little that the upstream, which reads on, never makes us wait

    body = Closing(endless())
    assert fetching(site, origin(script).url, lambda request: body).get("/f").status == 413
    wait_until(lambda: body.closed)


@pytest.mark.parametrize("source", ["memory", "file"])
def test_interim_answers_do_not_stop_a_body(origin: MakeOrigin, site: MakeSite, source: str) -> None:
    """An upstream that sends 100 or 103 before it reads on gets the rest of the body (RFC 9110 15.2)."""
    body = content(20 << 20)
    got: list[bytes] = []

    def script(wire: OriginWire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 10")
        got.append(wire.exactly(len(body)))
        wire.send(b"2 Processing\r\n\r\n" + OK)

    if source == "file":
        where, sent = site(route("r", origin(script).url, read_timeout="3s", send_timeout="3s")), body
    else:
        where, sent = fetching(site, origin(script).url, lambda request: body, read_timeout=3.0, send_timeout=3.0), b""
    client = where.client()
    path = b"/r/" if sent else b"/f"
    client.send(b"POST %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" % path)
    client.send(b"Content-Length: %d\r\n\r\n%b" % (len(sent), sent))
    assert client.head()[0] == "HTTP/1.1 103 Early Hints"
    assert client.head()[0] == "HTTP/1.1 102 Processing"
    assert client.head()[0] == "HTTP/1.1 200 OK"
    assert client.rest() == b"ok"
    assert hashlib.sha256(got[0]).digest() == hashlib.sha256(body).digest()
    client.close()


def test_a_refused_body_leaves_the_upstream_alone(origin: MakeOrigin, site: MakeSite) -> None:
    """A body over `max_body` is 413 before anything is sent."""
    upstream = origin(answering(OK))
    assert site(route("r", upstream.url, max_body="10")).get("/r/", method="POST", body=b"x" * 11).status == 413
    assert upstream.accepted == 0
