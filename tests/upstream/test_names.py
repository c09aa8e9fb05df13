"""Names: asked once for all who wait, by few threads for each, and again as they age; and names that move."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from webtest import TestApp

from pyramid_threaded_proxy.exceptions import ConnectFailed, ConnectTimedOut
from pyramid_threaded_proxy.upstream import connections as connections_module
from pyramid_threaded_proxy.upstream import names as names_module
from pyramid_threaded_proxy.upstream.names import THREADS_PER_NAME, Names, is_name
from pyramid_threaded_proxy.upstream.origin import Origin as Address
from pyramid_threaded_proxy.upstream.urls import split_url
from tests.support.leaks import own_threads
from tests.support.names import NameServer
from tests.support.origin import Origin, echo
from tests.support.site import MakeSite, route
from tests.support.waiting import PATIENCE, wait_until


@pytest.fixture
def server(names: NameServer) -> Iterator[NameServer]:
    """In place of the system's look-up, for all names; what was silent ends with the test."""
    names.addresses = ()
    yield names
    for event in names.silent.values():
        event.set()
    wait_until(lambda: not own_threads("pproxy-name"), "the end of all look-ups")


def at(name: str) -> Address:
    return Address("http", name, 80)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://127.0.0.1", False),
        ("http://[::1]:8080", False),
        ("http://[fe80::1%25eth0]", False),
        ("http+unix://%2Frun%2Fs", False),
        ("http://localhost", True),
        ("http://127.1", True),
    ],
)
def test_what_is_looked_up(url: str, named: bool) -> None:
    """Addresses and Unix sockets are not; what only the system can read as an address is."""
    assert is_name(split_url(url)[0]) == named


def test_one_question_for_all(server: NameServer) -> None:
    """Whoever wants a name that is being looked up waits with the others, for the same answer."""
    names, gate = Names(), threading.Event()
    server.silent["name"] = gate
    promises = [names.ask(at("name")) for _ in range(50)]
    wait_until(lambda: len(server.asked) == 1)
    assert len({id(promise) for promise in promises}) == 1
    gate.set()
    assert promises[0].wait(PATIENCE)
    with pytest.raises(ConnectFailed, match="can't be resolved: Temporary failure"):
        promises[0].result()
    assert len(server.asked) == 1


