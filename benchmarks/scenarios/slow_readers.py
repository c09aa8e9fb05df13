"""Readers that take a large answer slowly: what the server keeps in memory for them."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.servers import MIB

_COUNT = 500
_RATE = 50_000


def run(bench: Bench) -> None:
    bench.warm("/files/64m")
    with bench.running("proxy", "haproxy", "nginx") as running:
        for name, service in running.items():
            bench.place(service, alone=False)
            bench.measure(service, "small", path="/files/1k", connections=1, seconds=0.1)
            measured = bench.measure(
                service, "slow", path="/files/64m", connections=_COUNT, rate=_RATE, seconds=bench.sizes.slow_seconds
            )
            bench.record("slow.growth", name, measured.watch.growth / MIB)
