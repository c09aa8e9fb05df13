"""The application's own view, with the add-on loaded and without it."""

from __future__ import annotations

from benchmarks.bench import Bench

CONNECTIONS = (1, 16, 64)


def run(bench: Bench) -> None:
    with bench.running("proxy", "bare") as running:
        for connections in CONNECTIONS:
            for name, service, alone in bench.own_rounds(running):
                bench.measure_small(f"own{connections}", name, service, alone, path="/own", connections=connections)
