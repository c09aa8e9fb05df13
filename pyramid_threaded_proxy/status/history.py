"""What was, kept in arrays that never grow: ten minutes by the second, a day by the minute."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import isnan, nan

from pyramid_threaded_proxy.status.counts import BOUNDS, Cell, quantile

#: How exchanges end, in few words: these are the colours of the page.
GROUPS = ("whole", "client", "upstream", "closed", "fault")
_GROUP_OF = {
    "whole": "whole",
    "client-gone": "client", "client-timeout": "client",
    "connect-failed": "upstream", "connect-timeout": "upstream", "upstream-gone": "upstream",
    "answer-refused": "upstream", "read-timeout": "upstream", "send-timeout": "upstream",
    "total-timeout": "closed", "idle-timeout": "closed", "closed": "closed", "permission-withdrawn": "closed",
}  # fmt: skip
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
SERIES = (*GROUPS, "up", "down", "active", *SHARES)
#: Seconds of a sparkline, one for each route and upstream.
SPARK = 120


def group_of(ended: str) -> str:
    """Which of the few words stands for the log's word."""
    return _GROUP_OF.get(ended, "fault")


class Track:
    """`length` steps of `step` seconds each. A series is one number a step; first bytes are NaN where there were none.

    `now` is a time in seconds that never goes back. Not thread-safe.
    """

    def __init__(self, step: int, length: int) -> None:
        self.step = step
        self.length = length
        self.current = -1
        self._first = -1  # of what was before this process, nothing is known
        self._values = {name: array("d", [nan if name in SHARES else 0.0]) * length for name in SERIES}
        self._waits = [0] * (len(BOUNDS) + 1)

    def advance(self, now: float) -> None:
        """Finish the steps that are over; steps in which nothing was said are empty."""
        step = int(now // self.step)
        if step <= self.current:
            return
        if self._first < 0:
            self._first = step
        self._finish()
        for number in range(max(self.current + 1, step - self.length + 1), step + 1):
            for name, values in self._values.items():
                values[number % self.length] = nan if name in SHARES else 0.0
        self.current = step

    def _finish(self) -> None:
        if any(self._waits):
            for name, share in SHARES.items():
                self._values[name][self.current % self.length] = quantile(self._waits, share) or 0.0
            self._waits = [0] * (len(BOUNDS) + 1)

    def add(self, name: str, value: float) -> None:
        """Add to the present step of a series."""
        self._values[name][self.current % self.length] += value

    def most(self, name: str, value: float) -> None:
        """Note a value of which the largest of a step counts."""
        values, place = self._values[name], self.current % self.length
        values[place] = max(values[place], value)

    def wait(self, waits: Sequence[int]) -> None:
        """So many first bytes came after a time that lies in each bucket."""
        self._waits = [known + more for known, more in zip(self._waits, waits, strict=True)]

    def since(self, number: int) -> dict[str, list[float | None]]:
        """Of each series the finished steps after `number`, as far as they are kept, oldest first."""
        first = max(number + 1, self.current - self.length + 1, self._first)
        places = [one % self.length for one in range(first, self.current)]
        return {
            name: [None if isnan(value := values[place]) else value for place in places]
            for name, values in self._values.items()
        }


class Spark:
    """The exchanges of the last `SPARK` seconds, one number a second."""

    __slots__ = ("_counts", "_current")

    def __init__(self) -> None:
        self._counts = array("L", [0]) * SPARK
        self._current = -1

    def add(self, second: int, count: int = 1) -> None:
        """Count in `second`; what is older than `SPARK` seconds is forgotten."""
        for number in range(max(self._current + 1, second - SPARK + 1), second + 1):
            self._counts[number % SPARK] = 0
        self._current = max(self._current, second)
        self._counts[second % SPARK] += count

    def last(self, second: int) -> list[int]:
        """The seconds before `second`, oldest first."""
        self.add(second, 0)
        return [self._counts[number % SPARK] for number in range(second - SPARK + 1, second)]


class History:
    """All that is kept of the past. Bounded: two tracks, and a spark for each of a closed set of labels."""

    def __init__(self) -> None:
        self.seconds = Track(1, 600)
        self.minutes = Track(60, 1440)
        self.sparks: defaultdict[tuple[str, str], Spark] = defaultdict(Spark)
        self._tracks = (self.seconds, self.minutes)

    def advance(self, now: float) -> None:
        """Time goes on."""
        for track in self._tracks:
            track.advance(now)

    def add(self, cells: Mapping[Cell, int], waits: Sequence[int]) -> None:
        """Count exchanges that are over in the present second and minute: how many of each kind, and first bytes."""
        second = self.seconds.current
        for cell, count in cells.items():
            for track in self._tracks:
                track.add(group_of(cell.ended), count)
            self.sparks[cell.route, ""].add(second, count)
            self.sparks[cell.route, cell.upstream].add(second, count)
        for track in self._tracks:
            track.wait(waits)

    def note(self, up: float, down: float, active: int) -> None:
        """Bytes that were moved since the last time, and how many exchanges are in flight."""
        for track in self._tracks:
            track.add("up", up)
            track.add("down", down)
            track.most("active", active)

    def lines(self) -> Iterator[tuple[str, str, list[int]]]:
        """Route, upstream ("" for the route itself) and the exchanges of each of the last seconds."""
        for (route, upstream), spark in self.sparks.items():
            yield route, upstream, spark.last(self.seconds.current)
