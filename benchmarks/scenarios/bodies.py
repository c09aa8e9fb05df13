"""Bodies of 1 MiB on four kept connections."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.scenarios.moving import move


def run(bench: Bench) -> None:
    times = 512 // bench.sizes.share
    names = ("proxy", "haproxy", "haproxy-mt", "nginx", "revproxy")
    move(bench, "bodies", names, "bulk", path="/files/1m", connections=4, times=times)
