"""nginx that asks the application, and nginx that it hands over to, beside the relay in the process and nginx alone."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.scenarios.moving import move

_SERVERS = ("proxy", "verify", "accel", "nginx")


def run(bench: Bench) -> None:
    rounds = min(3, bench.sizes.rounds)
    with bench.running(*_SERVERS) as running:
        for name, service, alone in bench.rounds(running, rounds):
            bench.measure_small("fronted16", name, service, alone, path="/files/1k", connections=16)
    path = "/files/256m" if bench.sizes.share == 1 else "/files/32m"
    move(bench, "fronted", _SERVERS, "bulk", rounds=rounds, path=path, connections=4)
