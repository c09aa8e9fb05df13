"""A body that is read late: whoever reads it sees what waitress would have given."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyramid.config import Configurator
from pyramid.csrf import CookieCSRFStoragePolicy
from pyramid.response import Response

from pyramid_threaded_proxy.detach import late_body
from tests.support.bodies import content
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, Site
from tests.support.uploads import CONTINUE, chunks, put, put_chunked, streaming
from tests.support.waiting import wait_until
from tests.support.wire import Wire, get, read_answer, received

#: What an application does to a request to see its body.
READS: dict[str, Callable[[Any], bytes]] = {
    "body": lambda request: request.body,
    "file": lambda request: request.body_file.read(),
    "seekable": lambda request: (request.make_body_seekable(), request.body_file_seekable.read())[1],
    "raw, in two": lambda request: request.environ["wsgi.input"].read(10) + request.environ["wsgi.input"].read(),
    "raw, None": lambda request: request.environ["wsgi.input"].read(None),
    "lines": lambda request: b"".join(request.environ["wsgi.input"]),
    "one line": lambda request: next(request.environ["wsgi.input"]),
    "readlines": lambda request: b"".join(request.environ["wsgi.input"].readlines()),
    "twice": lambda request: request.body and request.body,
    "seek": lambda request: (request.environ["wsgi.input"].seek(0), request.environ["wsgi.input"].read())[1],
}


def reading(origin: MakeOrigin, site: MakeSite, read: Callable[[Any], Any], **options: Any) -> Site:
    """A site on whose streaming route ``/r`` whoever asks ``/r/own`` gets what a view reads.

    Only the request can tell that it is for the view: it is taken for one of the route's, and handed over by its head.
    """

    def view(request: Any) -> Response:
        answer = Response(read(request))
        request.environ["wsgi.input"].close()  # WebOb leaves its copy to the garbage collector
        return answer

    def configure(config: Configurator) -> None:
        config.add_route("own", "/r/own", header="X-Own")
        config.add_view(view, route_name="own")

    return site(streaming(origin(echo).url), configure=configure, **options)


@pytest.mark.parametrize("size", [10, 70_000, 700_000])
@pytest.mark.parametrize("way", READS)
def test_every_way_to_read(origin: MakeOrigin, site: MakeSite, way: str, size: int) -> None:
    """Whatever is read how, it is the body, from memory or a file, of a known length or chunked."""
    data = content(size).replace(b"\n", b" ")
    where = reading(origin, site, READS[way])
    client = where.client()
    for head, body in ((put("/r/own", size, "X-Own: 1"), data), (put_chunked("/r/own", "X-Own: 1"), chunks(data, 999))):
        client.send(head)
        client.send(body)
        assert read_answer(client)[2] == data
    client.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 700), max_size=6), chunked=st.booleans(), size=st.integers(1, 300))
def test_split_anywhere(splitting: Site, cuts: list[int], chunked: bool, size: int) -> None:
    """Head, body and the request behind it may be split anywhere: the body is whole, the next request is one."""
    data = content(size)
    whole = (
        put_chunked("/r/own", "X-Own: 1") + chunks(data, 100) if chunked else put("/r/own", size, "X-Own: 1") + data
    ) + get("/r/own", "X-Own: 1")
    client = splitting.client()
    places = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    for start, stop in itertools.pairwise(places):
        client.send(whole[start:stop])
    assert read_answer(client)[2] == data
    assert read_answer(client)[2] == b""
    client.close()


@pytest.fixture
def splitting(origin: MakeOrigin, site: MakeSite) -> Site:
    return reading(origin, site, lambda request: request.body)


def test_a_hundred_once(origin: MakeOrigin, site: MakeSite) -> None:
    """The 100 goes out when the view reads, once, and behind the answer to the request before."""
    reads = threading.Event()
    where = reading(origin, site, lambda request: (reads.wait(10), request.body, request.body)[1])
    client = where.client()
    client.send(get("/r/first") + put("/r/own", 3, "X-Own: 1", "Expect: 100-continue"))
    assert b"GET /first" in read_answer(client)[2]
    assert client.buffer == b""
    reads.set()
    assert client.exactly(len(CONTINUE)) == CONTINUE
    client.send(b"abc")
    assert read_answer(client)[2] == b"abc"
    client.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (put_chunked("/r/own", "X-Own: 1") + b"xyz\r\n", b"400"),
        (put_chunked("/r/own", "X-Own: 1") + b"3\r\nabcXX", b"400"),
        (put_chunked("/r/own", "X-Own: 1") + chunks(bytes(3000), 1000), b"413"),
        (put("/r/own", 3000, "X-Own: 1"), b"413"),
    ],
)
def test_a_body_that_waitress_would_refuse(origin: MakeOrigin, site: MakeSite, sent: bytes, status: bytes) -> None:
    """A faulty or too large body ends the request with waitress's own answer, whatever the view would catch."""

    def read(request: Any) -> bytes:
        try:
            return request.body  # type: ignore[no-any-return]
        except Exception:
            return b"caught"

    where = reading(origin, site, read, max_request_body_size=2000)
    assert where.raw(sent).split(b" ")[1] == status


