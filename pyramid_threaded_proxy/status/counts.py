"""Totals and histograms: plain integers, changed by one thread at a time (see `status.Status`)."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

#: Upper bounds in seconds: those that OpenTelemetry advises for HTTP, and longer ones for what lasts.
BOUNDS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0
)  # fmt: skip
#: Methods that have a label of their own: those of RFC 9110, and PATCH (RFC 5789).
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
OTHER = "_OTHER"
#: Why a request got no exchange.
REASONS = ("limit", "user_limit", "resting", "origin", "target", "method", "body", "descriptors")


class Ended(NamedTuple):
    """One exchange that is over. Times are in seconds, None for what did not happen or was not measured."""

    route: str
    method: str
    code: int
    ended: str
    upstream: str
    attempts: int
    bytes_up: int
    bytes_down: int
    authorize: float | None
    connect: float | None
    first_byte: float | None
    duration: float


class Histogram:
    """How many values lay in each bucket, the last of which has no bound; and their sum."""

    __slots__ = ("buckets", "sum")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.buckets[bisect_left(BOUNDS, value)] += 1
        self.sum += value


def quantile(buckets: Sequence[float], share: float) -> float | None:
    """The value below which `share` of all lies, in seconds, by straight lines within buckets; None of nothing."""
    total = sum(buckets)
    if not total:
        return None
    wanted, seen = total * share, 0.0
    for index, count in enumerate(buckets):
        if count and seen + count >= wanted:
            low = BOUNDS[index - 1] if index else 0.0
            high = BOUNDS[index] if index < len(BOUNDS) else low
            return low + (high - low) * (wanted - seen) / count
        seen += count
    return BOUNDS[-1]


class Counts:
    """Everything that only grows. Labels are closed sets: an upstream that is not `known` for its
    route counts as `OTHER`."""

    def __init__(self, known: Callable[[str], frozenset[str]]) -> None:
        self._known = lru_cache(maxsize=None)(known)
        self.exchanges: defaultdict[tuple[str, str, str, str], int] = defaultdict(int)
        self.durations: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self.authorize: defaultdict[tuple[str], Histogram] = defaultdict(Histogram)
        self.connect: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self.first_byte: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        #: By route: bytes of bodies up and down, of exchanges that are over.
        self.bytes: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.refused: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.retries: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.lag = Histogram()

    def upstream_label(self, route: str, upstream: str) -> str:
        """The upstream as its route's settings have it; one that a view or a hook named has no label of its own."""
        return upstream if upstream in self._known(route) else OTHER

    def add(self, one: Ended) -> None:
        """Count an exchange that is over."""
        route = one.route
        method = one.method if one.method in METHODS else OTHER
        self.exchanges[route, method, str(one.code), one.ended] += 1
        self.durations[route, "switched" if one.code == 101 else "request"].add(one.duration)
        upstream = self.upstream_label(route, one.upstream)
        if one.authorize is not None:
            self.authorize[(route,)].add(one.authorize)
        if one.connect is not None:
            self.connect[route, upstream].add(one.connect)
        if one.first_byte is not None:
            self.first_byte[route, upstream].add(one.first_byte)
        if one.attempts > 1:
            self.retries[route, upstream] += one.attempts - 1
        both = self.bytes[route]
        both[0] += one.bytes_up
        both[1] += one.bytes_down
