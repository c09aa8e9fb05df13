"""One body in chunks of 16 KiB."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.scenarios.moving import move
from benchmarks.servers import MIB


def run(bench: Bench) -> None:
    path = f"/stream/chunked/{512 * MIB // bench.sizes.share}"
    move(bench, "chunked", ("proxy", "haproxy", "haproxy-mt", "nginx"), "bulk", path=path, connections=1, chunked=True)
