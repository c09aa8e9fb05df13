"""Fixtures that every test module may use; what they are made of is in `tests.support`."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from pyramid_threaded_proxy.loop import log_writer
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from tests.support import leaks
from tests.support.browser import Browser
from tests.support.certificates import Authority
from tests.support.names import NameServer
from tests.support.origin import Gate, MakeOrigin, MakeTls, Origin
from tests.support.pairs import MakePair, Pair
from tests.support.programs import program_path
from tests.support.site import MODES, MakeSite, Site
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.support.redis_server import RedisServer


# How long an example takes says how busy the machine is.
settings.register_profile("untimed", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure() -> None:
    """A shell starts what runs in its background without Ctrl-C, and so would be what the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _earlier_threads() -> None:
    leaks.EARLIER = set(threading.enumerate())


@pytest.fixture
def need_program() -> Callable[[str], str]:
    """Asks for a real server or browser by name, and gives its path."""
    return program_path


@pytest.fixture
def browser(need_program: Callable[[str], str], tmp_path: Path) -> Iterator[Browser]:
    """A browser with a profile of its own."""
    made = Browser(need_program("chromium"), tmp_path / "profile")
    yield made
    made.stop()


@pytest.fixture(params=[1, 2], ids=["one-socket", "two-sockets"])
def sockets(request: pytest.FixtureRequest) -> int:
    """How many sockets waitress listens on: with two, its MultiSocketServer runs the loop."""
    return int(request.param)


class SettledCaplog(pytest.LogCaptureFixture):
    """What was handed over to the log's writer is there when a test looks."""

    @property
    def records(self) -> list[logging.LogRecord]:
        log_writer.flush(PATIENCE)
        return super().records

    @property
    def text(self) -> str:
        log_writer.flush(PATIENCE)
        return super().text

    def clear(self) -> None:
        log_writer.flush(PATIENCE)
        super().clear()


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log that a test looks at, with all that was said before it looks."""
    caplog.__class__ = SettledCaplog
    return caplog


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is closed when the test ends, last first."""
    with ExitStack() as everything:
        yield everything


@pytest.fixture
def origin(stack: ExitStack) -> MakeOrigin:
    """Makes scripted upstreams that are closed when the test ends."""
    return lambda script: stack.enter_context(Origin(script))


@pytest.fixture
def gate() -> Iterator[Gate]:
    """An upstream's script that answers nothing until the test opens it; afterwards nobody waits for it."""
    made = Gate()
    yield made
    made.opened.set()


@pytest.fixture
def redis_server(stack: ExitStack, tmp_path: Path) -> RedisServer:
    """A real one, empty, for this test alone."""
    from tests.support.redis_server import RedisServer  # here: no other test needs the client

    made = RedisServer(program_path("redis-server"), tmp_path)
    stack.callback(made.close)
    return made


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority of the tests' own."""
    return Authority(tmp_path_factory.mktemp("authority"), program_path("openssl"))


@pytest.fixture
def tls_origin(stack: ExitStack, authority: Authority) -> MakeTls:
    """Makes scripted upstreams that speak TLS; the options are those of `Authority.server`."""
    return lambda script, *names, **options: stack.enter_context(
        Origin(script, wrap=authority.server(*names, **options))
    )


@pytest.fixture
def make_pair(stack: ExitStack) -> MakePair:
    """Makes a non-blocking endpoint and its peer, connected by TCP: a reset looks like one there."""

    def make() -> Pair:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = stack.enter_context(socket.create_connection(listener.getsockname()))
            far = stack.enter_context(listener.accept()[0])
        near.setblocking(False)
        return Endpoint(near), far

    return make


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """One such pair."""
    return make_pair()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    """In place of the system's look-up of names."""
    made = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    return made


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of a site for each way that its answers may go; `DETACHED`, set indirectly, are the first two."""
    return MODES[request.param]


@pytest.fixture
def site(stack: ExitStack) -> MakeSite:
    """Makes applications under real waitress; when the test ends no exchange may be left in flight."""

    def make(settings: dict[str, Any] | None = None, **options: Any) -> Site:
        return stack.enter_context(Site(settings or {}, **options))

    return make
