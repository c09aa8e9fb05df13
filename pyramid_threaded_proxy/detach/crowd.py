"""A crowd that comes at once: its requests are read before the first of them is served, own pages among the first.

Waitress accepts one connection in a turn of its loop, and each turn costs a look at every connection that is open: a
thousand new ones cost a thousand turns. So here each turn takes many. Where as many came in one, the main thread would
share the interpreter with those who serve them, and an own page's request would be read the later the more there are.
So proxied requests wait until all have been read, `LONGEST` seconds at most.
"""

from __future__ import annotations

import logging
import time
from typing import Any

log = logging.getLogger("pyramid_threaded_proxy.detach")

#: Connections accepted or read in one turn from which on they are a crowd.
CROWD = 64
#: Connections that are accepted in one turn.
MOST_ACCEPTED = 256
#: Seconds that the requests of a crowd wait for those that come with them.
LONGEST = 0.5


class Crowd:
    """What waitress's loop hears of in each turn, by one of its servers. Main thread alone."""

    __slots__ = ("_dispatcher", "_heard", "_until", "full")

    def __init__(self) -> None:
        self._dispatcher: Any = None  # waitress's, while its proxied requests wait
        self._heard = 0
        self._until = 0.0
        self.full = False  # as many connections are open as may be

    def begin_turn(self) -> bool:
        """Whether it must not wait for news: requests wait for its end."""
        heard, self._heard = self._heard, 0
        if self._dispatcher is None:
            return False
        if heard >= CROWD and time.monotonic() < self._until:
            return True
        self.let_begin()
        return False

    def one_more(self, dispatcher: Any) -> None:
        """A connection was accepted or read."""
        self._heard += 1
        if self._heard == CROWD and self._dispatcher is None:
            self._dispatcher = dispatcher
            self._until = time.monotonic() + LONGEST
            with dispatcher.lock:
                dispatcher.queue = dispatcher.queue.held()

    def let_begin(self) -> None:
        """Have the requests served that wait, if any do."""
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None:
            with dispatcher.lock:
                dispatcher.queue = dispatcher.queue.let_go()
                dispatcher.queue_cv.notify_all()


def accept_many(server: Any) -> None:
    """Have waitress's `server`, whose trigger is ours, take `MOST_ACCEPTED` connections in a turn."""
    if "handle_accept" not in server.__dict__:
        server.handle_accept = lambda: _accept(server)
        server.readable = lambda: _may_accept(server)


def _may_accept(server: Any) -> bool:
    """Whether waitress allows one more connection. Those that rest count too, and are closed as those in its table."""
    looks, resting, crowd = server.next_channel_cleanup, server.trigger.resting, server.trigger.crowd
    allows, most = type(server).readable(server), server.adj.connection_limit
    if server.next_channel_cleanup != looks:
        resting.look_at_all()
    full = len(server._map) + len(resting) >= most
    if full and allows and not crowd.full:
        log.warning("%d connections are open, as many as waitress's connection_limit: others wait", most)
    crowd.full = full
    return allows and not full


def _accept(server: Any) -> None:
    for _ in range(MOST_ACCEPTED):
        before = len(server._map)
        type(server).handle_accept(server)
        if len(server._map) == before:  # nobody waits any more
            return
        server.trigger.crowd.one_more(server.task_dispatcher)
        if not server.readable():  # no more are allowed
            return
