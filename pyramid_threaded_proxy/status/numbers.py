"""All that is counted and observed as plain numbers, under the names of the metrics: `metrics` writes them for
Prometheus, `published` for the other processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

from pyramid_threaded_proxy.status.counts import Histogram
from pyramid_threaded_proxy.status.status import Moving, Status


class Family(NamedTuple):
    """One metric. `kind` is `counter`, `gauge` or `histogram`; a row is the values of its labels, and a number, or of
    a histogram its buckets and sum."""

    kind: str
    name: str
    help: str
    labels: list[str]
    rows: list[tuple[list[str], Any]]


_ROUTE, _UPSTREAM = ["route"], ["route", "upstream"]


def families(status: Status) -> list[Family]:
    """Every metric, as it is now."""
    with status.reading() as moving:
        return [*_counters(status), *_histograms(status), *_gauges(status, moving)]


def _family(kind: str, name: str, help_text: str, labels: list[str], values: Iterable[tuple[Any, Any]]) -> Family:
    return Family(kind, name, help_text, labels, [(list(names), value) for names, value in values])


def _counters(status: Status) -> Iterator[Family]:
    counts = status.counts
    for name, help_text, labels, values in (
        (
            "proxy_exchanges",
            "Exchanges that are over.",
            ["route", "method", "code", "ended"],
            counts.exchanges.items(),
        ),
        (
            "proxy_body_bytes",
            "Bytes of bodies: up to upstreams, down to clients.",
            ["route", "direction"],
            (((route, way), sums[at]) for route, sums in status.bytes.items() for at, way in enumerate(("up", "down"))),
        ),
        ("proxy_refused", "Requests that got no exchange, and why.", ["route", "reason"], counts.refused.items()),
        (
            "proxy_retries",
            "Tries after the first, under the upstream that was asked last.",
            _UPSTREAM,
            counts.retries.items(),
        ),
    ):
        yield _family("counter", name, help_text, labels, values)


def _histograms(status: Status) -> Iterator[Family]:
    counts = status.counts
    found: Mapping[Any, Histogram]
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
        rows = ((key, (list(one.buckets), one.sum)) for key, one in found.items())
        yield _family("histogram", name, help_text, labels, rows)


def _gauges(status: Status, moving: Moving) -> Iterator[Family]:
    observed = status.observed
    active, limits = observed.active(), observed.limits()
    upstreams = [(route, upstream.url, upstream, idle) for route, upstream, idle in observed.upstreams()]
    values: Mapping[Any, float]
    for name, help_text, labels, values in (
        (
            "proxy_exchanges_active",
            "Exchanges in flight.",
            _ROUTE,
            {(route,): active.get(route, 0) for route in (limits | active)},
        ),
        (
            "proxy_exchanges_limit",
            "How many exchanges there may be in flight.",
            _ROUTE,
            {(route,): limit for route, limit in limits.items()},
        ),
        (
            "proxy_upstream_up",
            "1 while exchanges are sent there, 0 while it is marked down or drained.",
            _UPSTREAM,
            {(route, url): not upstream.health.down for route, url, upstream, _ in upstreams},
        ),
        (
            "proxy_upstream_active",
            "Exchanges in flight with an upstream.",
            _UPSTREAM,
            {(route, url): 0 for route, url, _, _ in upstreams} | moving.upstreams,
        ),
        (
            "proxy_upstream_idle_connections",
            "Connections that are kept for the next exchange.",
            _UPSTREAM,
            {(route, url): idle for route, url, _, idle in upstreams},
        ),
        ("proxy_descriptors", "Files that this process has open.", [], {(): open_descriptors()}),
        ("proxy_pool_busy", "Threads of the pool that run something.", [], {(): observed.pool_busy()}),
        ("proxy_draining", "1 while the process stops.", [], {(): observed.draining()}),
        ("proxy_build_info", "1, labelled with the version.", ["version"], {(version("pyramid_threaded_proxy"),): 1}),
    ):
        yield _family("gauge", name, help_text, labels, values.items())


def open_descriptors() -> int:
    """How many files this process has open; 0 where the system does not say."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # less the one that lists them
    except OSError:
        return 0
