"""The rows of the table: what is compared with what, what must be reached, what is aimed at."""

from __future__ import annotations

from typing import NamedTuple


class Goal(NamedTuple):
    """One row. `data` names the samples, `subject` and `against` the servers.

    Without `against` the figure itself counts. `must` and `aim` bound the ratio, or the figure; where they are None the
    row is shown beside others. `worst` takes the worst round in place of the median.
    """

    scenario: str
    figure: str
    data: str
    must: float | None = None
    aim: float | None = None
    at_most: bool = False
    against: str | None = None
    against_data: str | None = None
    subject: str = "proxy"
    worst: bool = False


TWO = "req/s, two cores"
ONE = "req/s, one core"
CPU = "CPU-s/GiB"
RATE = "MB/s"
GROWTH = "growth of RSS, MiB"

#: What moves bulk: its samples' name, the scenario, the peer, and the bounds of CPU and of MB/s.
_Bounds = tuple[float | None, float | None]
_BULK: tuple[tuple[str, str, str, _Bounds, _Bounds], ...] = (
    ("downloads", "8 downloads of 256 MiB", "haproxy", (1.15, 0.9), (0.85, 1.0)),
    ("single", "1 download of 2 GiB", "haproxy", (1.0, 0.6), (0.85, 1.05)),
    ("bodies", "1 MiB bodies, 4 connections", "haproxy", (1.5, 1.0), (0.8, 1.0)),
    ("chunked", "512 MiB in 16 KiB chunks", "haproxy", (1.0, 0.65), (1.0, 1.3)),
    ("https", "8 downloads of 256 MiB, https upstream", "nginx", (1.3, 1.0), (None, None)),
    ("uploads", "4 uploads of 256 MiB", "nginx", (1.2, 0.9), (None, None)),
)

#: Answers of 1 KiB: samples' name, the scenario, the bounds on two cores and on one.
_SMALL: tuple[tuple[str, str, _Bounds, _Bounds], ...] = (
    ("small16", "1 KiB answers, 16 connections", (1.1, 1.3), (0.95, 1.4)),
    ("browser", "… with a browser's 12 request fields", (0.85, 1.15), (None, None)),
    ("small64", "… 64 connections, against the ceiling at 16", (1.0, 1.3), (None, None)),
    ("small1", "… 1 connection", (0.6, 0.85), (None, None)),
)


def _bulk() -> list[Goal]:
    rows = []
    for data, scenario, peer, cpu, rate in _BULK:
        rows.append(Goal(scenario, CPU, f"{data}.cpu", *cpu, at_most=True, against=peer))
        rows.append(Goal(scenario, RATE, f"{data}.rate", *rate, against=peer))
        rows.append(Goal(scenario, GROWTH, f"{data}.growth", 8, 2, at_most=True, worst=True))
    return rows


def _streamed() -> list[Goal]:
    scenario, rows = "4 uploads of 256 MiB that stream", []
    for peer in ("haproxy", "nginx"):
        rows.append(Goal(scenario, CPU, "streamed.cpu", 1.1, 0.9, at_most=True, against=peer))
        rows.append(Goal(scenario, RATE, "streamed.rate", 0.9, 1.0, against=peer))
    rows.append(Goal(scenario, GROWTH, "streamed.growth", 2, 2, at_most=True, worst=True))
    rows.append(Goal(scenario, "written to disk, MiB", "streamed.written", 0, 0, at_most=True, worst=True))
    return rows


def _small() -> list[Goal]:
    rows = []
    for data, scenario, two, one in _SMALL:
        # At 64 connections stock waitress collapses, so its figure at 16 is the measure.
        ceiling = "small16" if data == "small64" else data
        for place, label, bounds in (("two", TWO, two), ("one", ONE, one)):
            rows.append(Goal(scenario, label, f"{data}.{place}", *bounds, against="bare",
                             against_data=f"{ceiling}.{place}"))  # fmt: skip
        rows.append(Goal(scenario, f"{TWO}: access log on, against off", f"{data}.two", 0.9, 1.0,
                         against="proxy", subject="logged"))  # fmt: skip
    for place, label in (("two", TWO), ("one", ONE)):
        rows.append(Goal("1 KiB answers, counting on against off", label, f"small16.{place}", 0.97, 1.0,
                         against="proxy", subject="counted"))  # fmt: skip
    return rows


