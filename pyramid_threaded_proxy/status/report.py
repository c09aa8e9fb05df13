"""What the page shows, as plain values: the JSON says it to scripts, `document` to people."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

from pyramid_threaded_proxy.status.published import SHOWN, exchange_line, others, process_name, processes
from pyramid_threaded_proxy.status.status import Moving, Status

#: Exchanges in flight that are told one by one; those that last longest come first.
MOST_LISTED = 500


class Asked(NamedTuple):
    """What a reader wants: history after these steps, exchanges of these only. Empty stands for all."""

    since_second: int = -1
    since_minute: int = -1
    user: str = ""
    route: str = ""


def report(status: Status, asked: Asked) -> dict[str, Any]:
    """Everything as it is now. Any thread."""
    found = others(status)
    with status.reading() as moving:
        seconds, minutes = status.history.seconds, status.history.minutes
        here = {
            "time": time.time(),
            "process": os.getpid(),
            "draining": status.observed.draining(),
            "pool_busy": status.observed.pool_busy(),
            "seconds": {"next": seconds.current, "step": 1, "series": seconds.since(asked.since_second)},
            "minutes": {"next": minutes.current, "step": 60, "series": minutes.since(asked.since_minute)},
            "limits": _limits(status),
            "upstreams": list(_upstreams(status, moving)),
            "sparks": {f"{route} {upstream}".strip(): counts for route, upstream, counts in status.history.lines()},
            "failures": [failure._asdict() for failure in reversed(status.failures)],
        }
    return here | processes(status, found) | _in_flight(status, asked, found.reports)


def _in_flight(status: Status, asked: Asked, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Those of this process, and those that the others have told of; the longest first."""

    def wanted(user: str | None, route: str) -> bool:
        return (not asked.user or user == asked.user) and (not asked.route or route == asked.route)

    found = [one for one in status.observed.exchanges() if wanted(one.userid, one.route)]
    found.sort(key=lambda one: one.stats.started)
    told = [one for report in reports for one in report["exchanges"] if wanted(one["user"], one["route"])]
    elsewhere = len(told) if asked.user or asked.route else sum(report["line"]["active"] for report in reports)
    now, name = time.monotonic(), process_name(status)
    listed = [exchange_line(one, now, name) for one in found[:MOST_LISTED]] + told
    listed.sort(key=lambda one: -float(one["age"]))
    return {"in_flight": len(found) + elsewhere, "exchanges": listed[:MOST_LISTED]}


def _limits(status: Status) -> list[dict[str, Any]]:
    """Of each route, and of the process (route ""): how many are in flight and may be, and what was refused."""
    active, limits, refused = status.observed.active(), status.observed.limits(), status.counts.refused
    by_route: dict[str, dict[str, int]] = {}
    for (route, reason), count in refused.items():
        by_route.setdefault(route, {})[reason] = count
    most = status.observed.max_exchanges()
    rows = [{"route": "", "active": sum(active.values()), "limit": most, "refused": {}}]
    for route in sorted({*active, *limits, *by_route}):
        row = {"route": route, "active": active.get(route, 0), "limit": limits.get(route, most)}
        rows.append(row | {"refused": by_route.get(route, {})})
    return rows


def _upstreams(status: Status, moving: Moving) -> Iterator[dict[str, Any]]:
    for route, upstream, idle in status.observed.upstreams():
        health = upstream.health
        left = health.rest()
        probe = health.last_probe
        yield {
            "route": route,
            "upstream": upstream.url,
            "state": "drained" if health.drained else "resting" if health.down else "up",
            "why": status.reasons.get((route, upstream.url), "")[:SHOWN] if health.down else "",
            "seconds_left": left if health.down and isfinite(left) else None,
            "probe": None if probe is None else {"when": probe[0], "well": probe[1]},
            "active": moving.upstreams.get((route, upstream.url), 0),
            "idle": idle,
        }
