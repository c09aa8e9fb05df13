"""Whether an upstream is fit to be asked: after failures in a row it rests, and is tried again."""

from __future__ import annotations

import threading
import time


class Health:
    """How one upstream of one route has been doing. Any thread; the lock guards the few fields of a troubled one.

    `fails` failures in a row (0: none ever) make it rest for `pause` seconds. When they are over, one exchange tries
    it; what becomes of that decides. Where an active probe asks (`probed`), it alone brings the upstream back.
    """

    __slots__ = ("_failures", "_lock", "_pause", "_probe_failures", "_until", "down", "fails", "probed")

    def __init__(self, fails: int, pause: float, probed: bool = False) -> None:
        self.fails = fails
        self.probed = probed
        #: Whether it rests, or is on trial.
        self.down = False
        self._pause = pause
        self._lock = threading.Lock()
        self._failures = 0
        self._probe_failures = 0
        self._until = 0.0  # by `time.monotonic()`

    def available(self) -> bool:
        """Whether an exchange may be sent there; of an upstream that has rested, one exchange a pause hears yes."""
        if not self.down:
            return True
        if self.probed:
            return False
        now = time.monotonic()
        with self._lock:
            if self.down and now < self._until:
                return False
            # The trial that nobody hears of again doesn't keep the upstream down for ever.
            self._until = now + self._pause
            return True

    def rest(self) -> float:
        """Seconds until it is tried again, as far as that is known."""
        return max(0.0, self._until - time.monotonic())

    def succeeded(self) -> bool:
        """An answer's head has come; returns whether this ends the rest."""
        if not self._failures:
            return False
        with self._lock:
            if self.down and self.probed:
                return False
            self._failures = 0
            was_down, self.down = self.down, False
            return was_down

    def failed(self) -> bool:
        """The upstream could not be reached or gave no valid answer; returns whether this begins a rest."""
        if not self.fails:
            return False
        now = time.monotonic()
        with self._lock:
            self._failures += 1
            if self.down:
                if now >= self._until:
                    self._until = now + self._pause
                return False
            if self._failures < self.fails:
                return False
            self._until = now + self._pause
            self.down = True
            return True

    def probe_succeeded(self) -> bool:
        """The active probe is content; returns whether this ends the rest, a pause for failed exchanges included."""
        with self._lock:
            self._probe_failures = 0
            if not self.down or time.monotonic() < self._until:
                return False
            self._failures = 0
            self.down = False
            return True

    def probe_failed(self) -> bool:
        """The active probe is not; returns whether this begins a rest."""
        with self._lock:
            self._probe_failures += 1
            if self.down or self._probe_failures < (self.fails or 1):
                return False
            self._failures = max(1, self._failures)
            self._until = time.monotonic()
            self.down = True
            return True
