"""Waitress ends while exchanges are under way: they end as their upstreams say, and nobody else's files are touched."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from waitress import wasyncore

from pyramid_threaded_proxy.loop import loop as loop_module
from tests.support.leaks import strangers
from tests.support.origin import Gate, MakeOrigin
from tests.support.site import Site, route
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import OriginWire, Wire, body, get


class Interrupt:
    """What Ctrl-C is to waitress's loop. Stands in its map."""

    def readable(self) -> bool:
        raise KeyboardInterrupt

    def close(self) -> None:
        """It is closed with all others."""


class InterruptedSite(Site):
    """A site whose waitress can be stopped as Ctrl-C stops it."""

    def interrupt(self) -> None:
        self.on_main_thread(lambda: self.map.__setitem__(-1, Interrupt()))
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def close(self) -> None:
        if self._thread.is_alive():
            return super().close()
        wait_until(lambda: self.engine.admission.in_flight == 0, "the end of all exchanges")
        self.engine.close()
        wasyncore.close_all(self.map, ignore_all=True)


@pytest.mark.parametrize("lasting", [False, True], ids=["in-the-tables", "out-of-the-tables"])
@pytest.mark.parametrize("whole", [False, True], ids=["broken", "whole"])
def test_waitress_ends_under_a_relay(
    origin: MakeOrigin, stack: ExitStack, lasting: bool, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C with two sockets, the exchange in flight ends as its upstream says, and its connection is closed.

    Whatever opens the descriptor numbers that waitress has let go of is not written to.
    """
    if not lasting:
        monkeypatch.setattr(loop_module, "LASTING", 60)
    gate = Gate()

    def script(wire: OriginWire) -> None:
        assert wire.request() is not None
        gate.asked.release()
        assert gate.opened.wait(PATIENCE)
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + (b"whole" if whole else b"br"))

    app = stack.enter_context(InterruptedSite(route("r", origin(script).url), sockets=2))
    client = app.client()
    client.send(get("/r/x"))
    gate.wait_asked()
    if lasting:
        wait_until(lambda: not app.channels, "leaving the tables", timeout=2)
    app.interrupt()
    assert app.map == {}
    with strangers():
        gate.opened.set()
        check_end(client, whole)
        app.close()
    client.close()


def check_end(client: Wire, whole: bool) -> None:
    """The answer came whole, or its connection was reset; it is closed in either case."""
    try:
        received = client.rest()
    except ConnectionResetError:
        assert not whole
    else:
        assert whole
        assert received.endswith(b"whole")


def test_one_socket_ends_under_a_relay(origin: MakeOrigin, stack: ExitStack) -> None:
    """After Ctrl-C with one socket, the exchange in flight ends whole."""
    gate = Gate()
    app = stack.enter_context(InterruptedSite(route("r", origin(gate).url)))
    client = app.client()
    client.send(get("/r/x"))
    gate.wait_asked()
    app.interrupt()
    gate.opened.set()
    assert body(client) == b"/x"
    client.close()
