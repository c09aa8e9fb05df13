"""Answers on their way down: every framing, every size, to clients of both versions, whole or tellingly broken."""

from __future__ import annotations

import hashlib
import random
import socket
import threading

import pytest

from pyramid_threaded_proxy.loop.poller import WRITE
from tests.support.bodies import content
from tests.support.origin import MakeOrigin, answering
from tests.support.site import MakeSite, Site, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, Wire

SIZES = [0, 1, 1024, 65535, 65536, 65537, 1 << 20, 20 << 20]
FRAMINGS = ["length", "chunked", "close"]


def chunks(body: bytes, most: int = 100_000) -> bytes:
    """The body in the chunked coding, in chunks of many sizes."""
    parts, at, sizes = [], 0, random.Random(len(body))
    while at < len(body):
        part = body[at : at + sizes.randint(1, most)]
        parts.append(b"%x\r\n%b\r\n" % (len(part), part))
        at += len(part)
    return b"".join(parts) + b"0\r\n\r\n"


def framed(body: bytes, framing: str) -> bytes:
    """A whole answer."""
    if framing == "length":
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    if framing == "chunked":
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(body)
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body


def digest(body: bytes) -> tuple[int, str]:
    """What is compared in place of megabytes."""
    return len(body), hashlib.sha256(body).hexdigest()


def ask(site: Site, path: str = "/r/", version: str = "1.1", method: str = "GET") -> Wire:
    """A raw client that has sent a request that ends its connection."""
    client = site.client()
    client.send(f"{method} {path} HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    return client


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", SIZES)
def test_a_body_arrives_whole_at_http_1_1(origin: MakeOrigin, site: MakeSite, size: int, framing: str) -> None:
    """Each framing brings each size to an HTTP/1.1 client, unchanged; only a known length is announced."""
    body = content(size)
    upstream = origin(answering(framed(body, framing)))
    answer = site(route("r", upstream.url)).get("/r/")
    assert digest(answer.body) == digest(body)
    assert answer.one("Content-Length") == (str(size) if framing == "length" else None)
    assert answer.one("Transfer-Encoding") == (None if framing == "length" else "chunked")


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", SIZES)
def test_a_body_arrives_whole_at_http_1_0(origin: MakeOrigin, site: MakeSite, size: int, framing: str) -> None:
    """An HTTP/1.0 client gets no chunks: without a length its body ends with the connection."""
    body = content(size)
    upstream = origin(answering(framed(body, framing)))
    client = site(route("r", upstream.url)).client()
    client.send(b"GET /r/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    _, fields = client.head()
    assert "transfer-encoding" not in fields
    if framing == "length":
        assert (fields["content-length"], fields["connection"]) == (str(size), "keep-alive")
        received = client.exactly(size)
    else:
        assert fields["connection"] == "close"
        received = client.rest()
    client.close()
    assert digest(received) == digest(body)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_no_byte_is_held_back(origin: MakeOrigin, site: MakeSite, framing: str) -> None:
    """Each byte of a body reaches the client before the upstream has sent the next one."""
    head = {"length": "Content-Length: 3", "chunked": "Transfer-Encoding: chunked", "close": "X: y"}[framing]
    seen = threading.Semaphore(0)

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode())
        for byte in (b"a", b"b", b"c"):
            assert seen.acquire(timeout=10)
            wire.send(b"1\r\n" + byte + b"\r\n" if framing == "chunked" else byte)
        if framing == "chunked":
            wire.send(b"0\r\n\r\n")

    client = ask(site(route("r", origin(script).url)))
    client.head()
    for byte in (b"a", b"b", b"c"):
        seen.release()
        client.until(byte)
    client.rest()
    client.close()


def test_a_spliced_body_is_not_held_back_either(origin: MakeOrigin, site: MakeSite) -> None:
    """Where a mover waits for many bytes at once, it still passes a single one on when no more come."""
    start = content(1 << 20)
    seen = threading.Semaphore(0)

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(start) + 200_000, start))
        for _ in range(2):
            assert seen.acquire(timeout=10)
            wire.send(b"x")
        wire.send(bytes(200_000 - 2))

    client = ask(site(route("r", origin(script).url)))
    client.head()
    assert digest(client.exactly(len(start))) == digest(start)
    for _ in range(2):
        seen.release()
        assert client.exactly(1) == b"x"
    assert client.rest() == bytes(200_000 - 2)
    client.close()


