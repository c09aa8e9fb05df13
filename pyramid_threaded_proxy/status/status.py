"""The one place that counts: what metrics, page and JSON show comes from here, so that they can't disagree.

An exchange leaves a tuple when it is over: that is all it pays. Once a second, and before anything is shown, what was
left is counted by whoever comes first; exchanges never wait for that, and no lock of theirs is held.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from pyramid_threaded_proxy.accesslog import WHOLE, how_it_ended, shown_status
from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.status.counts import Counts, Ended
from pyramid_threaded_proxy.status.history import History
from pyramid_threaded_proxy.upstream.balance import Upstream

#: Of failures the last so many are kept.
FAILURES = 100
#: Characters of a text that is kept of a failure.
SHOWN = 300
#: Exchanges that nobody has counted yet: of more, the one that ends counts them.
MOST_UNCOUNTED = 10_000


class Failure(NamedTuple):
    """An exchange that did not end well. `when` is by `time.time()`."""

    when: float
    route: str
    userid: str
    method: str
    path: str
    upstream: str
    code: int
    ended: str
    rule: str
    request_id: str


class Elsewhere(Protocol):
    """The other processes of the site. Any thread; nobody waits longer than 50 ms."""

    @property
    def name(self) -> str:
        """What this process is called there."""

    def others(self) -> tuple[bool, list[dict[str, Any]]]:
        """What they have said of themselves; False where nobody could be asked."""


class Observed(Protocol):
    """What is looked at, not counted: how things are at this moment. Any thread."""

    def exchanges(self) -> Iterable[Exchange]:
        """Those in flight."""

    def active(self) -> dict[str, int]:
        """Slots taken, by route."""

    def limits(self) -> dict[str, int]:
        """How many exchanges each route may have in flight."""

    def upstreams(self) -> Iterator[tuple[str, Upstream, int]]:
        """Route, upstream, and the idle connections that are kept to it."""

    def max_exchanges(self) -> int:
        """How many exchanges the process may have in flight."""

    def pool_busy(self) -> int:
        """Threads of the pool that run something."""

    def draining(self) -> bool:
        """Whether the process stops."""

    def close(self, request_id: str) -> int:
        """End the exchanges with this id; returns how many there were."""


class Moving(NamedTuple):
    """Sums over the exchanges in flight: by route their bytes up and down, and how many each upstream has."""

    bytes: dict[str, list[int]]
    upstreams: dict[tuple[str, str], int]


class Status:
    """Counts and history of one application in this process, and the view on what is in flight.

    `ended` and `refused` are called by whatever thread ends or refuses an exchange, and cost an append. All else is
    for readers, and for the loop's tick; `clock` is `time.monotonic`, or a test's.
    """

    def __init__(
        self, observed: Observed, known: Callable[[str], frozenset[str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.observed = observed
        #: The other processes; None where nothing is shared with them.
        self.elsewhere: Elsewhere | None = None
        self.counts = Counts(known)
        self.history = History()
        self.failures: deque[Failure] = deque(maxlen=FAILURES)
        #: By route and upstream: why it is down, or was last.
        self.reasons: dict[tuple[str, str], str] = {}
        self._clock = clock
        self._ended: deque[Ended] = deque()
        self._refused: deque[tuple[str, str]] = deque()
        self._lags: deque[float] = deque()
        self._counting = threading.Lock()  # among readers and the tick
        #: By route: bytes up and down as they were shown last; a sum that is tried again begins anew, a total does not.
        self.bytes: dict[str, list[int]] = {}
        self.history.advance(clock())

    # What exchanges leave

    def ended(self, exchange: Exchange) -> None:
        """An exchange is over. The thread that ran it."""
        stats, error, answer = exchange.stats, exchange.error, exchange.response
        started = stats.started
        if error is None and answer is not None:  # as nearly all of them
            code, word = answer.status, WHOLE
        else:
            code, word = shown_status(exchange), how_it_ended(exchange)
        connected, first_byte, finished = stats.connected, stats.first_byte, stats.finished
        self._ended.append(
            (
                exchange.route,
                exchange.request.method,
                code,
                word,
                stats.upstream,
                stats.attempts,
                stats.bytes_up,
                stats.bytes_down,
                stats.authorized,
                None if connected is None else connected - started,
                None if first_byte is None else first_byte - started,
                0.0 if finished is None else finished - started,
            )
        )
        if error is not None:
            self.failures.append(_failure(exchange, code, word))
        if len(self._ended) > MOST_UNCOUNTED:
            self.tick()

    def refused(self, route: str, reason: str) -> None:
        """A request got no exchange, for one of `REASONS`. Any thread."""
        self._refused.append((route, reason))

    # Counting

    def tick(self, lag: float | None = None) -> None:
        """Count what was left, unless somebody is at it. Never waits. `lag`: how late the loop was, in seconds."""
        if lag is not None:
            self._lags.append(lag)
        if self._counting.acquire(blocking=False):
            try:
                self._count()
            finally:
                self._counting.release()

    @contextmanager
    def reading(self) -> Iterator[Moving]:
        """Everything counted up to now, and not changing while the block runs; with what moves at this moment."""
        with self._counting:
            yield self._count()

    def _count(self) -> Moving:
        # Half a second back: what a tick finds, right at the beginning of a second, is of the one before.
        self.history.advance(self._clock() - 0.5)
        self._count_ended()
        while self._refused:
            self.counts.refused[self._refused.popleft()] += 1
        while self._lags:
            self.counts.lag.add(self._lags.popleft())
        moving = self._moving()
        self._note_bytes(moving)
        return moving

    def _count_ended(self) -> None:
        """All that have ended up to now; those that end meanwhile are the next count's."""
        ended = self._ended
        cells, waits = self.counts.add([ended.popleft() for _ in range(len(ended))])
        if cells:
            self.history.add(cells, waits)

    def _moving(self) -> Moving:
        """After counting what has ended: an exchange that ends meanwhile is missing for a moment, and never twice."""
        both: dict[str, list[int]] = {}
        upstreams: dict[tuple[str, str], int] = {}
        for exchange in self.observed.exchanges():
            stats, route = exchange.stats, exchange.route
            sums = both.setdefault(route, [0, 0])
            sums[0] += stats.bytes_up
            sums[1] += stats.bytes_down
            key = route, self.counts.upstream_label(route, stats.upstream)
            upstreams[key] = upstreams.get(key, 0) + 1
        return Moving(both, upstreams)

    def _note_bytes(self, moving: Moving) -> None:
        moved = [0, 0]
        for route in {**self.counts.bytes, **moving.bytes}:
            shown = self.bytes.setdefault(route, [0, 0])
            over, under_way = self.counts.bytes.get(route, (0, 0)), moving.bytes.get(route, (0, 0))
            for way in (0, 1):
                total = max(shown[way], over[way] + under_way[way])
                moved[way] += total - shown[way]
                shown[way] = total
        self.history.note(moved[0], moved[1], sum(self.observed.active().values()))


def _failure(exchange: Exchange, code: int, ended: str) -> Failure:
    method, path = exchange.log_values[:2]
    return Failure(
        time.time(),
        exchange.route,
        (exchange.userid or "")[:SHOWN],
        (method if method != "-" else exchange.request.method)[:SHOWN],
        path[:SHOWN],
        exchange.stats.upstream[:SHOWN],
        code,
        ended,
        str(exchange.error)[:SHOWN],
        exchange.request_id,
    )
