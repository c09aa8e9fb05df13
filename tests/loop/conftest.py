"""Fixtures for the tests of loops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyramid_threaded_proxy.loop.scheduler import Scheduler


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    """A scheduler with a pool of two, stopped when the test ends."""
    made = Scheduler(2)
    yield made
    made.stop()
