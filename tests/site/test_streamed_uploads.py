"""Uploads that stream, byte for byte: what goes up, what does not, and what becomes of the connection."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.bodies import content
from tests.support.origin import MakeOrigin, MakeTls
from tests.support.site import MakeSite, Site
from tests.support.uploads import CONTINUE, chunks, put, put_chunked, streaming
from tests.support.waiting import wait_until
from tests.support.wire import Closed, OriginWire, Request, Wire, get, read_answer

POLLS = pytest.mark.parametrize("poll", [True, False], ids=["poll", "select"])
SIZES = [1, 5000, 70_000, 300_000, 5_000_000]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Store:
    """An upstream that keeps what it is sent, tells how much that was, and says when it has a head."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.heads = threading.Semaphore(0)

    def __call__(self, wire: OriginWire) -> None:
        while True:
            try:
                head = wire.until(b"\r\n\r\n")
            except (Closed, OSError):
                return
            self.heads.release()
            wire.buffer = head + wire.buffer
            try:
                request = wire.request()
            except Closed:  # it ended within the body
                return
            assert request is not None
            self.requests.append(request)
            wire.answer(b"%d" % len(request.body))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
@POLLS
def test_what_is_sent_arrives(
    origin: MakeOrigin, site: MakeSite, sockets: int, size: int, chunked: bool, poll: bool
) -> None:
    """Bodies of all sizes arrive whole, and the connection goes on with the request behind them."""
    store = Store()
    upstream = origin(store)
    where = site(streaming(upstream.url), sockets=sockets, asyncore_use_poll=poll)
    data = content(size)
    client = where.client()
    for _ in range(2):
        client.send(put_chunked("/r/x") + chunks(data, 60_000) if chunked else put("/r/x", size) + data)
        assert read_answer(client)[2] == b"%d" % size
    client.send(get("/r/after"))
    assert read_answer(client)[2] == b"0"
    client.close()
    assert [request.body == data for request in store.requests] == [True, True, False]
    framing = "Transfer-Encoding" if chunked else "Content-Length"
    assert len(store.requests[0].all(framing)) == 1
    assert upstream.accepted == 1


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
def test_over_tls(tls_origin: MakeTls, site: MakeSite, authority: Any, chunked: bool) -> None:
    """The same over TLS, where bytes are copied."""
    store = Store()
    where = site(streaming(tls_origin(store).url, tls__ca_file=authority.ca_file))
    data = content(5_000_000)
    client = where.client()
    client.send(put_chunked("/r/x") + chunks(data, 60_000) if chunked else put("/r/x", len(data)) + data)
    assert read_answer(client)[2] == b"5000000"
    assert store.requests[0].body == data
    client.close()


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
def test_the_upstream_has_the_head_before_the_body(origin: MakeOrigin, site: MakeSite, chunked: bool) -> None:
    """The body is passed on as it comes: the upstream has the head while the client has sent nothing else."""
    store = Store()
    where = site(streaming(origin(store).url))
    client = where.client()
    client.send(put_chunked("/r/x") if chunked else put("/r/x", 6))
    assert store.heads.acquire(timeout=10)
    for piece in (b"a", b"bc", b"def"):
        client.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
    client.send(b"0\r\n\r\n" if chunked else b"")
    assert read_answer(client)[2] == b"6"
    assert store.requests[0].body == b"abcdef"
    client.close()


def test_a_hundred_when_the_upstream_is_connected(origin: MakeOrigin, site: MakeSite) -> None:
    """A client that waits gets its 100 once, with the upstream there; where there is none, it gets 502 and no 100."""
    where = site(streaming(origin(Store()).url))
    client = where.client()
    for _ in range(2):
        client.send(put("/r/x", 3, "Expect: 100-continue"))
        assert client.exactly(len(CONTINUE)) == CONTINUE
        client.send(b"abc")
        assert read_answer(client)[2] == b"3"
    client.close()
    nowhere = site(streaming("http://127.0.0.1:9", retries="0"))
    answer = nowhere.raw(put("/r/x", 3, "Expect: 100-continue"))
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"\r\nConnection: close\r\n" in answer


def test_size_lines_never_go_up_raw(origin: MakeOrigin, site: MakeSite) -> None:
    """Extensions, leading zeros and trailers end here: what goes up are chunks of ours."""
    raw: list[bytes] = []

    def script(wire: OriginWire) -> None:
        wire.head()
        raw.append(wire.until(b"\r\n0\r\n\r\n"))
        wire.send(OK)

    where = site(streaming(origin(script).url))
    body = b"0003;a=b\r\nabc\r\n0A\r\n0123456789\r\n0\r\nX-User: admin\r\n\r\n"
    assert where.raw(put_chunked("/r/x", "Connection: close") + body).endswith(b"ok")
    assert raw == [b"d\r\nabc0123456789\r\n0\r\n\r\n"]


