"""Deadlines in buckets: never early, soon after, and at a cost that does not grow with those that never pass."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.loop.timers import GRANULARITY, Timed, Timers


def fail(entry: Timed, error: Exception) -> None:
    """None of these raises."""
    raise error


class Entry:
    """Remembers when it was called."""

    def __init__(self) -> None:
        self.calls: list[float] = []

    def on_timer(self, now: float) -> None:
        self.calls.append(now)


def test_an_entry_is_called_once_soon_after_it_is_due() -> None:
    """Not before its time, and at most one bucket later."""
    timers, entry = Timers(), Entry()
    timers.add(entry, 100.0)
    timers.run(99.99, fail)
    assert entry.calls == []
    timers.run(100.0 + GRANULARITY, fail)
    timers.run(200.0, fail)
    assert entry.calls == [100.0 + GRANULARITY]


@given(st.lists(st.floats(0, 1000), max_size=30), st.lists(st.floats(0, 1100), max_size=30))
def test_nothing_is_early_and_nothing_is_forgotten(dues: list[float], turns: list[float]) -> None:
    """Whatever the order of turns, each entry is called at its first turn a bucket after it was due, and only then."""
    timers = Timers()
    entries = [(due, Entry()) for due in dues]
    for due, entry in entries:
        timers.add(entry, due)
    for now in sorted(turns):
        timers.run(now, fail)
    for due, entry in entries:
        assert len(entry.calls) <= 1
        assert all(now >= due for now in entry.calls)
        if any(now >= due + 2 * GRANULARITY for now in turns):
            assert entry.calls


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=30), st.floats(0, 1000))
def test_the_time_to_sleep_ends_with_the_next_bucket(dues: list[float], now: float) -> None:
    """Who sleeps as long as it is told, wakes for the earliest entry."""
    timers = Timers()
    entries = [Entry() for _ in dues]
    for due, entry in zip(dues, entries, strict=True):
        timers.add(entry, due)
    timeout = timers.timeout(now)
    assert timeout is not None
    assert timeout >= 0
    timers.run(now + timeout + 1e-6, fail)
    assert any(entry.calls for entry in entries)


def test_without_entries_one_sleeps_for_ever() -> None:
    """No deadline, no time-out; also after the last one has passed."""
    timers = Timers()
    assert timers.timeout(5.0) is None
    timers.add(Entry(), 6.0)
    assert timers.timeout(5.0) is not None
    timers.run(7.0, fail)
    assert timers.timeout(7.0) is None


def test_an_entry_may_add_itself_again() -> None:
    """An entry that looks on when it is called is called again, also when it is overdue at once."""
    timers = Timers()

    class Again(Entry):
        def on_timer(self, now: float) -> None:
            super().on_timer(now)
            if len(self.calls) < 3:
                timers.add(self, now + 1)

    entry = Again()
    timers.add(entry, 1.0)
    for now in (1.5, 2.9, 4.5):
        timers.run(now, fail)
    assert entry.calls == [1.5, 2.9, 4.5]


def test_a_turn_looks_only_at_what_is_due() -> None:
    """10,000 deadlines that are far away cost a turn nothing: the entries looked at are those that came up."""
    timers = Timers()
    far, near = [Entry() for _ in range(10_000)], [Entry() for _ in range(3)]
    for entry in far:
        timers.add(entry, 1000.0)
    for entry in near:
        timers.add(entry, 1.0)
    timers.run(2.0, fail)
    assert [len(entry.calls) for entry in near] == [1, 1, 1]
    assert not any(entry.calls for entry in far)


def test_many_deadlines_share_few_buckets() -> None:
    """Deadlines close together lie in one bucket: what is sorted is their ticks, not they."""
    timers = Timers()
    for number in range(10_000):
        timers.add(Entry(), 50.0 + number * GRANULARITY / 20_000)
    assert len(timers._ticks) <= 2


def test_one_that_raises_ends_alone() -> None:
    """The others of its bucket and of later ones are called, and it is told of."""

    class Broken:
        def on_timer(self, now: float) -> None:
            raise LookupError("no such deadline")

    timers, broken, entries, failed = Timers(), Broken(), [Entry(), Entry(), Entry()], []
    timers.add(entries[0], 1.0)
    timers.add(broken, 1.0)
    timers.add(entries[1], 1.0)
    timers.add(entries[2], 2.0)
    timers.run(3.0, lambda entry, error: failed.append((entry, type(error))))
    assert [entry.calls for entry in entries] == [[3.0]] * 3
    assert failed == [(broken, LookupError)]
