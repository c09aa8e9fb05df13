"""A site whose ini says nothing of waitress's limits: more than a hundred clients, and what the log says of it."""

from __future__ import annotations

import logging
from contextlib import ExitStack

import pytest
from waitress.adjustments import Adjustments

from pyramid_threaded_proxy.detach import defaults
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, own_view, route
from tests.support.wire import body, get


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
