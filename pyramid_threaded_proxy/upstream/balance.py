"""Several upstreams behind one route: which of them the next exchange goes to."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Container, Sequence
from hashlib import blake2b
from math import ceil
from typing import Literal

from pyramid_threaded_proxy.http.target import UpstreamPattern
from pyramid_threaded_proxy.upstream.health import Health, Trial
from pyramid_threaded_proxy.upstream.origin import Origin

Method = Literal["round_robin", "least_exchanges", "user_hash"]
#: The upstream of an exchange, and the leave to try it where it is down.
Chosen = tuple["Upstream", Trial | None]


class Upstream:
    """One upstream of a route: where it is, what paths are joined to, and how it has been doing."""

    __slots__ = ("base", "flights", "health", "origin", "pattern", "url")

    def __init__(self, url: str, origin: Origin, base: str, pattern: UpstreamPattern | None, health: Health) -> None:
        #: As it was written in the settings.
        self.url = url
        self.origin = origin
        self.base = base
        self.pattern = pattern
        self.health = health
        #: One item for each exchange under way: append and pop need no lock.
        self.flights: deque[None] = deque()

    def __repr__(self) -> str:
        return f"<Upstream {self.url}{' down' if self.health.down else ''}>"


class Balancer:
    """Chooses among the upstreams of one route. Any thread; what it remembers changes in single steps."""

    def __init__(self, upstreams: tuple[Upstream, ...], method: Method) -> None:
        self.upstreams = upstreams
        self.by_user = method == "user_hash" and len(upstreams) > 1
        self.counts_flights = method == "least_exchanges" and len(upstreams) > 1
        self._turn = itertools.count()
        self._only: Chosen | None = (upstreams[0], None) if len(upstreams) == 1 else None

    def choose(self, user: str) -> Chosen | None:
        """Where an exchange of `user` goes; None while all upstreams are down and nobody may try one.

        Whose exchange it is counts for `by_user`, and where all are down: the one whose pause ends first may be
        tried at once, but not by those who made it fail.
        """
        if self._only is not None and not self._only[0].health.down:
            return self._only
        return self.next(user, ()) or self._try_early(user)

    def next(self, user: str, without: Container[Upstream]) -> Chosen | None:
        """The first that is up, or whose pause is over; None if there is none."""
        for upstream in self._in_order(user):
            if upstream in without:
                continue
            if not upstream.health.down:
                return upstream, None
            if (trial := upstream.health.trial(user)) is not None:
                return upstream, trial
        return None

    def _try_early(self, user: str) -> Chosen | None:
        candidates = [upstream for upstream in self.upstreams if upstream.health.may_be_tried()]
        if not candidates:
            return None
        first = min(candidates, key=lambda upstream: upstream.health.rest())
        trial = first.health.trial(user, early=True)
        return None if trial is None else (first, trial)

    def _in_order(self, user: str) -> Sequence[Upstream]:
        if self.by_user:
            # Rendezvous hashing: each upstream that is missing moves its own users alone.
            name = user.encode("utf-8", "surrogatepass")
            return sorted(self.upstreams, key=lambda upstream: _score(upstream, name), reverse=True)
        turn = next(self._turn) % len(self.upstreams)
        order = self.upstreams[turn:] + self.upstreams[:turn]
        if self.counts_flights:
            return sorted(order, key=lambda upstream: len(upstream.flights))
        return order

    def retry_after(self) -> int:
        """Whole seconds, from one to an hour, until one of the upstreams is tried again."""
        return max(1, ceil(min(3600.0, *(upstream.health.rest() for upstream in self.upstreams))))


def _score(upstream: Upstream, name: bytes) -> bytes:
    return blake2b(upstream.url.encode() + b"\0" + name, digest_size=8).digest()
