"""What a process says of itself to the others, and hears of them (`proxy.shared`)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.status.history import GROUPS
from pyramid_threaded_proxy.status.numbers import families
from pyramid_threaded_proxy.status.plots import last_rate
from pyramid_threaded_proxy.status.status import Status

#: Another one is not understood: while a site changes its release, both may be there.
VERSION = 1
#: Exchanges in flight that the others are told of one by one; those that last longest.
MOST_TOLD = 100
#: Characters of a text that a client or a user gave.
SHOWN = 200
#: Seconds of the history that a rate is taken of.
STEPS = 10
#: What is added up of all processes.
SUMS = ("active", "limit", "rate", "down", "up", "bad", "refused")


class Others(NamedTuple):
    """What other processes have said of themselves; `known` is False where nobody could be asked."""

    known: bool
    reports: Sequence[Mapping[str, Any]]


def published(status: Status, process: str) -> str:
    """What the others are told: the numbers of the metrics, and what the page shows of a process. Any thread."""
    now = time.monotonic()
    longest = sorted(status.observed.exchanges(), key=lambda one: one.stats.started)[:MOST_TOLD]
    return json.dumps(
        {
            "version": VERSION,
            "process": process,
            "line": line(status, process),
            "exchanges": [exchange_line(one, now, process) for one in longest],
            "numbers": families(status),
        }
    )


def process_name(status: Status) -> str:
    """What this process is called among others; empty where nothing is shared."""
    return "" if status.elsewhere is None else status.elsewhere.name


def exchange_line(exchange: Exchange, now: float, process: str) -> dict[str, Any]:
    """An exchange in flight, as the page shows it."""
    stats = exchange.stats
    method, path = exchange.log_values[:2]
    return {
        "process": process,
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


def others(status: Status) -> Others:
    """What the others have said; waits for 50 ms at most."""
    if status.elsewhere is None:
        return Others(False, [])
    known, reports = status.elsewhere.others()
    return Others(known, [one for one in reports if one.get("version") == VERSION])


def line(status: Status, process: str) -> dict[str, Any]:
    """One process in few numbers: those of the tiles of its page."""
    with status.reading():
        series = status.history.seconds.since(status.history.seconds.current - STEPS - 1)
        active = sum(status.observed.active().values())
        refused = sum(status.counts.refused.values())
    rates = {name: last_rate(series[name]) for name in (*GROUPS, "up", "down", "p95")}
    return {
        "process": process,
        "draining": status.observed.draining(),
        "active": active,
        "limit": status.observed.max_exchanges(),
        "rate": sum(rates[name] for name in GROUPS),
        "down": rates["down"],
        "up": rates["up"],
        "p95": rates["p95"],
        "bad": sum(rates[name] for name in GROUPS[1:]),
        "refused": refused,
    }


def processes(status: Status, found: Others) -> dict[str, Any]:
    """All processes as the page shows them: their sum (process ""), this one, the others; none if nothing is shared.

    `others_known` is False while nobody can tell of the others.
    """
    if status.elsewhere is None:
        return {"processes": [], "others_known": True}
    lines = [line(status, status.elsewhere.name), *(report["line"] for report in found.reports)]
    total = {name: sum(one[name] for one in lines) for name in SUMS}
    every = {"process": "", "draining": False, "p95": None} | total
    return {"processes": [every, *lines], "others_known": found.known}
