"""Thousands of answers that the upstream holds back for 5 s: while own views are asked, and by other servers."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.processes import Load

_SECONDS = 5


def run(bench: Bench) -> None:
    for count in filter(bench.can_hold, bench.sizes.held):
        # These rounds last long and lie close together.
        for _ in range(min(3, bench.sizes.rounds)):
            _hold(bench, count)
        _hold_elsewhere(bench, count)


def _hold_elsewhere(bench: Bench, count: int) -> None:
    """Once: of the seconds that it takes, five are the upstream's."""
    with bench.running("haproxy", "nginx") as running:
        for name, service in running.items():
            bench.place(service, alone=False)
            measured = bench.measure(service, "held", path=f"/stream/hold/{_SECONDS}", count=count)
            bench.record(f"held{count}.done", name, measured.client["seconds"])


def _hold(bench: Bench, count: int) -> None:
    with bench.running("proxy") as running:
        service = running["proxy"]
        bench.place(service, alone=False)
        bench.measure(service, "small", path="/files/1k", connections=1, seconds=0.1)
        with Load("small", port=service.port, path="/own", connections=1, think=0.005) as probe:
            probe.ready().go()
            measured = bench.measure(service, "held", path=f"/stream/hold/{_SECONDS}", count=count)
            own = probe.result()
    data = f"held{count}"
    bench.record(f"{data}.done", "proxy", measured.client["seconds"])
    bench.record(f"{data}.threads", "proxy", measured.watch.most.threads)
    bench.record(f"{data}.rss", "proxy", measured.watch.growth / count / 1024)
    bench.record(f"{data}.p99", "proxy", own["p99"])
