"""``python -m benchmarks.why``: what each change to waitress's channel, trigger and polling buys and costs.

Each is taken back alone (`benchmarks.variants`), and wrk asks on 16 connections: for one of the application's own views
and for proxied answers of 1 KiB, with the server anywhere and with it alone on one core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, page, report, servers, variants
from benchmarks.__main__ import RESULTS, write
from benchmarks.bench import FULL, Bench
from benchmarks.variants import VARIANTS

REFERENCE = RESULTS / "why.json"
#: Of a second each: with so many servers a round lasts long, and what the machine does changes meanwhile.
SIZES = FULL._replace(own_rounds=5, seconds=1.0)
_TITLES = {"proxy": "as it is", **variants.TITLES, "bare": "without the add-on"}
_KINDS = {"own": "/own", "proxied": "/files/1k"}
_HEAD = ("", "own view: req/s", "p99, ms", "switches", "alone: req/s",
         "1 KiB proxied: req/s", "p99, ms", "switches", "alone: req/s")  # fmt: skip

Samples = Mapping[str, Mapping[str, Sequence[float]]]


def run(bench: Bench) -> None:
    """Each variant in turn, round after round."""
    with bench.running("proxy", *VARIANTS, "bare") as running:
        for kind, path in _KINDS.items():
            for name, service, alone in bench.own_rounds(running):
                asked = "/own" if name == "bare" else path
                bench.measure_small(f"why.{kind}", name, service, alone, path=asked, connections=16)


def _cell(samples: Samples, data: str, name: str, ratio: bool) -> str:
    middle = statistics.median(samples[data][name])
    if not ratio:
        return report.number(middle)
    return f"{report.number(middle)} ({middle / statistics.median(samples[data]['proxy']):.2f})"


def table(samples: Samples) -> str:
    """A line for each variant; in parentheses what it is of what the add-on does as it is."""
    lines: list[Sequence[str]] = [_HEAD]
    for name, title in _TITLES.items():
        cells = [title]
        for kind in _KINDS:
            for figure, ratio in (("two", True), ("two.p99", True), ("two.switches", False), ("one", True)):
                cells.append(_cell(samples, f"why.{kind}.{figure}", name, ratio and name != "proxy"))
        lines.append(cells)
    return report.markdown(lines)


def block(document: Mapping[str, Any]) -> str:
    """What the page shows of a run."""
    told = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    return f"Taken {document['taken']}, {document['rounds']} rounds. {told}.\n\n{table(document['samples'])}\n"


def measure() -> dict[str, Any]:
    """Run it; returns what is written as JSON."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        bench = Bench(Path(folder), SIZES)
        with bench.upstreams():
            run(bench)
    return {**machine.taken(), "rounds": SIZES.own_rounds, "samples": bench.samples}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.why", description=__doc__)
    parser.add_argument("--reference", action="store_true", help="keep the run, and write it into the page")
    reference = parser.parse_args().reference
    servers.need_programs()
    machine.raise_descriptor_limit()
    document = measure()
    print(block(document))
    if reference:
        write(document, REFERENCE)
        page.write_why(block(document))


if __name__ == "__main__":
    main()
