"""Deadlines, kept in coarse buckets so that their number costs nothing.

Most deadlines never pass: each read moves an exchange's deadline on. So nothing is ever taken out or moved.
An entry lies in one bucket; when the bucket comes up, its owner looks at the real deadline and adds it again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

#: Seconds: how late a deadline may be noticed.
GRANULARITY = 0.02


class Timed(Protocol):
    """What can be put into a bucket."""

    def on_timer(self, now: float) -> None:
        """The bucket came up; `now` is `time.monotonic()`. Called by the thread that owns the timers."""


class Timers:
    """One thread's deadlines, by `time.monotonic()`. Not thread-safe: the scheduler's loop alone uses it."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[Timed]] = {}
        self._ticks: list[int] = []

    def add(self, entry: Timed, due: float) -> None:
        """Call ``entry.on_timer`` soon after `due`. An entry added twice is called twice."""
        tick = int(due / GRANULARITY) + 1
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = [entry]
            heapq.heappush(self._ticks, tick)
        else:
            bucket.append(entry)

    def timeout(self, now: float) -> float | None:
        """Seconds until the next bucket comes up, None if there is none."""
        if not self._ticks:
            return None
        return max(0.0, self._ticks[0] * GRANULARITY - now)

    def run(self, now: float, failed: Callable[[Timed, Exception], None]) -> None:
        """Call every entry whose bucket has come up. One that raises is told to `failed`, and the others are called."""
        ticks = self._ticks
        while ticks and ticks[0] * GRANULARITY <= now:
            for entry in self._buckets.pop(heapq.heappop(ticks)):
                try:
                    entry.on_timer(now)
                except Exception as error:
                    failed(entry, error)
