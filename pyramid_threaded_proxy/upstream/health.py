"""Whether an upstream is fit to be asked: after failures in a row it is marked down, and is tried again.

Only what tells of the upstream counts. One request alone must not take a route away from everybody: so a success
since it began outweighs what became of it, an upstream without others beside it is marked down by nothing but its
probe, and where all are down the requests of those who did not make them fail may try at once.
"""

from __future__ import annotations

import threading
import time
import weakref
from math import inf
from time import time as wall_clock

#: So many different users whose requests failed are remembered; of more, nobody may try before the pause is over.
MOST_BLAMED = 256


class Trial:
    """One request's leave to try an upstream that is marked down. Dropping it, or `Health.give_back`, ends it."""

    __slots__ = ("__weakref__", "user")

    def __init__(self, user: str) -> None:
        self.user = user


class Health:
    """How one upstream of one route has been doing. Any thread; the lock guards the few fields of a troubled one.

    `fails` failures in a row (0: none ever) mark it down for `pause` seconds. When they are over, one exchange tries
    it; what becomes of that decides. Where an active probe asks (`probed`), it alone brings the upstream back, but
    for a trial while no other upstream is up. One that is `alone` is marked down by its probe only.
    """

    __slots__ = (
        "_asked",
        "_blamed",
        "_by_probe",
        "_failures",
        "_held_until",
        "_lock",
        "_pause",
        "_probe_failures",
        "_succeeded",
        "_trial",
        "_trial_until",
        "_until",
        "alone",
        "down",
        "fails",
        "probed",
    )

    def __init__(self, fails: int, pause: float, probed: bool = False, alone: bool = False) -> None:
        self.fails = fails
        self.probed = probed
        self.alone = alone
        #: Whether it is marked down, or on trial.
        self.down = False
        self._pause = pause
        self._lock = threading.Lock()
        self._failures = 0
        self._probe_failures = 0
        self._by_probe = False  # it is down because its probe says so
        self._succeeded = 0.0  # when an answer came last; this and what follows by `time.monotonic()`
        self._until = 0.0
        self._trial: weakref.ref[Trial] | None = None  # weak: one that nobody holds any more has ended without a word
        self._trial_until = 0.0
        self._blamed: set[str] = set()  # whose requests failed since it did well
        self._held_until = 0.0  # an operator has taken it out; infinity: until told otherwise
        self._asked: tuple[float, bool] | None = None

    def hold(self, seconds: float) -> None:
        """An operator takes it out: no request goes there for `seconds`, then it is tried; infinity: until `wake`."""
        with self._lock:
            self._held_until = self._until = time.monotonic() + seconds
            self._failures = max(1, self._failures)
            self.down = True

    def wake(self) -> None:
        """An operator says that it is well: it is up at once, whatever was noted."""
        with self._lock:
            self._failures = self._probe_failures = 0
            self._held_until = self._until = 0.0
            self._by_probe = False
            self._blamed.clear()
            self.down = False

    @property
    def drained(self) -> bool:
        """Whether an operator has taken it out until told otherwise."""
        return self._held_until == inf

    @property
    def last_probe(self) -> tuple[float, bool] | None:
        """When the active probe asked last, by `time.time()`, and whether it was content."""
        return self._asked

    def _is_held(self) -> bool:
        return bool(self._held_until) and time.monotonic() < self._held_until

    def trial(self, user: str, early: bool = False) -> Trial | None:
        """Leave for a request of `user` to try an upstream that is down; None while there is none.

        One request at a time, and not before its pause is over; `early`, where no other upstream is up, at once, but
        for those whose own requests have failed. These can't keep others from a trial either.
        """
        now = time.monotonic()
        with self._lock:
            if self._is_held() or self._by_probe or (self.probed and not early):
                return None
            blamed = user in self._blamed or len(self._blamed) >= MOST_BLAMED
            if now < self._until and (blamed or not early):
                return None
            if self._is_tried(now) and (blamed or not self._tried_by_blamed()):
                return None
            trial = Trial(user)
            self._trial, self._trial_until = weakref.ref(trial), now + self._pause
            return trial

    def _is_tried(self, now: float) -> bool:
        """Whether a trial is under way; one that takes longer than a pause keeps nobody else waiting."""
        return self._trial is not None and self._trial() is not None and now < self._trial_until

    def _tried_by_blamed(self) -> bool:
        trial = None if self._trial is None else self._trial()
        return trial is not None and trial.user in self._blamed

    def give_back(self, trial: Trial) -> None:
        """The trial ended without a verdict, or after it: another request may try."""
        with self._lock:
            if self._trial is not None and self._trial() is trial:
                self._trial = None

    def may_be_tried(self) -> bool:
        """Whether nothing but failed exchanges keeps it down."""
        return not self._by_probe and not self._is_held()

    def rest(self) -> float:
        """Seconds until it is tried again, as far as that is known."""
        return max(0.0, self._until - time.monotonic())

    def succeeded(self, now: float) -> bool:
        """An answer's head has come at `now`, by `time.monotonic()`; returns whether it is up again with it."""
        self._succeeded = now
        if not self._failures:
            return False
        with self._lock:
            if self._by_probe or self._is_held():
                return False
            self._failures = 0
            self._blamed.clear()
            was_down, self.down = self.down, False
            return was_down

    def succeeded_since(self, moment: float) -> bool:
        """Whether an answer has come since `moment`, by `time.monotonic()`."""
        return self._succeeded > moment

    def failed(self, user: str = "", trial: Trial | None = None) -> bool:
        """The upstream could not be reached, or did not answer a request of `user`; returns whether it is down now.

        `trial` is the leave that this request had.
        """
        if self.alone or not self.fails:
            return False
        now = time.monotonic()
        with self._lock:
            self._failures += 1
            if len(self._blamed) < MOST_BLAMED:
                self._blamed.add(user)
            if self.down:
                if not self._is_held() and (trial is not None or now >= self._until):
                    self._until = now + self._pause
                return False
            if self._failures < self.fails:
                return False
            self._until = now + self._pause
            self.down = True
            return True

    def probe_succeeded(self) -> bool:
        """The active probe is content; returns whether it is up again, after a pause for failed exchanges."""
        with self._lock:
            self._probe_failures = 0
            self._by_probe = False
            self._asked = (wall_clock(), True)
            if not self.down or time.monotonic() < self._until:
                return False
            self._failures = 0
            self._blamed.clear()
            self.down = False
            return True

    def probe_failed(self) -> bool:
        """The active probe is not; returns whether this marks it down."""
        with self._lock:
            self._probe_failures += 1
            self._asked = (wall_clock(), False)
            if self._probe_failures < (self.fails or 1):
                return False
            self._by_probe = True
            if self.down:
                return False
            self._failures = max(1, self._failures)
            self._until = time.monotonic()
            self.down = True
            return True
