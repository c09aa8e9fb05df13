"""Totals and histograms, and that their labels are closed sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.status.counts import BOUNDS, METHODS, OTHER, Counts, Ended, Histogram, quantile


def ended(
    method: str = "GET", code: int = 200, upstream: str = "http://a", attempts: int = 1, connect: float | None = None
) -> Ended:
    """An exchange that is over."""
    return ("r", method, code, "whole", upstream, attempts, 2, 3, 0.004, connect, 0.02, 0.5)


def known(route: str) -> frozenset[str]:
    """The upstreams that have labels."""
    return frozenset({"http://a"}) if route == "r" else frozenset()


@given(st.lists(st.floats(0, 5000)))
def test_a_value_lies_in_the_first_bucket_that_holds_it(values: list[float]) -> None:
    """As Prometheus reads buckets: those up to and with their bound."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    below = 0
    for bound, count in zip(BOUNDS, histogram.buckets, strict=False):
        below += count
        assert below == sum(1 for value in values if value <= bound)
    assert sum(histogram.buckets) == len(values)


@given(st.lists(st.floats(0, 3600), min_size=1), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    """It is never further off than its bucket is wide."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    found = quantile(histogram.buckets, share)
    true = sorted(values)[max(0, -int(-len(values) * share // 1) - 1)]
    above = next(bound for bound in BOUNDS if true <= bound)
    below = max((bound for bound in BOUNDS if bound < true), default=0.0)
    assert found is not None
    assert below <= found <= above


def test_nothing_has_no_quantile() -> None:
    """Where nothing was measured nothing is said."""
    assert quantile([0] * 20, 0.5) is None


@given(st.lists(st.tuples(st.text(), st.text())))
def test_labels_are_closed_sets(wild: list[tuple[str, str]]) -> None:
    """Methods and upstreams that anybody made up get one label for all of them."""
    counts = Counts(known)
    for method, upstream in wild:
        counts.add([ended(method=method, upstream=upstream, attempts=2)])
    assert {method for _, method, _, _ in counts.exchanges} <= METHODS | {OTHER}
    assert {upstream for _, upstream in [*counts.first_byte, *counts.retries]} <= {"http://a", OTHER}


def test_what_is_counted_of_an_exchange() -> None:
    """Each thing once, and what did not happen not at all."""
    counts = Counts(known)
    counts.add([ended(attempts=3, connect=0.01), ended(code=101, method="BREW")])
    assert dict(counts.exchanges) == {("r", "GET", "200", "whole"): 1, ("r", OTHER, "101", "whole"): 1}
    assert set(counts.durations) == {("r", "request"), ("r", "switched")}
    assert sum(counts.connect["r", "http://a"].buckets) == 1
    assert dict(counts.retries) == {("r", "http://a"): 2}
    assert counts.bytes["r"] == [4, 6]


def one_by_one(counts: Counts, exchanges: list[Ended]) -> list[int]:
    """Count them each alone; returns the buckets of first bytes, added up."""
    waits = [counts.add([one])[1] for one in exchanges]
    return [sum(column) for column in zip(*waits, strict=True)] if waits else [0] * (len(BOUNDS) + 1)


SECONDS = st.one_of(st.none(), st.floats(0, 4000))
ENDED = st.tuples(
    st.sampled_from(["r", "s"]), st.sampled_from(["GET", "BREW", "X"]), st.sampled_from([200, 101, 502]),
    st.sampled_from(["whole", "closed"]), st.sampled_from(["http://a", "http://b", ""]), st.integers(0, 4),
    st.integers(0, 9), st.integers(0, 9), SECONDS, SECONDS, SECONDS, st.floats(0, 4000),
)  # fmt: skip


@given(st.lists(ENDED))
def test_many_at_once_count_as_one_by_one(exchanges: list[Ended]) -> None:
    """In whatever order and mixture they come, the sums are the same."""
    together, apart = Counts(known), Counts(known)
    cells, waits = together.add(exchanges)
    assert waits == one_by_one(apart, exchanges)
    assert sum(cells.values()) == len(exchanges)
    for name in ("exchanges", "retries", "bytes"):
        assert getattr(together, name) == getattr(apart, name)
    for name in ("durations", "authorize", "connect", "first_byte"):
        found, wanted = getattr(together, name), getattr(apart, name)
        assert {key: histogram.buckets for key, histogram in found.items()} == {
            key: histogram.buckets for key, histogram in wanted.items()
        }
        assert all(abs(found[key].sum - wanted[key].sum) <= 1e-6 * (1 + found[key].sum) for key in found)
