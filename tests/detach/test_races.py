"""Races around detach and give back, each one forced: clients that leave, locks, waitress's tables."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyramid.config import Configurator

from pyramid_threaded_proxy.detach.channel import DetachableChannel, DetachedConnection
from pyramid_threaded_proxy.loop import loop as loop_module
from pyramid_threaded_proxy.loop import poller
from tests.support.detaching import big_view, connections, servers, slow_client
from tests.support.leaks import strangers
from tests.support.origin import Gate, MakeOrigin, Silent, echo
from tests.support.site import MakeSite, own_view, route
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import body, get, post


@pytest.fixture
def access_log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The last word of each line of the access log."""
    name = "pyramid_threaded_proxy.access"
    caplog.set_level(logging.INFO, name)
    return lambda: [record.getMessage().split()[-2] for record in caplog.records if record.name == name]


# Clients that go away


@pytest.mark.parametrize("way", ["close", "half_close", "reset"])
@pytest.mark.parametrize("lookahead", [0, 1, 5])
def test_a_client_leaves_while_its_upstream_is_silent(
    origin: MakeOrigin,
    site: MakeSite,
    sockets: int,
    lookahead: int,
    way: str,
    access_log: Callable[[], list[str]],
) -> None:
    """Within a second the upstream is let go, the place free, the channel closed, and the log says so."""
    silent = Silent()
    app = site(route("r", origin(silent).url), sockets=sockets, channel_request_lookahead=lookahead)
    client = app.client()
    client.send(get("/r/x"))
    assert silent.asked.acquire(timeout=PATIENCE)
    getattr(client, way)()
    assert silent.let_go.acquire(timeout=1)
    wait_until(lambda: not app.engine.admission.in_flight and not connections(app), "the end", timeout=1)
    wait_until(access_log, "the log line")
    assert access_log() == ["client-gone"]
    client.close()


class HeldLoop:
    """An entry of waitress's map that holds its main thread ahead of the look at its sockets."""

    accepting = False

    def __init__(self) -> None:
        self.held, self.go_on = threading.Event(), threading.Event()

    def readable(self) -> bool:
        self.held.set()
        assert self.go_on.wait(PATIENCE)
        return False

    def writable(self) -> bool:
        return False


