"""The two pollers say the same things: epoll's, and the one made of the standard library's selectors."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pyramid_threaded_proxy.loop import loop as loop_module
from pyramid_threaded_proxy.loop import poller as poller_module
from pyramid_threaded_proxy.loop.poller import (
    BROKEN,
    HANGUP,
    READ,
    WRITE,
    EpollPoller,
    Poller,
    SelectorPoller,
    new_poller,
    wait_for,
)
from tests.support.origin import MakeOrigin, answering, echo
from tests.support.pairs import Pair
from tests.support.site import MakeSite, route
from tests.support.waiting import wait_until


@pytest.fixture(params=[EpollPoller, SelectorPoller])
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    """One of the two."""
    made: Poller = request.param()
    yield made
    made.close()


def _seen(poller: Poller, fd: int) -> int:
    """The events of `fd` in the next turn that has some."""
    events = wait_until(lambda: poller.poll(0.05), "an event")
    assert [number for number, _ in events] == [fd]
    return int(events[0][1])


def test_readable_and_writable(poller: Poller, pair: Pair) -> None:
    """What is asked for is reported as long as it lasts, and nothing else."""
    near, far = pair[0].sock, pair[1]
    poller.set(near.fileno(), READ, False)
    assert poller.poll(0) == []
    far.send(b"x")
    assert _seen(poller, near.fileno()) == READ
    assert _seen(poller, near.fileno()) == READ
    poller.set(near.fileno(), READ | WRITE, True)
    assert _seen(poller, near.fileno()) == READ | WRITE
    near.recv(1)
    poller.set(near.fileno(), READ, True)
    assert poller.poll(0) == []


def test_a_hang_up_alone(poller: Poller, pair: Pair) -> None:
    """The peer's end is told from its bytes where only the end was asked for."""
    near, far = pair[0].sock, pair[1]
    poller.set(near.fileno(), HANGUP, False)
    far.send(b"x")
    assert poller.poll(0.05) == []
    near.recv(1)
    poller.set(near.fileno(), HANGUP, True)
    far.shutdown(socket.SHUT_WR)
    assert _seen(poller, near.fileno()) & HANGUP


def test_a_reset_is_an_event(poller: Poller, pair: Pair) -> None:
    """A reset wakes whoever waits for a hang-up."""
    near, far = pair[0].sock, pair[1]
    poller.set(near.fileno(), HANGUP, False)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    assert _seen(poller, near.fileno()) & (HANGUP | BROKEN)


def test_nothing_asked_for(poller: Poller, pair: Pair) -> None:
    """A socket can stay known with no events wanted; then bytes are silent."""
    near, far = pair[0].sock, pair[1]
    poller.set(near.fileno(), 0, False)
    far.send(b"x")
    assert poller.poll(0.02) == []
    poller.set(near.fileno(), READ, True)
    assert _seen(poller, near.fileno()) == READ
    poller.set(near.fileno(), 0, True)
    assert poller.poll(0.02) == []


def test_what_is_forgotten_is_silent(poller: Poller, pair: Pair) -> None:
    """After `forget` the socket may be closed, and may come again."""
    near, far = pair[0].sock, pair[1]
    far.send(b"x")
    poller.set(near.fileno(), READ, False)
    poller.forget(near.fileno())
    assert poller.poll(0) == []
    poller.set(near.fileno(), READ, False)
    assert _seen(poller, near.fileno()) == READ


def test_a_wake_up_ends_a_poll(poller: Poller) -> None:
    """`wake` from another thread ends a poll that would last for ever; one in advance ends the next one."""
    done = threading.Event()
    thread = threading.Thread(target=lambda: (poller.poll(None), done.set()))
    thread.start()
    poller.wake()
    assert done.wait(10)
    thread.join()
    poller.wake()
    poller.wake()
    assert poller.poll(None) == []
    assert poller.poll(0) == []


def test_wake_ups_without_a_poll_do_no_harm(poller: Poller) -> None:
    """So many that no buffer takes them all."""
    for _ in range(100_000):
        poller.wake()
    assert poller.poll(None) == []
    assert poller.poll(0) == []


def test_the_best_poller_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """epoll where the system has it, selectors elsewhere."""
    made = new_poller()
    assert isinstance(made, EpollPoller)
    made.close()
    monkeypatch.delattr(select, "epoll")
    made = new_poller()
    assert isinstance(made, SelectorPoller)
    made.close()


@pytest.mark.parametrize("has_poll", [True, False])
def test_blocking_in_one_thread(pair: Pair, monkeypatch: pytest.MonkeyPatch, has_poll: bool) -> None:
    """`wait_for` returns the ready descriptor and its events, or that the time is over."""
    near, far = pair[0].sock, pair[1]
    if not has_poll:
        monkeypatch.delattr(poller_module.select, "poll")
    assert wait_for({near.fileno(): READ}, 0.01) == (-1, 0)
    assert wait_for({near.fileno(): WRITE}, 5) == (near.fileno(), WRITE)
    far.send(b"x")
    fd, events = wait_for({near.fileno(): READ}, 5)
    assert (fd, events & READ) == (near.fileno(), READ)


def test_the_relay_lives_on_selectors(origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without epoll requests, big bodies, time-outs, kept connections and clients that go work the same."""
    monkeypatch.setattr(loop_module, "new_poller", SelectorPoller)
    big = bytes(range(256)) * 20_000
    upstream = origin(echo)
    bodies = origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(big), big)))
    quiet = origin(lambda wire: wire.wait_closed())
    where = site({
        **route("r", upstream.url), **route("big", bodies.url), **route("late", quiet.url, read_timeout="100ms"),
        **route("quiet", quiet.url),
    })  # fmt: skip
    assert [where.get("/r/", method="POST", body=big).body.endswith(big) for _ in range(2)] == [True, True]
    assert upstream.accepted == 1
    assert where.get("/big/").body == big
    assert where.get("/late/").status == 504
    client = where.client()
    client.send(b"GET /quiet/ HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: where.parked(READ), "an exchange that waits")
    client.close()
    wait_until(lambda: where.engine.admission.in_flight == 0, "the exchange to end")
    for wire in upstream.wires:
        wire.sock.shutdown(socket.SHUT_RDWR)
    assert where.get("/r/").status == 200


@pytest.mark.parametrize("kind", [EpollPoller, SelectorPoller])
def test_a_wake_up_that_comes_too_late(kind: Callable[[], Poller], stack: ExitStack) -> None:
    """A poller that is closed is not woken, and nothing is written to whoever has its descriptors now."""
    made = kind()
    made.close()
    pairs = [socket.socketpair() for _ in range(4)]
    made.wake()
    for pair in pairs:
        for sock in map(stack.enter_context, pair):
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
