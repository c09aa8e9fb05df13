"""What is printed: the table with must and aim beside each figure, and what belongs to it. Made from the JSON alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.figures import Row, evaluate_all, noise
from benchmarks.goals import CPU, ENGINES, FRONTED_BULK, FRONTED_SMALL, ONE, RATE, TWO
from benchmarks.servers import TITLES

#: The document that a run writes as JSON.
Document = Mapping[str, Any]

_HEAD = ("scenario", "figure", "measured", "must", "aim", "reached", "itself", "against", "others", "spread")


def number(value: float | None) -> str:
    """Three significant digits; whole numbers from a hundred on."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _bound(row: Row, value: float | None) -> str:
    return f"{'≤' if row.goal.at_most else '≥'} {number(value)}" if value is not None else ""


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _others(row: Row, samples: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Servers that were measured beside the two that are compared."""
    measured = samples.get(row.goal.data, {}) if row.goal.subject == "proxy" else {}
    shown = {row.goal.subject, row.peer, "proxy", "logged", "counted"}
    return ", ".join(f"{name} {number(statistics.median(measured[name]))}" for name in measured if name not in shown)


def cells(row: Row, samples: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[str, ...]:
    """One line of the table."""
    goal = row.goal
    measured = number(row.measured) + (" x" if goal.against and row.measured is not None else "")
    against = f"{row.peer} {number(row.baseline)}" if row.peer else ""
    return (
        goal.scenario, goal.figure, measured, _bound(row, goal.must), _bound(row, goal.aim), row.verdict,
        number(row.subject), against, _others(row, samples), _share(row.spread),
    )  # fmt: skip


def table(document: Document) -> str:
    """The table, as Markdown; rows without any figure are left to `left_out`."""
    samples = document["samples"]
    rows = [cells(row, samples) for row in evaluate_all(samples) if row.subject is not None]
    return markdown([_HEAD, *rows])


#: Rows that tell in short what the table does, those that are no honour too: the end of a scenario, and its figure.
_IN_SHORT = (
    ("held for 5 s at once", "threads"),
    ("held for 5 s at once", "RSS each, KiB"),
    ("idle tunnels", "threads"),
    ("500 readers of 64 MiB at 50 KB/s", "growth of RSS, MiB"),
    ("8 downloads of 256 MiB", "CPU-s/GiB"),
    ("8 downloads of 256 MiB", "MB/s"),
    ("1 MiB bodies, 4 connections", "CPU-s/GiB"),
    ("1 KiB answers, 16 connections", "req/s, one core"),
)


def summary(document: Document) -> str:
    """A few rows of the table, with what was measured alone. Of several numbers that were held the greatest counts."""
    samples = document["samples"]
    rows = [row for row in evaluate_all(samples) if row.subject is not None]
    lines = [("what", "figure", "this package", "others")]
    for end, figure in _IN_SHORT:
        found = [row for row in rows if row.goal.scenario.endswith(end) and row.goal.figure == figure]
        if found:
            against = f"{found[-1].peer} {number(found[-1].baseline)}" if found[-1].peer else ""
            others = ", ".join(filter(None, (against, _others(found[-1], samples))))
            lines.append((found[-1].goal.scenario, figure, number(found[-1].subject), others))
    return markdown(lines)


#: What is told of engines: the samples, what was asked for, and the figure.
_FRONTED = (
    ("fronted16.two", FRONTED_SMALL, TWO),
    ("fronted16.one", FRONTED_SMALL, ONE),
    ("fronted16.two.p99", FRONTED_SMALL, "p99 in ms, two cores"),
    ("fronted.cpu", FRONTED_BULK, CPU),
    ("fronted.rate", FRONTED_BULK, RATE),
)


def side_by_side(document: Document) -> str:
    """The relay in the process, nginx with each of the two ways, and nginx alone; empty where none was measured."""
    samples = document["samples"]
    lines = [("what", "figure", "the relay in the process", *ENGINES.values())]
    for data, what, figure in _FRONTED:
        found = samples.get(data, {})
        medians = (statistics.median(found[name]) if found.get(name) else None for name in ("proxy", *ENGINES))
        if found:
            lines.append((what, figure, *map(number, medians)))
    return markdown(lines) if len(lines) > 1 else ""


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns stand below each other; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    drawn = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    drawn.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(drawn)


#: What is asked for with wrk: the samples' names, and what they are called.
_SMALL = {
    "own1": "own view, 1 connection",
    "own16": "own view, 16 connections",
    "own64": "own view, 64 connections",
    "beside": "own view, 16 connections, beside 3,000 held",
    "small1": "1 KiB answers, 1 connection",
    "small16": "1 KiB answers, 16 connections",
    "browser": "… with a browser's 12 request fields",
    "small64": "1 KiB answers, 64 connections",
    "fronted16": "1 KiB answers, 16 connections, engines",
}
_SMALL_HEAD = ("asked for", "cores", "of", "req/s", "p50, ms", "p99, ms", "CPU-s/1,000", "switches")


def small(document: Document) -> str:
    """All that wrk showed, as Markdown: medians of the rounds; empty where nothing was asked for."""
    samples, lines = document["samples"], [_SMALL_HEAD]
    for data, title in _SMALL.items():
        for place in ("two", "one"):
            at = f"{data}.{place}"
            for name in samples.get(f"{at}.p50", {}):
                figures = (at, f"{at}.p50", f"{at}.p99", f"{at}.cpu", f"{at}.switches")
                shown = (number(statistics.median(samples[figure][name])) for figure in figures)
                lines.append((title, place, name, *shown))
    return markdown(lines) if len(lines) > 1 else ""


def left_out(document: Document) -> list[str]:
    """Servers that are not installed, scenarios that failed, and rows that this run did not measure."""
    lines = [f"left out: {TITLES[name]}: {reason}" for name, reason in document["left_out"].items()]
    lines += document["notes"]
    lines += [f"FAILED: scenario {name}: {reason}" for name, reason in document["failures"].items()]
    missing = {row.goal.scenario: None for row in evaluate_all(document["samples"]) if row.subject is None}
    return lines + ([f"not measured: {'; '.join(missing)}"] if missing else [])


def how_noisy(document: Document) -> str:
    """How far the rounds of the run lay apart, and what else the machine did."""
    load = document["load_average"]
    busy = f"Load average before the run: {load:.2f}" + (" (the machine was not idle)." if load > 0.5 else ".")
    found = noise(evaluate_all(document["samples"]))
    if found is None:
        return f"One round only: nothing is known of its noise. {busy}"
    middle, worst, row = found
    return (
        f"Between interleaved rounds a measured figure varied by {middle:.0%} (median of the rows), by {worst:.0%} "
        f"at worst ({row.goal.scenario}: {row.goal.figure}). {busy}"
    )


def conditions(document: Document) -> str:
    """On what, when and how the figures were taken."""
    machine = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    kind = "a quick run (bulk sizes divided by 8)" if document["quick"] else "a full run"
    rounds = f"{document['rounds']} rounds"
    if "own_rounds" in document:
        rounds += f", {document['own_rounds']} of own views"
    peers = "; ".join(document["versions"].values())
    return f"Taken {document['taken']} in {kind}, {rounds}. {machine}. {peers}."


def rows(samples: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """The table's rows for whoever reads the JSON; what was not measured is null."""
    return [
        {**row.goal._asdict(), "measured": row.measured, "spread": row.spread, "reached": row.verdict}
        for row in evaluate_all(samples)
    ]


def verdicts(document: Document) -> str:
    """How many rows reached what."""
    reached = [row.verdict for row in evaluate_all(document["samples"])]
    return f"{reached.count('aim')} aims reached, {reached.count('must')} musts, {reached.count('MISSED')} missed"


def text(document: Document) -> str:
    """All that is printed at the end of a run."""
    parts = [document["ini"].strip(), small(document), table(document), "\n".join(left_out(document)),
             how_noisy(document), conditions(document), verdicts(document)]  # fmt: skip
    return "\n\n".join(part for part in parts if part)
