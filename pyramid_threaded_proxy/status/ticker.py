"""Counts once a second, in the loop's thread."""

from __future__ import annotations

import threading
import time
from math import floor

from pyramid_threaded_proxy.loop.loop import Loop
from pyramid_threaded_proxy.loop.scheduler import Scheduler
from pyramid_threaded_proxy.loop.timers import GRANULARITY
from pyramid_threaded_proxy.status.status import Status


class Ticker:
    """Begins with the first exchange, and anew after a fork or when a loop was replaced."""

    def __init__(self, status: Status, scheduler: Scheduler) -> None:
        self._status = status
        self._scheduler = scheduler
        self._lock = threading.Lock()
        self._due = 0.0
        #: The loop whose ticks count.
        self.loop: Loop | None = None

    def start(self) -> None:
        """Start ticking, unless it does. Any thread, for each exchange."""
        if self._scheduler.start() is self.loop:
            return
        with self._lock:
            loop = self._scheduler.start()
            if loop is self.loop:
                return
            self.loop = loop
        loop.post(self._wait)

    def _wait(self) -> None:
        loop = self.loop
        if loop is not None and loop.thread is threading.current_thread():
            self._due = floor(time.monotonic()) + 1.0
            loop.call_at(self, self._due)

    def on_timer(self, now: float) -> None:
        """A second is over (`timers.Timed`)."""
        loop = self.loop
        if loop is None or loop.thread is not threading.current_thread():
            return  # another one ticks
        # What was ready at the beginning of this turn waits at least until now, and it may have begun late.
        late = max(time.monotonic() - now, now - self._due - 2 * GRANULARITY)
        self._wait()
        self._status.tick(late)
