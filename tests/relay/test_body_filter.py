"""Body filters: the `body` hook, reading a small body in a `response` hook, and texts that are replaced."""

from __future__ import annotations

import gzip
import json
import logging
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.response import Response

from pyramid_threaded_proxy.exceptions import ClientGone
from pyramid_threaded_proxy.exchange import Exchange
from tests.support.bodies import bytewise
from tests.support.origin import MakeOrigin, MakeTls, answering
from tests.support.site import MakeSite, Site, fetching, own_view, route
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import OriginWire, Wire, get

MIB = 1024 * 1024

#: What the fixture `connect` is.
Connect = Callable[[Site], Wire]


@pytest.fixture
def connect(stack: ExitStack) -> Connect:
    """Makes raw connections to a site that are closed when the test ends."""

    def make(where: Site) -> Wire:
        client = where.client()
        stack.callback(client.close)
        return client

    return make


def shouting(exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """A filter that changes each chunk as it comes."""
    for chunk in chunks:
        yield chunk.upper()


def whole(exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """A filter that needs the whole body before it says anything."""
    yield b"".join(chunks).upper()


def answer_of(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    """An answer framed by its length."""
    head = "".join(f"{field}\r\n" for field in (*fields, f"Content-Length: {len(body)}"))
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def chunked(*pieces: bytes) -> bytes:
    """An answer in chunks."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


UNFRAMED = b"HTTP/1.1 200 OK\r\n\r\nhello"


@pytest.mark.parametrize("filter", [shouting, whole])
@pytest.mark.parametrize("answer", [answer_of(b"hello"), chunked(b"he", b"llo"), UNFRAMED])
def test_a_filter_makes_the_body(answer: bytes, filter: Callable[..., Any], origin: MakeOrigin, site: MakeSite) -> None:
    """However the upstream frames it, the client gets what the filter makes of the body, framed anew."""
    where = fetching(site, origin(answering(answer)).url, on_body=filter)
    made = where.get("/f", {"Connection": "close"})
    assert (made.status, made.body, made.one("Content-Length")) == (200, b"HELLO", None)
    assert made.one("Transfer-Encoding") == "chunked"


def test_a_filter_for_http_1_0(origin: MakeOrigin, site: MakeSite) -> None:
    """A client that knows no chunks gets a body that ends with the connection."""
    where = fetching(site, origin(answering(answer_of(b"hello"))).url, on_body=shouting)
    assert where.raw(get("/f", version="1.0")).endswith(b"\r\n\r\nHELLO")


@pytest.mark.parametrize("filter", [shouting, whole])
def test_a_filter_over_tls(filter: Callable[..., Any], tls_origin: MakeTls, site: MakeSite, authority: Any) -> None:
    """A body of many records that came by TLS is filtered as any other."""
    upstream = tls_origin(answering(answer_of(b"hello " * 100_000)))
    where = fetching(site, upstream.url, on_body=filter, tls_ca_file=authority.ca_file)
    assert where.get("/f").body == b"HELLO " * 100_000


def test_what_the_upstream_is_asked_for(origin: MakeOrigin, site: MakeSite) -> None:
    """The whole body without a coding: no Range, and `identity`."""
    upstream = origin(answering(answer_of(b"x")))
    where = site(route("r", upstream.url, **{"hooks__body": f"{__name__}.shouting"}))
    where.get("/r/", {"Accept-Encoding": "gzip", "Range": "bytes=0-1", "If-Range": '"a"'})
    asked = upstream.requests[0]
    assert (asked.one("Accept-Encoding"), asked.one("Range"), asked.one("If-Range")) == ("identity", None, None)


ABOUT_THE_BODY = ("Accept-Ranges: bytes", "Digest: x", "Content-Digest: x", "Repr-Digest: x", "Content-MD5: x")


@pytest.mark.parametrize(("method", "status"), [("GET", "200 OK"), ("HEAD", "200 OK"), ("GET", "304 Not Modified")])
def test_what_the_answer_says_of_its_body(method: str, status: str, origin: MakeOrigin, site: MakeSite) -> None:
    """What holds for the upstream's body alone is gone, and a strong ETag is weak; also where no body comes."""
    body = b"hello" if method == "GET" and status[:3] == "200" else b""
    length = () if body else ("Content-Length: 5",)
    head = "".join(f"{field}\r\n" for field in (*ABOUT_THE_BODY, 'ETag: "a"', "X-Theirs: 1", *length))
    answer = f"HTTP/1.1 {status}\r\n{head}".encode() + (b"Content-Length: 5\r\n" if body else b"") + b"\r\n" + body
    made = fetching(site, origin(answering(answer)).url, on_body=shouting, method=method).get("/f", method=method)
    names = {name.lower() for name, _ in made.fields}
    assert not names & {"accept-ranges", "digest", "content-digest", "repr-digest", "content-md5", "content-length"}
    assert (made.one("ETag"), made.one("X-Theirs"), made.body) == ('W/"a"', "1", body.upper())


def test_a_weak_etag_stays(origin: MakeOrigin, site: MakeSite) -> None:
    """It promises no equal bytes."""
    where = fetching(site, origin(answering(answer_of(b"x", 'ETag: W/"a"'))).url, on_body=shouting)
    assert where.get("/f").one("ETag") == 'W/"a"'


def test_a_part_is_refused(origin: MakeOrigin, site: MakeSite) -> None:
    """206, which nobody asked for, can't be filtered: 502."""
    answer = answer_of(b"ell", "Content-Range: bytes 1-3/5", status="206 Partial Content")
    assert fetching(site, origin(answering(answer)).url, on_body=shouting).get("/f").status == 502


def raw_deflate(data: bytes) -> bytes:
    """Deflate as some servers send it, without the wrapper of RFC 1950."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


ENCODED = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "Deflate": raw_deflate}


@pytest.mark.parametrize("coding", ENCODED)
def test_an_encoded_answer_is_decoded(coding: str, origin: MakeOrigin, site: MakeSite) -> None:
    """What comes encoded, though nobody asked for that, is decoded before the filter sees it."""
    answer = answer_of(ENCODED[coding](b"hello" * 1000), f"Content-Encoding: {coding}")
    made = fetching(site, origin(answering(answer)).url, on_body=shouting).get("/f")
    assert (made.status, made.body, made.one("Content-Encoding")) == (200, b"HELLO" * 1000, None)


@pytest.mark.parametrize("reads", [False, True])
def test_nothing_at_all_is_no_broken_coding(reads: bool, origin: MakeOrigin, site: MakeSite) -> None:
    """Some send their redirects so: the field of a coding, and no body."""

    def on_response(exchange: Exchange) -> None:
        if reads:
            assert exchange.response is not None
            assert exchange.response.read(10) == b""

    answer = answer_of(b"", "Content-Encoding: gzip", "Location: /elsewhere", status="302 Found")
    made = fetching(site, origin(answering(answer)).url, on_body=shouting, on_response=on_response).get("/f")
    assert (made.status, made.body, made.one("Location")) == (302, b"", "/elsewhere")


def test_a_gzip_with_empty_members(origin: MakeOrigin, site: MakeSite) -> None:
    """What stands behind them, and came with them, is the body's too."""
    members = (gzip.compress(data) for data in (b"", b"one ", b"", b"two"))
    where = fetching(
        site, origin(answering(answer_of(b"".join(members), "Content-Encoding: gzip"))).url, on_body=shouting
    )
    assert where.get("/f").body == b"ONE TWO"


@pytest.mark.parametrize(
    ("coding", "keys"), [("gzip", {"response_encoded": "refuse"}), ("unheard-of", {}), ("gzip, gzip", {})]
)
def test_an_encoded_answer_is_refused(coding: str, keys: dict[str, str], origin: MakeOrigin, site: MakeSite) -> None:
    """By choice, or where nobody here can decode it: 502."""
    answer = answer_of(gzip.compress(b"hello"), f"Content-Encoding: {coding}")
    assert fetching(site, origin(answering(answer)).url, on_body=shouting, **keys).get("/f").status == 502


@pytest.mark.parametrize("wrong", [gzip.compress(b"hello" * 100)[:-4], b"\x1f\x8b\x08" + b"nonsense" * 4])
def test_a_broken_coding_breaks_the_answer_off(
    wrong: bytes, origin: MakeOrigin, site: MakeSite, connect: Connect
) -> None:
    """A coding that ends early or is none is never passed off as whole."""
    where = fetching(site, origin(answering(answer_of(wrong, "Content-Encoding: gzip"))).url, on_body=shouting)
    client = connect(where)
    client.send(get("/f"))
    assert not client.rest_or_reset().endswith(b"0\r\n\r\n")


# Back-pressure, and whom a filter delays


def test_a_client_that_does_not_read_stops_the_filter(origin: MakeOrigin, site: MakeSite, connect: Connect) -> None:
    """No more is taken from the upstream than what fits in `buffer` and the kernel."""
    sent, taken = [0], [0]

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1024 * MIB))
        for _ in range(1024 * 16):
            wire.send(bytes(64 * 1024))
            sent[0] += 64 * 1024

    def counting(exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            assert len(chunk) <= 16 * 1024
            taken[0] += len(chunk)
            yield chunk

    where = fetching(site, origin(script).url, on_body=counting, buffer=64 * 1024)
    client = connect(where)
    client.send(get("/f"))
    client.until(b"\r\n\r\n")
    still: list[int] = []

    def stopped() -> bool:
        still.append(taken[0])
        return len(still) > 20 and still[-1] == still[-20] > 0

    wait_until(stopped, "the filter to stand still")
    assert sent[0] < 64 * MIB
    client.reset()


class Stuck:
    """A filter that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.running = threading.Semaphore(0)

    def __call__(self, exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[bytes]:
        self.running.release()
        assert self.go_on.wait(PATIENCE)
        yield from chunks


def test_stuck_filters_leave_others_their_threads(origin: MakeOrigin, site: MakeSite, connect: Connect) -> None:
    """More filters of one route than there are threads stand still: connects, own views and other routes' filters
    go on."""
    stuck = Stuck()
    upstream = origin(answering(answer_of(b"hello")))

    def configure(config: Configurator) -> None:
        own_view(config)
        for name, hook in (("stuck", stuck), ("other", shouting)):
            config.add_proxy_route(name, prefix=f"/{name}", upstream=upstream.url, public=True, hooks_body=hook)

    where = site({"proxy.threads": "4"}, configure=configure)
    clients = [connect(where) for _ in range(6)]
    for client in clients:
        client.send(get("/stuck/"))
    for _ in range(2):
        assert stuck.running.acquire(timeout=PATIENCE)
    assert where.get("/other/").body == b"HELLO"
    assert where.get("/own").body == b"own"
    stuck.go_on.set()
    for client in clients:
        assert client.until(b"0\r\n\r\n")


def test_filters_that_wait_for_their_upstream_hold_no_place(
    origin: MakeOrigin, site: MakeSite, connect: Connect
) -> None:
    """Filters that want more of a body that does not come keep nobody out, of their own route either."""
    opened = threading.Event()

    def script(wire: OriginWire) -> None:
        request = wire.request()
        assert request is not None
        if request.target == "/slow":
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
            assert opened.wait(PATIENCE)
            wire.send(b"world")
        else:
            wire.send(answer_of(b"hello"))

    upstream = origin(script)

    def configure(config: Configurator) -> None:
        config.add_proxy_route("r", prefix="/r", upstream=upstream.url, public=True, hooks_body=whole)

    where = site({"proxy.threads": "2"}, configure=configure)
    clients = [connect(where) for _ in range(8)]
    for client in clients:
        client.send(get("/r/slow"))
        client.until(b"\r\n\r\n")
    assert where.get("/r/fast").body == b"HELLO"
    opened.set()
    for client in clients:
        assert b"HELLOWORLD" in client.until(b"0\r\n\r\n")
    pool = where.engine.scheduler.pool
    wait_until(lambda: (pool.busy, pool._away, len(pool._threads) <= 2) == (0, 0, True), "the threads to have ended")


def test_bytes_are_filtered_as_they_come(origin: MakeOrigin, site: MakeSite, connect: Connect) -> None:
    """A filter that says several things of one chunk says all of them before the next one is there."""
    more = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
        assert more.wait(PATIENCE)
        wire.send(b"0\r\n\r\n")

    def one_by_one(exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield from bytewise(chunk)

    client = connect(fetching(site, origin(script).url, on_body=one_by_one))
    client.send(get("/f"))
    assert client.until(b"1\r\na\r\n1\r\nb\r\n")
    more.set()
    assert client.until(b"0\r\n\r\n")


# How it ends


class Failure(Exception):
    """What a filter raises here."""


@pytest.mark.parametrize("after", [0, 1])
def test_a_filter_that_raises_breaks_the_answer_off(
    after: int, origin: MakeOrigin, site: MakeSite, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """The client can tell that the answer is not whole; the log has the traceback, the `error` hook is called."""
    errors: list[Any] = []

    def failing(exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for _ in range(after):
            yield next(chunks)
        raise Failure("no")

    upstream = origin(answering(answer_of(b"hello")))
    where = fetching(site, upstream.url, on_body=failing, on_error=lambda exchange: errors.append(exchange.error))
    client = connect(where)
    client.send(get("/f"))
    assert not client.rest_or_reset().endswith(b"0\r\n\r\n")
    wait_until(lambda: errors, "the error hook")
    assert "Failure" in str(errors[0])
    wait_until(lambda: "body hook of" in caplog.text and "Failure: no" in caplog.text, "the traceback")


@pytest.mark.parametrize("what", ["text", 7, None])
def test_a_filter_that_gives_no_bytes(what: Any, origin: MakeOrigin, site: MakeSite, connect: Connect) -> None:
    """Neither text nor numbers are sent, nor is an answer passed off as whole that would hold them."""

    def wrong(exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[Any]:
        yield b"x"
        yield what

    client = connect(fetching(site, origin(answering(answer_of(b"hello"))).url, on_body=wrong))
    client.send(get("/f"))
    assert not client.rest_or_reset().endswith(b"0\r\n\r\n")


def test_a_hook_that_raises_when_it_is_called(origin: MakeOrigin, site: MakeSite) -> None:
    """Before the head is out the client gets 500."""

    def failing(exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[bytes]:
        raise Failure("no")

    assert fetching(site, origin(answering(answer_of(b"hello"))).url, on_body=failing).get("/f").status == 500


@pytest.mark.parametrize("swallows", [False, True])
def test_an_upstream_that_breaks_off(swallows: bool, origin: MakeOrigin, site: MakeSite, connect: Connect) -> None:
    """Its end is raised in the filter, and the client's answer is broken off whatever the filter makes of that."""
    seen: list[str] = []

    def filter(exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from chunks
        except Exception as error:
            seen.append(type(error).__name__)
            if not swallows:
                raise
            yield b"never mind"
            yield from chunks

    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"
    client = connect(fetching(site, origin(answering(answer)).url, on_body=filter))
    client.send(get("/f"))
    assert not client.rest_or_reset().endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("asks", [False, True])
def test_a_client_that_leaves_closes_the_filter(
    asks: bool, origin: MakeOrigin, site: MakeSite, connect: Connect
) -> None:
    """The generator is closed, in a thread of the pool, whether it has said something or waits for more."""
    closed: list[str] = []
    begun = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nhello" % (1024 * MIB))
        if not asks:
            while True:
                wire.send(bytes(64 * 1024))
        wire.wait_closed()

    def filter(exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            for chunk in chunks:
                begun.set()
                yield chunk
        finally:
            closed.append(threading.current_thread().name)

    client = connect(fetching(site, origin(script).url, on_body=filter))
    client.send(get("/f"))
    assert begun.wait(PATIENCE)
    client.reset()
    wait_until(lambda: closed, "the filter to be closed")
    assert closed[0].startswith("pproxy-pool")


def test_a_client_that_leaves_a_filter_at_work(origin: MakeOrigin, site: MakeSite, connect: Connect) -> None:
    """What the filter asks for next is there already, and still it is told, and gives its thread back."""
    closed: list[type[BaseException]] = []

    def filter(exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[bytes]:
        next(chunks)
        client.reset()
        try:
            for _ in chunks:  # the upstream never waits, and never ends
                pass
        except BaseException as error:
            closed.append(type(error))
            raise
        yield b"never"

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1024 * 1024 * MIB))
        while True:
            wire.send(bytes(256 * 1024))

    where = fetching(site, origin(script).url, on_body=filter)
    client = connect(where)
    client.send(get("/f"))
    wait_until(lambda: closed, "the filter to be told")
    assert closed == [ClientGone]


def test_a_filter_that_wants_no_more(origin: MakeOrigin, site: MakeSite) -> None:
    """What it has said is the whole answer; the upstream's connection, with the rest on it, is not used again."""

    def first(exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[bytes]:
        yield next(chunks)[:5]

    upstream = origin(answering(answer_of(b"hello" * MIB), answer_of(b"again")))
    where = fetching(site, upstream.url, on_body=first)
    assert [where.get("/f").body for _ in range(2)] == [b"hello"] * 2
    assert upstream.accepted == 2


def test_a_connection_is_kept_behind_a_filter(origin: MakeOrigin, site: MakeSite, connect: Connect) -> None:
    """Both the client's and the upstream's connections go on."""
    upstream = origin(answering(answer_of(b"one"), answer_of(b"two")))
    client = connect(fetching(site, upstream.url, on_body=shouting))
    for body in (b"ONE", b"TWO"):
        client.send(get("/f"))
        assert client.until(b"0\r\n\r\n").endswith(b"3\r\n" + body + b"\r\n0\r\n\r\n")
    assert upstream.accepted == 1


def test_a_hook_that_leaves_the_body_alone(origin: MakeOrigin, site: MakeSite) -> None:
    """None says so: the body goes as it came, with its length and its coding."""
    packed = gzip.compress(b"hello")
    answer = answer_of(packed, "Content-Encoding: gzip")
    made = fetching(site, origin(answering(answer)).url, on_body=lambda exchange, chunks: None).get("/f")
    assert (made.body, made.one("Content-Encoding"), made.one("Content-Length")) == (packed, "gzip", str(len(packed)))


def test_reading_and_leaving_alone_are_at_odds(origin: MakeOrigin, site: MakeSite) -> None:
    """What was read would be missing: 500."""

    def torn(exchange: Exchange, chunks: Iterator[bytes]) -> None:
        next(chunks)

    assert fetching(site, origin(answering(answer_of(b"hello"))).url, on_body=torn).get("/f").status == 500


def test_chunks_are_for_the_filter_alone(origin: MakeOrigin, site: MakeSite) -> None:
    """Once it does not run, nobody gets bytes of the body by them."""
    found: list[Any] = []

    def keeping(exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[bytes]:
        exchange.state["chunks"] = chunks
        yield b"x"

    def later(exchange: Exchange) -> None:
        try:
            while True:
                next(exchange.state["chunks"])
        except Exception as error:
            found.append(type(error))

    where = fetching(site, origin(answering(answer_of(b"h" * MIB))).url, on_body=keeping, on_complete=later)
    assert where.get("/f").body == b"x"
    wait_until(lambda: found, "the complete hook")
    assert found == [RuntimeError]


def test_bytes_down_are_what_the_client_got(origin: MakeOrigin, site: MakeSite) -> None:
    """The statistics count the filter's bytes, without the framing of chunks."""
    stats: list[int] = []
    where = fetching(
        site,
        origin(answering(answer_of(b"hello"))).url,
        on_body=lambda exchange, chunks: (chunk * 2 for chunk in chunks),
        on_complete=lambda exchange: stats.append(exchange.stats.bytes_down),
    )
    assert where.get("/f").body == b"hellohello"
    assert wait_until(lambda: stats) == [10]


def test_a_big_body(origin: MakeOrigin, site: MakeSite) -> None:
    """64 MiB through a filter, byte for byte, while the application's own views answer."""
    block = bytes(range(256)) * 256

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MIB))
        for _ in range(64 * MIB // len(block)):
            wire.send(block)

    def same(exchange: Exchange, chunks: Iterator[bytes]) -> Iterator[bytes]:
        yield from chunks

    where = fetching(site, origin(script).url, own_view, on_body=same)
    found: list[bytes] = []
    reading = threading.Thread(target=lambda: found.append(where.get("/f").body))
    reading.start()
    answers = 0
    while reading.is_alive():
        assert where.get("/own").body == b"own"
        answers += 1
    reading.join()
    assert found == [block * (64 * MIB // len(block))]
    assert answers > 3


# A small body, read whole in a `response` hook


def test_a_body_is_read_and_answered_instead(origin: MakeOrigin, site: MakeSite) -> None:
    """A `response` hook gets the whole body, and answers with something else."""

    def fewer(exchange: Exchange) -> Response | None:
        assert exchange.response is not None
        body = exchange.response.read(1000)
        return None if body is None else Response(json_body=[item for item in json.loads(body) if item != 2])

    where = fetching(site, origin(answering(chunked(b"[1, 2", b", 3]"))).url, on_response=fewer)
    assert json.loads(where.get("/f").body) == [1, 3]


@pytest.mark.parametrize("limit", [0, 4, 5, 1000])
@pytest.mark.parametrize("answer", [answer_of(b"hello"), chunked(b"he", b"llo"), UNFRAMED])
def test_a_body_that_was_read_goes_on(answer: bytes, limit: int, origin: MakeOrigin, site: MakeSite) -> None:
    """A hook that answers nothing instead has changed nothing, be the body longer than the limit or not."""
    read: list[bytes | None] = []

    def reading(exchange: Exchange) -> None:
        assert exchange.response is not None
        read.append(exchange.response.read(limit))

    made = fetching(site, origin(answering(answer)).url, on_response=reading).get("/f")
    assert (made.status, made.body, read) == (200, b"hello", [b"hello" if limit >= 5 else None])


def test_a_long_body_is_not_read(origin: MakeOrigin, site: MakeSite) -> None:
    """Of a long one the beginning was taken, and goes on to the client before the rest; a filter sees it all."""
    body = bytes(range(256)) * 8192

    def reading(exchange: Exchange) -> None:
        assert exchange.response is not None
        assert exchange.response.read(1000) is None

    upstream = origin(answering(answer_of(body)))
    assert fetching(site, upstream.url, on_response=reading).get("/f").body == body
    upstream = origin(answering(answer_of(b"hello" * MIB)))
    assert fetching(site, upstream.url, on_response=reading, on_body=shouting).get("/f").body == b"HELLO" * MIB


def test_an_encoded_body_is_read(origin: MakeOrigin, site: MakeSite) -> None:
    """What is read is decoded, within the limit; what goes on to the client is as it came."""
    packed, read = gzip.compress(b"hello" * 1000), []

    def reading(exchange: Exchange) -> None:
        assert exchange.response is not None
        read.append(exchange.response.read(4999))
        read.append(exchange.response.read(5000))

    answer = answer_of(packed, "Content-Encoding: gzip")
    made = fetching(site, origin(answering(answer)).url, on_response=reading).get("/f")
    assert (made.body, made.one("Content-Encoding"), read) == (packed, "gzip", [None, b"hello" * 1000])


@pytest.mark.parametrize(("cut", "status"), [(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", 502)])
def test_a_body_that_does_not_come_whole(cut: bytes, status: int, origin: MakeOrigin, site: MakeSite) -> None:
    """What ends the exchange while a hook reads is told as it would be otherwise."""

    def reading(exchange: Exchange) -> None:
        assert exchange.response is not None
        exchange.response.read(1000)

    assert fetching(site, origin(answering(cut)).url, on_response=reading).get("/f").status == status


def test_a_silent_upstream_while_a_hook_reads(origin: MakeOrigin, site: MakeSite) -> None:
    """`read_timeout` holds: 504."""

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        wire.wait_closed()

    def reading(exchange: Exchange) -> None:
        assert exchange.response is not None
        exchange.response.read(1000)

    where = fetching(site, origin(script).url, on_response=reading, read_timeout="200ms")
    assert where.get("/f").status == 504


def test_nothing_is_read_elsewhere(origin: MakeOrigin, site: MakeSite) -> None:
    """`read` is for the `response` hook alone; an answer without a body reads as empty there."""
    found: list[Any] = []

    def note(read: Callable[[int], Any]) -> None:
        try:
            found.append(read(10))
        except RuntimeError as error:
            found.append(type(error))

    def on_response(exchange: Exchange) -> None:
        assert exchange.response is not None
        note(exchange.response.read)

    def on_complete(exchange: Exchange) -> None:
        assert exchange.response is not None
        note(exchange.response.read)

    answer = b"HTTP/1.1 204 No Content\r\n\r\n"
    where = fetching(site, origin(answering(answer)).url, on_response=on_response, on_complete=on_complete)
    assert where.get("/f").status == 204
    assert wait_until(lambda: len(found) == 2 and found) == [b"", RuntimeError]


# Texts that are replaced


def replacing(site: MakeSite, url: str, **texts: str) -> Site:
    """A site whose route ``/r`` replaces texts."""
    keys = {f"response.replace.{old}": new for old, new in texts.items()}
    return site(route("r", url, **keys))


def test_texts_are_replaced(origin: MakeOrigin, site: MakeSite) -> None:
    """In a text, across the borders of chunks, in the order of the settings, and in the text's own case."""
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + chunked(b"<a Hell", b"o he", b"llo>").split(b"\r\n", 1)[1]
    )
    made = replacing(site, origin(answering(answer)).url, hello="wide", wide="world").get("/r/")
    assert (made.body, made.one("Content-Length")) == (b"<a Hello world>", None)


def test_a_304_of_a_text(origin: MakeOrigin, site: MakeSite) -> None:
    """It need not name the type of what was asked about (RFC 9110 15.4.5): its ETag is weak, as the text's own was."""
    answer = b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nAccept-Ranges: bytes\r\n\r\n'
    made = replacing(site, origin(answering(answer)).url, hello="wide").get("/r/", {"If-None-Match": 'W/"a"'})
    assert (made.status, made.one("ETag"), made.one("Accept-Ranges")) == (304, 'W/"a"', None)


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", "text/html; charset=utf-16", ""])
def test_what_is_no_text_is_left(content_type: str, origin: MakeOrigin, site: MakeSite) -> None:
    """Such bodies go as they came, with all that is said of them."""
    fields = ('ETag: "a"', "Accept-Ranges: bytes", *((f"Content-Type: {content_type}",) if content_type else ()))
    made = replacing(site, origin(answering(answer_of(b"hello", *fields))).url, hello="world").get("/r/")
    assert (made.body, made.one("ETag"), made.one("Accept-Ranges")) == (b"hello", '"a"', "bytes")
    assert made.one("Content-Length") == "5"


def test_a_filter_sees_what_was_replaced(origin: MakeOrigin, site: MakeSite) -> None:
    """Settings come first, and the hook has the last word."""
    where = site(
        {**route("r", origin(answering(answer_of(b"hello", "Content-Type: text/plain"))).url)}
        | {"proxy.routes.r.response.replace.hello": "world", "proxy.routes.r.hooks.body": f"{__name__}.shouting"}
    )
    assert where.get("/r/").body == b"WORLD"


# What a backend says with an error


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines about what an upstream answered."""
    return [record.getMessage() for record in caplog.records if " answered " in record.getMessage()]


@pytest.mark.parametrize("frame", [lambda body: answer_of(body), lambda body: chunked(*bytewise(body))])
def test_an_errors_body_is_logged(
    frame: Callable[[bytes], bytes], origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """On request, its beginning, as one line of ASCII whatever stands in it; the client gets all of it."""
    body = 'no\r\n"such" table\x1b[31m: Bücher\n'.encode() + b"x" * 5000
    answer = frame(body).replace(b"200 OK", b"500 Oops", 1)
    where = site(route("r", origin(answering(answer)).url, log_error_body="1KiB"))
    made = where.get("/r/")
    assert (made.status, made.body) == (500, body)
    (line,) = wait_until(lambda: said(caplog), "the line")
    assert r' on r answered 500: "no\r\n\"such\" table\x1b[31m: B\xfccher\nxxx' in line
    assert line.isascii()
    assert line.isprintable()
    assert line.count("x" * 900) == 1
    assert line.count("x") < 1024


def test_an_encoded_errors_body_is_logged_in_the_clear(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the text, the client what came."""
    packed = gzip.compress(b"no such table")
    answer = answer_of(packed, "Content-Encoding: gzip", status="404 Not Found")
    where = site(route("r", origin(answering(answer)).url, log_error_body="1KiB"))
    assert where.get("/r/").body == packed
    assert '404: "no such table"' in wait_until(lambda: said(caplog), "the line")[0]


def test_errors_bodies_are_not_logged_unasked(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither where nobody has asked for it, nor those of answers that are no errors; one in ten seconds is enough."""
    failing = answering(answer_of(b"first", status="500 Oops"))
    fine = answering(answer_of(b"secret"))
    settings = {
        **route("silent", origin(failing).url),
        **route("fine", origin(fine).url, log_error_body="1KiB"),
        **route("failing", origin(failing).url, log_error_body="1KiB"),
    }
    where = site(settings)
    for name in ("silent", "fine", "failing", "failing"):
        where.get(f"/{name}/")
    assert len(wait_until(lambda: said(caplog), "the line")) == 1


# Elsewhere


@pytest.mark.parametrize("filter", [shouting, whole])
def test_under_another_server(filter: Callable[..., Any], origin: MakeOrigin) -> None:
    """Where nothing is detached, the same filter runs in the thread that asks for the answer."""
    from webob import Request

    upstream = origin(answering(answer_of(b"hello" * 100_000)))
    config = Configurator()
    config.include("pyramid_threaded_proxy")
    config.add_proxy_route("r", prefix="/r", upstream=upstream.url, public=True, hooks_body=filter)
    application = config.make_wsgi_app()
    try:
        assert Request.blank("/r/").get_response(application).body == b"HELLO" * 100_000
    finally:
        config.registry["pyramid_threaded_proxy.engine"].close()


@pytest.mark.parametrize("filter", [shouting, whole])
def test_beside_an_upload(filter: Callable[..., Any], origin: MakeOrigin, site: MakeSite) -> None:
    """An upstream that answers while it still reads gets the whole request, whatever the filter waits for."""
    size = 8 * MIB

    def script(wire: OriginWire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        left = size
        while left:
            data, wire.buffer = wire.buffer or wire.receive(), b""
            left -= len(data)
            wire.send(data)

    where = fetching(site, origin(script).url, method="POST", body=b"a" * size, on_body=filter)
    assert where.get("/f").body == b"A" * size


def test_the_log_is_quiet(origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """A filter that does well is no news."""
    fetching(site, origin(answering(answer_of(b"hello"))).url, on_body=shouting).get("/f")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
