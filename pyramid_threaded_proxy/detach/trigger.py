"""Waitress's trigger, made safe for threads that outlive its loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from waitress.trigger import trigger as Trigger

from pyramid_threaded_proxy.detach.crowd import Crowd
from pyramid_threaded_proxy.detach.large_bodies import BodyReceiver
from pyramid_threaded_proxy.detach.resting import Resting
from pyramid_threaded_proxy.loop.loop import Loop
from pyramid_threaded_proxy.loop.syscalls import Receiver


class SafeTrigger(Trigger):
    """Waitress's trigger, made safe for threads that outlive its loop.

    Stock waitress writes to the number of its pipe even after that was closed, when it may be another's.
    """

    pulled = False
    guard: threading.Lock  # so that the pipe is not closed while it is written to
    away: set[Any]  # main thread: those out of waitress's tables, of all servers in its loop
    resting: Resting  # main thread: of all servers in its loop
    receiver: Receiver  # main thread
    bodies: BodyReceiver  # main thread
    loop: Loop | None = None  # while the process stops: where connections linger that are closed
    stopping = False  # the process stops: connections end with their present answer
    look: Callable[[], None] | None = None  # what a stop does at each turn
    crowd: Crowd  # main thread

    def readable(self) -> bool:
        """Main thread, at the beginning of each turn."""
        self.bodies.begin_turn()
        self.resting.begin_turn()
        if self.crowd.begin_turn():
            self._physical_pull()
        return bool(Trigger.readable(self))

    def _physical_pull(self) -> None:
        if self.pulled:
            return  # the main thread has not looked yet, and will see this one's reason too
        with self.guard:
            if not self.pulled and not self._closed:
                self.pulled = True
                Trigger._physical_pull(self)

    def recv(self, size: int) -> bytes:
        """Main thread. Cleared behind the read, which may take a later pull's byte too, and before anything is done."""
        try:
            return bytes(Trigger.recv(self, size))
        finally:
            self.pulled = False

    def handle_read(self) -> None:
        Trigger.handle_read(self)
        if self.look is not None:  # not a thunk: what those raise is swallowed, and it may end the loop
            self.look()

    def close(self) -> None:
        """The loop is over. `wasyncore.close_all` closes the channels that it finds; these it doesn't."""
        self.crowd.let_begin()
        self.resting.close_when_empty()
        with self.guard:
            Trigger.close(self)
        for channel in list(self.away):
            if channel.server.trigger is self:
                channel.close()


def make_ours(trigger: Any) -> None:
    if type(trigger) is not SafeTrigger:
        others = [(entry.away, entry.resting) for entry in trigger._map.values() if type(entry) is SafeTrigger]
        trigger.away, trigger.resting = others[0] if others else (set(), Resting(trigger._map))
        trigger.guard, trigger.receiver, trigger.crowd = threading.Lock(), Receiver(), Crowd()
        trigger.bodies = BodyReceiver()
        trigger.__class__ = SafeTrigger
