"""Waitress's defaults, made fit for many connections at once: what the site sets itself stands.

waitress's own are for an application that answers within a moment: `select`, which ends at descriptor 1024, a hundred
connections, and uploads in pieces of 8 KiB. A first site behind them breaks at some hundred exchanges.
"""

from __future__ import annotations

import logging
from typing import Any

from waitress.adjustments import Adjustments

from pyramid_threaded_proxy.limits.descriptors import system_limit

log = logging.getLogger("pyramid_threaded_proxy.detach")

#: Bytes that waitress asks a client for at once. Four times as much would have the system map memory for each read.
RECV_BYTES = 65536
#: Connections, however many descriptors there are: without epoll a turn of waitress's loop takes milliseconds of them.
MOST_CONNECTIONS = 4000
#: Descriptors that are left for upstreams, pipes and the application, for each connection.
_FOR_EACH = 4

#: waitress's own.
STOCK: dict[str, int] = {"asyncore_use_poll": False, "recv_bytes": 8192, "connection_limit": 100}


class ConnectionLimit:
    """The default of `connection_limit`: what descriptors allow with `poll`, and waitress's own with `select`."""

    def __init__(self, stock: int, limit: int) -> None:
        self.stock = stock
        self.limit = limit

    def __get__(self, adjustments: Any, owner: type) -> int:
        if adjustments is not None and not adjustments.asyncore_use_poll:
            return self.stock
        return self.limit


def connection_limit() -> int:
    """How many connections this process can have open beside all else."""
    return max(STOCK["connection_limit"], min(MOST_CONNECTIONS, system_limit() // _FOR_EACH))


def improve() -> None:
    """Give servers that are made from now on better defaults. A default that somebody else has changed stays.

    They are attributes of `Adjustments`; what a server is told becomes an attribute of its own, and goes first.
    """
    better: dict[str, Any] = {
        "asyncore_use_poll": True,
        "recv_bytes": RECV_BYTES,
        "connection_limit": ConnectionLimit(STOCK["connection_limit"], connection_limit()),
    }
    changed = {name: value for name, value in better.items() if vars(Adjustments).get(name) == STOCK[name]}
    for name, value in changed.items():
        setattr(Adjustments, name, value)
    if changed:
        told = ", ".join(f"{name} = {getattr(Adjustments, name)}" for name in changed)
        log.debug("waitress's defaults are, where the site sets none: %s", told)
