"""Channels that only wait for their clients, out of waitress's table: its loop has one entry for all of them.

Waitress asks each entry of its table in each turn whether it wants to read or to write. Of those that wait for their
clients' next bytes that need not be asked: an epoll object of our own says when they come, and is itself the entry that
waitress polls. Who wants more than that, to write or to be closed, goes back into the table. Where the system has no
epoll nobody rests.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from waitress.wasyncore import readwrite

from pyramid_threaded_proxy.limits.descriptors import SELECT_LIMIT
from pyramid_threaded_proxy.loop.poller import READ

log = logging.getLogger("pyramid_threaded_proxy.detach")

#: Entries up to which a look at each costs less than to be told of one.
FEW = 12
#: Channels that are heard of in a turn.
MOST_HEARD = 256


class Resting:
    """The channels that rest, as an entry of the table of waitress's loop while there are many.

    Main thread, but for `wake`; once the loop is over, whoever closes it or a channel.
    """

    accepting = False
    wanted = False  # whether those who can are to rest: there are many, and waitress polls this entry

    def __init__(self, table: dict[int, Any]) -> None:
        self._table = table
        self._channels: dict[int, Any] = {}
        self._epoll = _new_epoll()
        self._listed = False  # in the table
        self._over = False  # the loop ends: nobody new rests

    def __len__(self) -> int:
        return len(self._channels)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._channels.values()))

    def begin_turn(self) -> None:
        """Before any entry is asked."""
        table, epoll = self._table, self._epoll
        many = epoll is not None and not self._over and len(table) + len(self._channels) > FEW
        if many is not self._listed and (many or not self._channels):
            assert epoll is not None
            self._listed, self.wanted = many, False
            if many:
                table[epoll.fileno()] = self
            else:
                table.pop(epoll.fileno(), None)

    def readable(self) -> bool:
        """In each turn that has begun with this entry: from the first one on waitress polls it."""
        self.wanted = self._listed
        return True

    def writable(self) -> bool:
        """As `readable`."""
        return False

    def take(self, channel: Any) -> bool:
        """Have the channel, which only waits for its client, rest from now on; whether it does."""
        fd = channel._fileno
        channel.at_rest = True  # before the look: whoever changes what is asked of it from now on wakes the loop
        if not channel.rests() or not self._watch(fd):
            channel.at_rest = False
            return False
        self._channels[fd] = channel
        self._table.pop(fd, None)
        return True

    def _watch(self, fd: Any) -> bool:
        try:
            self._epoll.register(fd, READ)  # type: ignore[union-attr]
        except (OSError, ValueError, TypeError, AttributeError):
            return False  # no more descriptors are watched, or another thread ends the loop
        return True

    def drop(self, fd: int | None) -> bool:
        """Have nobody of this number rest, who leaves or is closed next; whether somebody did."""
        channel = self._channels.pop(fd, None)  # type: ignore[arg-type]
        if channel is None:
            return False
        channel.at_rest = False
        if self._epoll is not None:
            with suppress(OSError):  # no longer open
                self._epoll.unregister(fd)  # type: ignore[arg-type]
            if self._over and not self._channels:
                self._end()
        return True

    def look_again(self, channel: Any) -> None:
        """Back into the table with it, if it rests and wants more than that."""
        fd = channel._fileno
        if fd is not None and not channel.rests() and self.drop(fd):
            self._table[fd] = channel

    def look_at_all(self) -> None:
        """Waitress may have told any of them to close."""
        for channel in self:
            self.look_again(channel)

    def wake(self, channel: Any) -> None:
        """Have waitress's loop ask the channel, if that rests. Any thread, never under a lock of the channel's."""
        if channel.at_rest:
            channel.server.trigger.pull_trigger(partial(self.look_again, channel))

    def handle_read_event(self) -> None:
        """Some clients have sent something, or have gone."""
        assert self._epoll is not None
        channels = self._channels
        for fd, events in self._epoll.poll(0, MOST_HEARD):
            channel = channels.get(fd)  # none: it was closed in this turn
            if channel is not None:
                readwrite(channel, events)
                if not channel.rests():
                    self.look_again(channel)

    def handle_error(self) -> None:
        """What raised is no channel's: without this it would do so in each turn."""
        log.exception("waitress's loop asks each connection again")
        self._end()

    handle_close = handle_error

    def close(self) -> None:
        """All that is in the table is closed."""
        for channel in self:
            channel.close()
        self._end()

    def close_when_empty(self) -> None:
        """The loop is about to end: nobody new rests."""
        self._over = True
        if not self._channels:
            self._end()

    def _end(self) -> None:
        """Those who rest go back into the table."""
        epoll, self._epoll, self._over, self.wanted = self._epoll, None, True, False
        self._listed = False
        if epoll is not None:
            self._table.pop(epoll.fileno(), None)
            epoll.close()
        while self._channels:
            fd, channel = self._channels.popitem()
            channel.at_rest = False
            self._table[fd] = channel


def _new_epoll() -> select.epoll | None:
    """None where there is no such thing, no descriptor is left, or none that `select` can take."""
    if not hasattr(select, "epoll"):
        return None
    try:
        epoll = select.epoll()
    except OSError:
        return None
    if epoll.fileno() < SELECT_LIMIT:
        return epoll
    epoll.close()
    return None
