"""Descriptors that select() can't take, whoever opened them: waitress goes on, and what to set is said."""

from __future__ import annotations

import os
import resource
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pyramid_threaded_proxy.detach.channel import _warn_of_select
from pyramid_threaded_proxy.limits.descriptors import SELECT_LIMIT
from tests.support.detaching import connections, servers
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, own_view, route
from tests.support.waiting import wait_until
from tests.support.wire import Wire, body, get


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """As many descriptors may be open as `fill` opens, and some more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def fill(stack: ExitStack) -> None:
    """Open files until the next descriptor is one that select() can't take."""
    while True:
        number = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, number)
        if number >= SELECT_LIMIT - 1:
            return


@pytest.mark.usefixtures("many_descriptors")
def test_a_descriptor_that_select_cannot_take(
    origin: MakeOrigin, site: MakeSite, sockets: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection numbered 1024 or above is closed at once and said once; waitress and its connections go on."""
    _warn_of_select.cache_clear()
    app = site(route("r", origin(echo).url), configure=own_view, sockets=sockets, asyncore_use_poll=False)
    client = app.client()
    client.send(get("/r/1"))
    assert body(client).startswith(b"GET /1 ")
    refused = [socket.socket() for _ in range(3)]
    with ExitStack() as files:
        fill(files)
        for sock in refused:
            sock.connect(("127.0.0.1", app.port))
            Wire(sock).wait_closed()  # and not closed here yet: its number would be free
        client.send(get("/r/2") + get("/own"))
        assert body(client).startswith(b"GET /2 ")
        assert body(client) == b"own"
    assert app.get("/own").body == b"own"
    for sock in [client.sock, *refused]:
        sock.close()
    wait_until(lambda: not connections(app), "the end of all connections")
    warnings = [text for text in caplog.messages if "asyncore_use_poll" in text]
    assert len(warnings) == 1
    assert not any(server.active_channels for server in servers(app))


@pytest.mark.usefixtures("many_descriptors")
def test_poll_takes_any_descriptor(
    origin: MakeOrigin, site: MakeSite, sockets: int, caplog: pytest.LogCaptureFixture
) -> None:
    """By default connections numbered 1024 and above are served and detached."""
    assert hasattr(select, "poll")
    app = site(route("r", origin(echo).url), configure=own_view, sockets=sockets)
    with ExitStack() as files:
        fill(files)
        client = app.client()
        client.send(get("/r/1") + get("/own"))
        assert body(client).startswith(b"GET /1 ")
        assert body(client) == b"own"
        assert {channel._fileno >= SELECT_LIMIT for channel in connections(app)} == {True}
        client.close()
        wait_until(lambda: not connections(app), "the end of all connections")
    assert not [text for text in caplog.messages if "asyncore_use_poll" in text]
