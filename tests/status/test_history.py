"""What is kept of the past: enough for the page, and never more."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from pyramid_threaded_proxy.exchange import Exchange, UpstreamRequest
from pyramid_threaded_proxy.status.history import SERIES, SPARK, Spark, Track, group_of
from pyramid_threaded_proxy.status.status import Status
from tests.support.observed import Nothing


def test_a_second_is_shown_when_it_is_over() -> None:
    """What is still going on would look like a fall."""
    track = Track(1, 600)
    track.advance(100.2)
    track.add("whole", 3)
    assert track.since(-1)["whole"] == []
    track.advance(101.0)
    assert track.since(-1)["whole"] == [3.0]
    track.advance(104.0)
    assert track.since(-1)["whole"] == [3.0, 0.0, 0.0, 0.0]
    assert track.since(101)["whole"] == [0.0, 0.0]
    assert track.since(-1)["p50"] == [None] * 4


def test_only_so_many_are_kept() -> None:
    """The oldest make room, also where time has jumped."""
    track = Track(1, 10)
    for second in range(100, 125):
        track.advance(second)
        track.add("down", second)
    assert track.since(-1)["down"] == [float(second) for second in range(115, 124)]
    track.advance(1000)
    assert track.since(-1)["down"] == [0.0] * 9


def test_a_clock_that_goes_back_harms_nothing() -> None:
    """What is told late counts in the present step."""
    track = Track(1, 10)
    track.advance(100)
    track.advance(99)
    track.add("up", 1)
    track.advance(101)
    assert track.since(-1)["up"] == [1.0]


def test_first_bytes_become_quantiles() -> None:
    """Half of the waits lie below the median."""
    track = Track(1, 10)
    track.advance(5)
    for _ in range(10):
        track.wait([0] * 5 + [1] + [0] * 14)
    track.advance(6)
    found = track.since(-1)
    assert 0.075 < (found["p50"][0] or 0) < (found["p99"][0] or 0) <= 0.1


def test_a_spark_forgets() -> None:
    """The last two minutes, second by second."""
    spark = Spark()
    spark.add(1000, 5)
    spark.add(1001)
    assert spark.last(1002)[-2:] == [5, 1]
    assert len(spark.last(1002)) == SPARK - 1
    assert spark.last(1002 + SPARK) == [0] * (SPARK - 1)


@pytest.mark.parametrize(("word", "group"), [("whole", "whole"), ("client-gone", "client"), ("what-else", "fault")])
def test_every_end_has_a_colour(word: str, group: str) -> None:
    """An end that nobody has heard of is a fault."""
    assert group_of(word) == group
    assert group in SERIES


def finished(number: int) -> Exchange:
    """An exchange that is over, its user and path of its own."""
    exchange = Exchange(
        f"route-{number % 3}", UpstreamRequest("GET", "http://a", f"/{number}", [], None), f"user-{number}", None, None
    )
    exchange.log_values = ("GET", f"/{number}" * 20, "HTTP/1.1", "-", "agent")
    exchange.stats.upstream = f"http://a/{number}"
    exchange.stats.first_byte = exchange.stats.finished = exchange.stats.started + number % 7
    if number % 5 == 0:
        exchange.error = ValueError("x" * 500)
    return exchange


def test_memory_after_48_hours_is_that_after_one() -> None:
    """A process that has run for two days holds what it held after a while: nothing grows with time or use."""
    now = [1000.0]
    status = Status(Nothing(), lambda route: frozenset({"http://a"}), clock=lambda: now[0])

    def pass_time(hours: int) -> int:
        for _ in range(hours * 360):
            now[0] += 10
            for number in range(3):
                status.ended(finished(int(now[0]) + number))
            status.refused("route-1", "limit")
            status.tick(0.001)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        early = pass_time(1)
        late = pass_time(47)
    finally:
        tracemalloc.stop()
    assert abs(late - early) < 64 * 1024
    assert len(status.failures) == 100
    assert sum(status.counts.exchanges.values()) == 48 * 360 * 3
    with status.reading():
        assert len(status.history.seconds.since(-1)["whole"]) == 599
        assert len(status.history.minutes.since(-1)["whole"]) == 1439
