"""Switched connections, idle but for 20 on which messages go to and fro."""

from __future__ import annotations

from benchmarks.accounts import usage
from benchmarks.bench import Bench
from benchmarks.processes import Load

_COUNT = 2000


def run(bench: Bench) -> None:
    for _ in range(min(3, bench.sizes.rounds)):
        _open(bench)


def _open(bench: Bench) -> None:
    with bench.running("proxy") as running:
        service = running["proxy"]
        bench.place(service, alone=False)
        bench.measure(service, "small", path="/files/1k", connections=1, seconds=0.1)
        before = usage(service.pid)
        seconds = bench.sizes.lasting_seconds
        path = "/stream/tunnel"
        with Load("tunnels", port=service.port, path=path, count=_COUNT, echoing=20, seconds=seconds) as load:
            load.ready()
            now = usage(service.pid)
            load.go()
            echoed = load.wait()
    bench.record("tunnels.threads", "proxy", now.threads)
    bench.record("tunnels.rss", "proxy", (now.rss - before.rss) / _COUNT / 1024)
    bench.record("tunnels.p99", "proxy", echoed["p99"])