@pytest.mark.parametrize("poll", [True, False])
def test_a_new_client_gets_the_number_of_one_that_left(
    origin: MakeOrigin, site: MakeSite, poll: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What waitress's loop heard of the one that left, in the turn that closes it, is not laid to the new one."""
    silent = Silent()
    upstream = origin(silent)
    app = site(route("r", upstream.url), configure=own_view, asyncore_use_poll=poll)
    leaving = app.client()
    leaving.send(get("/r/x"))
    assert silent.asked.acquire(timeout=PATIENCE)
    (channel,) = app.channels
    number, held = channel._fileno, HeldLoop()
    app.on_main_thread(lambda: app.map.update({-1: held}))
    assert held.held.wait(PATIENCE)
    leaving.reset()
    assert silent.let_go.acquire(timeout=PATIENCE)
    wait_until(lambda: channel.server.trigger.thunks, "what closes the channel")
    wait_until(lambda: upstream.wires[0].sock.fileno() < 0, "the other end's number to be free")
    with strangers():  # the number that is free next is the channel's
        coming = app.client()
        held.go_on.set()
        app.on_main_thread(lambda: app.map.pop(-1))
        wait_until(lambda: number in [channel._fileno for channel in app.channels], "the new connection")
        app.on_main_thread(lambda: None)  # that turn is over
        coming.send(get("/own"))
        assert body(coming) == b"own"
        assert [channel._fileno for channel in app.channels] == [number]
    assert caplog.messages == []
    coming.close()


@pytest.mark.parametrize("lookahead", [1, 5])
def test_a_client_leaves_with_requests_waiting(
    origin: MakeOrigin, site: MakeSite, sockets: int, lookahead: int
) -> None:
    """Requests that were parsed ahead of the client's end are dropped with it, and never go upstream."""
    silent = Silent()
    upstream = origin(silent)
    app = site(route("r", upstream.url), sockets=sockets, channel_request_lookahead=lookahead)
    client = app.client()
    client.send(get("/r/1") + get("/r/2") + get("/r/3"))
    assert silent.asked.acquire(timeout=PATIENCE)
    client.close()
    assert silent.let_go.acquire(timeout=1)
    wait_until(lambda: not app.engine.admission.in_flight and not connections(app), "the end", timeout=1)
    assert upstream.accepted == 1


def test_a_client_leaves_before_the_detach(origin: MakeOrigin, site: MakeSite, sockets: int) -> None:
    """When waitress has closed the connection by the time of the detach, nothing is sent and all is given back."""
    upstream = origin(echo)
    running, channels = threading.Event(), []

    def waiting_tween(handler: Any, registry: Any) -> Any:
        def tween(request: Any) -> Any:
            response = handler(request)
            channels.append(request.environ["waitress.client_disconnected"].__self__)
            running.set()
            wait_until(request.environ["waitress.client_disconnected"], "the client's end")
            return response

        return tween

    app = site(
        route("r", upstream.url), configure=adds_tween(waiting_tween), sockets=sockets, channel_request_lookahead=1
    )
    client = app.client()
    client.send(post("/r/x", b"body"))
    assert running.wait(PATIENCE)
    stream = channels[0].requests[0].get_body_stream()
    client.close()
    wait_until(lambda: stream.closed, "the end of the request")
    assert app.engine.admission.in_flight == 0
    assert channels[0].requests == []
    assert upstream.accepted == 0


def adds_tween(factory: Callable[[Any, Any], Any]) -> Callable[[Configurator], None]:
    """Configures a tween that is a function of the test's own."""

    def configure(config: Configurator) -> None:
        config.registry["tween"] = factory
        config.add_tween(f"{__name__}.registered_tween")

    return configure


def registered_tween(handler: Any, registry: Any) -> Any:
    """Makes the tween that `adds_tween` was given."""
    return registry["tween"](handler, registry)


def test_a_client_resets_while_earlier_output_waits(
    origin: MakeOrigin, site: MakeSite, sockets: int, access_log: Callable[[], list[str]]
) -> None:
    """A connection that breaks before its predecessor's answer was written ends at once, and asks nothing upstream."""
    upstream = origin(echo)
    app = site(route("r", upstream.url), configure=big_view, sockets=sockets)
    client = slow_client(app)
    client.send(get("/big") + get("/r/1"))
    wait_until(lambda: app.engine.admission.in_flight == 1, "the detach")
    wait_until(lambda: app.parked(poller.WRITE) == 1, "waiting for the client")
    client.reset()
    wait_until(lambda: not app.engine.admission.in_flight and not connections(app), "the end", timeout=1)
    wait_until(access_log, "the log line")
    assert access_log() == ["client-gone"]
    assert upstream.accepted == 0


# Waitress closes while a worker detaches


@pytest.mark.parametrize("method", ["handle_close", "close"])
def test_waitress_closes_while_a_worker_detaches(
    origin: MakeOrigin, site: MakeSite, gate: Gate, sockets: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close that waits for the lock while the channel is detached closes nothing: the relay has the socket now.

    The worker holds the lock, the main thread enters its close and waits, the worker detaches, and lets go.
    """
    app = site(route("r", origin(gate).url), sockets=sockets)
    entered, closed, channels = threading.Event(), threading.Event(), []
    original, make = getattr(DetachableChannel, method), DetachedConnection.__init__

    def closing(self: Any) -> None:
        entered.set()
        original(self)

    def close_on_main_thread() -> None:
        getattr(channels[0], method)()
        closed.set()

    def making(self: Any, channel: Any) -> None:
        channels.append(channel)
        channel.server.trigger.pull_trigger(close_on_main_thread)
        assert entered.wait(PATIENCE)
        make(self, channel)

    with monkeypatch.context() as patch:
        patch.setattr(DetachableChannel, method, closing)
        patch.setattr(DetachedConnection, "__init__", making)
        client = app.client()
        client.send(get("/r/x"))
        gate.wait_asked()
        assert closed.wait(PATIENCE)
    (channel,) = channels
    assert channel.connected
    assert channel.socket.fileno() == channel._fileno
    gate.opened.set()
    assert body(client) == b"/x"
    assert client.rest() == b""
    wait_until(lambda: not connections(app), "the end of the connection")
    client.close()


def test_a_descriptor_is_not_reused_under_the_relay(
    origin: MakeOrigin, site: MakeSite, gate: Gate, sockets: int
) -> None:
    """What waitress would close during an exchange stays open until its end, so that its number is nobody else's."""
    app = site(route("r", origin(gate).url), sockets=sockets)
    client = app.client()
    client.send(get("/r/x"))
    gate.wait_asked()
    (channel,) = connections(app)
    fd = channel.socket.fileno()
    app.on_main_thread(channel.handle_close)
    app.on_main_thread(channel.handle_error)
    with strangers() as numbers:
        assert fd not in numbers
        gate.opened.set()
        assert body(client) == b"/x"
        assert client.rest() == b""
    client.close()


def test_events_of_the_same_turn_are_left_alone(origin: MakeOrigin, site: MakeSite, gate: Gate, sockets: int) -> None:
    """What waitress's loop had seen ready in the turn of the detach is neither read nor written by it."""
    app = site(route("r", origin(gate).url), configure=own_view, sockets=sockets, channel_request_lookahead=1)
    client = app.client()
    client.send(get("/r/x"))
    gate.wait_asked()
    (channel,) = connections(app)
    client.send(get("/own"))
    app.on_main_thread(channel.handle_read_event)
    app.on_main_thread(channel.handle_write_event)
    assert len(channel.requests) == 1
    gate.opened.set()
    assert body(client) == b"/x"
    assert body(client) == b"own"
    client.close()


# Locks and tables


def test_a_thunk_may_lock_what_another_thread_is_leaving(
    origin: MakeOrigin, site: MakeSite, gate: Gate, sockets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that hands a thunk over holds no lock that a running thunk may want: neither waits for the other."""
    monkeypatch.setattr(loop_module, "LASTING", 0.3)
    pulled, running, locked = threading.Event(), threading.Event(), []
    pull = DetachedConnection._on_main_thread

    def pulling(self: Any, thunk: Any) -> None:
        pulled.set()
        pull(self, thunk)  # waits for the thunk that runs, which holds the trigger's lock

    def thunk() -> None:
        running.set()
        assert pulled.wait(PATIENCE)
        locked.append(channel.outbuf_lock.acquire(timeout=PATIENCE))
        channel.outbuf_lock.release()

    monkeypatch.setattr(DetachedConnection, "_on_main_thread", pulling)
    app = site(route("r", origin(gate).url), sockets=sockets)
    client = app.client()
    client.send(get("/r/x"))
    gate.wait_asked()
    (channel,) = connections(app)
    channel.server.trigger.pull_trigger(thunk)
    assert running.wait(PATIENCE)
    wait_until(lambda: locked, "the lock")
    assert locked == [True]
    gate.opened.set()
    assert body(client) == b"/x"
    client.close()


def test_a_pull_while_the_trigger_is_read(
    origin: MakeOrigin, site: MakeSite, sockets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull whose byte is taken by the read that is under way does not keep later ones from waking waitress."""
    app = site(route("r", origin(echo).url), configure=own_view, sockets=sockets)
    assert app.get("/own").body == b"own"
    pulled = []
    for trigger in [server.trigger for server in servers(app)]:
        read = trigger.socket.recv

        def reading(size: int, trigger: Any = trigger, read: Any = read) -> Any:
            pulled.append(trigger)
            trigger.pull_trigger()
            return read(size)

        monkeypatch.setattr(trigger.socket, "recv", reading, raising=False)
    for _ in range(3):
        app.on_main_thread(lambda: None)
    assert pulled


class PausedTable(dict[int, Any]):
    """A table whose walk stops at the first entry until it may go on."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.walking, self.go_on = threading.Event(), threading.Event()

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        for value in super().values():
            self.walking.set()
            assert self.go_on.wait(PATIENCE)
            yield value


def test_maintenance_while_channels_come_and_go(origin: MakeOrigin, site: MakeSite, gate: Gate, sockets: int) -> None:
    """Channels that come back while waitress walks its table wait until the walk is over."""
    app = site(route("r", origin(gate).url), configure=own_view, sockets=sockets)
    idle = app.client()
    idle.send(get("/own"))
    assert body(idle) == b"own"
    clients = [app.client() for _ in range(6)]
    for client in clients:
        client.send(get("/r/x"))
    gate.wait_asked(6)
    wait_until(lambda: len(app.channels) == 1, "leaving the tables", timeout=2)
    (server,) = [server for server in servers(app) if server.active_channels]
    server.active_channels = table = PausedTable(server.active_channels)
    server.next_channel_cleanup = 0
    server.pull_trigger()
    assert table.walking.wait(PATIENCE)
    gate.opened.set()
    for client in clients:
        assert body(client) == b"/x"
    wait_until(lambda: len(app.engine.scheduler.loop.idle_clients) == 6, "their wait in the loop")
    for client in clients:
        client.send(get("/own"))
    wait_until(lambda: not any(channel.claim for channel in connections(app)), "being woken")
    assert len(app.channels) == 1
    table.go_on.set()
    wait_until(lambda: len(app.channels) == 7, "coming back")
    idle.send(get("/own"))
    for client in [idle, *clients]:
        assert body(client) == b"own"
        client.close()
