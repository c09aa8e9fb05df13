"""The one place that counts, and what is left there."""

from __future__ import annotations

import threading

from pyramid_threaded_proxy.exchange import Exchange, UpstreamRequest
from pyramid_threaded_proxy.status import status as module
from pyramid_threaded_proxy.status.status import Status
from tests.support.observed import Nothing


def exchange(upstream: str = "http://a") -> Exchange:
    """One that is under way."""
    made = Exchange("r", UpstreamRequest("GET", "http://a", "/", [], None), None, None, None)
    made.stats.upstream = upstream
    return made


def watching(observed: Nothing) -> Status:
    """A status of `observed`."""
    return Status(observed, lambda route: frozenset({"http://a"}))


def test_bytes_under_way_count_and_never_go_back() -> None:
    """A long download is seen while it runs; a request that is sent anew does not take back what was counted."""
    observed = Nothing()
    status = watching(observed)
    under_way = exchange()
    observed.under_way.append(under_way)
    under_way.stats.bytes_up = 500
    with status.reading() as moving:
        assert status.bytes["r"] == [500, 0]
        assert moving.upstreams == {("r", "http://a"): 1}
    under_way.stats.bytes_up = 0
    with status.reading():
        assert status.bytes["r"] == [500, 0]
    observed.under_way.clear()
    under_way.stats.bytes_up = 700
    with status.reading():
        assert status.bytes["r"] == [500, 0]  # it has ended, and has not said so yet
    status.ended(under_way)
    with status.reading():
        assert status.bytes["r"] == [700, 0]


def test_a_tick_waits_for_nobody() -> None:
    """While somebody reads, the loop goes on; what it would have counted is counted later."""
    status = watching(Nothing())
    with status.reading():
        thread = threading.Thread(target=status.tick, args=(0.5,))
        status.ended(exchange())
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        assert sum(status.counts.exchanges.values()) == 0
    with status.reading():
        assert sum(status.counts.exchanges.values()) == 1
        assert status.counts.lag.sum == 0.5


def test_nobody_looks_and_nothing_piles_up(monkeypatch: object) -> None:
    """Without a loop that ticks, whoever ends one too many counts them all."""
    status = watching(Nothing())
    for _ in range(module.MOST_UNCOUNTED + 10):
        status.ended(exchange())
    assert len(status._ended) < 10


def test_many_threads_lose_nothing() -> None:
    """Exchanges that end in many threads while others read are each counted once."""
    status = watching(Nothing())

    def work() -> None:
        for _ in range(2000):
            status.ended(exchange())
            status.refused("r", "limit")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        status.tick()
    with status.reading():
        assert sum(status.counts.exchanges.values()) == 8000
        assert status.counts.refused["r", "limit"] == 8000