def _own() -> list[Goal]:
    rows = []
    for connections in (1, 16, 64):
        scenario = f"own view, {connections} connection{'s' if connections > 1 else ''}, add-on loaded"
        # With one connection hardly a thread meets another: it is shown beside the others.
        bounds: tuple[_Bounds, _Bounds, _Bounds] = ((0.97, 1.0), (1.1, 1.0), (1.0, 1.1))
        two, late, one = bounds if connections > 1 else ((None, None),) * 3
        data = f"own{connections}"
        rows.append(Goal(scenario, TWO, f"{data}.two", *two, against="bare"))
        rows.append(Goal(scenario, "p99, two cores", f"{data}.two.p99", late[0], late[1], True, "bare"))
        rows.append(Goal(scenario, ONE, f"{data}.one", *one, against="bare"))
    return rows


def _held(count: int, done: _Bounds) -> list[Goal]:
    scenario, data = f"{count:,} held for 5 s at once", f"held{count}"
    return [
        Goal(scenario, "done in, s", f"{data}.done", *done, at_most=True),
        Goal(scenario, "threads", f"{data}.threads", 24, 18, at_most=True),
        Goal(scenario, "RSS each, KiB", f"{data}.rss", 16, 8, at_most=True),
        Goal(scenario, "own view p99, ms", f"{data}.p99", 25, 10, at_most=True),
    ]


def _in_flight() -> list[Goal]:
    rows = []
    for count in (100, 1000, 9000, 10000):
        scenario = f"{count:,} in flight, against 10"
        for figure, data in (("CPU of a small answer", "small"), ("CPU of an own view", "own")):
            rows.append(Goal(scenario, figure, f"in_flight.{data}.{count}", against="proxy",
                             against_data=f"in_flight.{data}.10"))  # fmt: skip
    return rows


#: Servers that are shown beside the relay in the process, and what is said of them.
ENGINES = {"verify": "nginx with verify", "accel": "nginx with accel", "nginx": "nginx alone"}
#: What all of them do.
FRONTED_SMALL = "1 KiB answers, 16 connections"
FRONTED_BULK = "4 downloads of 256 MiB"


def _engines() -> list[Goal]:
    """Nothing is asked of them."""
    kinds = ((FRONTED_SMALL, TWO, "fronted16.two"), (FRONTED_SMALL, ONE, "fronted16.one"),
             (FRONTED_BULK, CPU, "fronted.cpu"), (FRONTED_BULK, RATE, "fronted.rate"))  # fmt: skip
    return [
        Goal(f"{what}: {title}", figure, data, at_most=figure == CPU, against="proxy", subject=subject)
        for subject, title in ENGINES.items()
        for what, figure, data in kinds
    ]


GOALS: tuple[Goal, ...] = (
    *_bulk(),
    *_streamed(),
    *_own(),
    *_small(),
    *_held(3000, (8, 6.5)),
    *_held(9000, (20, 12)),
    Goal(
        "own view, 16 connections, beside 3,000 held",
        "p99, two cores",
        "beside.two.p99",
        1.5,
        1.1,
        at_most=True,
        against="proxy",
        subject="holding",
    ),
    Goal("2,000 idle tunnels", "threads", "tunnels.threads", 24, 18, at_most=True),
    Goal("2,000 idle tunnels", "RSS each, KiB", "tunnels.rss", 16, 8, at_most=True),
    Goal("2,000 idle tunnels", "echo p99 on 20 of them, ms", "tunnels.p99", 10, 3, at_most=True),
    Goal("500 readers of 64 MiB at 50 KB/s", GROWTH, "slow.growth", 32, 8, at_most=True),
    Goal("small answers while 8 bulk streams run", "p99, ms", "mixed.p99", 40, 15, at_most=True),
    Goal("1 download of 1 GiB through a filter", CPU, "filtered.cpu"),
    Goal("1 download of 1 GiB through a filter", RATE, "filtered.rate"),
    Goal("1 download of 1 GiB through a filter", GROWTH, "filtered.growth", 8, 2, at_most=True, worst=True),
    Goal("own view while a filter runs", "p99, ms", "filtered.p99", 40, 15, at_most=True),
    *_in_flight(),
    *_engines(),
)
