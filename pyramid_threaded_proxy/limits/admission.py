"""How many exchanges there may be at once: a slot for each, taken before anything is sent and always given back."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TypeVar

from pyramid_threaded_proxy.exceptions import TooManyExchanges


@dataclass(frozen=True, slots=True)
class Limits:
    """What a route allows besides the process's own limit; None stands for no limit."""

    max_exchanges: int | None = None
    max_exchanges_per_user: int | None = None


NO_LIMITS = Limits()

_Key = TypeVar("_Key")
#: What a slot counts for: the route and, where that has a limit for users, the user.
_Ticket = tuple[str, str | None]


class Slot:
    """Permission for one exchange to be in flight. Any thread may release it; only the first time counts.

    A slot that nobody refers to any more is given back as well: a response that is never called holds none.
    """

    __slots__ = ("__weakref__", "_returned", "_ticket")

    def __init__(self, returned: deque[_Ticket], ticket: _Ticket) -> None:
        self._returned = returned
        self._ticket = [ticket]

    @property
    def held(self) -> bool:
        """Whether it has not been given back yet."""
        return bool(self._ticket)

    def release(self) -> None:
        """Give the slot back. Takes no lock: the garbage collector may call it in the middle of anything."""
        if not self._ticket:
            return
        try:
            self._returned.append(self._ticket.pop())
        except IndexError:
            pass  # another thread was quicker

    __del__ = release


class Admission:
    """Counts the exchanges of one application in this process. Any thread; the lock guards the counts alone."""

    def __init__(self, max_exchanges: int) -> None:
        self.max_exchanges = max_exchanges
        self._lock = threading.Lock()
        self._taken = 0
        self._routes: dict[str, int] = {}
        self._users: dict[_Ticket, int] = {}
        self._returned: deque[_Ticket] = deque()

    @property
    def in_flight(self) -> int:
        """Slots taken at this moment."""
        return self._taken - len(self._returned)

    def by_route(self) -> dict[str, int]:
        """Slots taken at this moment, by route."""
        with self._lock:
            self._settle()
            return dict(self._routes)

    def admit(self, route: str = "", userid: str | None = None, limits: Limits = NO_LIMITS) -> Slot:
        """Take a slot for an exchange of `route` for `userid`; raises `TooManyExchanges` when there is none."""
        user = userid if limits.max_exchanges_per_user is not None else None
        ticket = (route, user)
        slot = Slot(self._returned, ticket)
        with self._lock:
            self._settle()
            refusal = self._refusal(ticket, limits)
            if refusal is None:
                self._taken += 1
                self._routes[route] = self._routes.get(route, 0) + 1
                if user is not None:
                    self._users[ticket] = self._users.get(ticket, 0) + 1
                return slot
        slot._ticket.clear()
        raise refusal

    def _refusal(self, ticket: _Ticket, limits: Limits) -> TooManyExchanges | None:
        """The first limit that is reached: the user's own before those that others share."""
        route, user = ticket
        most, most_for_user = limits.max_exchanges, limits.max_exchanges_per_user
        if user is not None and most_for_user is not None and self._users.get(ticket, 0) >= most_for_user:
            return TooManyExchanges(f"proxy.routes.{route}.max_exchanges_per_user ({most_for_user})", status=429)
        if most is not None and self._routes.get(route, 0) >= most:
            return TooManyExchanges(f"proxy.routes.{route}.max_exchanges ({most})")
        if self._taken >= self.max_exchanges:
            return TooManyExchanges(f"proxy.max_exchanges ({self.max_exchanges})")
        return None

    def _settle(self) -> None:
        """Count what came back since. Under the lock."""
        while self._returned:
            ticket = self._returned.pop()
            self._taken -= 1
            _count_down(self._routes, ticket[0])
            if ticket[1] is not None:
                _count_down(self._users, ticket)


def _count_down(counts: dict[_Key, int], key: _Key) -> None:
    """One less; who has none left is forgotten."""
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]
