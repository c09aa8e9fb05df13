"""A site whose ini says nothing of waitress's limits: more than a hundred clients, and what the log says of it."""

from __future__ import annotations

import logging
import resource
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from waitress.adjustments import Adjustments

from pyramid_threaded_proxy.detach import defaults
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, own_view, route
from tests.support.site_process import SiteProcess
from tests.support.waiting import PATIENCE
from tests.support.wire import OriginWire, Wire, body, get, read_answer


def test_more_clients_than_waitress_s_own_limit(
    origin: MakeOrigin, site: MakeSite, sockets: int, stack: ExitStack
) -> None:
    """Beside 120 idle kept connections a new one is taken, without a line in the ini."""
    app = site(route("r", origin(echo).url), configure=own_view, sockets=sockets)
    for number in range(121):
        client = app.client()
        stack.callback(client.close)
        client.send(get(f"/r/{number}") + get("/own"))
        assert body(client).startswith(b"GET /%d " % number)
        assert body(client) == b"own"


CROWD = 700
#: More than are accepted with 1024 files, and no more than these suffice for: on a busy machine all last long enough to
#: be counted no more.
FEW_FILES_CROWD = 380


def answer_when_all_have_asked(listener: socket.socket, count: int) -> None:
    """An upstream that answers nobody until `count` exchanges have come at once."""
    wires = [OriginWire(listener.accept()[0]) for _ in range(count)]
    targets = [request.target for wire in wires if (request := wire.request())]
    for wire, target in zip(wires, targets, strict=True):
        wire.answer(target.encode())
        wire.close()


@pytest.fixture
def untuned(tmp_path: Path, stack: ExitStack) -> Callable[..., SiteProcess]:
    """A site whose ini says nothing of waitress's, in a process that may open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

    def make(upstream: str, files: int) -> SiteProcess:
        limits = {"RLIMIT_NOFILE": files}
        return stack.enter_context(SiteProcess(tmp_path, route("r", upstream), limits=limits, untuned=True))

    return make


def crowd(app: SiteProcess, stack: ExitStack, count: int) -> list[Wire]:
    """Clients that have all asked before anybody reads an answer."""
    clients = [Wire(socket.create_connection(("127.0.0.1", app.port))) for _ in range(count)]
    for number, client in enumerate(clients):
        stack.callback(client.close)
        client.send(get(f"/r/{number}"))
    return clients


def test_a_crowd_at_once(untuned: Callable[..., SiteProcess], stack: ExitStack) -> None:
    """700 exchanges that are all in flight together: none is refused, none is reset, each gets its own answer."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=CROWD))
    listener.settimeout(PATIENCE)
    upstream = threading.Thread(target=answer_when_all_have_asked, args=(listener, CROWD), daemon=True)
    upstream.start()
    app = untuned(f"http://127.0.0.1:{listener.getsockname()[1]}", 4096)
    for number, client in enumerate(crowd(app, stack, CROWD)):
        first, _, content = read_answer(client)
        assert (first, content) == ("HTTP/1.1 200 OK", b"/%d" % number)
    upstream.join(10)


def test_a_crowd_where_few_files_may_be_open(
    untuned: Callable[..., SiteProcess], origin: MakeOrigin, stack: ExitStack
) -> None:
    """With 1024 files, the usual limit, some of 380 wait for others; none is refused, none is reset."""
    app = untuned(origin(echo).url, 1024)
    for number, client in enumerate(crowd(app, stack, FEW_FILES_CROWD)):
        first, _, content = read_answer(client)
        assert (first, content.split()[1]) == ("HTTP/1.1 200 OK", b"/%d" % number)
        client.close()


@pytest.mark.parametrize(("descriptors", "limit"), [(256, 100), (1024, 256), (20_000, 4000)])
def test_the_limit_follows_the_descriptors(monkeypatch: pytest.MonkeyPatch, descriptors: int, limit: int) -> None:
    """A quarter of what may be open, not less than waitress's own and not more than its loop should walk."""
    monkeypatch.setattr(defaults, "system_limit", lambda: descriptors)
    assert defaults.connection_limit() == limit


def test_what_is_changed_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """At debug level; a default that somebody else has changed stays, and so is not in that line."""
    caplog.set_level(logging.DEBUG, "pyramid_threaded_proxy.detach")
    for name, value in defaults.STOCK.items():
        monkeypatch.setattr(Adjustments, name, value)
    monkeypatch.setattr(Adjustments, "recv_bytes", 10_000)
    defaults.improve()
    defaults.improve()
    (line,) = caplog.messages
    assert "asyncore_use_poll = True, connection_limit = " in line
    assert "recv_bytes" not in line
    assert Adjustments().recv_bytes == 10_000
