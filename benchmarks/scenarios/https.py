"""Eight downloads at once from an upstream that speaks TLS."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.scenarios.moving import move


def run(bench: Bench) -> None:
    path = "/secure/256m" if bench.sizes.share == 1 else "/secure/32m"
    move(bench, "https", ("proxy", "nginx"), "bulk", secure=True, path=path, connections=8)
