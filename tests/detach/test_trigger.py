"""Waitress is woken once for many reasons, and never too seldom."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator

import pytest
from waitress.trigger import trigger as WaitressTrigger

from pyramid_threaded_proxy.detach.trigger import make_ours
from tests.support.waiting import wait_until


@pytest.fixture
def trigger() -> Iterator[WaitressTrigger]:
    made = WaitressTrigger({})
    make_ours(made)
    yield made
    made.close()


def wakes(trigger: WaitressTrigger) -> bool:
    """Whether waitress's poller would see the trigger."""
    return bool(select.select([trigger.socket.fileno()], [], [], 0)[0])


def test_many_pulls_are_one_wake(trigger: WaitressTrigger) -> None:
    """A hundred pulls write one byte, and after it was read the next pull writes again."""
    for _ in range(100):
        trigger.pull_trigger()
    assert len(trigger.socket.recv(8192)) == 1
    trigger.pulled = False
    trigger.pull_trigger()
    assert wakes(trigger)
    trigger.handle_read()
    assert not wakes(trigger)
    trigger.pull_trigger()
    assert wakes(trigger)


def test_a_pull_during_the_read_is_not_lost(trigger: WaitressTrigger) -> None:
    """A pull just before the bytes are read is swallowed with them; its thunk runs, and later pulls wake again."""
    ran: list[str] = []
    read = trigger.socket.recv

    def pulled_meanwhile(size: int) -> bytes:
        trigger.pull_trigger(lambda: ran.append("meanwhile"))
        return bytes(read(size))

    trigger.pull_trigger(lambda: ran.append("before"))
    trigger.socket.recv = pulled_meanwhile
    trigger.handle_read()
    trigger.socket.recv = read
    assert ran == ["before", "meanwhile"]
    trigger.pull_trigger(lambda: ran.append("after"))
    assert wakes(trigger)
    trigger.handle_read()
    assert ran[-1] == "after"


def test_no_thunk_is_lost_among_many_threads(trigger: WaitressTrigger) -> None:
    """Every thunk of eight threads runs, though most of their pulls write nothing."""
    ran: list[int] = []
    done = threading.Event()

    def pull() -> None:
        for number in range(500):
            trigger.pull_trigger(lambda number=number: ran.append(number))

    threads = [threading.Thread(target=pull) for _ in range(8)]

    def serve() -> None:
        while not done.is_set():
            if select.select([trigger.socket.fileno()], [], [], 0.05)[0]:
                trigger.handle_read()

    server = threading.Thread(target=serve)
    server.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(ran) == 4000, "every thunk", timeout=5)
    done.set()
    server.join()
