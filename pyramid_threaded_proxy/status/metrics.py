"""What is counted, in the formats of Prometheus: `prometheus_client` writes them (extra ``metrics``).

Nothing is kept here: at a scrape the numbers of `Status` are handed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pyramid_threaded_proxy.status.counts import BOUNDS, Histogram
from pyramid_threaded_proxy.status.status import Moving, Status

_EDGES = [*map(str, BOUNDS), "+Inf"]
_ROUTE, _UPSTREAM = ["route"], ["route", "upstream"]


class ProxyCollector(Collector):
    """Gives a registry of `prometheus_client` all metrics of one application. Any thread."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Every metric, as it is now."""
        with self._status.reading() as moving:
            made = [*_counters(self._status), *_histograms(self._status), *_gauges(self._status, moving)]
        yield from made


def exposition(status: Status, accept: str) -> tuple[bytes, str]:
    """The metrics in the format that `accept` asks for, and its media type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ProxyCollector(status))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _filled(family: Any, values: Iterable[tuple[Iterable[str], float]]) -> Any:
    for labels, value in values:
        family.add_metric(list(labels), value)
    return family


def _counters(status: Status) -> Iterator[Metric]:
    counts = status.counts
    yield _filled(
        CounterMetricFamily(
            "proxy_exchanges",
            "Exchanges that are over.",
            labels=["route", "method", "code", "ended"],
        ),
        counts.exchanges.items(),
    )
    yield _filled(
        CounterMetricFamily(
            "proxy_body_bytes",
            "Bytes of bodies: up to upstreams, down to clients.",
            labels=["route", "direction"],
        ),
        (((route, way), sums[at]) for route, sums in status.bytes.items() for at, way in enumerate(("up", "down"))),
    )
    yield _filled(
        CounterMetricFamily("proxy_refused", "Requests that got no exchange, and why.", labels=["route", "reason"]),
        counts.refused.items(),
    )
    yield _filled(
        CounterMetricFamily(
            "proxy_retries", "Tries after the first, under the upstream that was asked last.", labels=_UPSTREAM
        ),
        counts.retries.items(),
    )


def _histograms(status: Status) -> Iterator[Metric]:
    counts = status.counts
    for name, help_text, labels, found in (
        ("proxy_exchange_duration_seconds", "From start to end of an exchange.", ["route", "kind"], counts.durations),
        ("proxy_authorize_seconds", "From the request read to its exchange admitted.", _ROUTE, counts.authorize),
        (
            "proxy_upstream_connect_seconds",
            "From an exchange's start to a connection made for it; kept ones are not among them.",
            _UPSTREAM,
            counts.connect,
        ),
        (
            "proxy_upstream_first_byte_seconds",
            "From an exchange's start to the head of its answer.",
            _UPSTREAM,
            counts.first_byte,
        ),
        ("proxy_loop_lag_seconds", "How long what is ready waits for the loop, once a second.", [], {(): counts.lag}),
    ):
        yield _histogram(HistogramMetricFamily(name, help_text, labels=labels), found)


def _histogram(family: HistogramMetricFamily, found: Mapping[Any, Histogram]) -> Metric:
    for labels, histogram in found.items():
        pairs = list(zip(_EDGES, accumulate(histogram.buckets), strict=True))
        family.add_metric(list(labels), buckets=pairs, sum_value=histogram.sum)
    return family


def _gauges(status: Status, moving: Moving) -> Iterator[Metric]:
    observed = status.observed
    active, limits = observed.active(), observed.limits()
    yield _gauge(
        "proxy_exchanges_active",
        "Exchanges in flight.",
        _ROUTE,
        {(route,): active.get(route, 0) for route in (limits | active)},
    )
    yield _gauge(
        "proxy_exchanges_limit",
        "How many exchanges there may be in flight.",
        _ROUTE,
        {(route,): limit for route, limit in limits.items()},
    )
    upstreams = [(route, upstream.url, upstream, idle) for route, upstream, idle in observed.upstreams()]
    yield _gauge(
        "proxy_upstream_up",
        "1 while exchanges are sent there, 0 while it is marked down or drained.",
        _UPSTREAM,
        {(route, url): not upstream.health.down for route, url, upstream, _ in upstreams},
    )
    yield _gauge(
        "proxy_upstream_active",
        "Exchanges in flight with an upstream.",
        _UPSTREAM,
        {(route, url): 0 for route, url, _, _ in upstreams} | moving.upstreams,
    )
    yield _gauge(
        "proxy_upstream_idle_connections",
        "Connections that are kept for the next exchange.",
        _UPSTREAM,
        {(route, url): idle for route, url, _, idle in upstreams},
    )
    yield _gauge("proxy_descriptors", "Files that this process has open.", [], {(): open_descriptors()})
    yield _gauge("proxy_pool_busy", "Threads of the pool that run something.", [], {(): observed.pool_busy()})
    yield _gauge("proxy_draining", "1 while the process stops.", [], {(): observed.draining()})
    build = {(version("pyramid_threaded_proxy"),): 1}
    yield _gauge("proxy_build_info", "1, labelled with the version.", ["version"], build)


def _gauge(name: str, help_text: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    gauge: Metric = _filled(GaugeMetricFamily(name, help_text, labels=labels), values.items())
    return gauge


def open_descriptors() -> int:
    """How many files this process has open; 0 where the system does not say."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # less the one that lists them
    except OSError:
        return 0
