"""Waitress's loop, with all the sockets that it listens on, when the process stops."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from waitress import wasyncore
from waitress.server import BaseWSGIServer
from waitress.trigger import trigger as Trigger

from pyramid_threaded_proxy.detach.trigger import make_ours
from pyramid_threaded_proxy.loop.loop import Loop
from pyramid_threaded_proxy.loop.poller import READ, wait_for

#: Seconds that a new connection's first request may be under way when the process is told to stop.
FIRST_REQUEST = 1.0


class WaitressLoop:
    """Waitress's loop, with all the sockets that it listens on (`stopping.ServerLoop`)."""

    def __init__(self, channel: Any, lingers: Loop) -> None:
        self._lingers = lingers  # where connections linger that this one closes while it stops
        self._map = channel._map
        self._trigger = channel.server.trigger
        self._servers: list[Any] = []

    def runs(self, frame: FrameType | None) -> bool:
        while frame is not None and frame.f_code is not wasyncore.loop.__code__:
            frame = frame.f_back
        return frame is not None

    def look_with(self, look: Callable[[], None]) -> None:
        self._trigger.look = look
        # Whether it was pulled is not asked: the main thread may have been interrupted behind its look.
        if not self._trigger._closed:
            Trigger._physical_pull(self._trigger)

    def wake(self) -> None:
        self._trigger.pull_trigger()

    def stop_listening(self) -> None:
        self._servers = [entry for entry in self._map.values() if isinstance(entry, BaseWSGIServer)]
        for server in self._servers:
            make_ours(server.trigger)
            server.trigger.loop, server.trigger.stopping = self._lingers, True
        for server in self._servers:
            _accept_waiting(server)
        # Behind the last accept: a connection that got the number of one would be taken for it in this turn.
        for server in self._servers:
            wasyncore.dispatcher.close(server)

    def busy(self) -> bool:
        for server in self._servers:
            dispatcher = server.task_dispatcher
            if dispatcher.queue or dispatcher.active_count > 0:
                return True
            if any(map(is_busy, [*server.active_channels.values(), *server.trigger.away])):
                return True
        return False


def _accept_waiting(server: Any) -> None:
    """Take the connections that clients have made: closing the socket resets them, if no other process has it."""
    for _ in range(server.adj.backlog):
        if not server.readable() or wait_for({server.socket.fileno(): READ}, 0)[1] == 0:
            return
        server.handle_accept()


def is_busy(channel: Any) -> bool:
    """Whether closing the connection would cost its client an answer. Main thread."""
    if channel._fileno is None:
        return False
    if getattr(channel, "state", "") == "relay" or channel.requests or channel.request:
        return True
    if channel.total_outbufs_len:
        return True
    if channel.last_activity == channel.creation_time and time.time() - channel.creation_time < FIRST_REQUEST:
        return True
    try:
        return bool(channel.socket.recv(1, socket.MSG_PEEK))
    except OSError:
        return False
