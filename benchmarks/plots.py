"""Plots as SVG, written by hand: bars for what is compared, a line for what must not grow."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from benchmarks.figures import evaluate_all
from benchmarks.report import Document, number
from benchmarks.servers import TITLES

_COLORS = {"proxy": "#1b6ca8", "logged": "#7fb3d5", "counted": "#5d9cc9", "holding": "#4a90c2",
           "bare": "#8a8a8a", "haproxy": "#c0504d", "haproxy-mt": "#e39c99",
           "nginx": "#4f8f4f", "revproxy": "#b58900"}  # fmt: skip
#: Pixels: the room for bars, for what is written behind them, a bar's height with its gap, and between groups.
_ROOM, _BEHIND, _BAR, _GAP = 460, 140, 16, 10
#: Pixels that a letter takes, rather more than less.
_LETTER = 6.6
_STYLE = "font-family='system-ui, sans-serif' font-size='12' fill='#222'"

Samples = Mapping[str, Mapping[str, Sequence[float]]]


class Bar(NamedTuple):
    """One bar: whose it is, how long, what is written behind it, and a value that is marked across it."""

    server: str
    value: float
    label: str
    mark: float | None = None


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{escape(text)}</text>"


def _page(width: float, height: float, title: str, parts: list[str]) -> str:
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' {_STYLE}>",
            f"<title>{escape(title)}</title>",
            f"<rect width='{width:.0f}' height='{height:.0f}' fill='#fff'/>",
            f"<g font-weight='bold'>{_text(16, 24, title)}</g>",
            *parts,
            "</svg>\n",
        ]
    )


def _legend(names: Sequence[str], y: float, width: float) -> tuple[list[str], float]:
    """The colours' meaning, in as many lines as it takes; and where the last line stands."""
    parts, x = [], 16.0
    for name in names:
        needed = 34 + _LETTER * len(TITLES[name])
        if x > 16 and x + needed > width:
            x, y = 16.0, y + 18
        parts.append(f"<rect x='{x:.1f}' y='{y - 10:.1f}' width='10' height='10' fill='{_COLORS[name]}'/>")
        parts.append(_text(x + 14, y, TITLES[name]))
        x += needed
    return parts, y


def _bar(bar: Bar, left: float, y: float, scale: float) -> list[str]:
    length = max(1.0, bar.value * scale)
    color = _COLORS[bar.server]
    parts = [f"<rect x='{left:.1f}' y='{y:.1f}' width='{length:.1f}' height='{_BAR - 3}' fill='{color}'/>"]
    end = length
    if bar.mark is not None:
        at = bar.mark * scale
        end = max(length, at)
        parts.append(f"<path d='M{left + at:.1f} {y - 2:.1f}v{_BAR + 1}' stroke='#222' stroke-width='2'/>")
    return [*parts, _text(left + end + 6, y + 11, bar.label)]


def bars(title: str, groups: Mapping[str, Sequence[Bar]]) -> str:
    """Groups of horizontal bars; all on one scale."""
    every = [bar for group in groups.values() for bar in group]
    scale = _ROOM / (max((max(bar.value, bar.mark or 0) for bar in every), default=0) or 1)
    left = 30 + _LETTER * max(map(len, groups), default=0)
    width = left + _ROOM + _BEHIND
    parts, y = _legend(list(dict.fromkeys(bar.server for bar in every)), 46, width)
    y += 20
    for label, group in groups.items():
        parts.append(_text(left - 10, y + 11, label, "end"))
        for bar in group:
            parts += _bar(bar, left, y, scale)
            y += _BAR
        y += _GAP
    return _page(width, y + 8, title, parts)


def compared(title: str, samples: Samples, labels: Mapping[str, str]) -> str:
    """The medians of some samples, all servers beside each other; `labels` are the samples' names in the plot."""
    groups = {}
    for data, label in labels.items():
        medians = {name: statistics.median(values) for name, values in samples.get(data, {}).items()}
        if medians:
            groups[label] = [Bar(name, value, number(value)) for name, value in medians.items()]
    return bars(title, groups)


