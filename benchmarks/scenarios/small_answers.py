"""Answers of 1 KiB, against the ceiling: a view of the application that makes as much itself."""

from __future__ import annotations

from typing import Any

from benchmarks.bench import Bench
from benchmarks.loads.wire import BROWSER_FIELDS

#: Samples' name: connections and request fields; Host is the twelfth.
_KINDS: dict[str, dict[str, Any]] = {
    "small16": {"connections": 16},
    "browser": {"connections": 16, "fields": BROWSER_FIELDS},
    "small64": {"connections": 64},
    "small1": {"connections": 1},
}


def run(bench: Bench) -> None:
    for kind, arguments in _KINDS.items():
        names = ["proxy", "logged", "bare"]
        # gthread has 16 threads here, one for each connection.
        if kind == "small16":
            names += ["counted", "revproxy"]
        with bench.running(*names) as running:
            for name, service, alone in bench.rounds(running):
                path = "/own" if name == "bare" else "/files/1k"
                bench.measure_small(kind, name, service, alone, path=path, **arguments)
