"""What is made of the samples: medians, spreads, ratios, and a row's verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.goals import GOALS, Goal

#: The samples of a run: what was measured, of which server, one for each round.
Samples = Mapping[str, Mapping[str, Sequence[float]]]


class Row(NamedTuple):
    """One line of the table. `measured` is the ratio, or the figure itself where there is nothing to compare with."""

    goal: Goal
    subject: float | None
    peer: str | None
    baseline: float | None
    measured: float | None
    spread: float | None
    verdict: str


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of all are not above: nearest rank."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def spread(values: Sequence[float]) -> float | None:
    """From the least to the greatest, as a share of the median; None of fewer than two."""
    middle = statistics.median(values) if len(values) > 1 else 0
    return (max(values) - min(values)) / abs(middle) if middle else None


def verdict(goal: Goal, measured: float | None) -> str:
    """``aim``, ``must`` or ``MISSED``; empty where nothing is asked, ``no figure`` where something is missing."""
    if measured is None:
        return "no figure"
    if goal.must is None or goal.aim is None:
        return ""
    sign = 1 if goal.at_most else -1
    if sign * measured <= sign * goal.aim:
        return "aim"
    return "must" if sign * measured <= sign * goal.must else "MISSED"


def _middle(goal: Goal, values: Sequence[float]) -> float | None:
    if not values:
        return None
    return max(values) if goal.worst else statistics.median(values)


def _strongest(goal: Goal, against: str, peers: Mapping[str, Sequence[float]]) -> str:
    """The best of a peer's kinds: those of its name, and of its name with something behind a hyphen."""
    kinds = [name for name in peers if name.partition("-")[0] == against and peers[name]]
    best = min if goal.at_most else max
    return best(kinds, key=lambda name: statistics.median(peers[name])) if kinds else against


def evaluate(goal: Goal, samples: Samples) -> Row:
    """One row, from the samples of a run."""
    own = list(samples.get(goal.data, {}).get(goal.subject, ()))
    subject = _middle(goal, own)
    if goal.against is None:
        return Row(goal, subject, None, None, subject, None if goal.worst else spread(own), verdict(goal, subject))
    peers = samples.get(goal.against_data or goal.data, {})
    peer = _strongest(goal, goal.against, peers)
    other = list(peers.get(peer, ()))
    baseline = _middle(goal, other)
    measured = subject / baseline if subject is not None and baseline else None
    ratios = [one / two for one, two in zip(own, other, strict=False) if two]
    return Row(goal, subject, peer, baseline, measured, spread(ratios), verdict(goal, measured))


def evaluate_all(samples: Samples) -> list[Row]:
    """All rows, in the table's order."""
    return [evaluate(goal, samples) for goal in GOALS]


def noise(rows: Sequence[Row]) -> tuple[float, float, Row] | None:
    """How far rounds of one run lie apart: median and worst spread of the rows, and the worst row."""
    spreads = [(row.spread, index) for index, row in enumerate(rows) if row.spread is not None]
    if not spreads:
        return None
    worst, index = max(spreads)
    return statistics.median(value for value, _ in spreads), worst, rows[index]
