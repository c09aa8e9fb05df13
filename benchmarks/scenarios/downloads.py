"""Eight downloads at once."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.scenarios.moving import move


def run(bench: Bench) -> None:
    path = "/files/256m" if bench.sizes.share == 1 else "/files/32m"
    move(bench, "downloads", ("proxy", "haproxy", "haproxy-mt", "nginx", "revproxy"), "bulk", path=path, connections=8)
