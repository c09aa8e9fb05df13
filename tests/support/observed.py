"""Something to observe in which nothing is going on, or what a test puts there."""

from __future__ import annotations

from collections.abc import Iterator

from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.upstream.balance import Upstream


class Nothing:
    """An engine at rest (`status.Observed`)."""

    def __init__(self) -> None:
        self.under_way: list[Exchange] = []
        self.known: list[tuple[str, Upstream, int]] = []

    def exchanges(self) -> list[Exchange]:
        return self.under_way

    def active(self) -> dict[str, int]:
        return {"r": len(self.under_way)} if self.under_way else {}

    def limits(self) -> dict[str, int]:
        return {"r": 7}

    def upstreams(self) -> Iterator[tuple[str, Upstream, int]]:
        return iter(self.known)

    def max_exchanges(self) -> int:
        return 1000

    def pool_busy(self) -> int:
        return 0

    def draining(self) -> bool:
        return False

    def close(self, request_id: str) -> int:
        return 0
