"""Clients' connections between two requests, which a loop watches in the server's place.

An exchange that lasts has left the server's tables. Put back behind it, thousands of idle connections would cost the
server's main thread a look each turn; a loop's poller has no cost for what is silent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pyramid_threaded_proxy.loop.endpoint import Endpoint, LoopOfTasks, Owner
from pyramid_threaded_proxy.loop.poller import READ

log = logging.getLogger("pyramid_threaded_proxy.idle_clients")


class IdleClients(Owner):
    """Those of one loop. In its thread alone."""

    def __init__(self, loop: LoopOfTasks) -> None:
        self._loop = loop
        # In the order in which they came.
        self._known: dict[Endpoint, tuple[Callable[[], None], float]] = {}
        self._looks = False  # whether a timer looks at them

    def __len__(self) -> int:
        return len(self._known)

    def keep(self, endpoint: Endpoint, let_go: Callable[[], None], seconds: float) -> None:
        """Call `let_go` as soon as the client says something, hangs up, or has said nothing for so many seconds."""
        self._loop.want(endpoint, READ, self)
        self._known[endpoint] = let_go, self._loop.now + seconds
        if not self._looks:
            self._looks = True
            self._loop.call_at(self, self._loop.now + seconds)

    def let_go(self, endpoint: Endpoint) -> None:
        """Its server wants it back; nothing happens where it has it."""
        known = self._known.pop(endpoint, None)
        if known is not None:
            try:
                self._loop.forget(endpoint)
            finally:
                known[0]()

    def let_all_go(self) -> None:
        """The process stops, or the loop ends."""
        for endpoint in list(self._known):
            self._let_go_for_good(endpoint)

    def _let_go_for_good(self, endpoint: Endpoint) -> None:
        """What goes wrong with one is no affair of the others'."""
        try:
            self.let_go(endpoint)
        except Exception:
            log.exception("giving an idle client back to its server failed")

    def on_event(self, endpoint: Endpoint, events: int) -> None:
        self.let_go(endpoint)

    def on_timer(self, now: float) -> None:
        """Let go of those that have been here long enough (`timers.Timed`)."""
        self._looks = False
        while self._known:
            endpoint, (_, due) = next(iter(self._known.items()))
            if now < due:
                self._looks = True
                return self._loop.call_at(self, due)
            self._let_go_for_good(endpoint)
