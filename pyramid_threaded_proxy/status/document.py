"""The page as HTML: all of it is readable before its script runs, and without it. Everything shown is escaped here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from pyramid_threaded_proxy.status.counts import REASONS
from pyramid_threaded_proxy.status.history import GROUPS
from pyramid_threaded_proxy.status.plots import PLOTS, figure, last_rate, spark
from pyramid_threaded_proxy.status.report import Asked
from pyramid_threaded_proxy.status.units import UNKNOWN, duration, short, size

_FOLDER = Path(__file__).parent
_PAGE = (_FOLDER / "page.html").read_text(encoding="utf-8")
_SCRIPT = (_FOLDER / "page.js").read_text(encoding="utf-8")

EXCHANGES = ("User", "Route", "Request", "Upstream", "Stage", "Age", "Up", "Down", "Rate")
UPSTREAMS = ("Route", "Upstream", "State", "Why", "Seconds left", "Last probe", "In flight", "Kept", "Last 2 min")
LIMITS = ("Route", "Last 2 min", "In flight", "Limit", *REASONS)
FAILURES = ("When", "Route", "User", "Request", "Upstream", "Status", "Ended", "Rule", "Id")
PROCESSES = (
    "Process", "In flight", "Limit", "Exchanges", "To clients", "To upstreams", "First byte, 95 %", "Not whole",
    "Refused",
)  # fmt: skip
_NUMBERS = frozenset(
    {"Age", "Up", "Down", "Rate", "In flight", "Kept", "Limit", "Seconds left", "Status", *REASONS, *PROCESSES[1:]}
)
_LONG = frozenset({"Request", "Rule", "Why"})


def document(found: Mapping[str, Any], asked: Asked, path: str, token: str, nonce: str) -> str:
    """The page for what `report` has found. `token` is empty for who may only look."""
    series = found["seconds"]["series"]
    limit = found["limits"][0]["limit"]
    values = {
        "nonce": escape(nonce),
        "path": escape(path),
        "token": escape(token),
        "process": str(found["process"]),
        "draining": "" if found["draining"] else "hidden",
        "time": time.strftime("%H:%M:%S UTC", time.gmtime(found["time"])),
        "tiles": _tiles(found),
        "plots": "".join(figure(plot, series, limit) for plot in PLOTS),
        "shared": "" if found["processes"] else "hidden",
        "others": "" if not found["others_known"] else "hidden",
        "processes": _table("processes", PROCESSES, map(_process_row, found["processes"])),
        "count": escape(f"{found['in_flight']} exchanges"),
        "user": escape(asked.user),
        "route": escape(asked.route),
        "exchanges": _exchanges(found, path, token),
        "upstreams": _table("upstreams", UPSTREAMS, _upstream_rows(found), path, token),
        "limits": _table("limits", LIMITS, _limit_rows(found)),
        "failures": _table("failures", FAILURES, map(_failure_row, found["failures"])),
        # In a data block only the way out of it has to be closed.
        "data": json.dumps(found).replace("<", "\\u003c"),
        "script": _SCRIPT,
    }
    pieces = _PAGE.split("[[")  # in one pass: a value is never searched for names
    return pieces[0] + "".join(values[name] + rest for name, _, rest in (piece.partition("]]") for piece in pieces[1:]))


def _tiles(found: Mapping[str, Any]) -> str:
    series, process = found["seconds"]["series"], found["limits"][0]
    rate = sum(last_rate(series[name]) for name in GROUPS)
    bad = sum(last_rate(series[name]) for name in GROUPS[1:]) * 60
    first = last_rate(series["p95"])
    tiles = (
        ("in-flight", "In flight", short(process["active"]), f" of {process['limit']}"),
        ("rate", "Exchanges", short(rate), " a second"),
        ("down", "To clients", f"{size(last_rate(series['down']))}/s", ""),
        ("up", "To upstreams", f"{size(last_rate(series['up']))}/s", ""),
        ("first", "First byte, 95 %", duration(first) if first else UNKNOWN, ""),
        ("bad", "Not whole", short(bad), " a minute"),
    )
    return "".join(
        f'<div class="card"><dt>{escape(name)}</dt><dd><span id="tile-{word}">{escape(value)}</span>'
        f"<small>{escape(rest)}</small></dd></div>"
        for word, name, value, rest in tiles
    )


#: A cell is text, or `Markup`: then it was escaped where it was made.
class Markup(str):
    """HTML that holds nothing unescaped."""


Row = tuple[list[str], dict[str, str], tuple[str, ...]]  # cells, the values of its forms, the actions


def _table(name: str, heads: tuple[str, ...], rows: Iterable[Row], path: str = "", token: str = "") -> str:
    head = "".join(f'<th{_class(text)} scope="col">{escape(text.replace("_", " "))}</th>' for text in heads) + (
        "<th></th>" if token else ""
    )
    body = "".join(
        f"<tr>{''.join(_cell(text, cell) for text, cell in zip(heads, cells, strict=True))}"
        f"{_forms(path, token, hidden, actions)}</tr>"
        for cells, hidden, actions in rows
    )
    nothing = "" if body else '<p class="none">None.</p>'
    return f'<table id="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{nothing}'


def _class(head: str) -> str:
    return ' class="n"' if head in _NUMBERS else ' class="text"' if head in _LONG else ""


def _cell(head: str, cell: str) -> str:
    return f"<td{_class(head)}>{cell if isinstance(cell, Markup) else escape(cell)}</td>"


def _forms(path: str, token: str, hidden: Mapping[str, str], actions: tuple[str, ...]) -> str:
    if not token:
        return ""
    inputs = "".join(
        f'<input type="hidden" name="{name}" value="{escape(value)}">'
        for name, value in {**hidden, "csrf": token}.items()
    )
    return (
        "<td>"
        + "".join(
            f'<form method="post" action="{escape(path)}/do/{action}">{inputs}'
            f'<button class="do">{action.capitalize()}</button></form>'
            for action in actions
        )
        + "</td>"
    )


def _process_row(one: Mapping[str, Any]) -> Row:
    p95 = one["p95"]
    cells = [
        one["process"] + (" (stopping)" if one["draining"] else "") if one["process"] else "all processes",
        str(one["active"]), str(one["limit"]), f"{short(one['rate'])}/s", f"{size(one['down'])}/s",
        f"{size(one['up'])}/s", duration(p95) if p95 else UNKNOWN, f"{short(one['bad'] * 60)}/min", str(one["refused"]),
    ]  # fmt: skip
    return cells, {}, ()


def _exchanges(found: Mapping[str, Any], path: str, token: str) -> str:
    """The table of those in flight; with several processes their column comes first."""
    heads: tuple[str, ...] = EXCHANGES
    rows: Iterable[Row] = map(_exchange_row, found["exchanges"])
    if found["processes"]:
        heads = ("Process", *EXCHANGES)
        names = [one["process"] for one in found["exchanges"]]
        rows = map(_with_process, names, rows)
    return _table("exchanges", heads, rows, path, token)


def _with_process(process: str, row: Row) -> Row:
    return [process, *row[0]], *row[1:]


def _exchange_row(one: Mapping[str, Any]) -> Row:
    age = one["age"]
    cells = [
        one["user"] or UNKNOWN, one["route"], f"{one['method']} {one['path']}", one["upstream"], one["stage"],
        duration(age),
        size(one["up"]), size(one["down"]), f"{size((one['up'] + one['down']) / max(age, 0.001))}/s",
    ]  # fmt: skip
    return cells, {"id": one["id"]}, ("close",)


def _upstream_rows(found: Mapping[str, Any]) -> Iterable[Row]:
    for one in found["upstreams"]:
        probe, left, state = one["probe"], one["seconds_left"], one["state"]
        asked = UNKNOWN if probe is None else _probe(probe, found["time"])
        sparks = found["sparks"].get(f"{one['route']} {one['upstream']}", [])
        cells = [
            one["route"], one["upstream"], Markup(f'<span class="tag {state}">{state}</span>'), one["why"],
            UNKNOWN if left is None else duration(left), asked, str(one["active"]), str(one["idle"]),
            Markup(spark(sparks)),
        ]  # fmt: skip
        actions = ("rest", "drain") if state == "up" else ("wake",)
        yield cells, {"route": one["route"], "upstream": one["upstream"]}, actions


def _limit_rows(found: Mapping[str, Any]) -> Iterable[Row]:
    for one in found["limits"]:
        refused = [str(one["refused"].get(reason, 0)) for reason in REASONS]
        line = Markup(spark(found["sparks"].get(one["route"], [])))
        yield [one["route"] or "the process", line, str(one["active"]), str(one["limit"]), *refused], {}, ()


def _failure_row(one: Mapping[str, Any]) -> Row:
    when = time.strftime("%d %b %H:%M:%S", time.gmtime(one["when"]))
    request = f"{one['method']} {one['path']}"
    ended = (one["upstream"], str(one["code"]), one["ended"], one["rule"], one["request_id"])
    return [when, one["route"], one["userid"] or UNKNOWN, request, *ended], {}, ()


def _probe(probe: Mapping[str, Any], now: float) -> str:
    return f"{'well' if probe['well'] else 'not well'}, {duration(max(0.0, now - probe['when']))} ago"
