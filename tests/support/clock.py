"""Time as a test says it."""

from __future__ import annotations

import time


class Clock:
    """In place of a module's `time`: the real clock, or one that stands still, ahead by as much as a test says."""

    def __init__(self, still: bool = False) -> None:
        self.ahead = 0.0
        self._stands_at = time.monotonic() if still else None

    def monotonic(self) -> float:
        now = time.monotonic() if self._stands_at is None else self._stands_at
        return now + self.ahead
