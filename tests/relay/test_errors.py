"""What fails before the client has a head gets an error page; what fails after it is broken off so that it can tell."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import struct
import threading
from contextlib import ExitStack
from typing import Any

import pytest

from pyramid_threaded_proxy.loop.poller import READ, WRITE
from tests.support.origin import MakeOrigin, Script, answering, echo, in_turn, silent
from tests.support.site import MakeSite, route
from tests.support.waiting import wait_until
from tests.support.wire import Answer, OriginWire, Wire

BIG = 4 << 20


def sending(data: bytes, reset: bool = False) -> Script:
    """Reads a request, sends `data`, and closes or resets."""

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(data)
        if reset:
            # Linger alone: the close that follows resets.
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return script


def access_lines(caplog: pytest.LogCaptureFixture, count: int = 1) -> list[str]:
    """The access log's lines, once there are `count`."""

    def lines() -> list[str]:
        return [entry.getMessage() for entry in caplog.records if entry.name.endswith(".access")]

    wait_until(lambda: len(lines()) >= count, "the access log's line")
    return lines()


@pytest.fixture(autouse=True)
def _access_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pyramid_threaded_proxy.access")


FAULTS = {
    "no answer": b"",
    "cut in the status line": b"HTTP/1.",
    "cut in the fields": b"HTTP/1.1 200 OK\r\nContent-Le",
    "garbage": b"SSH-2.0-OpenSSH\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\n\r\n",
    "folded field": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nA: \0\r\nContent-Length: 0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunk size that is none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "head too long": b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000,
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_broken_head_is_502(origin: MakeOrigin, site: MakeSite, fault: str) -> None:
    """The client gets a whole error page, and its connection serves the next request."""
    upstream = origin(in_turn(sending(FAULTS[fault]), echo))
    where = site(route("r", upstream.url, retries="0"))
    connection = http.client.HTTPConnection("127.0.0.1", where.port, timeout=10)
    connection.request("GET", "/r/1")
    answer = connection.getresponse()
    assert (answer.status, answer.read().count(b"could not be reached")) == (502, 1)
    assert not answer.will_close
    kept = connection.sock
    connection.request("GET", "/r/2")
    assert connection.getresponse().read().startswith(b"GET /2 ")
    assert connection.sock is kept
    assert upstream.accepted == 2
    connection.close()


def test_a_reset_before_the_head_is_502(origin: MakeOrigin, site: MakeSite) -> None:
    """A connection that is reset in place of an answer is a bad gateway."""
    assert site(route("r", origin(sending(b"", reset=True)).url)).get("/r/").status == 502


HALF = {
    "length, small": b"Content-Length: 100\r\n\r\nhalf",
    "length, nothing of it": b"Content-Length: 100\r\n\r\n",
    "length, spliced": b"Content-Length: %d\r\n\r\n" % (2 * BIG) + bytes(BIG),
    "chunked, in a chunk": b"Transfer-Encoding: chunked\r\n\r\n64\r\nhalf",
    "chunked, between chunks": b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "chunked, in the last chunk": b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
    "chunked, in the trailers": b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\nA: b\r\n",
    "chunked, big": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (2 * BIG) + bytes(BIG),
}


def test_a_broken_chunk_after_good_ones_breaks_off(origin: MakeOrigin, site: MakeSite) -> None:
    """Chunks that turn out to be none, after the head is out, end the connection and not the body."""
    seen = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n")
        assert seen.wait(10)
        wire.send(b"bad!\r\n")
        wire.wait_closed()

    client = site(route("r", origin(script).url)).client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    client.until(b"4\r\ngood\r\n")
    seen.set()
    assert _to_the_end(client) == b""


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("half", list(HALF))
def test_a_broken_body_is_never_a_whole_answer(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture, half: str, reset: bool, version: str
) -> None:
    """A body that breaks off reaches the client broken: too short, without its last chunk, or reset where only the
    end of the connection would show its end."""
    upstream = origin(sending(b"HTTP/1.1 200 OK\r\n" + HALF[half], reset))
    client = site(route("r", upstream.url)).client()
    client.send(f"GET /r/ HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n".encode())
    received = _everything(client)
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"200 OK" in head or received == b"reset"
    assert not body.endswith(b"0\r\n\r\n")
    assert received.endswith(b"reset") or b"Content-Length: " in head
    assert len(body) < 2 * BIG
    assert access_lines(caplog)[0].split()[-2] == "upstream-gone"


def test_a_reset_breaks_a_body_that_ends_with_its_connection(origin: MakeOrigin, site: MakeSite) -> None:
    """A body without a length is whole when its connection is closed, and not when it is reset."""
    seen = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        assert seen.wait(10)
        wire.reset()

    client = site(route("r", origin(script).url)).client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    client.until(b"4\r\nhalf\r\n")
    seen.set()
    assert _to_the_end(client) == b""


def _everything(client: Wire) -> bytes:
    """What comes until the connection ends, and ``reset`` behind it where it does not end in order."""
    received = b""
    try:
        while data := client.receive():
            received += data
    except ConnectionResetError:
        received += b"reset"
    client.close()
    return received


def _to_the_end(client: Wire) -> bytes:
    """The rest of an answer that must not end as if it were whole: nothing, or a reset."""
    received = _everything(client)
    assert received == b"reset"
    return b""


# Connecting


def test_a_refused_connection_is_502(origin: MakeOrigin, site: MakeSite) -> None:
    """Nobody listens: 502, and the page does not name the upstream."""
    upstream = origin(echo)
    upstream.stop_listening()
    answer = site(route("r", upstream.url)).get("/r/")
    assert (answer.status, str(upstream.port).encode() in answer.body) == (502, False)


def test_a_name_that_does_not_resolve_is_502(site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has no address is a bad gateway."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *rest: object, **more: object) -> object:
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *rest, **more)  # type: ignore[arg-type]

    where = site(route("r", "http://nowhere.invalid"))
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert where.get("/r/").status == 502


def test_an_upstream_that_does_not_accept_is_504(site: MakeSite, stack: ExitStack) -> None:
    """No connection within `connect_timeout` is a gateway time-out."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(4):  # fill its backlog: the kernel answers no further ones
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    where = site(route("r", f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout="200ms"))
    assert where.get("/r/").status == 504


# Time-outs and clients that go


def test_an_upstream_that_does_not_answer_is_504(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """After `read_timeout` without a byte the client gets 504, and the upstream's connection is closed."""
    upstream = origin(silent)
    answer = site(route("r", upstream.url, read_timeout="100ms")).get("/r/")
    assert answer.status == 504
    assert access_lines(caplog)[0].split()[-2] == "read-timeout"
    wait_until(lambda: upstream.wires[0].sock.fileno() < 0, "the upstream's connection to be closed")


@pytest.mark.parametrize("size", [0, BIG], ids=["small", "spliced"])
def test_a_body_that_stops_is_broken_off(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    """`read_timeout` counts between the bytes of a body, too; there the answer breaks off."""

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (size + 300_000) + bytes(size + 1))
        wire.wait_closed()

    client = site(route("r", origin(script).url, read_timeout="150ms")).client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    client.head()
    assert _everything(client).removesuffix(b"reset") == bytes(size + 1 - len(client.buffer))
    assert access_lines(caplog)[0].split()[-2] == "read-timeout"


@pytest.mark.parametrize("framing", ["Content-Length: %d\r\n\r\n", "X: y\r\n\r\n"], ids=["spliced", "copied"])
def test_a_client_that_does_not_read_is_reset(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture, framing: str
) -> None:
    """After `send_timeout` without a byte taken the client's connection is reset; the log says 408."""
    size = 16 << 20
    head = f"HTTP/1.1 200 OK\r\n{framing % size if '%' in framing else framing}".encode()
    where = site(route("r", origin(sending(head + bytes(size))).url, send_timeout="200ms"))
    client = Wire(socket.socket())
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sock.connect(("127.0.0.1", where.port))
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    line = access_lines(caplog)[0]
    assert ' HTTP/1.1" 408 ' in line
    assert line.split()[-2] == "client-timeout"
    assert _everything(client).endswith(b"reset")


def test_a_client_that_goes_while_it_waits_is_499(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that leaves ends its exchange: the upstream is let go at once, and the log says 499."""
    upstream = origin(silent)
    where = site(route("r", upstream.url))
    client = where.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: where.parked(READ), "an exchange that waits for its upstream")
    client.close()
    line = access_lines(caplog)[0]
    assert ' HTTP/1.1" 499 ' in line
    assert line.split()[-2] == "client-gone"
    wait_until(lambda: upstream.wires[0].sock.fileno() < 0, "the upstream's connection to be closed")


def test_a_client_that_goes_in_its_body_is_499(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that resets while a mover writes to it ends its exchange as well."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (4 * BIG)
    where = site(route("r", origin(sending(head + bytes(4 * BIG))).url))
    client = Wire(socket.socket())
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sock.connect(("127.0.0.1", where.port))
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: where.parked(WRITE), "an exchange that waits for its client")
    client.reset()
    assert ' HTTP/1.1" 499 ' in access_lines(caplog)[0]


def test_an_interim_answer_restarts_the_read_timeout_only(origin: MakeOrigin, site: MakeSite) -> None:
    """An upstream that sends 103 and then nothing more is a time-out: 504 follows the interim answer."""

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        wire.wait_closed()

    client = site(route("r", origin(script).url, read_timeout="100ms")).client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert client.head()[0] == "HTTP/1.1 103 Early Hints"
    assert client.head()[0] == "HTTP/1.1 504 Gateway Timeout"
    assert b"in time" in client.rest()
    client.close()


# How errors look


@pytest.mark.parametrize(
    ("accept", "kind", "sign"),
    [
        ("text/html,*/*;q=0.1", "text/html", b"<title>502 Bad Gateway</title>"),
        ("application/json", "application/json", b'"code": "502 Bad Gateway"'),
        ("application/json, text/plain, */*", "application/json", b'{"message": "The server behind'),
        ("text/html;q=0.5, application/json;q=0.9", "application/json", b'"title": "Bad Gateway"}'),
        ("text/plain, text/html", "text/plain", b"502 Bad Gateway"),
        ("*/*", "text/html", b"<h1>"),
        ("text/plain", "text/plain", b"502 Bad Gateway"),
    ],
)
def test_errors_come_in_a_form_that_the_client_accepts(
    origin: MakeOrigin, site: MakeSite, accept: str, kind: str, sign: bytes, mode: dict[str, Any]
) -> None:
    """The relay's own errors are HTML, JSON or text, by quality and order in Accept; JSON holds no markup."""
    answer = site(route("r", origin(answering(b"x")).url), **mode).get("/r/", {"Accept": accept})
    assert ((answer.one("Content-Type") or "").partition(";")[0], sign in answer.body) == (kind, True)
    if kind == "application/json":
        said = json.loads(answer.body)
        assert not [text for text in said.values() if "<" in text or "\n" in text]


def test_an_error_for_head_has_no_body(origin: MakeOrigin, site: MakeSite) -> None:
    """The relay's own answer to HEAD leaves the connection in step."""
    where = site(route("r", origin(in_turn(answering(b"x"), echo)).url))
    client = where.client()
    client.send(b"HEAD /r/ HTTP/1.1\r\nHost: a\r\n\r\nGET /r/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert client.head()[0] == "HTTP/1.1 502 Bad Gateway"
    assert client.head()[0] == "HTTP/1.1 200 OK"
    client.rest()
    client.close()


def test_an_unforeseen_exception_is_500_and_ends_alone(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the relay's own is logged with its traceback, answered with 500, and leaves the others alone."""
    where = site(route("r", origin(echo).url))
    answers: list[Answer] = []
    with monkeypatch.context() as broken:
        broken.setattr("pyramid_threaded_proxy.relay.relay.answer_framing", lambda *_: 1 / 0)
        answers.append(where.get("/r/"))
    answers.append(where.get("/r/"))
    assert [answer.status for answer in answers] == [500, 200]
    assert b"ZeroDivisionError" not in answers[0].body
    assert [entry.exc_info[0] for entry in caplog.records if entry.exc_info] == [ZeroDivisionError]
