"""Costs that don't grow: the CPU of one small answer while 10, and while thousands of others are in flight."""

from __future__ import annotations

import time
import urllib.request
from contextlib import ExitStack

from benchmarks.accounts import usage
from benchmarks.bench import Bench
from benchmarks.processes import Load, Service

_PATIENCE = 60.0
#: Seconds after which an exchange has left waitress's table for certain.
_LASTING = 0.5


def run(bench: Bench) -> None:
    with bench.running("proxy") as running, ExitStack() as crowds:
        service = running["proxy"]
        bench.place(service, alone=True)
        bench.measure(service, "wrk", path="/files/1k", connections=16, seconds=bench.sizes.seconds)
        before, held = usage(service.pid), 0
        for count in filter(bench.can_hold, bench.sizes.in_flight):
            begun = usage(service.pid).cpu
            crowds.enter_context(
                Load("held", port=service.port, path="/stream/hold/3600", count=count - held, lasting=True)
            ).ready()
            wait_held(bench.stream_port, count)
            bench.record(f"in_flight.start.{count}", "proxy", 1e6 * (usage(service.pid).cpu - begun) / (count - held))
            held = count
            _measure(bench, service, count)
            bench.record(f"in_flight.rss.{count}", "proxy", (usage(service.pid).rss - before.rss) / 1024 / count)


def wait_held(port: int, count: int) -> None:
    """Wait until the upstream holds so many answers back."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/stream/count") as answer:
            if int(answer.read()) >= count:
                break
        if time.monotonic() > deadline:
            raise TimeoutError(f"{count} exchanges are not in flight after {_PATIENCE:g} s")
        time.sleep(0.05)
    time.sleep(_LASTING)


def _measure(bench: Bench, service: Service, count: int) -> None:
    for _ in range(bench.sizes.rounds):
        for data, path in (("small", "/files/1k"), ("own", "/own")):
            measured = bench.measure(service, "wrk", path=path, connections=16, seconds=bench.sizes.seconds)
            cpu = 1e6 * measured.cpu / measured.client["answers"]
            bench.record(f"in_flight.{data}.{count}", "proxy", cpu)
