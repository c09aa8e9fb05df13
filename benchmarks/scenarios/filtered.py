"""One download of 1 GiB through a filter of the application's, and its own view beside one."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.processes import Load
from benchmarks.scenarios.moving import move


def run(bench: Bench) -> None:
    path = "/filtered/1g" if bench.sizes.share == 1 else "/filtered/256m"
    move(bench, "filtered", ("proxy",), "bulk", path=path, connections=1, chunked=True)
    with bench.running("proxy") as running:
        service = running["proxy"]
        for _ in range(bench.sizes.rounds):
            bench.place(service, alone=False)
            load = Load("bulk", port=service.port, path="/filtered/64m", connections=1, chunked=True, lasting=True)
            with load as download:
                download.ready().go()
                own = bench.measure(
                    service, "small", path="/own", connections=4, think=0.005, seconds=bench.sizes.seconds
                )
                download.result()
            bench.record("filtered.p99", "proxy", own.client["p99"])