def test_a_client_that_is_silent(origin: MakeOrigin, site: MakeSite) -> None:
    """Who reads waits as long as waitress's own `channel_timeout`; then the client gets 408."""
    where = reading(origin, site, lambda request: request.body, channel_timeout=1)
    began = time.monotonic()
    assert where.raw(put("/r/own", 3, "X-Own: 1") + b"ab").split(b" ")[1] == b"408"
    assert time.monotonic() - began < 5


def test_slow_senders_leave_threads_to_others(
    origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of waitress's threads may wait for clients whose body somebody reads: the next one that would is told to
    come back, all others are served, and a place is given back however the wait ends."""
    monkeypatch.setattr(late_body, "FREE", 0.05)
    asked = threading.Semaphore(0)
    where = reading(origin, site, lambda request: (asked.release(), request.body)[1], threads=4)
    incomplete = put("/r/own", 3, "X-Own: 1") + b"a"

    def slow(count: int) -> Wire:
        client = where.client()
        client.send(incomplete)
        wait_until(lambda: sum(late_body.waiting.values()) == count, "the thread that waits")
        return client

    for end in (lambda client: client.send(b"bc"), Wire.reset, Wire.half_close, Wire.close):
        first, second = slow(1), slow(2)
        assert where.raw(incomplete).startswith(b"HTTP/1.1 503 ")
        with monkeypatch.context() as patient:
            patient.setattr(late_body, "FREE", 10.0)
            while asked.acquire(blocking=False):
                pass
            quick = where.client()
            quick.send(incomplete)
            assert asked.acquire(timeout=10)
            quick.send(b"bc")  # soon enough: it needs no place
            assert read_answer(quick)[2] == b"abc"
            quick.close()
        for whole in (get("/r/own", "X-Own: 1"), incomplete + b"bc", get("/r/other")):
            other = where.client()
            other.send(whole)
            assert read_answer(other)[0] == "HTTP/1.1 200 OK"
            other.close()
        end(first)
        wait_until(lambda: sum(late_body.waiting.values()) == 1, "a place")
        third = slow(2)
        for client in (second, third):
            client.send(b"bc")
            assert read_answer(client)[2] == b"abc"
        wait_until(lambda: not sum(late_body.waiting.values()), "all places")
        for client in (first, second, third):
            client.close()


@pytest.mark.parametrize("how", [Wire.half_close, Wire.reset])
def test_a_client_that_leaves(origin: MakeOrigin, site: MakeSite, how: Callable[[Wire], None]) -> None:
    """A client that leaves before its body is whole ends the view that reads it; no part is taken for the whole."""
    seen: list[Any] = []

    def read(request: Any) -> bytes:
        seen.append("asked")
        seen.append(request.body)
        return b""

    where = reading(origin, site, read)
    client = where.client()
    client.send(put("/r/own", 1000, "X-Own: 1") + b"some")
    wait_until(lambda: seen, "the view")
    how(client)
    wait_until(lambda: not where.channels, "the end of the connection")
    assert seen == ["asked"]
    client.close()


def test_a_form_with_a_token(origin: MakeOrigin, site: MakeSite) -> None:
    """Pyramid finds the CSRF token in the form, and the form goes up whole; without it nothing goes up."""
    upstream = origin(echo)

    def configure(config: Configurator) -> None:
        config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
        config.set_default_csrf_options(require_csrf=True)

    where = site(streaming(upstream.url), configure=configure)
    form = b"csrf_token=secret&file=" + b"x" * 200_000
    fields = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": "csrf_token=secret"}
    fields |= {"Origin": where.url, "Referer": where.url + "/"}
    answer = where.get("/r/x", fields, "POST", form)
    assert received(answer).body == form
    assert where.get("/r/x", fields, "POST", b"csrf_token=guess&file=" + b"x" * 9000).status == 400
    assert len(upstream.wires) == 1


def test_what_the_main_thread_heard_of_is_gone(origin: MakeOrigin, site: MakeSite) -> None:
    """Between hearing of bytes and reading them waitress's main thread may find them read by the worker, and the
    request over: the connection is not taken for broken."""
    where = reading(origin, site, lambda request: request.body)
    client = where.client()
    for _ in range(2):
        client.send(put("/r/own", 3, "X-Own: 1", "Expect: 100-continue"))
        assert client.exactly(len(CONTINUE)) == CONTINUE
        client.send(b"abc")
        assert read_answer(client)[2] == b"abc"
        wait_until(lambda: not where.channels[0].requests, "the end of the request")
        where.on_main_thread(where.channels[0].handle_read)
    client.half_close()
    assert client.rest() == b""
    client.close()
