"""A connection that has lasted waits for its next request in the loop, out of waitress's tables."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from pyramid_threaded_proxy.detach.channel import DetachableChannel
from pyramid_threaded_proxy.detach.server import is_busy
from tests.support.detaching import connections, in_tables
from tests.support.origin import MakeOrigin
from tests.support.site import MakeSite, Site, own_view, route
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import OriginWire, Wire, body, get

pytestmark = pytest.mark.parametrize("sockets", [1, 2], ids=["one-socket", "two-sockets"])


class Held:
    """An upstream that answers when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)

    def __call__(self, wire: OriginWire) -> None:
        while wire.request() is not None:
            assert self.go.acquire(timeout=PATIENCE)
            wire.answer(b"x")


@pytest.fixture
def held() -> Held:
    return Held()


def ask(app: Site, client: Wire) -> Any:
    """The channel of a client whose exchange lasts."""
    client.send(get("/r/x"))
    name = client.sock.getsockname()

    def channel() -> Any:
        found = [channel for channel in connections(app) if channel.addr == name]
        asked_out = found and found[0].requests and found[0].asked_out
        return found[0] if asked_out and not in_tables(app, found[0]) else None

    return wait_until(channel, "an exchange that lasts")


def lasted(app: Site, client: Wire, held: Held) -> Any:
    """The channel of a client whose exchange has lasted and is over."""
    channel = ask(app, client)
    held.go.release()
    assert body(client) == b"x"
    wait_until(lambda: channel.claim is not None, "its wait in the loop")
    assert not in_tables(app, channel)
    return channel


def gone(app: Site) -> bool:
    """Whether no connection is left, with waitress or with the loop."""
    return not connections(app) and not app.engine.scheduler.loop.idle_clients


def test_its_next_requests_are_answered(origin: MakeOrigin, site: MakeSite, held: Held, sockets: int) -> None:
    """Own views and exchanges, in turn, on one connection; also where an own answer has gone before."""
    app = site(route("r", origin(held).url), configure=own_view, sockets=sockets)
    client = app.client()
    for _ in range(3):
        client.send(get("/own"))
        assert body(client) == b"own"
        channel = lasted(app, client, held)
        lasted(app, client, held)
    client.send(get("/own"))
    assert body(client) == b"own"
    assert in_tables(app, channel)
    client.close()
    wait_until(lambda: gone(app), "the end of the connection")


def test_a_request_that_comes_in_pieces(origin: MakeOrigin, site: MakeSite, held: Held, sockets: int) -> None:
    """The first byte wakes it; waitress reads the rest, as of any other."""
    app = site(route("r", origin(held).url), configure=own_view, sockets=sockets)
    client = app.client()
    lasted(app, client, held)
    for byte in get("/own"):
        client.send(bytes([byte]))
    assert body(client) == b"own"
    client.close()


@pytest.mark.parametrize("reset", [False, True])
def test_its_client_leaves(origin: MakeOrigin, site: MakeSite, held: Held, sockets: int, reset: bool) -> None:
    """Nothing is left of it."""
    app = site(route("r", origin(held).url), sockets=sockets)
    client = app.client()
    lasted(app, client, held)
    if reset:
        client.reset()
    else:
        client.close()
    wait_until(lambda: gone(app), "the end of the connection")


def test_it_is_closed_when_it_has_been_silent_for_long(
    origin: MakeOrigin, site: MakeSite, held: Held, sockets: int
) -> None:
    """Waitress's `channel_timeout` holds for it."""
    timeouts = {"channel_timeout": 1, "cleanup_interval": 1}
    app = site(route("r", origin(held).url), sockets=sockets, **timeouts)
    client, other = app.client(), app.client()
    lasted(app, client, held)
    lasted(app, other, held)
    assert client.rest() == other.rest() == b""
    wait_until(lambda: gone(app), "the end of the connections")
    client.close()
    other.close()


def test_the_servers_limit_of_connections_counts_them(
    origin: MakeOrigin, site: MakeSite, held: Held, sockets: int
) -> None:
    """Where more are known than waitress allows, whatever socket they came by, they go back into its tables."""
    app = site(route("r", origin(held).url), sockets=sockets, connection_limit=2 * sockets + 5)
    clients = [Wire(socket.create_connection(("127.0.0.1", app.ports[n % sockets]), PATIENCE)) for n in range(5)]
    for client in clients:
        ask(app, client)
    held.go.release(len(clients))
    for client in clients:
        assert body(client) == b"x"
    wait_until(lambda: len(app.channels) == 5, "coming back")
    assert not app.engine.scheduler.loop.idle_clients
    for client in clients:
        client.close()
    wait_until(lambda: gone(app), "the end of the connections")


def test_the_loop_dies(
    origin: MakeOrigin, site: MakeSite, held: Held, sockets: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its idle clients are waitress's again, and are answered."""
    app = site(route("r", origin(held).url), configure=own_view, sockets=sockets)
    client = app.client()
    channel = lasted(app, client, held)
    loop = app.engine.scheduler.loop

    def die() -> None:
        raise SystemExit

    loop.post(die)
    wait_until(lambda: in_tables(app, channel), "coming back")
    client.send(get("/own"))
    assert body(client) == b"own"
    lasted(app, client, held)
    assert app.engine.scheduler.loop is not loop
    assert "broke" in caplog.text
    client.close()


def test_the_process_stops(origin: MakeOrigin, site: MakeSite, held: Held, sockets: int) -> None:
    """Then waitress gets them all back, and looks after their end."""
    app = site(route("r", origin(held).url), configure=own_view, sockets=sockets)
    clients = [app.client() for _ in range(3)]
    channels = [lasted(app, client, held) for client in clients]
    app.engine.drain()
    wait_until(lambda: all(in_tables(app, channel) for channel in channels), "coming back")
    for client in clients:
        client.send(get("/own"))
        assert body(client) == b"own"
        client.close()


@pytest.mark.parametrize("way", ["handle_close", "close"])
def test_waitress_closes_it(origin: MakeOrigin, site: MakeSite, held: Held, sockets: int, way: str) -> None:
    """On its main thread, or as its server ends: the loop lets go of the socket first, and nobody knows it any more."""
    app = site(route("r", origin(held).url), sockets=sockets)
    client = app.client()
    channel = lasted(app, client, held)
    app.on_main_thread(getattr(channel, way))
    assert client.rest() == b""
    wait_until(lambda: gone(app), "the end of the connection")
    assert type(channel) is DetachableChannel
    assert not is_busy(channel)
    client.close()


def test_the_poller_can_not_take_it(
    origin: MakeOrigin, site: MakeSite, held: Held, sockets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it goes back into waitress's tables, and nothing of it is left in the loop."""
    app = site(route("r", origin(held).url), configure=own_view, sockets=sockets)
    client = app.client()
    loop = app.engine.scheduler.start()

    def fail(*arguments: object) -> None:
        raise OSError("out of memory")

    monkeypatch.setattr(loop.idle_clients, "_loop", SimpleNamespace(want=fail))
    channel = ask(app, client)
    held.go.release()
    assert body(client) == b"x"
    wait_until(lambda: type(channel) is DetachableChannel, "coming back")
    client.send(get("/own"))
    assert body(client) == b"own"
    assert not loop.idle_clients
    client.close()
