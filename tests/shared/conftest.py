"""Fixtures for the tests of what processes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import pytest

from pyramid_threaded_proxy.shared.site import SharedSite
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

Ended = list[tuple[dict[str, str], float]]


class Process:
    """What one process has of a site; several in this process are as several processes to each other."""

    def __init__(self, url: str) -> None:
        self.ended: Ended = []
        self.says: str | None = None
        self.site = SharedSite(url, self._end, lambda name: self.says)

    def _end(self, what: Mapping[str, str], before: float) -> None:
        self.ended.append((dict(what), before))

    def joined(self) -> Process:
        """The same, once it has joined."""
        self.site.start()
        member = self.site._here().member
        wait_until(lambda: member.ready and member._store is not None, "joining")
        return self

    def take(self, userid: str = "ann", most: int = 2) -> bool:
        """A place for a user on the route ``r``."""
        return self.site.take("r", userid, most)

    def give_back(self, userid: str = "ann") -> None:
        self.site.give_back("r", userid)


MakeProcess = Callable[[], Process]


@pytest.fixture
def process(stack: ExitStack, redis_server: RedisServer) -> MakeProcess:
    """Makes parts of one site, each as if it were a process of its own, joined."""

    def make() -> Process:
        made = Process(redis_server.url)
        stack.callback(made.site.stop, 5.0)
        return made.joined()

    return make


@pytest.fixture
def apart(redis_server: RedisServer) -> Iterator[Process]:
    """One that has not joined yet."""
    made = Process(redis_server.url)
    yield made
    made.site.stop(5.0)
