"""Connections without an application."""

from __future__ import annotations

import socket
from collections.abc import Callable

from pyramid_threaded_proxy.loop.endpoint import Endpoint

#: What the fixture `pair` is: an endpoint and its peer.
Pair = tuple[Endpoint, socket.socket]
#: What the fixture `make_pair` is.
MakePair = Callable[[], Pair]


def low_water(endpoint: Endpoint) -> int:
    """How many bytes must have come before its socket is readable."""
    return endpoint.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
