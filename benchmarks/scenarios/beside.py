"""The application's own view, in a server that holds thousands of exchanges and in one that holds none."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.processes import Load
from benchmarks.scenarios.in_flight import wait_held


def run(bench: Bench) -> None:
    count = bench.sizes.held[0]
    if not bench.can_hold(count):
        return
    with bench.running("proxy", "holding") as running:
        crowd = {"port": running["holding"].port, "path": "/stream/hold/3600", "count": count, "lasting": True}
        with Load("held", **crowd) as load:
            load.ready()
            wait_held(bench.stream_port, count)
            for name, service, alone in bench.own_rounds(running):
                bench.measure_small("beside", name, service, alone, path="/own", connections=16)
