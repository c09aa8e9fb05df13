"""Small answers on 4 connections, each asking again after 5 ms, while 8 bulk streams run."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.processes import Load


def run(bench: Bench) -> None:
    bench.warm("/files/64m")
    with bench.running("proxy", "haproxy") as running:
        for _ in range(bench.sizes.rounds):
            for name, service in running.items():
                bench.place(service, alone=False)
                with Load("bulk", port=service.port, path="/files/64m", connections=8, lasting=True) as streams:
                    streams.ready().go()
                    measured = bench.measure(
                        service, "small", path="/files/1k", connections=4, think=0.005, seconds=bench.sizes.seconds
                    )
                    moved = streams.result()
                bench.record("mixed.p99", name, measured.client["p99"])
                bench.record("mixed.rate", name, moved["bytes"] / 1e6 / moved["seconds"])