def lines(title: str, series: Mapping[str, Mapping[int, float]]) -> str:
    """Values over a number that grows tenfold from step to step."""
    steps = sorted({step for values in series.values() for step in values})
    most = max((value for values in series.values() for value in values.values()), default=1) or 1
    left, right, top, bottom = 70.0, 620.0, 50.0, 290.0
    across = {step: left + index * (right - left) / max(1, len(steps) - 1) for index, step in enumerate(steps)}
    parts = [f"<path d='M{left} {top}V{bottom}H{right}' fill='none' stroke='#888'/>"]
    parts += [_text(x, bottom + 18, f"{step:,}", "middle") for step, x in across.items()]
    parts += [_text(left - 8, bottom + 4, "0", "end"), _text(left - 8, top + 8, number(most), "end")]
    colors = ("#1b6ca8", "#8a8a8a", "#c0504d")
    for (label, values), color in zip(series.items(), colors, strict=False):
        points = [(across[step], bottom - values[step] / most * (bottom - top - 4)) for step in sorted(values)]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f"<polyline points='{drawn}' fill='none' stroke='{color}' stroke-width='2'/>")
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{color}'/>" for x, y in points]
        parts.append(_text(right + 10, points[-1][1] + 4, label))
    return _page(right + 150, bottom + 36, title, parts)


def _reached(samples: Samples) -> str:
    """Ratios as bars, each with what must be reached."""
    groups = {}
    for row in evaluate_all(samples):
        if row.goal.against and row.goal.must is not None and row.measured is not None:
            sign = "≤" if row.goal.at_most else "≥"
            label = f"{number(row.measured)} (must {sign} {number(row.goal.must)})"
            bar = Bar(row.goal.subject, row.measured, label, row.goal.must)
            groups[f"{row.goal.scenario}: {row.goal.figure}"] = [bar]
    return bars("Measured ratios; the marks are what must be reached", groups)


def _in_flight(samples: Samples) -> dict[str, dict[int, float]]:
    names = {"small": "1 KiB answer", "own": "own view"}
    series: dict[str, dict[int, float]] = {}
    for data, servers in samples.items():
        kind, _, count = data.removeprefix("in_flight.").partition(".")
        if data.startswith("in_flight.") and kind in names:
            series.setdefault(names[kind], {})[int(count)] = statistics.median(servers["proxy"])
    return series


def draw(document: Document) -> dict[str, str]:
    """All plots of a run, by file name."""
    samples: Samples = document["samples"]
    bulk = {"downloads": "8 downloads", "single": "1 download", "bodies": "1 MiB bodies", "chunked": "16 KiB chunks",
            "https": "https upstream", "uploads": "4 uploads",
            "streamed": "4 that stream"}  # fmt: skip
    small = {"small16": "16 connections", "browser": "a browser's fields", "small64": "64 connections",
             "small1": "1 connection"}  # fmt: skip
    both = {f"{data}.{place}": f"{label}, {place} core{'s' if place == 'two' else ''}"
            for data, label in small.items() for place in ("two", "one")}  # fmt: skip
    plots: dict[str, Any] = {
        "cpu.svg": compared("CPU-s/GiB, the server alone on one core (less is better)", samples,
                            {f"{data}.cpu": label for data, label in bulk.items()}),
        "rate.svg": compared("MB/s, on all cores (more is better)", samples,
                             {f"{data}.rate": label for data, label in bulk.items()}),
        "small.svg": compared("Answers of 1 KiB: requests a second (more is better)", samples, both),
        "in-flight.svg": lines("CPU of one request in µs, while so many exchanges are in flight", _in_flight(samples)),
        "ratios.svg": _reached(samples),
    }  # fmt: skip
    return plots
