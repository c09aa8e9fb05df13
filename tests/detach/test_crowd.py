"""Many clients at once: they are accepted and read together, and own pages do not wait for them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from pyramid.response import Response
from waitress.task import ThreadedTaskDispatcher

from pyramid_threaded_proxy.detach import crowd as crowd_module
from pyramid_threaded_proxy.detach.crowd import CROWD, Crowd
from pyramid_threaded_proxy.detach.turns import Holding, TaskQueue, take_turns
from tests.support.origin import Gate, MakeOrigin
from tests.support.site import MODES, MakeSite, Site, route, with_view
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import Wire, body, get

MANY = 2 * CROWD


class Turns:
    """Looks at each turn of waitress's loop. Stands in its map."""

    accepting = False

    def __init__(self, site: Site) -> None:
        self.count = self.most = 0
        self._site = site
        site.map[-1] = self

    def readable(self) -> bool:
        self.count += 1
        self.most = max(self.most, len(self._site.channels))
        return False

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        """It is closed with all others."""


@contextmanager
def main_thread_held(site: Site) -> Iterator[None]:
    """What comes meanwhile is there at once when waitress's main thread looks again."""
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        assert go_on.wait(PATIENCE)

    thread = threading.Thread(target=site.on_main_thread, args=[hold])
    thread.start()
    assert held.wait(PATIENCE)
    try:
        yield
    finally:
        go_on.set()
        thread.join(PATIENCE)


def own(request: Any) -> Response:
    return Response("own")


def many(site: Site, stack: ExitStack, *requests: bytes) -> list[Wire]:
    """Clients that came at once, each with its request if there is one; the site has served one before."""
    assert site.get("/own/x").status == 200
    with main_thread_held(site):
        ports = [site.ports[number % len(site.ports)] for number in range(len(requests) or MANY)]
        clients = [Wire(stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))) for port in ports]
        for client, request in zip(clients, requests, strict=False):
            client.send(request)
    return clients


@pytest.mark.parametrize("mode", ["poll", "select"])
def test_many_are_accepted_in_a_turn(mode: str, site: MakeSite, stack: ExitStack) -> None:
    """A turn for each would cost a look at all others each time."""
    made = site({}, configure=with_view(own), connection_limit=500, **MODES[mode])
    turns = Turns(made)
    clients = many(made, stack)
    wait_until(lambda: len(made.channels) >= MANY, "all channels")
    assert turns.count < MANY / 4
    for client in clients:
        client.send(get("/own/x"))
    assert [body(client) for client in clients] == [b"own"] * MANY


def test_no_more_are_accepted_than_allowed(site: MakeSite, stack: ExitStack) -> None:
    """`connection_limit` holds within a turn too; the others come in when there is room again."""
    made = site({}, configure=with_view(own), connection_limit=20)
    turns = Turns(made)
    clients = many(made, stack, *[get("/own/x", "Connection: close")] * MANY)
    assert [client.rest().rpartition(b"\r\n")[2] for client in clients] == [b"own"] * MANY
    assert 10 < turns.most <= 20


@pytest.mark.parametrize("mode", ["poll", "select"])
def test_an_own_page_is_called_before_the_crowd(
    mode: str, sockets: int, origin: MakeOrigin, site: MakeSite, stack: ExitStack
) -> None:
    """It came last; the crowd's own requests begin when all have been read, and each is answered. So where half of the
    crowd comes to another socket."""
    gate, before = Gate(), list[int]()

    def view(request: Any) -> Response:
        before.append(made.engine.admission.in_flight)
        return Response("own")

    options: dict[str, Any] = {"connection_limit": 500, "sockets": sockets, **MODES[mode]}
    made = site(route("r", origin(gate).url), configure=with_view(view), **options)
    clients = many(made, stack, *[get(f"/r/{number}") for number in range(MANY)], get("/own/last"))
    assert body(clients.pop()) == b"own"
    assert before == [0, 0]
    gate.opened.set()
    assert [body(client) for client in clients] == [b"/%d" % number for number in range(MANY)]


@pytest.fixture
def dispatcher() -> ThreadedTaskDispatcher:
    made = ThreadedTaskDispatcher()
    take_turns(made)
    return made


def come(crowd: Crowd, dispatcher: ThreadedTaskDispatcher, count: int = CROWD) -> None:
    for _ in range(count):
        crowd.one_more(dispatcher)


def test_a_few_are_no_crowd(dispatcher: ThreadedTaskDispatcher) -> None:
    """Their requests begin at once, however many turns go on so."""
    crowd = Crowd()
    for _ in range(3):
        come(crowd, dispatcher, CROWD - 1)
        assert not isinstance(dispatcher.queue, Holding)
        assert not crowd.begin_turn()


def test_requests_wait_as_long_as_the_crowd_comes(dispatcher: ThreadedTaskDispatcher) -> None:
    """A turn that hears of few ends it; no turn waits for news while somebody waits for its end."""
    crowd = Crowd()
    come(crowd, dispatcher)
    for _ in range(3):
        assert isinstance(dispatcher.queue, Holding)
        assert crowd.begin_turn()
        come(crowd, dispatcher)
    assert crowd.begin_turn()
    come(crowd, dispatcher, CROWD - 1)
    assert not crowd.begin_turn()
    assert not isinstance(dispatcher.queue, Holding)


def test_requests_do_not_wait_for_ever(dispatcher: ThreadedTaskDispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowd without end is served too."""
    monkeypatch.setattr(crowd_module, "LONGEST", 0)
    crowd = Crowd()
    come(crowd, dispatcher)
    assert not crowd.begin_turn()
    assert not isinstance(dispatcher.queue, Holding)


def test_two_sockets_have_a_crowd_each(dispatcher: ThreadedTaskDispatcher) -> None:
    """Requests wait until both have come."""
    first, second = Crowd(), Crowd()
    come(first, dispatcher)
    come(second, dispatcher)
    first.let_begin()
    assert isinstance(dispatcher.queue, Holding)
    second.let_begin()
    assert isinstance(dispatcher.queue, TaskQueue)


def test_the_end_of_the_loop_lets_them_begin(dispatcher: ThreadedTaskDispatcher) -> None:
    """Nobody would let them otherwise."""
    crowd = Crowd()
    come(crowd, dispatcher)
    crowd.let_begin()
    assert not isinstance(dispatcher.queue, Holding)
    crowd.let_begin()  # once more is nothing
