"""Plots as SVG, made by hand: the page's script draws the same once it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import floor, log10
from typing import NamedTuple

from pyramid_threaded_proxy.status.history import GROUPS
from pyramid_threaded_proxy.status.units import UNKNOWN, duration, short, size

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 600, 170, 62, 10, 20

Values = Sequence[float | None]


class Plot(NamedTuple):
    """What is plotted, of which series, and how its numbers are read. `kind` is stacked, lines or level."""

    name: str
    caption: str
    kind: str
    series: tuple[str, ...]
    labels: tuple[str, ...]
    signs: tuple[tuple[str, str], ...]  # sign and class of its colour, one for each series
    unit: Callable[[float], str]


def _rate(number: float) -> str:
    return f"{short(number)}/s"


PLOTS = (
    Plot(
        "ended", "Exchanges a second", "stacked", GROUPS,
        ("whole", "client left", "upstream failed", "ended here", "fault"),
        (("●", "k0"), ("▲", "k1"), ("■", "k2"), ("◆", "k3"), ("✚", "k4")), _rate,
    ),
    Plot(
        "bytes", "Bytes of bodies a second", "lines", ("down", "up"), ("to clients", "to upstreams"),
        (("━", "ka"), ("╍", "k3")), lambda number: f"{size(number)}/s",
    ),
    Plot(
        "first", "Time to the first byte", "lines", ("p50", "p95", "p99"), ("median", "95 %", "99 %"),
        (("━", "ka"), ("╍", "k3"), ("┄", "k2")), duration,
    ),
    Plot("active", "In flight", "level", ("active",), ("exchanges",), (("━", "ka"),), short),
)  # fmt: skip


def nice(most: float, unit_of_bytes: bool = False) -> float:
    """The top of an axis: a round number that is not below `most`."""
    if most <= 0:
        return 1.0
    if unit_of_bytes:
        power = 1024.0 ** floor(max(0.0, log10(most) / log10(1024)))
        return power * nice(most / power)
    power = 10.0 ** floor(log10(most))
    return next(power * step for step in (1, 2, 4, 5, 8, 10) if most <= power * step * 1.0000001)


def figure(plot: Plot, series: dict[str, list[float | None]], limit: int) -> str:
    """A plot with its caption, key and table of values."""
    keys = "".join(
        f'<span class="key"><span class="{colour}">{sign}</span> {escape(label)}</span>'
        for label, (sign, colour) in zip(plot.labels, plot.signs, strict=True)
    )
    if plot.kind == "level":
        keys += f'<span class="key"><span class="kl">╌</span> limit {limit}</span>'
    return (
        f'<figure class="card" data-plot="{plot.name}"><figcaption><b>{escape(plot.caption)}</b>{keys}</figcaption>'
        f"{drawing(plot, series, limit)}{_values_table(plot, series)}</figure>"
    )


def drawing(plot: Plot, series: dict[str, list[float | None]], limit: int) -> str:
    """The SVG alone."""
    values = [series[name] for name in plot.series]
    if plot.kind == "stacked":
        values = _stacked(values)
    most = max((value for line in values for value in line if value is not None), default=0.0)
    if plot.kind == "level":
        most = max(most, limit if most > limit / 2 else 0)
    top = nice(most, plot.name == "bytes")
    inner = "".join([_grid(top, plot.unit), *_shapes(plot, values, top, limit)])
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plot.caption)}, '
        f'the last 10 minutes">{inner}</svg>'
    )


def _stacked(values: list[list[float | None]]) -> list[list[float | None]]:
    sums = [0.0] * len(values[0])
    lines: list[list[float | None]] = []
    for line in values:
        sums = [below + (value or 0.0) for below, value in zip(sums, line, strict=True)]
        lines.append(list(sums))
    return lines


def _grid(top: float, unit: Callable[[float], str]) -> str:
    made = []
    for part in range(5):
        y = _y(top * part / 4, top)
        made.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH}"/>')
        if part % 2 == 0:
            label = escape(unit(top * part / 4))
            made.append(f'<text x="{LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    for x, anchor, label in (
        (LEFT, "start", "10 min ago"),
        ((LEFT + WIDTH) / 2, "middle", "5 min"),
        (WIDTH, "end", "now"),
    ):
        made.append(f'<text x="{x}" y="{HEIGHT - 4}" text-anchor="{anchor}">{label}</text>')
    return "".join(made)


def _shapes(plot: Plot, values: list[list[float | None]], top: float, limit: int) -> list[str]:
    if plot.kind == "stacked":
        areas = [f'<path class="area f{at}" d="{_area(line, top)}"/>' for at, line in enumerate(values)]
        return areas[::-1]
    shapes = [f'<path class="line l{at}" d="{_line(line, top)}"/>' for at, line in enumerate(values)]
    if plot.kind == "level":
        shapes.insert(0, f'<path class="area fa" d="{_area(values[0], top)}"/>')
        if limit <= top:
            shapes.append(f'<path class="line limit" d="M{LEFT} {_y(limit, top):.1f}H{WIDTH}"/>')
    return shapes


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top


def _x(index: int, count: int, steps: int = 600) -> float:
    return WIDTH - (WIDTH - LEFT) * (count - 1 - index) / (steps - 1)


def _line(line: Values, top: float) -> str:
    """A path that is broken where nothing is known."""
    path, down = [], False
    for index, value in enumerate(line):
        if value is None:
            down = False
            continue
        path.append(f"{'L' if down else 'M'}{_x(index, len(line)):.1f} {_y(value, top):.1f}")
        down = True
    return "".join(path)


def _area(line: Values, top: float) -> str:
    if not line:
        return ""
    points = "".join(f"L{_x(index, len(line)):.1f} {_y(value or 0.0, top):.1f}" for index, value in enumerate(line))
    base = f"{_y(0, top):.1f}"
    return f"M{_x(0, len(line)):.1f} {base}{points}L{WIDTH} {base}Z"


def _values_table(plot: Plot, series: dict[str, list[float | None]]) -> str:
    """What the plot shows, in rows of ten seconds: its sums, levels or largest values."""
    count = len(series[plot.series[0]])
    head = "".join(f'<th class="n">{escape(label)}</th>' for label in plot.labels)
    rows = []
    for end in range(count, max(0, count - 600), -10):
        cells = "".join(
            f'<td class="n">{escape(_shown(plot, series[name][max(0, end - 10) : end]))}</td>' for name in plot.series
        )
        rows.append(f"<tr><td>{duration(max(1, count - end)) if end < count else 'now'}</td>{cells}</tr>")
    return (
        "<details><summary>Values</summary><div><table><thead><tr><th>ago</th>"
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _shown(plot: Plot, values: Values) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return UNKNOWN
    return plot.unit(sum(known) / len(known) if plot.kind != "level" else max(known))


def spark(counts: Sequence[int]) -> str:
    """A small line without axes."""
    most = max([1, *counts])
    path = "".join(
        f"{'L' if index else 'M'}{index * 120 / max(1, len(counts) - 1):.1f} {20 - 18 * count / most:.1f}"
        for index, count in enumerate(counts)
    )
    return f'<svg class="spark" viewBox="0 0 120 22" aria-hidden="true"><path d="{path}"/></svg>'


def last_rate(values: Values, steps: int = 10) -> float:
    """The mean of the last steps."""
    known = [value for value in values[-steps:] if value is not None]
    return sum(known) / len(known) if known else 0.0
