"""Detach and give back: waitress is free while an exchange lasts, and goes on with the connection afterwards."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.response import Response

from pyramid_threaded_proxy.detach.channel import DetachableChannel, DetachedChannel
from pyramid_threaded_proxy.loop import loop as loop_module
from tests.support.detaching import BIG, CheckedTable, big_view, connections, in_tables, servers, slow_client
from tests.support.origin import Gate, MakeOrigin, echo
from tests.support.site import MakeSite, own_view, route
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import OriginWire, body, get, post, read_answer


def test_waitress_threads_are_free(origin: MakeOrigin, site: MakeSite, gate: Gate, sockets: int) -> None:
    """While 50 exchanges wait for a silent upstream, 4 waitress threads answer the application's own view."""
    upstream = origin(gate)
    app = site(route("r", upstream.url), configure=own_view, sockets=sockets)
    clients = [app.client() for _ in range(50)]
    for client in clients:
        client.send(get("/r/held"))
    gate.wait_asked(50)
    for _ in range(20):
        assert app.get("/own").body == b"own"
    assert app.engine.admission.in_flight == 50
    gate.opened.set()
    for client in clients:
        assert body(client) == b"/held"
        client.close()


def test_small_pieces_for_a_slow_client(site: MakeSite) -> None:
    """An own view's pieces, sent while the lock is kept: where the kernel has no room for one, it is not lost."""
    pieces = [b"%07d\n" % number * 100 for number in range(BIG // 800)]

    def configure(config: Configurator) -> None:
        config.add_route("pieces", "/pieces")
        config.add_view(lambda request: Response(app_iter=pieces), route_name="pieces")

    client = slow_client(site(configure=configure))
    client.send(get("/pieces", version="1.0"))
    first, _ = client.head()
    assert first == "HTTP/1.0 200 OK"
    assert client.rest() == b"".join(pieces)
    client.close()


def test_both_sockets_detach(origin: MakeOrigin, site: MakeSite, gate: Gate) -> None:
    """With two listening sockets, exchanges on either of them are detached."""
    app = site(route("r", origin(gate).url), configure=own_view, sockets=2, threads=1)
    client, app.port = app.client(), int(app.ports[1])
    other = app.client()
    for wire in (client, other):
        wire.send(get("/r/x"))
    gate.wait_asked(2)
    assert app.get("/own").body == b"own"
    gate.opened.set()
    for wire in (client, other):
        assert body(wire) == b"/x"
        wire.close()


def test_a_lasting_channel_leaves_the_tables(origin: MakeOrigin, site: MakeSite, gate: Gate, sockets: int) -> None:
    """A detached channel has no work for waitress; once it lasts it is out of both tables, until its next request."""
    app = site(route("r", origin(gate).url), configure=own_view, sockets=sockets)
    client = app.client()
    client.send(get("/own"))
    assert body(client) == b"own"
    (channel,) = app.channels
    client.send(get("/r/x"))
    gate.wait_asked()
    assert type(channel) is DetachedChannel
    assert not channel.writable()
    wait_until(lambda: not in_tables(app, channel), "leaving the tables", timeout=2)
    gate.opened.set()
    assert body(client) == b"/x"
    wait_until(lambda: channel.claim is not None, "waiting for the next request")
    assert not in_tables(app, channel)
    client.send(get("/own"))
    assert body(client) == b"own"
    assert type(channel) is DetachableChannel
    assert in_tables(app, channel)
    client.close()
    wait_until(lambda: not app.channels, "the end of the connection")


def test_bytes_behind_an_exchange_wait(
    origin: MakeOrigin, site: MakeSite, gate: Gate, sockets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waitress's loop hears of them once, reads nothing, and is woken at the exchange's end: it sleeps an hour here."""
    monkeypatch.setattr(loop_module, "LASTING", 3600.0)  # leaving its tables would wake it as well
    app = site(route("r", origin(gate).url), configure=own_view, sockets=sockets, asyncore_loop_timeout=3600)
    client = app.client()
    client.send(get("/r/x"))
    gate.wait_asked()
    (channel,) = connections(app)
    looks: list[bool] = []
    app.on_main_thread(lambda: looks.append(channel.unwatched))
    client.send(get("/own"))
    wait_until(lambda: channel.unread, "hearing of the bytes")
    app.on_main_thread(lambda: looks.append(channel.unwatched))
    assert looks == [False, True]
    assert len(channel.requests) == 1
    gate.opened.set()
    assert body(client) == b"/x"
    assert body(client) == b"own"
    client.close()


@pytest.mark.parametrize("lookahead", [0, 2])
def test_the_next_request_is_heard(origin: MakeOrigin, site: MakeSite, sockets: int, lookahead: int) -> None:
    """Whoever ends a request wakes waitress's loop where it must be woken: its own look around is an hour away here."""
    settings = {"asyncore_loop_timeout": 3600, "channel_request_lookahead": lookahead}
    app = site(route("r", origin(echo).url), configure=own_view, sockets=sockets, **settings)
    clients = [app.client() for _ in range(4)]
    for count in range(60):
        for client in clients:
            client.send(get("/r/x") if count % 3 else get("/own"))
            if count % 5 == 0:
                client.send(get("/r/y") + get("/own"))
        for client in clients:
            body(client)
            if count % 5 == 0:
                body(client)
                assert body(client) == b"own"
    for client in clients:
        client.close()


def test_a_short_exchange_stays_in_the_tables(origin: MakeOrigin, site: MakeSite, sockets: int) -> None:
    """An exchange that is over at once costs no walk through waitress's main thread."""
    table = CheckedTable()
    app = site(route("r", origin(echo).url), sockets=sockets, map=table)
    client = app.client()
    client.send(get("/r/x"))
    body(client)
    table.changed_by.clear()
    client.send(get("/r/x"))
    body(client)
    assert not table.changed_by
    client.close()


def test_tables_change_on_the_main_thread_alone(origin: MakeOrigin, site: MakeSite, gate: Gate, sockets: int) -> None:
    """Exchanges that last, end well, are broken off or lose their client: only waitress's thread changes its tables."""

    def script(wire: OriginWire) -> None:
        request = wire.request()
        if request is not None and request.target == "/broken":
            gate.asked.release()
            assert gate.opened.wait(PATIENCE)
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        elif request is not None:
            gate.asked.release()
            assert gate.opened.wait(PATIENCE)
            wire.answer(b"whole")

    tables = [CheckedTable()]
    app = site(route("r", origin(script).url), sockets=sockets, map=tables[0])
    for server in servers(app):
        server.active_channels = CheckedTable(server.active_channels)
        tables.append(server.active_channels)
    clients = [app.client() for _ in range(12)]
    for number, client in enumerate(clients):
        client.send(get("/r/broken" if number % 2 else "/r/whole"))
    gate.wait_asked(12)
    wait_until(lambda: not app.channels, "leaving the tables", timeout=2)
    for table in tables:
        assert table.changed_by <= {"waitress-main", "MainThread"}
        table.changed_by.clear()
    for client in clients[:4]:
        client.close()
    wait_until(lambda: app.engine.admission.in_flight == 8, "the end of those whose clients left")
    gate.opened.set()
    for client in clients[4:]:
        client.wait_closed() if clients.index(client) % 2 else body(client)
        client.close()
    # One that was just given back is in no table, until the main thread puts it there again.
    wait_until(lambda: not connections(app) and not app.engine.admission.in_flight, "the end of all connections")
    assert all(table.changed_by <= {"waitress-main"} for table in tables)


def test_maintenance_spares_detached_channels(origin: MakeOrigin, site: MakeSite, gate: Gate, sockets: int) -> None:
    """channel_timeout closes no channel under a relay, however long that lasts, and closes it later when it is idle."""
    app = site(route("r", origin(gate).url), sockets=sockets, channel_timeout=1, cleanup_interval=1)
    client = app.client()
    client.send(get("/r/x"))
    gate.wait_asked()

    def sweep() -> None:
        for server in servers(app):
            server.maintenance(time.time() + 3600)

    app.on_main_thread(sweep)  # an hour later
    wait_until(lambda: not app.channels, "leaving the tables", timeout=2)
    app.on_main_thread(sweep)
    gate.opened.set()
    assert body(client) == b"/x"
    # Its last activity is the end of the exchange, not its beginning: the real clean-up leaves it a second more.
    began = time.monotonic()
    client.wait_closed(PATIENCE)
    assert time.monotonic() - began > 0.9
    client.close()


@pytest.mark.parametrize("size", [1, 5_000, 300_000, 3_000_000])
def test_request_bodies_outlive_the_task(origin: MakeOrigin, site: MakeSite, sockets: int, size: int) -> None:
    """A body in memory or in waitress's temporary file reaches the upstream whole, and is closed at the give-back."""
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    received = threading.Event()
    may_answer = threading.Event()

    def script(wire: OriginWire) -> None:
        request = wire.request()
        assert request is not None
        assert request.body == data
        received.set()
        assert may_answer.wait(PATIENCE)
        wire.answer(b"ok")

    app = site(route("r", origin(script).url), sockets=sockets, inbuf_overflow=100_000)
    client = app.client()
    client.send(post("/r/x", data))
    assert received.wait(PATIENCE)
    (channel,) = connections(app)
    stream = channel.requests[0].get_body_stream()
    assert not stream.closed
    may_answer.set()
    assert body(client) == b"ok"
    wait_until(lambda: stream.closed, "the end of the request body")
    client.close()


def test_a_body_that_the_application_has_read(origin: MakeOrigin, site: MakeSite, sockets: int) -> None:
    """After a tween has read request.POST, the body goes upstream whole, from its beginning, and closes as always."""
    upstream = origin(echo)
    seen = []

    def reader(handler: Any, registry: Any) -> Any:
        def tween(request: Any) -> Any:
            seen.append(dict(request.POST))
            return handler(request)

        return tween

    def configure(config: Configurator) -> None:
        config.registry["reader"] = reader
        config.add_tween(f"{__name__}.reader_tween")

    app = site(route("r", upstream.url), configure=configure, sockets=sockets)
    for data in (b"a=1&b=2", b"a=" + b"x" * 700_000):
        form = "Content-Type: application/x-www-form-urlencoded"
        client = app.client()
        client.send(post("/r/x", data, form))
        assert body(client).endswith(b"\r\n\r\n" + data)
        client.close()
    assert [set(fields) for fields in seen] == [{"a", "b"}, {"a"}]


def reader_tween(handler: Any, registry: Any) -> Any:
    """The tween factory that a test has put into the registry."""
    return registry["reader"](handler, registry)


def test_keep_alive_is_kept(origin: MakeOrigin, site: MakeSite, sockets: int) -> None:
    """A connection carries 100 exchanges, own views in between, over one upstream connection."""
    upstream = origin(echo)
    app = site(route("r", upstream.url), configure=own_view, sockets=sockets)
    client = app.client()
    for number in range(100):
        client.send(get(f"/r/{number}"))
        first, fields, data = read_answer(client)
        assert first == "HTTP/1.1 200 OK"
        assert "connection" not in fields
        assert data.startswith(b"GET /%d " % number)
        if number % 10 == 0:
            client.send(get("/own"))
            assert body(client) == b"own"
    client.close()
    assert upstream.accepted == 1


@pytest.mark.parametrize(
    ("version", "fields", "kept"),
    [
        ("1.1", (), True),
        ("1.1", ("Connection: close",), False),
        ("1.0", (), False),
        ("1.0", ("Connection: keep-alive",), True),
        ("1.0", ("Connection: close",), False),
    ],
)
def test_who_keeps_the_connection(
    origin: MakeOrigin, site: MakeSite, sockets: int, version: str, fields: tuple[str, ...], kept: bool
) -> None:
    """The connection stays open after the answer as the client's version and Connection field say."""
    client = site(route("r", origin(echo).url), sockets=sockets).client()
    client.send(get("/r/1", *fields, version=version))
    _, answer, _ = read_answer(client)
    if kept:
        assert answer.get("connection") == (None if version == "1.1" else "keep-alive")
        client.send(get("/r/2", *fields, version=version))
        assert body(client).startswith(b"GET /2 ")
    else:
        assert answer["connection"] == "close"
        assert client.rest() == b""
    client.close()


@pytest.mark.parametrize("lookahead", [0, 1, 5])
def test_pipelined_requests_come_back_in_order(
    origin: MakeOrigin, site: MakeSite, sockets: int, lookahead: int
) -> None:
    """Own and proxied requests in one packet are answered in order, whatever waitress has parsed ahead."""
    app = site(route("r", origin(echo).url), configure=own_view, sockets=sockets, channel_request_lookahead=lookahead)
    client = app.client()
    client.send(b"".join(get("/own") + get(f"/r/{number}") + get(f"/r/{number}b") for number in range(10)))
    for number in range(10):
        assert body(client) == b"own"
        assert body(client).startswith(b"GET /%d " % number)
        assert body(client).startswith(b"GET /%db " % number)
    client.close()


@pytest.mark.parametrize("lookahead", [0, 1, 5])
@pytest.mark.parametrize("cut", [1, 9, 25])
def test_a_half_parsed_request_goes_on(
    origin: MakeOrigin, site: MakeSite, gate: Gate, sockets: int, lookahead: int, cut: int
) -> None:
    """The rest of a request that waitress has half parsed comes during the exchange, or after it."""
    app = site(route("r", origin(gate).url), configure=own_view, sockets=sockets, channel_request_lookahead=lookahead)
    following = get("/own", "X-Long: " + "x" * 20)
    client = app.client()
    client.send(get("/r/1") + following[:cut])
    gate.wait_asked()
    client.send(following[cut:-2])
    gate.opened.set()
    assert body(client) == b"/1"
    client.send(following[-2:])
    assert body(client) == b"own"
    client.close()


def test_earlier_output_goes_first(origin: MakeOrigin, site: MakeSite, sockets: int) -> None:
    """A predecessor's 10 MB, which the client has not read yet, are written before the relayed answer."""
    upstream = origin(echo)
    app = site(route("r", upstream.url), configure=big_view, sockets=sockets)
    client = slow_client(app)
    client.send(get("/big") + get("/r/1") + get("/own"))
    wait_until(lambda: app.engine.admission.in_flight == 1, "the detach")
    (channel,) = connections(app)
    wait_until(lambda: type(channel) is DetachedChannel, "the detach")
    assert channel.total_outbufs_len > 0
    assert upstream.accepted == 0
    assert body(client) == b"x" * BIG
    assert body(client).startswith(b"GET /1 ")
    assert body(client) == b"own"
    client.close()


def test_a_client_that_never_reads_its_predecessor(
    origin: MakeOrigin, site: MakeSite, sockets: int, caplog: pytest.LogCaptureFixture
) -> None:
    """When earlier output can't be written within send_timeout, the connection is reset and nothing goes upstream."""
    caplog.set_level(logging.INFO, "pyramid_threaded_proxy.access")
    upstream = origin(echo)
    app = site(route("r", upstream.url, send_timeout="300ms"), configure=big_view, sockets=sockets)
    client = slow_client(app)
    client.send(get("/big") + get("/r/1"))
    wait_until(lambda: caplog.messages, "the log line")
    assert caplog.messages[0].split()[-2] == "client-timeout"
    wait_until(lambda: not app.channels, "the end of the connection", timeout=2)
    with pytest.raises(ConnectionResetError):
        client.rest()
    client.close()
    assert upstream.accepted == 0


def test_continue_is_sent_before_the_body(origin: MakeOrigin, site: MakeSite, sockets: int) -> None:
    """A client that expects 100 gets it from waitress, and its body reaches the upstream without the expectation."""
    app = site(route("r", origin(echo).url), sockets=sockets)
    client = app.client()
    for _ in range(2):
        client.send(b"PUT /r/x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert client.head()[0] == "HTTP/1.1 100 Continue"
        client.send(b"body")
        answer = body(client)
        assert answer.endswith(b"\r\n\r\nbody")
        assert b"expect" not in answer.lower()
    client.close()


def test_continue_waits_for_the_exchange_before(origin: MakeOrigin, site: MakeSite, gate: Gate, sockets: int) -> None:
    """A pipelined request that expects 100 gets it behind the relayed answer."""
    app = site(route("r", origin(gate).url), sockets=sockets)
    client = app.client()
    client.send(get("/r/1") + b"PUT /r/2 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    gate.wait_asked()
    assert not client.is_closed()
    gate.opened.set()
    assert body(client) == b"/1"
    assert client.head()[0] == "HTTP/1.1 100 Continue"
    client.send(b"body")
    assert body(client) == b"/2"
    client.close()
