"""One download."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.scenarios.moving import move


def run(bench: Bench) -> None:
    path = "/files/2g" if bench.sizes.share == 1 else "/files/256m"
    move(bench, "single", ("proxy", "haproxy", "haproxy-mt", "nginx"), "bulk", path=path, connections=1)
