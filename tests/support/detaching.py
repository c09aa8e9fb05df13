"""What the tests of detach and give back share."""

from __future__ import annotations

import socket
import threading
from typing import Any

from pyramid.config import Configurator
from pyramid.response import Response

from tests.support.site import Site, own_view
from tests.support.wire import Wire


class CheckedTable(dict[int, Any]):
    """A table of waitress's that notes which threads change it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.changed_by: set[str] = set()

    def _note(self) -> None:
        self.changed_by.add(threading.current_thread().name)

    def __setitem__(self, key: int, value: Any) -> None:
        self._note()
        super().__setitem__(key, value)

    def __delitem__(self, key: int) -> None:
        self._note()
        super().__delitem__(key)

    def pop(self, *arguments: Any) -> Any:
        self._note()
        return super().pop(*arguments)


def servers(site: Site) -> list[Any]:
    """Waitress's server for each listening socket."""
    return [entry for entry in list(site.map.values()) if hasattr(entry, "active_channels")]


def connections(site: Site) -> set[Any]:
    """All open channels, those out of waitress's tables too."""
    away = [getattr(server.trigger, "away", ()) for server in servers(site)]
    return {*site.channels, *(channel for channels in away for channel in list(channels))}


def in_tables(site: Site, channel: Any) -> bool:
    """Whether waitress knows the channel; the same in both of its tables."""
    known = []

    def look() -> None:
        here = channel in site.map.values() or channel in channel.resting
        known.extend([here, channel in channel.server.active_channels.values()])

    site.on_main_thread(look)
    assert known[0] == known[1]
    return bool(known[0])


#: More than the kernel's buffers hold, less than waitress's.
BIG = 10_000_000


def big_view(config: Configurator) -> None:
    """A view of the application's with a big body, and one at /own."""
    config.add_route("big", "/big")
    config.add_view(lambda request: Response(b"x" * BIG), route_name="big")
    own_view(config)


def slow_client(site: Site) -> Wire:
    """A connection that takes little ahead of its reader."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.connect(("127.0.0.1", site.port))
    return Wire(sock)