def test_a_silent_server_holds_up_its_own_names(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often they are asked for, its names take a few threads each, and other names are answered meanwhile."""
    monkeypatch.setattr(names_module, "SECOND_AFTER", 0.0)
    names, server.addresses = Names(), ("127.0.0.1",)
    for name in ("dead1", "dead2"):
        server.silent[name] = threading.Event()
        for _ in range(30):
            names.ask(at(name))
    assert len(own_threads("pproxy-name")) == 2 * THREADS_PER_NAME
    with pytest.raises(ConnectTimedOut, match=r"the name 'dead1' was not resolved after 0\.05 s"):
        names.look_up_here(at("dead1"), 0.05)
    assert names.look_up_here(at("alive"), PATIENCE) == ["127.0.0.1"]
    assert names.known(at("alive")) == ["127.0.0.1"]


def test_so_many_threads_and_no_more(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names without number fail where no thread is left for them, and are asked for again later."""
    monkeypatch.setattr(names_module, "MOST_THREADS", 1)
    names, server.silent["dead"], server.addresses = Names(), threading.Event(), ("127.0.0.1",)
    names.ask(at("dead"))
    with pytest.raises(ConnectFailed, match="no thread is left to resolve the name 'other'"):
        names.look_up_here(at("other"), PATIENCE)
    server.silent["dead"].set()
    wait_until(lambda: not own_threads("pproxy-name"))
    assert names.look_up_here(at("other"), PATIENCE) == ["127.0.0.1"]


def test_a_thread_that_can_not_be_started(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no thread to give, the look-up fails, and nothing of it stays behind."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    names, server.addresses = Names(), ("127.0.0.1",)
    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", start)
        with pytest.raises(ConnectFailed, match="no thread"):
            names.look_up_here(at("name"), PATIENCE)
    assert names.look_up_here(at("name"), PATIENCE) == ["127.0.0.1"]
    assert names._threads == 0


def test_names_are_not_remembered_without_end(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many names, those that nobody asks for any more are forgotten."""
    monkeypatch.setattr(names_module, "MOST_NAMES", 3)
    monkeypatch.setattr(names_module, "LOOK_UP_SECONDS", 0.0)
    names, server.addresses = Names(), ("127.0.0.1",)
    for number in range(9):
        names.look_up_here(at(f"name{number}"), PATIENCE)
    assert len(names._names) <= 3


# A name that moves


class Moved:
    """Two origins on one port of two addresses, and a name that goes from one to the other."""

    def __init__(self, stack: ExitStack, server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(names_module, "LOOK_UP_SECONDS", 0.4)
        monkeypatch.setattr(connections_module, "REFRESH_SECONDS", 0.2)
        listener = socket.create_server(("127.0.0.1", 0))
        self.old = stack.enter_context(Origin(echo, listener))
        self.new = stack.enter_context(Origin(echo, socket.create_server(("127.0.0.2", self.old.port))))
        self.url = f"http://backend.test:{self.old.port}"
        self._server = server
        server.addresses = ("127.0.0.1",)

    def move(self) -> None:
        self._server.addresses = ("127.0.0.2",)


@pytest.fixture
def moved(stack: ExitStack, server: NameServer, monkeypatch: pytest.MonkeyPatch) -> Moved:
    """A name that is going to move."""
    return Moved(stack, server, monkeypatch)


def test_a_name_that_moves(site: MakeSite, moved: Moved) -> None:
    """Under steady traffic on kept connections nothing goes to the old address any more after a look-up's age."""
    where = site(route("r", moved.url))
    client = where.client()

    def ask() -> None:
        client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
        status, fields = client.head()
        client.exactly(int(fields["content-length"]))
        assert status == "HTTP/1.1 200 OK"

    for _ in range(20):
        ask()
    assert (moved.old.accepted, moved.new.accepted) == (1, 0)
    moved.move()
    over = time.monotonic() + names_module.LOOK_UP_SECONDS
    while time.monotonic() < over:
        ask()
    asked_before = moved.old.accepted
    for _ in range(50):
        ask()
    assert moved.new.accepted == 1
    assert moved.old.accepted == asked_before == 1
    assert moved.old.wires[0].sock.fileno() < 0
    client.close()


def test_an_idle_connection_of_a_name_that_moved(site: MakeSite, moved: Moved) -> None:
    """What is kept to the old address is closed by itself: the next request, much later, goes to the new one."""
    where = site(route("r", moved.url))
    assert where.get("/r/").status == 200
    moved.move()
    wait_until(lambda: moved.old.wires[0].sock.fileno() < 0, "the old connection to be closed")
    assert where.get("/r/").status == 200
    assert (moved.old.accepted, moved.new.accepted) == (1, 1)


def test_a_busy_connection_of_a_name_that_moved(stack: ExitStack, site: MakeSite, moved: Moved) -> None:
    """An exchange under way is not disturbed, but its connection is not kept."""
    gate = threading.Event()

    def slow(wire: Any) -> None:
        while wire.request() is not None:
            assert gate.wait(PATIENCE)
            wire.answer(b"slow")

    moved.old._script = slow
    where = site(route("r", moved.url))
    client = where.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    wait_until(lambda: moved.old.accepted)
    moved.move()
    over = time.monotonic() + names_module.LOOK_UP_SECONDS
    wait_until(lambda: time.monotonic() > over)
    wait_until(lambda: where.get("/r/").status == 200 and moved.new.accepted, "an exchange at the new address")
    gate.set()
    assert client.rest().endswith(b"slow")
    client.close()
    wait_until(lambda: moved.old.wires[0].sock.fileno() < 0, "the old connection to be closed")


def test_a_name_server_that_goes_silent(site: MakeSite, server: NameServer, moved: Moved) -> None:
    """Kept connections are used on while nobody answers for their name; and a name that is not in use is not asked."""
    where = site(route("r", moved.url))
    assert where.get("/r/").status == 200
    server.silent["backend.test"] = threading.Event()
    asked = len(server.asked)
    wait_until(lambda: len(server.asked) > asked, "the name to be asked for again")
    over = time.monotonic() + 2 * names_module.LOOK_UP_SECONDS
    while time.monotonic() < over:
        assert where.get("/r/").status == 200
    assert moved.old.accepted == 1
    server.silent.pop("backend.test").set()
    where.engine.drain()
    wait_until(lambda: all(not pool.idle for pool in where.engine.upstreams.pools()))
    wait_until(lambda: all(pool._watch is None or pool._watch._loop is None for pool in where.engine.upstreams.pools()))


def test_streamed_exchanges_follow_as_well(site: MakeSite, moved: Moved) -> None:
    """Where no loop watches, a kept connection is not used once its name is too old to be believed."""
    application = TestApp(site(route("r", moved.url)).application)
    for _ in range(3):
        application.get("/r/")
    assert moved.old.accepted == 1
    moved.move()
    over = time.monotonic() + names_module.LOOK_UP_SECONDS
    wait_until(lambda: time.monotonic() > over)
    application.get("/r/")
    assert (moved.old.accepted, moved.new.accepted) == (1, 1)
