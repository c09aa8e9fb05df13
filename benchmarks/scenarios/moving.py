"""What all bulk scenarios share: CPU with the server alone on a core, MB/s anywhere; growth of memory and what is
written to disk in both."""

from __future__ import annotations

from typing import Any

from benchmarks.accounts import usage, written
from benchmarks.bench import GIB, Bench
from benchmarks.servers import MIB


def move(
    bench: Bench, data: str, names: tuple[str, ...], load: str, secure: bool = False,
    rounds: int | None = None, **arguments: Any,
) -> None:  # fmt: skip
    """Rounds of one bulk load on each of the servers, as many as in other rows if nothing is said."""
    bench.warm(arguments["path"])
    with bench.running(*names, secure=secure) as running:
        # A first small answer has the server start what it starts once.
        first = "/secure/1k" if secure else "/files/1k"
        for service in running.values():
            bench.measure(service, "small", path=first, connections=1, seconds=0.1)
        before = {name: usage(service.pid).rss for name, service in running.items()}
        for name, service, alone in bench.rounds(running, rounds):
            on_disk = written(service.pid)
            measured = bench.measure(service, load, **arguments)
            bench.record(f"{data}.written", name, (written(service.pid) - on_disk) / MIB)
            moved = measured.client["bytes"]
            if alone:
                bench.record(f"{data}.cpu", name, measured.cpu / (moved / GIB))
            else:
                bench.record(f"{data}.rate", name, moved / 1e6 / measured.client["seconds"])
            bench.record(f"{data}.growth", name, (measured.watch.most.rss - before[name]) / MIB)
