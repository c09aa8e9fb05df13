"""Connections to upstreams: made, kept, taken again, and dropped as soon as they are in doubt."""

from __future__ import annotations

import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from pyramid.config import Configurator

from pyramid_threaded_proxy.exceptions import ConnectFailed, ConnectTimedOut, ValueRefused
from pyramid_threaded_proxy.upstream import connections as upstream_module
from pyramid_threaded_proxy.upstream.connections import Connection, OriginPool, Upstreams
from pyramid_threaded_proxy.upstream.origin import Origin as Address
from pyramid_threaded_proxy.upstream.urls import split_url
from tests.support.origin import MakeOrigin, answering, echo, in_turn
from tests.support.site import MakeSite, Site, route
from tests.support.upstreams import FullBacklog, connected, connection_on, pool_at
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire

#: The default of the setting.
KEEPALIVE = 32
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


# URLs


@pytest.mark.parametrize(
    ("url", "origin", "target"),
    [
        ("http://a", "http://a:80", ""),
        ("HTTP://a:81/b?c#d", "http://a:81", "/b?c#d"),
        ("http://a?b", "http://a:80", "?b"),
        ("http://[::1]:8/%zz", "http://[::1]:8", "/%zz"),
    ],
)
def test_a_url_is_split_byte_for_byte(url: str, origin: str, target: str) -> None:
    """The origin is normalised, the rest is left as it stands."""
    split, rest = split_url(url)
    assert (str(split), rest) == (origin, target)


@pytest.mark.parametrize("url", ["a", "ftp://a", "http://", "http://u@a", "http://u:p@a/", "http://a:0", "http://a:x"])
def test_a_url_that_can_not_be_an_upstream_is_refused(url: str) -> None:
    """Other schemes, users and impossible ports are refused, and the message holds the URL."""
    with pytest.raises(ValueRefused, match=r"'.*'"):
        split_url(url)


# Keeping


def twice(site: Site, method: str = "GET") -> list[int]:
    """The statuses of two requests, one after the other was all over."""
    return [site.get("/r/", method=method).status for _ in range(2)]


