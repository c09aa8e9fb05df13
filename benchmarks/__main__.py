"""``python -m benchmarks``: run, print, write JSON and plots; see ``--help``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, page, plots, report, servers
from benchmarks.bench import FULL, QUICK, Bench
from benchmarks.processes import ProcessFailed
from benchmarks.scenarios import SCENARIOS

RESULTS = Path(__file__).with_name("results")
LATEST = RESULTS / "latest.json"
REFERENCE = RESULTS / "reference.json"


def run(names: list[str], quick: bool, folder: Path) -> dict[str, Any]:
    """Run the scenarios, and return the document that is written as JSON. A scenario that fails is named in it."""
    load = machine.load_average()
    bench = Bench(folder, QUICK if quick else FULL)
    failures = {}
    with bench.upstreams():
        for name in names:
            begin = time.monotonic()
            try:
                SCENARIOS[name](bench)
            except (ProcessFailed, OSError) as error:
                failures[name] = str(error)
            took = time.monotonic() - begin
            print(f"{name}: {took:.0f} s{', FAILED' if name in failures else ''}", file=sys.stderr, flush=True)
    return {
        **machine.taken(),
        "quick": quick,
        "rounds": bench.sizes.rounds,
        "own_rounds": bench.sizes.own_rounds,
        "versions": servers.versions(),
        "load_average": load,
        "left_out": bench.left_out,
        "notes": bench.notes,
        "failures": failures,
        "ini": servers.shown_ini(),
        "rows": report.rows(bench.samples),
        "samples": bench.samples,
    }


def read(path: Path) -> dict[str, Any]:
    """The document of an earlier run."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def write(document: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"all, or some of: {', '.join(SCENARIOS)}")
    parser.add_argument("--quick", action="store_true", help="less of the same, in under five minutes")
    parser.add_argument("--reference", action="store_true", help="keep the run as the one that the page shows")
    parser.add_argument("--docs", action="store_true", help="run nothing: rewrite the pages from the reference")
    parsed = parser.parse_args()
    for name in parsed.scenarios:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name!r}; there are: {', '.join(SCENARIOS)}")
    return parsed


def main() -> None:
    arguments = _arguments()
    if arguments.docs:
        page.write(read(REFERENCE))
        return
    servers.need_programs()
    machine.raise_descriptor_limit()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        document = run(arguments.scenarios or list(SCENARIOS), arguments.quick, Path(folder))
    write(document, REFERENCE if arguments.reference else LATEST)
    for name, drawing in plots.draw(document).items():
        (RESULTS / name).write_text(drawing, encoding="utf-8")
    print(report.text(document))
    if document["failures"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
