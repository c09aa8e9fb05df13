"""Four uploads at once, with Content-Length; nginx takes each whole before it sends it on, as waitress does."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.scenarios.moving import move
from benchmarks.servers import MIB


def run(bench: Bench) -> None:
    size = 256 * MIB // bench.sizes.share
    move(bench, "uploads", ("proxy", "nginx"), "upload", path="/stream/sink", connections=4, size=size)
