"""Four uploads at once that nobody stores: each is passed on as it comes."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.scenarios.moving import move
from benchmarks.servers import MIB


def run(bench: Bench) -> None:
    size = 256 * MIB // bench.sizes.share
    servers = ("proxy", "haproxy", "haproxy-mt", "nginx")
    move(bench, "streamed", servers, "upload", path="/streamed/sink", connections=4, size=size)
