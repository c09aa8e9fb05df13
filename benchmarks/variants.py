"""What the add-on changes in waitress's channels, trigger and polling, each taken back alone: for `benchmarks.why`.

Each function is for ``pyramid.includes``, behind the add-on, and patches the classes of the process that it runs in. So
the product has no switches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer
from waitress.trigger import trigger as Trigger

from pyramid_threaded_proxy.detach import resting
from pyramid_threaded_proxy.detach.channel import DetachableChannel, DetachedChannel
from pyramid_threaded_proxy.detach.trigger import SafeTrigger, make_ours


def channels(config: Any) -> None:
    """The channels and the trigger are waitress's own: the add-on is in Pyramid alone. Proxied answers are streamed."""
    BaseWSGIServer.channel_class = HTTPChannel


def watching(config: Any) -> None:
    """waitress does not watch a client whose request is in work, and is woken when it is answered."""

    def readable(self: Any) -> bool:
        self.unasked = False
        return bool(HTTPChannel.readable(self))

    def handle_read(self: Any) -> None:
        if not self.unasked:
            HTTPChannel.handle_read(self)

    _patch(DetachableChannel, readable=readable, handle_read=handle_read)
    _patch(DetachedChannel, readable=lambda self: False)


def reads(config: Any) -> None:
    """Reading a request lets go of the interpreter's lock."""
    _patch(DetachableChannel, recv=HTTPChannel.recv)


def sends(config: Any) -> None:
    """Sending an own view's answer lets go of the interpreter's lock."""
    _patch(DetachableChannel, send=HTTPChannel.send)


def wakes(config: Any) -> None:
    """Each reason to wake waitress's loop is a write to its pipe, also when it is awake."""

    def pull(self: Any) -> None:
        with self.guard:
            if not self._closed:
                Trigger._physical_pull(self)

    _patch(SafeTrigger, _physical_pull=pull)


def attributes(config: Any) -> None:
    """A channel finds what it begins with in its class."""

    def begin(self: Any, server: Any, sock: Any, addr: Any, adj: Any, map: Any = None) -> None:
        HTTPChannel.__init__(self, server, sock, addr, adj, map)
        make_ours(server.trigger)
        self.resting = server.trigger.resting

    _patch(DetachableChannel, __init__=begin)


def rest(config: Any) -> None:
    """Waitress's loop asks each connection in each turn, however many only wait."""
    resting.FEW = sys.maxsize


def upgrades(config: Any) -> None:
    """What comes behind a request for an upgrade, and bodies that stream, are not looked for: waitress's own parser."""
    _patch(HTTPRequestParser, asks_upgrade=False, early=b"", unread=None, late_body=None)
    _patch(DetachableChannel, parser_class=HTTPRequestParser)
    del DetachableChannel.received


def _patch(owner: type, **changes: Any) -> None:
    for name, value in changes.items():
        setattr(owner, name, value)


#: In the table's order: what is taken back, and what the table calls it.
VARIANTS: dict[str, Callable[[Any], None]] = {
    "watching": watching,
    "reads": reads,
    "sends": sends,
    "wakes": wakes,
    "attributes": attributes,
    "rest": rest,
    "upgrades": upgrades,
    "channels": channels,
}
TITLES = {
    "watching": "without watching clients whose request is in work",
    "reads": "without reads that keep the interpreter's lock",
    "sends": "without sends that keep the interpreter's lock",
    "wakes": "without saving wake-ups",
    "attributes": "without a dict of its own for each channel",
    "rest": "with each connection asked in each turn",
    "upgrades": "without looking for upgrades",
    "channels": "with waitress's own channels",
}
