"""Channels that only wait for their clients are one entry of waitress's table, and miss nothing by it."""

from __future__ import annotations

import logging
import re
import select
import socket
from contextlib import ExitStack, closing
from typing import Any

import pytest

from pyramid_threaded_proxy.detach import resting
from pyramid_threaded_proxy.detach.resting import Resting
from tests.support.detaching import BIG, big_view, connections, slow_client
from tests.support.origin import Gate, MakeOrigin
from tests.support.site import MODES, MakeSite, Site, own_view, route
from tests.support.waiting import wait_until
from tests.support.wire import Wire, body, get

MANY = 40


def many(site: Site, stack: ExitStack) -> list[Wire]:
    """Clients that have been answered, and rest."""
    clients = [stack.enter_context(closing(site.client())) for _ in range(MANY)]
    for client in clients:
        client.send(get("/own"))
    assert [body(client) for client in clients] == [b"own"] * MANY
    for _ in range(2):  # turns of a loop that may sleep
        site.on_main_thread(lambda: None)
    wait_until(lambda: len(resting_of(site)) >= MANY, "all at rest")
    return clients


def resting_of(site: Site) -> Resting:
    found = {channel.resting for channel in connections(site)}
    assert len(found) == 1
    return found.pop()


def entries_of(site: Site) -> int:
    """What waitress asks in each turn."""
    return sum(hasattr(entry, "requests") for entry in list(site.map.values()))


@pytest.mark.parametrize("mode", ["poll", "select"])
def test_waitress_asks_one_for_all(mode: str, sockets: int, site: MakeSite, stack: ExitStack) -> None:
    """So with two listening sockets; each is heard when it speaks again, also where the loop would sleep an hour."""
    made = site({}, configure=own_view, sockets=sockets, asyncore_loop_timeout=3600, **MODES[mode])
    clients = many(made, stack)
    assert entries_of(made) == 0
    for client in [*clients, *reversed(clients)]:
        client.send(get("/own"))
        assert body(client) == b"own"
    made.on_main_thread(lambda: None)
    wait_until(lambda: entries_of(made) == 0, "all at rest")


def test_who_leaves_is_closed(site: MakeSite, stack: ExitStack) -> None:
    """By a close, or a reset; the others stay."""
    made = site({}, configure=own_view)
    clients = many(made, stack)
    for number, client in enumerate(clients[1:]):
        client.close() if number % 2 else client.reset()
    wait_until(lambda: len(connections(made)) == 1, "the end of all but one")
    clients[0].send(get("/own"))
    assert body(clients[0]) == b"own"


def test_who_says_nothing_is_closed(site: MakeSite, stack: ExitStack) -> None:
    """`channel_timeout` holds for those who rest."""
    made = site({}, configure=own_view, channel_timeout=1, cleanup_interval=1)
    for client in many(made, stack):
        assert client.rest() == b""
    wait_until(lambda: not connections(made), "the end of all")


def test_the_last_answer_closes(origin: MakeOrigin, site: MakeSite, stack: ExitStack) -> None:
    """An own view's, and an exchange's that ends before its connection leaves waitress's tables."""
    gate = Gate()
    gate.opened.set()
    made = site(route("r", origin(gate).url), configure=own_view, asyncore_loop_timeout=3600)
    for number, client in enumerate(many(made, stack)):
        client.send(get(("/own", "/r/own")[number % 2], "Connection: close"))
        assert client.rest().endswith(b"own")
    wait_until(lambda: not connections(made), "the end of all")


def test_who_is_not_to_be_read_leaves(origin: MakeOrigin, site: MakeSite, stack: ExitStack) -> None:
    """Its epoll object would tell of the bytes again and again."""
    gate = Gate()
    made = site(route("r", origin(gate).url), configure=own_view)
    client = many(made, stack)[0]
    client.send(get("/r/x"))
    gate.wait_asked()
    client.send(get("/own"))
    wait_until(lambda: any(channel.unread and not channel.at_rest for channel in connections(made)), "its leave")
    gate.opened.set()
    assert (body(client), body(client)) == (b"/x", b"own")


def test_a_refused_request_closes(site: MakeSite, stack: ExitStack) -> None:
    """One that waitress answers itself."""
    made = site({}, configure=own_view)
    for client in many(made, stack):
        client.send(b"GET /own HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n")
        assert client.rest().startswith(b"HTTP/1.1 400")
    wait_until(lambda: not connections(made), "the end of all")


def test_more_than_a_socket_takes(site: MakeSite, stack: ExitStack) -> None:
    """An answer that the main thread has to flush: the client is slow, and rested when it asked."""
    made = site({}, configure=big_view)
    many(made, stack)
    client = stack.enter_context(closing(slow_client(made)))
    client.send(get("/own"))
    assert body(client) == b"own"
    wait_until(lambda: len(resting_of(made)) > MANY, "it rests")
    for _ in range(2):
        client.send(get("/big"))
        wait_until(lambda: any(one.total_outbufs_len and not one.sending for one in connections(made)), "what is left")
        assert len(body(client)) == BIG


