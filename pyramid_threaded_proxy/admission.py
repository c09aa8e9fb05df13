"""How many exchanges there may be at once: a place for each, taken before anything is sent and always given back."""

from __future__ import annotations

import threading
from collections import deque

from pyramid_threaded_proxy.exceptions import TooManyExchanges


class Place:
    """Permission for one exchange to be in flight. Any thread may release it; only the first time counts.

    A place that nobody refers to any more is given back as well: a response that is never called holds none.
    """

    __slots__ = ("__weakref__", "_returned", "_ticket")

    def __init__(self, returned: deque[None]) -> None:
        self._returned = returned
        self._ticket = [None]

    @property
    def held(self) -> bool:
        """Whether it has not been given back yet."""
        return bool(self._ticket)

    def release(self) -> None:
        """Give the place back. Takes no lock: the garbage collector may call it in the middle of anything."""
        try:
            self._returned.append(self._ticket.pop())
        except IndexError:
            pass  # given back already

    __del__ = release


class Admission:
    """Counts the exchanges of one application in this process. Any thread; the lock guards the count alone."""

    def __init__(self, max_exchanges: int) -> None:
        self.max_exchanges = max_exchanges
        self._lock = threading.Lock()
        self._taken = 0
        self._returned: deque[None] = deque()

    @property
    def in_flight(self) -> int:
        """Places taken at this moment."""
        return self._taken - len(self._returned)

    def admit(self) -> Place:
        """Take a place; raises `TooManyExchanges` when there is none."""
        place = Place(self._returned)
        with self._lock:
            while self._returned:
                self._returned.pop()
                self._taken -= 1
            if self._taken < self.max_exchanges:
                self._taken += 1
                return place
        place._ticket.clear()
        raise TooManyExchanges(f"{self.max_exchanges} exchanges are in flight (proxy.max_exchanges)")
