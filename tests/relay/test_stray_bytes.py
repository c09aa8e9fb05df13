"""Bytes behind a whole answer: it is passed on, they are nobody's, and their connection is not used again."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from tests.support.origin import MakeOrigin, echo, in_turn
from tests.support.servers import ENGINE
from tests.support.site import MakeSite, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, Wire, body, get, read_answer

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
#: Every whole answer with what may stand behind it: method, answer, what comes behind, status, body.
KINDS = [
    pytest.param("GET", LENGTH, b"\r\n", 200, b"ok", id="a line end behind a length"),
    pytest.param("GET", LENGTH, b"more", 200, b"ok", id="more behind a length"),
    pytest.param("GET", LENGTH, LENGTH, 200, b"ok", id="a second answer"),
    pytest.param("GET", CHUNKED, b"\r\n", 200, b"ok", id="a line end behind chunks"),
    pytest.param("GET", CHUNKED, b"more", 200, b"ok", id="more behind chunks"),
    pytest.param("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"\r\n", 200, b"", id="behind an empty body"),
    pytest.param("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello", 200, b"", id="HEAD with a body"),
    pytest.param(
        "HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nok\r\n0\r\n\r\n", 200, b"",
        id="HEAD with chunks",
    ),
    pytest.param("HEAD", b"HTTP/1.1 404 Not Found\r\n\r\n", b"<html>", 404, b"", id="HEAD without framing"),
    pytest.param("GET", b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n', b"hello", 304, b"", id="304 with a body"),
    pytest.param("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"hello", 204, b"", id="204 with a body"),
    pytest.param(
        "GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b"hello", 204, b"", id="204 with a length"
    ),
    pytest.param(
        "GET", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n", 204, b"",
        id="204 in chunks",
    ),
]  # fmt: skip


@pytest.mark.parametrize("poll", [True, False], ids=["poll", "select"])
@pytest.mark.parametrize("apart", [False, True], ids=["one packet", "two packets"])
@pytest.mark.parametrize(("method", "answer", "behind", "status", "content"), KINDS)
def test_the_answer_stands(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture,
    method: str, answer: bytes, behind: bytes, status: int, content: bytes, apart: bool, poll: bool,
) -> None:  # fmt: skip
    """The client gets what was framed, the next request goes to a fresh connection, and the log says it once."""
    seen = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.request()
        wire.send(answer if apart else answer + behind)
        if apart:
            assert seen.wait(10)
            wire.send(behind)
        wire.wait_closed()

    upstream = origin(in_turn(script, script, echo))
    where = site(route("r", upstream.url), asyncore_use_poll=poll)
    client = where.client()
    for _ in range(2):
        client.send(f"{method} /r/x HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        first, fields = client.head()
        assert int(first.split()[1]) == status
        if method == "GET" and status == 200:
            assert body_of(client, fields) == content
        seen.set()
        wait_until(lambda: all(wire.sock.fileno() < 0 for wire in upstream.wires), "an end of the connection")
    client.send(get("/r/after"))
    assert body(client).startswith(b"GET /after ")
    client.close()
    assert upstream.accepted == 3
    assert [text for text in caplog.messages if "behind whole answers" in text and upstream.url in text] == [
        f"{upstream.url} sends bytes behind whole answers (RFC 9112 6.3): they are dropped with the connection"
    ]


def body_of(client: Wire, fields: dict[str, str]) -> bytes:
    """A body with a length, or of one chunk."""
    if "content-length" in fields:
        return client.exactly(int(fields["content-length"]))
    found = b""
    while size := int(client.until(b"\r\n"), 16):
        found += client.exactly(size)
        client.exactly(2)
    client.exactly(2)
    return found


@pytest.mark.parametrize("length", [70_000, 3 << 20])
def test_behind_a_large_body(origin: MakeOrigin, site: MakeSite, length: int, mode: dict[str, Any]) -> None:
    """A splice takes what belongs to the body; what is behind it ends the connection."""
    content = bytes(length)

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b\r\n" % (length, content))
        wire.wait_closed()

    upstream = origin(in_turn(script, echo))
    client = site(route("r", upstream.url), **mode).client()
    client.send(get("/r/x"))
    assert len(read_answer(client)[2]) == length
    client.send(get("/r/y"))
    assert body(client).startswith(b"GET /y ")
    client.close()


@pytest.mark.parametrize(
    ("late", "method", "status"),
    [
        (b"\r\n", "GET", 200), (b"\r\n\r\n", "POST", 200), (b"hello", "GET", 200), (b"hello", "DELETE", 200),
        (b"hello", "POST", 502),
    ],
)  # fmt: skip
def test_bytes_that_come_with_the_next_request(
    origin: MakeOrigin, site: MakeSite, late: bytes, method: str, status: int, mode: dict[str, Any]
) -> None:
    """Sent when the connection was asked again they are dropped, or what may be sent again goes to a fresh one."""

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(LENGTH)
        if wire.request() is not None:
            wire.send(late + LENGTH)
            wire.wait_closed()

    upstream = origin(in_turn(script, echo))
    where = site(route("r", upstream.url, retries="1"), **mode)
    client = where.client()
    client.send(get("/r/x"))
    assert body(client) == b"ok"
    client.send(f"{method} /r/y HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode())
    first, _, content = read_answer(client)
    assert int(first.split()[1]) == status
    assert content.startswith(b"ok" if late.startswith(b"\r") else method.encode() if status == 200 else b"")
    assert b"hello" not in content
    client.send(get("/r/z"))
    assert body(client).startswith(b"GET /z ")
    client.close()


def test_a_body_on_head_is_no_answer(origin: MakeOrigin, site: MakeSite, mode: dict[str, Any]) -> None:
    """Once an upstream has sent a body on HEAD, a connection with such an answer is not kept: the next may be late."""

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        wire.wait_closed()

    def silent(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        wire.wait_closed()

    upstream = origin(in_turn(script, silent, echo))
    where = site(route("r", upstream.url), **mode)
    for _ in range(2):
        assert where.get("/r/", method="HEAD").status == 200
    assert where.get("/r/x").body.startswith(b"GET /x ")
    assert upstream.accepted == 3


@pytest.mark.parametrize(("method", "answer", "behind", "status", "content"), KINDS)
def test_streamed(
    origin: MakeOrigin, tmp_path: object, method: str, answer: bytes, behind: bytes, status: int, content: bytes
) -> None:
    """Under another server it is the same."""

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(answer + behind)
        wire.wait_closed()

    from pyramid.config import Configurator
    from pyramid.request import Request

    upstream = origin(in_turn(script, echo))
    config = Configurator(settings=route("r", upstream.url))
    config.include("pyramid_threaded_proxy")
    wsgi = config.make_wsgi_app()
    got = Request.blank("/r/x", method=method).get_response(wsgi)
    assert (got.status_int, got.body) == (status, content)
    assert Request.blank("/r/y").get_response(wsgi).body.startswith(b"GET /y ")
    wsgi.registry[ENGINE].close()