WHOLE = {
    "length": OK,
    "no bytes": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\r\n",
    "big": b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + bytes(300_000),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK,
    "1.0 keep-alive": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
    "404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("answer", list(WHOLE))
def test_a_connection_whose_message_ended_is_used_again(origin: MakeOrigin, site: MakeSite, answer: str) -> None:
    """Where the framing says that the message is over, the next request goes over the same connection."""
    upstream = origin(answering(WHOLE[answer], WHOLE[answer]))
    twice(site(route("r", upstream.url)))
    assert upstream.accepted == 1


ENDING = {
    "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    "close among others": b"HTTP/1.1 200 OK\r\nConnection: x, CLOSE\r\nContent-Length: 0\r\n\r\n",
    "1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "rest behind it": OK + b"HTTP/1.1 200 OK\r\n",
    "not ours": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("answer", list(ENDING))
def test_a_connection_in_doubt_is_not_used_again(origin: MakeOrigin, site: MakeSite, answer: str) -> None:
    """Where the upstream means to close, or said more than it should, the next request gets a new connection."""

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(ENDING[answer])
        wire.wait_closed()

    upstream = origin(script)
    twice(site(route("r", upstream.url)))
    assert upstream.accepted == 2


def test_a_body_that_ends_with_the_connection_ends_it(origin: MakeOrigin, site: MakeSite) -> None:
    """Close-delimited answers leave nothing to be kept."""
    upstream = origin(answering(b"HTTP/1.1 200 OK\r\n\r\nx"))
    where = site(route("r", upstream.url))
    assert twice(where) == [200, 200]
    assert (upstream.accepted, where.idle()) == (2, 0)


class Crowd:
    """Clients that ask at the same time, and an upstream that answers when it has heard all of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.gate = threading.Barrier(size)

    def __call__(self, wire: OriginWire) -> None:
        while wire.request() is not None:
            self.gate.wait(10)
            wire.send(OK)

    def ask(self, where: Site, turns: int = 1) -> None:
        """Each asks so many times, and leaves."""
        clients = [where.client() for _ in range(self._size)]
        for _ in range(turns):
            for client in clients:
                client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
            for client in clients:
                client.head()
        for client in clients:
            client.close()
        wait_until(lambda: where.engine.admission.in_flight == 0, "the end of all exchanges")


def test_no_more_than_so_many_are_kept(origin: MakeOrigin, site: MakeSite) -> None:
    """Soon after a crowd only as many connections stay open as `keepalive` says."""
    upstream = origin(crowd := Crowd(KEEPALIVE + 8))
    where = site(route("r", upstream.url))
    crowd.ask(where)
    wait_until(lambda: sum(wire.sock.fileno() < 0 for wire in upstream.wires) == 8, "the rest to be closed")
    assert where.idle() == KEEPALIVE


def test_a_crowd_keeps_what_it_uses(origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is used again and again is not closed for being one more than `keepalive`."""
    monkeypatch.setattr(upstream_module, "SURPLUS_SECONDS", 60.0)
    upstream = origin(crowd := Crowd(KEEPALIVE + 8))
    crowd.ask(site(route("r", upstream.url)), turns=5)
    assert upstream.accepted == KEEPALIVE + 8


def test_a_surplus_is_bounded(origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowd of any size leaves no more than so many times `keepalive` behind."""
    monkeypatch.setattr(upstream_module, "SURPLUS_SECONDS", 60.0)
    where = site(route("r", origin(crowd := Crowd(12)).url, keepalive="2"))
    crowd.ask(where)
    assert where.idle() == 2 * upstream_module.MOST_SURPLUS


def test_a_route_that_keeps_few_leaves_the_others_theirs(
    origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routes to one origin share its connections, each with its own `keepalive`."""
    monkeypatch.setattr(upstream_module, "SURPLUS_SECONDS", 0.05)
    upstream = origin(crowd := Crowd(6))
    where = site({**route("r", upstream.url), **route("s", upstream.url, keepalive="1")})
    crowd.ask(where)
    assert where.idle() == 6
    crowd.gate = threading.Barrier(1)
    where.get("/s/x")
    loop, passed = where.engine.scheduler.loop, threading.Event()
    entry = SimpleNamespace(on_timer=lambda now: passed.set())
    loop.post(lambda: loop.call_at(entry, loop.now + 0.2))
    assert passed.wait(10)
    assert where.idle() >= 5


def test_a_kept_connection_that_the_upstream_closes_is_dropped_at_once(origin: MakeOrigin, site: MakeSite) -> None:
    """The loop hears of the end of an idle connection; no request has to find out."""
    may_close = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(OK)
        may_close.wait(10)

    where = site(route("r", origin(in_turn(script, echo)).url))
    where.get("/r/")
    wait_until(lambda: where.idle() == 1)
    may_close.set()
    wait_until(lambda: where.idle() == 0, "the connection to be dropped")
    assert where.get("/r/", method="POST", body=b"x").status == 200


def test_bytes_that_nobody_asked_for_drop_an_idle_connection(origin: MakeOrigin, site: MakeSite) -> None:
    """What comes on an idle connection is never taken for the next answer."""
    may_send = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(OK)
        may_send.wait(10)
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        wire.wait_closed()

    upstream = origin(in_turn(script, echo))
    where = site(route("r", upstream.url))
    where.get("/r/")
    wait_until(lambda: where.idle() == 1)
    may_send.set()
    wait_until(lambda: where.idle() == 0, "the connection to be dropped")
    assert where.get("/r/").body.startswith(b"GET /")


# Stale connections


def stale(wire: OriginWire) -> None:
    """Answers once, and closes when the second request has come."""
    wire.request()
    wire.send(OK)
    wire.until(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("method", "status", "accepted"), [("GET", 200, 2), ("PUT", 200, 2), ("POST", 502, 1), ("PATCH", 502, 1)]
)
def test_what_a_stale_connection_swallowed(
    origin: MakeOrigin, site: MakeSite, method: str, status: int, accepted: int
) -> None:
    """An idempotent request goes out once more on a fresh connection; any other may have been done: 502."""
    upstream = origin(in_turn(stale, echo))
    where = site(route("r", upstream.url))
    where.get("/r/")
    assert where.get("/r/", method=method, body=b"body" if method != "GET" else None).status == status
    assert upstream.accepted == accepted


def test_a_body_from_a_file_is_sent_again_from_its_start(origin: MakeOrigin, site: MakeSite) -> None:
    """The second try of a PUT sends the whole body."""
    body, bodies = os.urandom(2 << 20), []

    def first(wire: OriginWire) -> None:
        wire.request()
        wire.send(OK)
        wire.request()  # taken whole, and not answered

    def second(wire: OriginWire) -> None:
        request = wire.request()
        assert request is not None
        bodies.append(request.body)
        wire.send(OK)

    where = site(route("r", origin(in_turn(first, second)).url))
    where.get("/r/")
    assert where.get("/r/", method="PUT", body=body).body == b"ok"
    assert bodies == [body]


def test_nothing_is_repeated_once_a_byte_of_the_answer_came(origin: MakeOrigin, site: MakeSite) -> None:
    """A kept connection that breaks in its head is 502 for every method: the request was read."""

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(OK)
        wire.request()
        wire.send(b"HTTP/1.1 200")

    upstream = origin(in_turn(script, echo))
    assert twice(site(route("r", upstream.url))) == [200, 502]
    assert upstream.accepted == 1


@pytest.mark.parametrize(("method", "accepted"), [("GET", 2), ("POST", 1)])
def test_a_fresh_connection_that_closes(origin: MakeOrigin, site: MakeSite, method: str, accepted: int) -> None:
    """One that was not kept before is tried again as well, once, and only for what may be sent again."""
    upstream = origin(answering(b""))
    assert site(route("r", upstream.url)).get("/r/", method=method).status == 502
    assert upstream.accepted == accepted


def test_an_early_answer_does_not_keep_the_loop_busy(
    origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that come on a kept connection while a slow body is read from the application are reported once."""
    told, slow, seen = [], threading.Event(), threading.Event()
    real = OriginPool.on_event

    def on_event(self: OriginPool, endpoint: Any, events: int) -> None:
        told.append(events)
        real(self, endpoint, events)
        seen.set()

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(OK)
        wire.until(b"\r\n\r\n")
        wire.send(OK)
        wire.wait_closed()

    def body() -> Iterator[bytes]:
        assert slow.wait(10)
        yield b"x"

    upstream, other = origin(script), origin(echo)

    def configure(config: Configurator) -> None:
        config.add_route("f", "/f")
        config.add_view(
            lambda request: request.proxy_fetch(
                upstream.url, method=request.method, body=body() if request.method == "POST" else None
            ),
            route_name="f",
        )

    monkeypatch.setattr(OriginPool, "on_event", on_event)
    where = site(route("r", other.url), configure=configure)
    where.get("/f")
    client = where.client()
    client.send(b"POST /f HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    assert seen.wait(10)
    for _ in range(5):
        where.get("/r/")
    assert len(told) == 1
    slow.set()
    assert client.rest().endswith(b"ok")
    client.close()


# The pool by itself


def test_connect_names_the_origin_and_the_reason() -> None:
    """A refused connection's message holds what an operator needs, without urllib3's wrapping."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectFailed, match=rf"^http://127\.0\.0\.1:{port}: Connection refused$") as raised:
        connected(pool_at(Address("http", "127.0.0.1", port)), 1.0)
    assert type(raised.value) is ConnectFailed


def test_a_connect_time_out_says_how_long() -> None:
    """A time-out is told from a refusal."""
    with FullBacklog() as full, pytest.raises(ConnectTimedOut, match=r"not connected after 0\.2 s"):
        connected(pool_at(Address("http", "127.0.0.1", full.port)), 0.2)


def test_the_pool_hands_out_what_was_used_last(stack: ExitStack) -> None:
    """The connection used last is the least likely to be stale; one that has bytes or is closed is never handed out."""
    pool = pool_at(Address("http", "127.0.0.1", 1))
    pairs = [socket.socketpair() for _ in range(4)]
    connections = [connection_on(stack.enter_context(near), pool) for near, _ in pairs]
    for connection in connections:
        pool.give_back(connection, KEEPALIVE)
    for _, far in pairs:
        stack.enter_context(far)
    pairs[3][1].close()
    pairs[2][1].send(b"x")
    taken = [pool.take(), pool.take(), pool.take()]
    assert taken == [connections[1], connections[0], None]
    assert [near.fileno() < 0 for near, _ in pairs] == [False, False, True, True]


class Told:
    """A loop that was told, at that time, of all that had ended before."""

    heard = 0.0

    def forget(self, endpoint: Any) -> None:
        endpoint.loop = None


def test_a_watched_connection_is_not_looked_at_again(stack: ExitStack) -> None:
    """Who can send again believes the loop, of what was idle before it asked; all else is looked at when it is taken.

    All of these connections have ended, and the loop has not been told so.
    """
    loop: Any = Told()
    pool = pool_at(Address("http", "127.0.0.1", 1), lambda: loop)

    def idle(since: float) -> Connection:
        near, far = map(stack.enter_context, socket.socketpair())
        far.close()
        connection = connection_on(near, pool)
        connection.idle_since, connection.endpoint.loop = since, loop
        pool._idle.append(connection)
        return connection

    old, _ = idle(1.0), idle(2.0)
    loop.heard = 2.0
    assert pool.take(look=False) is old
    assert old.reused
    assert pool.take(look=False) is None, "one that was given back since"
    idle(1.0)
    assert pool.take(look=True) is None
    idle(1.0)
    loop.heard = 0.0
    assert pool.take(look=False) is None, "while not all that it was told has been dealt with"


def test_the_pools_of_loops_and_of_streams_are_apart() -> None:
    """A connection that a loop watches is never used by an exchange that has no loop."""
    upstreams = Upstreams(lambda: pytest.fail("nobody asked for a loop"))
    address = Address("http", "127.0.0.1", 1)
    assert upstreams.pool(address, True) is upstreams.pool(address, True)
    assert upstreams.pool(address, True) is not upstreams.pool(address, False)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_forked_child_leaves_its_parents_connections_alone(stack: ExitStack) -> None:
    """After a fork both processes have the descriptors; only the parent goes on using the connection."""
    upstreams, address = Upstreams(lambda: pytest.fail("nobody asked for a loop")), Address("http", "127.0.0.1", 1)
    near, far = socket.socketpair()
    stack.enter_context(far)
    pool = upstreams.pool(address, False)
    pool.give_back(connection_on(stack.enter_context(near), pool), KEEPALIVE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, where threads are about
        child = os.fork()
    if child == 0:
        os._exit(0 if upstreams.pool(address, False).take() is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    connection = upstreams.pool(address, False).take()
    assert connection is not None
    connection.sock.send(b"x")
    assert far.recv(1) == b"x"
    connection.close()