FAULTY = [b"xyz\r\n", b"3\nabc", b"3\r\nabcXX", b"0x3\r\nabc\r\n", b"3 \r\nabc\r\n", b"-1\r\n", b"\r\n3\r\nabc\r\n"]


@pytest.mark.parametrize("faulty", FAULTY)
@pytest.mark.parametrize("before", [b"", b"5\r\nhello\r\n"])
def test_a_faulty_chunk(origin: MakeOrigin, site: MakeSite, before: bytes, faulty: bytes) -> None:
    """A size line that the strict reader refuses is 400 and the end of both connections; nothing behind it is run."""
    upstream = origin(Store())
    where = site(streaming(upstream.url))
    answer = where.raw(put_chunked("/r/x") + before + faulty + get("/r/smuggled"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    wait_until(lambda: where.engine.admission.in_flight == 0)
    assert where.idle() == 0
    assert upstream.requests == []


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, 2000), max_size=6),
    parts=st.lists(st.tuples(st.booleans(), st.integers(1, 400)), min_size=1, max_size=3),
)
def test_split_anywhere(stored: tuple[Site, Store], cuts: list[int], parts: list[tuple[bool, int]]) -> None:
    """Pipelined uploads split anywhere: the upstream sees exactly these, in this order, each with its own body."""
    where, store = stored
    store.requests.clear()
    bodies = [content(size) for _, size in parts]
    sent = [
        put_chunked(f"/r/{at}") + chunks(data, 150) if chunked else put(f"/r/{at}", len(data)) + data
        for at, ((chunked, _), data) in enumerate(zip(parts, bodies, strict=True))
    ]
    whole = b"".join([*sent, get("/r/last", "Connection: close")])
    client = where.client()
    places = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    for start, stop in itertools.pairwise(places):
        client.send(whole[start:stop])
    for data in bodies:
        assert read_answer(client)[2] == b"%d" % len(data)
    assert client.rest().endswith(b"\r\n\r\n0")
    client.close()
    assert [request.body for request in store.requests] == [*bodies, b""]
    assert [request.target for request in store.requests] == [*(f"/{at}" for at in range(len(parts))), "/last"]


@pytest.fixture
def stored(origin: MakeOrigin, site: MakeSite) -> tuple[Site, Store]:
    store = Store()
    return site(streaming(origin(store).url)), store


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
def test_too_large(origin: MakeOrigin, site: MakeSite, chunked: bool) -> None:
    """A length over `max_body` is 413 before anything goes up; chunks are counted while they flow."""
    store = Store()
    upstream = origin(store)
    where = site(streaming(upstream.url, max_body="1000"))
    sent = put_chunked("/r/x") + chunks(bytes(1001), 300) if chunked else put("/r/x", 1001, "Expect: 100-continue")
    answer = where.raw(sent)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert store.requests == []
    if chunked:
        wait_until(lambda: upstream.accepted == 1, "the connection of what was counted while it flowed")
    else:
        assert upstream.accepted == 0


def test_a_max_body_above_waitresss(origin: MakeOrigin, site: MakeSite) -> None:
    """On a route that streams `max_body` alone decides, above waitress's own limit too."""
    where = site(streaming(origin(Store()).url, max_body="1MiB"), max_request_body_size=1000)
    client = where.client()
    client.send(put("/r/x", 5000))
    client.send(bytes(5000))
    assert read_answer(client)[2] == b"5000"
    client.close()


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
def test_a_client_that_is_silent(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture, chunked: bool
) -> None:
    """After `client_body_timeout` without a byte the client gets 408, and the log says so."""
    caplog.set_level("INFO")
    where = site(streaming(origin(Store()).url, client_body_timeout="300ms"))
    answer = where.raw(put_chunked("/r/x") + b"5\r\nhel" if chunked else put("/r/x", 10) + b"hel")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nConnection: close\r\n" in answer
    wait_until(lambda: "client-body-timeout" in caplog.text)


@pytest.mark.parametrize("how", [Wire.half_close, Wire.reset])
@pytest.mark.parametrize("size", [1000, 5_000_000])
def test_a_client_that_leaves(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture, how: Callable[[Wire], None], size: int
) -> None:
    """What the client did not send to its end never ends upstream: that connection is closed within the body."""
    caplog.set_level("INFO")
    store = Store()
    where = site(streaming(origin(store).url))
    client = where.client()
    client.send(put("/r/x", size) + bytes(size - 1))
    assert store.heads.acquire(timeout=10)
    how(client)
    wait_until(lambda: where.engine.admission.in_flight == 0, "the end of the exchange")
    wait_until(lambda: "client-gone" in caplog.text)
    assert store.requests == []
    assert where.idle() == 0
    client.close()


