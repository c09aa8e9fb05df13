"""The order of a stop, with a server's loop and a relay that only note what they are told."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from pyramid_threaded_proxy.loop import stopping
from pyramid_threaded_proxy.loop.stopping import Stop
from tests.support.waiting import PATIENCE

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Loop:
    """A server's loop; the test makes its turns."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes
        self.running = True
        self.is_busy = False
        self.fault: Exception | None = None
        self.turn: Callable[[], None] | None = None
        self.woken = threading.Event()

    def runs(self, frame: FrameType | None) -> bool:
        return self.running

    def look_with(self, look: Callable[[], None]) -> None:
        self.turn = look

    def wake(self) -> None:
        self.woken.set()

    def stop_listening(self) -> None:
        self.notes.append("stop listening")
        if self.fault is not None:
            raise self.fault

    def busy(self) -> bool:
        return self.is_busy

    def look(self) -> None:
        assert self.turn is not None
        self.turn()


class Relay:
    """A relay with exchanges in flight."""

    def __init__(self, notes: list[str], drain_timeout: float = 300) -> None:
        self.notes = notes
        self.drain_timeout = drain_timeout
        self.is_busy = True

    def drain(self) -> None:
        self.notes.append("drain")

    def busy(self) -> bool:
        return self.is_busy

    def cut(self) -> None:
        self.notes.append("cut")


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def loop(notes: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    """A loop of a process that has relayed nothing yet; the signals are as before when the test ends."""
    monkeypatch.setattr(stopping, "_stop", None)
    before = [signal.getsignal(number) for number in SIGNALS]
    # A shell has its background jobs ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    loop = Loop(notes)
    yield loop
    if stopping._stop is not None:
        stopping._stop._over.set()
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def relay(loop: Loop, notes: list[str]) -> Relay:
    """A relay that has joined."""
    relay = Relay(notes)
    stopping.join(loop, relay)
    return relay


def current() -> Stop:
    assert stopping._stop is not None
    return stopping._stop


def test_the_order(loop: Loop, relay: Relay, notes: list[str]) -> None:
    """A signal does nothing at once; then listening ends, what is idle closes, and the end waits for the relay."""
    signal.raise_signal(signal.SIGINT)
    assert notes == []
    loop.look()
    assert loop.woken.wait(PATIENCE)
    loop.look()
    assert notes == ["stop listening", "drain"]
    relay.is_busy = False
    with pytest.raises(KeyboardInterrupt):
        loop.look()
    assert notes == ["stop listening", "drain"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_server_is_waited_for(loop: Loop, relay: Relay) -> None:
    """The end waits for what the server has to answer, too."""
    relay.is_busy, loop.is_busy = False, True
    signal.raise_signal(signal.SIGINT)
    loop.look()
    loop.is_busy = False
    with pytest.raises(KeyboardInterrupt):
        loop.look()


def test_a_second_signal_cuts(loop: Loop, relay: Relay, notes: list[str]) -> None:
    """What is left is cut then; the end waits for its last words, but not for the server."""
    loop.is_busy = True
    signal.raise_signal(signal.SIGINT)
    loop.look()
    signal.raise_signal(signal.SIGTERM)
    loop.look()
    assert notes == ["stop listening", "drain", "cut"]
    relay.is_busy = False
    with pytest.raises(KeyboardInterrupt):
        loop.look()


def test_two_signals_in_one_turn_cut(loop: Loop, relay: Relay, notes: list[str]) -> None:
    """Signals that come before the loop has looked count all the same."""
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    loop.look()
    assert notes == ["stop listening", "drain", "cut"]


def test_the_longest_drain_timeout_counts(
    loop: Loop, relay: Relay, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two applications the deadline is that of the more patient one; last words end even if nobody says them."""
    now = [1000.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    relay.drain_timeout = 2
    stopping.join(loop, Relay(notes, 5))
    signal.raise_signal(signal.SIGINT)
    loop.look()
    now[0] += 4.9
    loop.look()
    assert "cut" not in notes
    now[0] += 0.1
    loop.look()
    assert notes.count("cut") == 2
    now[0] += stopping.LAST_WORDS
    with pytest.raises(KeyboardInterrupt):
        loop.look()


def test_a_loop_that_is_over_stops_nothing(loop: Loop, relay: Relay, notes: list[str]) -> None:
    """Where the program goes on without its server, a signal does what it did before us."""
    loop.running = False
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert notes == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_fault_ends_the_process(loop: Loop, relay: Relay, caplog: pytest.LogCaptureFixture) -> None:
    """If the stop itself fails the process still ends, and the log says why."""
    loop.fault = RuntimeError("no such luck")
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.look()
    assert "no such luck" in caplog.text


def test_only_the_main_thread_takes_signals(loop: Loop, notes: list[str]) -> None:
    """A server in another thread stops as without us."""
    thread = threading.Thread(target=stopping.join, args=(loop, Relay(notes)))
    thread.start()
    thread.join()
    assert stopping._stop is None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None], ids=["ignored", "handled"])
def test_a_signal_of_the_application_s_stays(loop: Loop, notes: list[str], handler: signal.Handlers) -> None:
    """A signal that somebody handles or ignores is theirs."""
    signal.signal(signal.SIGTERM, handler)
    stopping.join(loop, Relay(notes))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.getsignal(signal.SIGINT) == current()._on_signal


def test_a_handler_around_ours(loop: Loop, relay: Relay) -> None:
    """An application that takes the signal later, and calls ours, gets the same end; its other handlers stay."""
    inner = signal.getsignal(signal.SIGINT)
    assert callable(inner)
    called = []

    def outer(number: int, frame: FrameType | None) -> None:
        called.append(number)
        inner(number, frame)

    signal.signal(signal.SIGINT, outer)
    signal.signal(signal.SIGTERM, outer)
    relay.is_busy = False
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.look()
    assert called == [signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is outer


def test_joining_again_after_a_stop(loop: Loop, relay: Relay, notes: list[str]) -> None:
    """A program that survives its stop, and serves again, can be told to stop again."""
    first = current()
    relay.is_busy = False
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.look()
    stopping.join(loop, Relay(notes))
    assert current() is not first
    assert signal.getsignal(signal.SIGINT) == current()._on_signal


def test_a_child_takes_the_signals_for_itself(loop: Loop, relay: Relay, notes: list[str]) -> None:
    """In a forked process the parent's stop is replaced with the first exchange, its handlers with it."""
    parent = current()
    parent.pid += 1
    other = Relay(notes)
    stopping.join(loop, other)
    assert current().relays == [other]
    assert signal.getsignal(signal.SIGTERM) == current()._on_signal
