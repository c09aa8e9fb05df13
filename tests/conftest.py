"""Fixtures that every test module may use; what they are made of is in `tests.support`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support import peers
from tests.support.peers import Origin, Script, Site
from tests.support.programs import program_path


@pytest.fixture(autouse=True)
def _earlier_threads() -> None:
    peers.EARLIER = set(threading.enumerate())


@pytest.fixture
def need_program() -> Callable[[str], str]:
    """Asks for a real server or browser by name, and gives its path."""
    return program_path


@pytest.fixture(params=[1, 2], ids=["one-socket", "two-sockets"])
def sockets(request: pytest.FixtureRequest) -> int:
    """How many sockets waitress listens on: with two, its MultiSocketServer runs the loop."""
    return int(request.param)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is closed when the test ends, last first."""
    with ExitStack() as everything:
        yield everything


@pytest.fixture
def origin(stack: ExitStack) -> Callable[[Script], Origin]:
    """Makes scripted upstreams that are closed when the test ends."""
    return lambda script: stack.enter_context(Origin(script))


@pytest.fixture
def site(stack: ExitStack) -> Callable[..., Site]:
    """Makes applications under real waitress; when the test ends no exchange may be left in flight."""

    def make(settings: dict[str, Any] | None = None, **options: Any) -> Site:
        return stack.enter_context(Site(settings or {}, **options))

    return make
