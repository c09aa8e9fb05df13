"""The order of a stop: what SIGTERM and SIGINT do once the process has relayed something.

The sockets that it listens on are closed, while the server's loop goes on. Idle connections to upstreams close.
What was received is answered, with ``Connection: close`` (RFC 9112 9.6). What is still in flight after
``drain_timeout``, or on a second signal, is cut. Then the former handler is restored and the signal raised again,
so that the process ends as it would without us.

Nothing here knows the server: see `detach.server.WaitressLoop`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from pyramid_threaded_proxy.loop import log_writer

log = logging.getLogger("pyramid_threaded_proxy.stopping")

#: Seconds between two looks at what is left.
LOOK_EVERY = 0.05
#: Seconds that exchanges which were cut have for their last words: an answer of 503, the log, the `complete` hook.
LAST_WORDS = 1.0

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ServerLoop(Protocol):
    """The server's loop. Its own thread calls everything but `wake`."""

    def runs(self, frame: FrameType | None) -> bool:
        """Whether the loop is what a signal has interrupted at `frame`."""

    def look_with(self, look: Callable[[], None]) -> None:
        """Call `look` soon, and whenever the loop is woken. Takes no lock: it runs in a signal's handler."""

    def wake(self) -> None:
        """Have it look. Any thread."""

    def stop_listening(self) -> None:
        """Take what waits to be accepted, close the listening sockets, and let connections end with their answer."""

    def busy(self) -> bool:
        """Whether a client would lose an answer if the process ended now."""


class Relaying(Protocol):
    """Whoever has exchanges in flight. Called by the server's loop."""

    @property
    def drain_timeout(self) -> float:
        """Seconds that they may take to end."""

    def drain(self) -> None:
        """The process stops: close what is idle."""

    def busy(self) -> bool:
        """Whether an exchange is in flight, or has not been reported yet."""

    def cut(self) -> None:
        """End those in flight. A second call changes nothing for them."""


class Stop:
    """One process's way to its end. The main thread alone touches it, once it has been told by `_on_signal`."""

    def __init__(self, loop: ServerLoop) -> None:
        self.loop = loop
        self.relays: list[Relaying] = []
        self.pid = os.getpid()
        self._former: dict[int, Any] = {}
        self._told: list[int] = []  # the signals that came
        self._deadline: float | None = None
        self._cut_at: float | None = None
        self._announced = False
        self._over = threading.Event()

    @property
    def stale(self) -> bool:
        """Whether it is a parent process's, or has done its work."""
        return self.pid != os.getpid() or self._over.is_set()

    def take_signals(self) -> None:
        """Take the signals that nobody else has taken."""
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                self._former[number] = handler
                signal.signal(number, self._on_signal)

    def let_signals_go(self) -> None:
        """Restore the former handlers, where nobody has replaced ours."""
        for number, handler in self._former.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Python's main thread, anywhere in its code: takes no lock. Where the loop is over nobody would look."""
        if self.stale or not self.loop.runs(frame):
            self._end(number)
        else:
            self._told.append(number)
            self.loop.look_with(self._look)

    def _look(self) -> None:
        """The server's loop. May raise KeyboardInterrupt, as the former handler of SIGINT does."""
        try:
            over = self._step(time.monotonic())
        except Exception:
            log.exception("stopping failed; the process ends at once")
            over = True
        if over:
            self._end(self._told[0])

    def _step(self, now: float) -> bool:
        """Go on with the stop; whether it has come to its end."""
        if self._deadline is None:
            self._deadline = now + self._patience()
            self._begin()
        elif not self._announced and self._busy():
            self._announced = True  # not at once: most often what is left ends within a moment
            log.warning(
                "stopping after %s: requests in flight have %g s to end; another signal cuts them",
                signal.Signals(self._told[0]).name,
                self._patience(),
            )
        if self._cut_at is None and (now >= self._deadline or len(self._told) > 1) and self._busy():
            self._cut_at = now
            log.warning("stopping: what is still in flight is cut")
        if self._cut_at is None:
            return not self._busy()
        for relay in self.relays:
            relay.cut()
        return now >= self._cut_at + LAST_WORDS or not any(relay.busy() for relay in self.relays)

    def _patience(self) -> float:
        """Seconds: two applications in one process have the longer of their times."""
        return max(relay.drain_timeout for relay in self.relays)

    def _busy(self) -> bool:
        return self.loop.busy() or any(relay.busy() for relay in self.relays)

    def _begin(self) -> None:
        self.loop.stop_listening()
        for relay in self.relays:
            relay.drain()
        threading.Thread(target=self._keep_looking, name="pproxy-stopping", daemon=True).start()

    def _keep_looking(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            self.loop.wake()

    def _end(self, number: int) -> None:
        """End as without us. The signal's own handler is restored in any case: another one may call ours."""
        if self.pid == os.getpid():  # a child's copy of the lock in it may be held for ever
            self._over.set()
            log_writer.flush(log_writer.PATIENCE)
        self.let_signals_go()
        signal.signal(number, self._former[number])
        signal.raise_signal(number)


_stop: Stop | None = None


def join(loop: ServerLoop, relay: Relaying) -> None:
    """Have a stop of this process wait for the exchanges of `relay`. Called in the thread of `loop`.

    Only Python's main thread can take signals: a server that runs elsewhere stops as without us.
    """
    global _stop
    if threading.current_thread() is not threading.main_thread():
        return
    if _stop is None or _stop.stale:
        if _stop is not None:
            _stop.let_signals_go()
        _stop = Stop(loop)
        _stop.take_signals()
    _stop.loop = loop
    if relay not in _stop.relays:
        _stop.relays.append(relay)
