"""What clients, upstreams, access log and metrics have each counted of the same exchanges, and where they differ.

Every exchange has a path that no other has, so each is compared with itself, and the sums with the sums.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

#: What a client saw of an exchange that it left, or whose answer broke off.
LEFT, BROKEN = "left", "broken"
Sample = tuple[str, frozenset[tuple[str, str]]]


class Seen(NamedTuple):
    """An exchange as its client has it: bytes of the bodies that it sent and got, and a status, `LEFT` or `BROKEN`."""

    method: str
    outcome: str
    up: int
    down: int


class Books:
    """The clients' entries. `saw` is called by any of their threads, once for each path."""

    def __init__(self) -> None:
        self.clients: dict[str, Seen] = {}
        self.refused: Counter[tuple[str, str]] = Counter()

    def saw(self, path: str, method: str, outcome: str, up: int = 0, down: int = 0) -> None:
        assert path not in self.clients
        self.clients[path] = Seen(method, outcome, up, down)

    @property
    def least(self) -> int:
        """How many exchanges there must have been: one that its client left at once may not have begun."""
        return sum(seen.outcome != LEFT for seen in self.clients.values())

    def differences(self, log: Path, upstreams: Iterable[Path], metrics: str) -> list[str]:
        """Everything that somebody has counted otherwise than somebody else."""
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        asked = Counter(path for file in upstreams for path in file.read_text().splitlines())
        return [*self._of_each(lines, asked), *self._of_sums(lines, _samples(metrics))]

    def _of_each(self, lines: list[dict[str, Any]], asked: Counter[str]) -> Iterator[str]:
        told = Counter(line["path"] for line in lines)
        yield from (f"counted {count} times: {path}" for path, count in told.items() if count > 1)
        yield from (f"nobody sent {path}" for path in told if path not in self.clients)
        left_out = (path for path, seen in self.clients.items() if seen.outcome != LEFT and path not in told)
        yield from (f"not counted: {path}" for path in left_out)
        for line in lines:
            if (seen := self.clients.get(line["path"])) is not None:
                yield from (f"{line['path']}: {what}; {seen}, {line}" for what in _against(seen, line, asked))

    def _of_sums(self, lines: list[dict[str, Any]], metrics: dict[Sample, float]) -> Iterator[str]:
        expected: Counter[Sample] = Counter()
        for line in lines:
            for name, count, labels in _counted(line):
                expected[name, frozenset(labels.items())] += count
        for (route, reason), count in self.refused.items():
            expected["proxy_refused_total", frozenset({"route": route, "reason": reason}.items())] += count
        names = {name for name, _ in expected} | {"proxy_exchanges_active", "proxy_upstream_active", "proxy_pool_busy"}
        for sample in {*expected, *(sample for sample in metrics if sample[0] in names)}:
            if metrics.get(sample, 0) != expected[sample]:
                yield f"{sample[0]} {dict(sample[1])} is {metrics.get(sample)}, and was {expected[sample]}"


def _against(seen: Seen, line: dict[str, Any], asked: Counter[str]) -> Iterator[str]:
    """What the access log has otherwise than the client and the upstream of that exchange."""
    path, route = line["path"], line["route"]
    if (line["method"], f"/{route}/") != (seen.method, path[: len(route) + 2]):
        yield "another request"
    if seen.outcome == BROKEN and line["ended"] == "whole":
        yield "the client saw it break off"
    if seen.outcome == BROKEN and line["bytes_down"] < seen.down:
        yield "the client got more"
    if seen.outcome.isdigit():
        if (str(line["status"]), line["bytes_down"]) != (seen.outcome, seen.down):
            yield "another status or length"
        if (line["ended"] == "whole") != (seen.outcome == "200"):
            yield "another end"
    times = asked[path[len(route) + 1 :]]
    if times > line["attempts"]:
        yield f"its upstreams were asked {times} times"
    if line["first_byte_seconds"] is not None and not times:
        yield "its upstreams were not asked"
    if seen.outcome == "200" and line["bytes_up"] != seen.up:
        yield "the client sent another length"


def _counted(line: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, str]]]:
    """What an exchange adds to the metrics."""
    route, upstream = line["route"], line["upstream"]
    labels = {"route": route, "method": line["method"], "code": str(line["status"]), "ended": line["ended"]}
    yield "proxy_exchanges_total", 1, labels
    yield "proxy_body_bytes_total", line["bytes_up"], {"route": route, "direction": "up"}
    yield "proxy_body_bytes_total", line["bytes_down"], {"route": route, "direction": "down"}
    yield "proxy_exchange_duration_seconds_count", 1, {"route": route, "kind": "request"}
    if line["connect_seconds"] is not None:
        yield "proxy_upstream_connect_seconds_count", 1, {"route": route, "upstream": upstream}
    if line["first_byte_seconds"] is not None:
        yield "proxy_upstream_first_byte_seconds_count", 1, {"route": route, "upstream": upstream}
    if line["attempts"] > 1:
        yield "proxy_retries_total", line["attempts"] - 1, {"route": route, "upstream": upstream}


def _samples(text: str) -> dict[Sample, float]:
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}
