"""The application's own view, with the add-on loaded and without it."""

from __future__ import annotations

from benchmarks.bench import Bench


def run(bench: Bench) -> None:
    with bench.running("proxy", "bare") as running:
        for name, service, alone in bench.rounds(running):
            measured = bench.measure(service, "small", path="/own", connections=16, seconds=bench.sizes.seconds)
            bench.record("own.one" if alone else "own.two", name, measured.client["rate"])
