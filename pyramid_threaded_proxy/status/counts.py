"""Totals and histograms: plain integers, changed by one thread at a time (see `status.Status`)."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

#: Upper bounds in seconds: those that OpenTelemetry advises for HTTP, and longer ones for what lasts.
BOUNDS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0
)  # fmt: skip
#: Methods that have a label of their own: those of RFC 9110, and PATCH (RFC 5789).
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
OTHER = "_OTHER"
#: Why a request got no exchange.
REASONS = ("limit", "user_limit", "resting", "origin", "target", "method", "body", "descriptors")


#: One exchange that is over: route, method, code, the log's word, upstream, attempts, bytes up and down, then seconds
#: to authorize, to connect, to the first byte and to the end; None for what did not happen or was not measured. A plain
#: tuple, because one is made for each exchange.
Ended = tuple[str, str, int, str, str, int, int, int, float | None, float | None, float | None, float]


class Histogram:
    """How many values lay in each bucket, the last of which has no bound; and their sum."""

    __slots__ = ("buckets", "sum")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.add_all((value,))

    def add_all(self, values: Sequence[float]) -> list[int]:
        """Several at once, which costs each of them less; returns the bucket of each."""
        buckets = self.buckets
        places = [bisect_left(BOUNDS, value) for value in values]
        for place in places:
            buckets[place] += 1
        self.sum += sum(values)
        return places


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


class Cell:
    """What exchanges that agree in everything that is a label add to: found once, then used."""

    __slots__ = ("bytes", "durations", "ended", "key", "route", "upstream", "where")

    def __init__(self, counts: Counts, route: str, method: str, code: int, ended: str, upstream: str) -> None:
        self.key = (route, method, str(code), ended)
        self.route, self.ended, self.upstream = route, ended, upstream
        self.durations = counts.durations[route, "switched" if code == 101 else "request"]
        self.where = (route, upstream)
        self.bytes = counts.bytes[route]


class Counts:
    """Everything that only grows. Labels are closed sets: an upstream that is not `known` for its
    route counts as `OTHER`."""

    def __init__(self, known: Callable[[str], frozenset[str]]) -> None:
        self._known = lru_cache(maxsize=None)(known)
        self._cells: dict[tuple[str, str, int, str, str], Cell] = {}
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

    def add(self, ended: Iterable[Ended]) -> tuple[dict[Cell, int], list[int]]:
        """Count exchanges that are over; returns how many counted where, and how many first bytes lay in each bucket.

        They are added up cell by cell: one by one they would take five times as long, and the loop waits meanwhile.
        """
        alike: defaultdict[tuple[Any, ...], list[Ended]] = defaultdict(list)
        for one in ended:
            alike[one[:5]].append(one)
        cells: dict[Cell, int] = {}
        waits = [0] * (len(BOUNDS) + 1)
        for key, ones in alike.items():
            cell = self._cells.get(key) or self._cell(ones[0])
            cells[cell] = len(ones)
            for place in self._add(cell, ones):
                waits[place] += 1
        return cells, waits

    def _add(self, cell: Cell, ones: list[Ended]) -> list[int]:
        """Exchanges of one cell; returns the buckets of their first bytes."""
        self.exchanges[cell.key] += len(ones)
        if retries := sum([one[5] - 1 for one in ones if one[5] > 1]):
            self.retries[cell.where] += retries
        both = cell.bytes
        both[0] += sum([one[6] for one in ones])
        both[1] += sum([one[7] for one in ones])
        _add_known(self.authorize, (cell.route,), [one[8] for one in ones if one[8] is not None])
        _add_known(self.connect, cell.where, [one[9] for one in ones if one[9] is not None])
        cell.durations.add_all([one[11] for one in ones])
        return _add_known(self.first_byte, cell.where, [one[10] for one in ones if one[10] is not None])

    def _cell(self, one: Ended) -> Cell:
        """Where it counts. Cells of methods and upstreams that have no label are not kept: anybody makes them up."""
        route, method, code, ended, upstream = one[:5]
        label = self.upstream_label(route, upstream)
        named = method if method in METHODS else OTHER
        cell = Cell(self, route, named, code, ended, label)
        if (named, label) == (method, upstream):
            self._cells[route, method, code, ended, upstream] = cell
        return cell


def _add_known(histograms: defaultdict[Any, Histogram], key: tuple[str, ...], known: list[float]) -> list[int]:
    """What was measured; where nothing was, there is no histogram either."""
    return histograms[key].add_all(known) if known else []
