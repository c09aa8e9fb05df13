"""What is counted, in the formats of Prometheus: `prometheus_client` writes them (extra ``metrics``).

Nothing is kept here: at a scrape the numbers of `Status` are handed over. With `proxy.shared` those of all processes
are, each with the label `process`: behind one socket a scrape can't choose whom it asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pyramid_threaded_proxy.status.counts import BOUNDS
from pyramid_threaded_proxy.status.numbers import Family, families
from pyramid_threaded_proxy.status.published import others
from pyramid_threaded_proxy.status.status import Status

_EDGES = [*map(str, BOUNDS), "+Inf"]
_KINDS: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class ProxyCollector(Collector):
    """Gives a registry of `prometheus_client` all metrics of one application. Any thread."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Every metric, as it is now; those of other processes as they were a few seconds ago at most."""
        status = self._status
        if status.elsewhere is None:
            return map(_metric, families(status))
        own = {family.name: _of_process(family, status.elsewhere.name) for family in families(status)}
        for report in others(status).reports:
            for values in report["numbers"]:
                family = _of_process(Family(*values), report["process"])
                if (known := own.get(family.name)) is not None and known.labels == family.labels:
                    known.rows.extend(family.rows)
        return map(_metric, own.values())


def exposition(status: Status, accept: str) -> tuple[bytes, str]:
    """The metrics in the format that `accept` asks for, and its media type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ProxyCollector(status))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _of_process(family: Family, process: str) -> Family:
    """The same with a label more."""
    rows = [([*labels, process], value) for labels, value in family.rows]
    return family._replace(labels=[*family.labels, "process"], rows=rows)


def _metric(family: Family) -> Metric:
    made = _KINDS[family.kind](family.name, family.help, labels=family.labels)
    for labels, value in family.rows:
        if family.kind == "histogram":
            made.add_metric(labels, buckets=_cumulated(value[0]), sum_value=value[1])
        else:
            made.add_metric(labels, value)
    return made  # type: ignore[no-any-return]


def _cumulated(buckets: Iterable[int]) -> list[tuple[str, int]]:
    return list(zip(_EDGES, accumulate(buckets), strict=True))