def refusing(keeps_reading: bool) -> Callable[[OriginWire], None]:
    """An upstream that refuses as soon as it has the head."""

    def script(wire: OriginWire) -> None:
        _, fields = wire.head()
        wire.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nnope")
        if keeps_reading:
            with suppress(AssertionError):
                wire.exactly(int(fields["content-length"]))

    return script


@pytest.mark.parametrize("keeps_reading", [True, False])
def test_refused_by_the_upstream(origin: MakeOrigin, site: MakeSite, keeps_reading: bool) -> None:
    """A refusal that comes while the body flows reaches a client that goes on sending for a while."""
    where = site(streaming(origin(refusing(keeps_reading)).url))
    client = where.client()
    client.send(put("/r/x", 3_000_000) + bytes(1000))
    first, fields, data = read_answer(client)
    assert (first, data) == ("HTTP/1.1 401 Unauthorized", b"nope")
    assert fields["connection"] == "close"
    client.send(bytes(500_000))
    client.half_close()
    assert client.rest() == b""
    client.close()


def test_answered_while_the_body_flows(origin: MakeOrigin, site: MakeSite) -> None:
    """An upstream that answers what it reads, piece by piece, and a client that does the same, go on for as long as
    they like; then the connection goes on."""

    def script(wire: OriginWire) -> None:
        for _ in range(2):
            _, fields = wire.head()
            left = int(fields["content-length"])
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
            while left:
                data = (wire.buffer or wire.receive())[:left]
                wire.buffer = wire.buffer[len(data) :]
                left -= len(data)
                wire.send(data.upper())

    where = site(streaming(origin(script).url))
    client = where.client()
    for size in (400, 400_000):
        client.send(put("/r/x", size))
        client.send(b"a")
        first, fields = client.head()
        assert (first, fields.get("connection")) == ("HTTP/1.1 200 OK", None)
        assert client.exactly(1) == b"A"
        for _ in range(size // 400):
            client.send(b"b" * 399 + (b"" if _ == size // 400 - 1 else b"b"))
            client.exactly(399 if _ == size // 400 - 1 else 400)
    client.close()


def test_answered_before_the_body_is_whole(origin: MakeOrigin, site: MakeSite) -> None:
    """An answer that is whole before the body is: the rest still goes up, then the next request is served."""
    store = Store()

    def script(wire: OriginWire) -> None:
        _, fields = wire.head()
        wire.send(OK)
        wire.exactly(int(fields["content-length"]))
        store(wire)

    where = site(streaming(origin(script).url))
    client = where.client()
    client.send(put("/r/x", 200_000) + bytes(100))
    assert read_answer(client)[2] == b"ok"
    client.send(bytes(199_900) + get("/r/next"))
    assert read_answer(client)[2] == b"0"
    assert store.requests[0].target == "/next"
    client.close()


def test_no_retry_once_bytes_went_up(origin: MakeOrigin, site: MakeSite) -> None:
    """An upstream that closes within the body is not asked again, whatever the method; one that closes before it is."""
    asked: list[str] = []

    def script(wire: OriginWire) -> None:
        first, fields = wire.head()
        asked.append(first)
        if len(asked) == 1:
            wire.exactly(1)  # and closes
        elif len(asked) > 2:
            wire.exactly(int(fields["content-length"]))
            wire.send(OK)

    where = site(streaming(origin(script).url))
    client = where.client()
    client.send(put("/r/x", 10))
    wait_until(lambda: asked)
    client.send(b"ab")
    assert read_answer(client)[0].startswith("HTTP/1.1 502 ")
    client.close()
    assert len(asked) == 1
    client = where.client()
    client.send(put("/r/x", 10, "Expect: 100-continue"))
    assert client.exactly(len(CONTINUE)) == CONTINUE
    wait_until(lambda: len(asked) == 3, "the second try")
    client.send(bytes(10))
    assert read_answer(client)[2] == b"ok"
    client.close()


def test_a_slow_upstream_holds_little(origin: MakeOrigin, site: MakeSite) -> None:
    """What the upstream does not take stays with the client: no more than buffers of the system is taken from it."""
    go_on = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        _, fields = wire.head()
        assert go_on.wait(20)
        left = int(fields["content-length"]) - len(wire.buffer)
        while left:
            left -= len(wire.receive())
        wire.send(OK)

    where = site(streaming(origin(script).url))
    size = 64 << 20
    client = where.client()
    client.send(put("/r/x", size))
    client.sock.setblocking(False)
    sent, quiet = 0, 0
    while quiet < 50:
        try:
            sent += client.sock.send(bytes(65536))
            quiet = 0
        except BlockingIOError:
            quiet += 1
            threading.Event().wait(0.01)
    assert sent < size // 2
    go_on.set()
    client.sock.settimeout(20)
    client.send(bytes(size - sent))
    assert read_answer(client)[2] == b"ok"
    client.close()
