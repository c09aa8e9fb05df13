"""What the page shows, as plain values: the JSON says it to scripts, `document` to people."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from math import isfinite
from typing import Any, NamedTuple

from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.status.status import Moving, Status

#: Exchanges in flight that are told one by one; those that last longest come first.
MOST_LISTED = 500
#: Characters of a text that a client or a user gave.
SHOWN = 200


class Asked(NamedTuple):
    """What a reader wants: history after these steps, exchanges of these only. Empty stands for all."""

    since_second: int = -1
    since_minute: int = -1
    user: str = ""
    route: str = ""


def report(status: Status, asked: Asked) -> dict[str, Any]:
    """Everything as it is now. Any thread."""
    with status.reading() as moving:
        seconds, minutes = status.history.seconds, status.history.minutes
        return {
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
        } | _in_flight(status, asked)


def _in_flight(status: Status, asked: Asked) -> dict[str, Any]:
    now = time.monotonic()
    found = [
        one
        for one in status.observed.exchanges()
        if (not asked.user or one.userid == asked.user) and (not asked.route or one.route == asked.route)
    ]
    found.sort(key=lambda one: one.stats.started)
    return {"in_flight": len(found), "exchanges": [_exchange(one, now) for one in found[:MOST_LISTED]]}


def _exchange(exchange: Exchange, now: float) -> dict[str, Any]:
    stats = exchange.stats
    method, path = exchange.log_values[:2]
    return {
        "id": exchange.request_id,
        "user": (exchange.userid or "")[:SHOWN],
        "route": exchange.route,
        "method": (exchange.request.method if method == "-" else method)[:SHOWN],
        "path": path[:SHOWN],
        "agent": exchange.log_values[4][:SHOWN],
        "upstream": stats.upstream[:SHOWN],
        "stage": exchange.stage,
        "age": now - stats.started,
        "up": stats.bytes_up,
        "down": stats.bytes_down,
    }


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