def test_an_upstream_may_write_byte_by_byte(origin: MakeOrigin, site: MakeSite) -> None:
    """However the upstream's bytes are cut, head, chunk lines and trailers are read the same."""
    head = b"HTTP/1.1 200 OK\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = head + chunks(content(300), 20)[:-2] + b"T: 1\r\n\r\n"

    def script(wire: OriginWire) -> None:
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.request()
        for byte in answer:
            wire.send(bytes([byte]))

    got = site(route("r", origin(script).url)).get("/r/")
    assert (got.body, got.one("X"), got.one("T")) == (content(300), "y", None)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", [0, 1024, 1 << 20, 20 << 20])
def test_what_is_counted_is_the_body_alone(
    origin: MakeOrigin, site: MakeSite, size: int, framing: str, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log's line has the bytes of the body, whatever its framing on either side adds to them."""
    caplog.set_level("INFO", logger="pyramid_threaded_proxy.access")
    where = site(route("r", origin(answering(framed(content(size), framing))).url))
    client = ask(where, version=version)
    client.rest()
    client.close()
    (record,) = wait_until(lambda: [one for one in caplog.records if one.name == "pyramid_threaded_proxy.access"])
    assert record.__dict__["bytes_down"] == size


@pytest.mark.parametrize("framing", FRAMINGS)
def test_what_a_slow_client_has_is_counted_too(
    origin: MakeOrigin, site: MakeSite, framing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where it comes in pieces that the client takes one after the other."""
    caplog.set_level("INFO", logger="pyramid_threaded_proxy.access")
    where = site(route("r", origin(answering(framed(content(8 << 20), framing))).url))
    client = Wire(socket.socket())
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sock.connect(("127.0.0.1", where.port))
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    wait_until(lambda: where.parked(WRITE), "an exchange that waits for its client")
    client.rest()
    client.close()
    (record,) = wait_until(lambda: [one for one in caplog.records if one.name == "pyramid_threaded_proxy.access"])
    assert record.__dict__["bytes_down"] == 8 << 20


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_slow_client_gets_everything(origin: MakeOrigin, site: MakeSite, framing: str) -> None:
    """A client that begins to read only when the relay can't write any more still gets each byte."""
    body = content(8 << 20)
    where = site(route("r", origin(answering(framed(body, framing))).url))
    client = Wire(socket.socket())
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sock.connect(("127.0.0.1", where.port))
    client.send(b"GET /r/ HTTP/1.0\r\n\r\n")
    wait_until(lambda: where.parked(WRITE), "an exchange that waits for its client")
    client.head()
    received = client.rest()
    client.close()
    assert digest(received) == digest(body)


@pytest.mark.parametrize(
    "head",
    ["HTTP/1.1 200 OK\r\nContent-Length: 5", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5"],
    ids=["head", "304"],
)
def test_a_length_without_a_body_is_kept(origin: MakeOrigin, site: MakeSite, head: str) -> None:
    """The answer to HEAD, and 304, show the length of a body that does not come; both connections live on."""
    upstream = origin(answering(*[f"{head}\r\n\r\n".encode()] * 2))
    client = site(route("r", upstream.url)).client()
    for _ in range(2):
        client.send(f"{'HEAD' if ' 200 ' in head else 'GET'} /r/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        _, fields = client.head()
        assert fields["content-length"] == "5"
    assert upstream.accepted == 1
    client.close()


def test_204_has_neither_body_nor_length(origin: MakeOrigin, site: MakeSite) -> None:
    """A 204 goes on without framing fields, even where the upstream said Content-Length: 0."""
    answer = site(route("r", origin(answering(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n")).url)).get("/r/")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.all("Content-Length") + answer.all("Transfer-Encoding") == []


def test_interim_answers(origin: MakeOrigin, site: MakeSite) -> None:
    """100 is swallowed, 103 goes on to HTTP/1.1 with its fields and not to HTTP/1.0; the final answer follows."""
    final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nX-Accel-Redirect: /x\r\n\r\n"
    answer = b"HTTP/1.1 100 Continue\r\n\r\n" + early + final
    where = site(route("r", origin(answering(answer)).url))
    client = ask(where)
    assert client.head() == ("HTTP/1.1 103 Early Hints", {"link": "</a.css>"})
    assert client.head()[0] == "HTTP/1.1 200 OK"
    assert client.rest() == b"ok"
    client.close()
    old = ask(where, version="1.0")
    assert old.head()[0] == "HTTP/1.1 200 OK"
    assert old.rest() == b"ok"
    old.close()


@pytest.mark.parametrize(("count", "status"), [(16, 200), (17, 502)])
def test_interim_answers_are_bounded(origin: MakeOrigin, site: MakeSite, count: int, status: int) -> None:
    """Sixteen interim answers are borne, of an upstream that sends more no end is waited for."""
    final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    where = site(route("r", origin(answering(b"HTTP/1.1 100 Continue\r\n\r\n" * count + final)).url))
    assert where.get("/r/").status == status


def test_an_unasked_101_is_refused(origin: MakeOrigin, site: MakeSite) -> None:
    """101 without an upgrade that was asked for is 502."""
    switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    assert site(route("r", origin(answering(switched)).url)).get("/r/").status == 502


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_trailers_and_chunk_extensions_are_dropped(origin: MakeOrigin, site: MakeSite, version: str) -> None:
    """What an upstream says between and behind the chunks does not reach the client."""
    body = b"3;name=secret\r\nabc\r\n0;x\r\nX-Trailer: secret\r\n\r\n"
    upstream = origin(answering(b"HTTP/1.1 200 OK\r\nTrailer: X-Trailer\r\nTransfer-Encoding: chunked\r\n\r\n" + body))
    client = ask(site(route("r", upstream.url)), version=version)
    assert "trailer" not in client.head()[1]
    assert client.rest() == (b"3\r\nabc\r\n0\r\n\r\n" if version == "1.1" else b"abc")
    client.close()


def test_date_and_server_are_the_upstreams_where_it_has_them(origin: MakeOrigin, site: MakeSite) -> None:
    """Date and Server of the upstream are kept; an answer without them gets ours, once."""
    own = b"HTTP/1.1 200 OK\r\nDate: yesterday\r\nServer: theirs\r\nContent-Length: 0\r\n\r\n"
    where = site(route("r", origin(answering(own, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")).url), ident="ours")
    first, second = where.get("/r/"), where.get("/r/")
    assert (first.one("Date"), first.one("Server")) == ("yesterday", "theirs")
    assert second.one("Server") == "ours"
    assert (second.one("Date") or "").endswith(" GMT")


def test_a_view_that_fetches_with_get_for_a_head_sends_no_body(origin: MakeOrigin, site: MakeSite) -> None:
    """A client that asked with HEAD gets no body, whatever the view fetched; its connection stays in step."""
    upstream = origin(answering(*[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"] * 2))
    upstream_chunks = origin(answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"))
    where = _fetching(site, {"a": upstream.url, "b": upstream_chunks.url}, "GET")
    client = where.client()
    for name, length in [("a", "5"), ("b", None), ("a", "5")]:
        client.send(f"HEAD /{name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        first, fields = client.head()
        assert first == "HTTP/1.1 200 OK"
        assert fields.get("content-length") == length
    client.close()


def test_a_view_that_fetches_with_head_for_a_get_announces_no_body(origin: MakeOrigin, site: MakeSite) -> None:
    """The length of a body that was never asked for is not announced to a client that would wait for it."""
    upstream = origin(answering(*[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"] * 2))
    client = _fetching(site, {"a": upstream.url}, "HEAD").client()
    for _ in range(2):
        client.send(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.head()[1]["content-length"] == "0"
    assert upstream.accepted == 1
    client.close()


def _fetching(site: MakeSite, urls: dict[str, str], method: str) -> Site:
    def configure(config: object) -> None:
        for name, url in urls.items():
            config.add_route(name, f"/{name}")  # type: ignore[attr-defined]
            config.add_view(  # type: ignore[attr-defined]
                lambda request, url=url: request.proxy_fetch(url, method=method), route_name=name
            )

    return site(configure=configure)