def test_exchanges_of_those_who_rest(origin: MakeOrigin, site: MakeSite, stack: ExitStack) -> None:
    """Proxied requests begin and end without leaving: short ones, and long ones that leave waitress's tables."""
    gate, quick = Gate(), Gate()
    quick.opened.set()
    made = site({**route("r", origin(quick).url), **route("long", origin(gate).url)}, configure=own_view)
    clients = many(made, stack)
    for turn in range(3):
        for number, client in enumerate(clients):
            client.send(get(f"/r/{turn}/{number}"))
        assert [body(client) for client in clients] == [b"/%d/%d" % (turn, number) for number in range(MANY)]
    for number, client in enumerate(clients):
        client.send(get(f"/long/{number}"))
    gate.wait_asked(MANY)
    wait_until(lambda: not resting_of(made), "all away")
    gate.opened.set()
    assert [body(client) for client in clients] == [b"/%d" % number for number in range(MANY)]
    for client in clients:
        client.send(get("/own"))
    assert [body(client) for client in clients] == [b"own"] * MANY


def test_they_count_for_the_limit(site: MakeSite, stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    """`connection_limit` holds, and is said, by waitress where all were in its table; who waits comes in later."""
    made = site({}, configure=own_view, connection_limit=MANY + 3)  # the server, its trigger and the entry count
    clients = many(made, stack)
    late = stack.enter_context(closing(made.client()))
    late.send(get("/own"))
    wait_until(lambda: [line for line in caplog.messages if re.search("connection.limit", line)], "the warning")
    for client in clients:
        client.send(get("/own"))
        assert body(client) == b"own"
    assert len(connections(made)) == MANY
    clients[0].close()
    assert body(late) == b"own"


@pytest.mark.parametrize("left", [MANY, 0])
def test_when_the_loop_ends(left: int, site: MakeSite, stack: ExitStack) -> None:
    """All of them are closed, and so is what they rested in, also where nobody does any more."""
    clients: list[Wire] = []
    found: list[Resting] = []

    def closed() -> None:
        assert [client.rest() for client in clients[:left]] == [b""] * left
        assert [(len(rest), rest._epoll) for rest in found] == [(0, None)]
        for client in clients:
            client.close()

    stack.callback(closed)  # behind the end of the site
    made = site({}, configure=own_view)
    with ExitStack() as kept:
        clients += many(made, kept)
        kept.pop_all()
    found.append(resting_of(made))
    for client in clients[left:]:
        client.close()
    wait_until(lambda: len(connections(made)) == left, "the end of the others")
    for _ in range(2):
        made.on_main_thread(lambda: None)
    assert (found[0] in made.map.values()) is bool(left) or resting.FEW < 0


def test_a_fault_of_its_own(
    site: MakeSite, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; waitress asks each of them again, and nobody is lost."""
    made = site({}, configure=own_view)
    clients = many(made, stack)

    def broken(self: Resting) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Resting, "handle_read_event", broken)
    for _ in range(2):
        for client in clients:
            client.send(get("/own"))
        assert [body(client) for client in clients] == [b"own"] * MANY
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        "waitress's loop asks each connection again"
    ]


@pytest.mark.parametrize("why", ["no epoll", "no descriptor", "a high number"])
def test_nobody_rests_without_it(why: str, site: MakeSite, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then waitress asks each, as ever."""
    if why == "no epoll":
        monkeypatch.delattr(select, "epoll")
    elif why == "no descriptor":
        monkeypatch.setattr(resting, "_new_epoll", lambda: None)
    else:
        monkeypatch.setattr(resting, "SELECT_LIMIT", 0)
    made = site({}, configure=own_view)
    clients = [stack.enter_context(closing(made.client())) for _ in range(MANY)]
    for client in clients:
        client.send(get("/own"))
    assert [body(client) for client in clients] == [b"own"] * MANY
    assert entries_of(made) == MANY


def test_the_loop_ends_without_any_left() -> None:
    """Waitress's loop goes on as long as there is an entry in its table."""
    table: dict[int, Any] = dict.fromkeys(range(-20, 0))
    rest = Resting(table)
    rest.begin_turn()
    assert rest in table.values()
    table = {number: entry for number, entry in table.items() if entry is rest}
    rest._table = table
    rest.close_when_empty()
    assert table == {}
    assert rest._epoll is None


def test_who_can_not_be_watched_stays() -> None:
    """Another thread has closed it, or the loop ends."""
    table: dict[int, Any] = {}
    rest = Resting(table)

    class Closed:
        _fileno = None

        def rests(self) -> bool:
            return True

    assert not rest.take(Closed())
    here, there = socket.socketpair()
    with here, there:
        channel = Closed()
        channel._fileno = here.fileno()  # type: ignore[assignment]
        assert rest.take(channel)
        assert not rest.take(channel)
        rest.close_when_empty()
        assert len(rest) == 1
        assert rest.drop(here.fileno())
        assert not rest.take(channel)
    assert table == {}
