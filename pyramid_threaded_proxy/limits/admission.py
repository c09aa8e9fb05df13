"""How many exchanges there may be at once: a slot for each, taken before anything is sent and always given back."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

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

    __slots__ = ("__weakref__", "_give_back", "_ticket")

    def __init__(self, give_back: Callable[[_Ticket], None], ticket: _Ticket) -> None:
        self._give_back = give_back
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
            self._give_back(self._ticket.pop())
        except IndexError:
            pass  # another thread was quicker

    __del__ = release


class SharedPlaces(Protocol):
    """Who counts what users have in all processes. Any thread."""

    def take(self, route: str, userid: str, most: int) -> bool:
        """Take a place for the user, unless there are `most`. Waits for 50 ms at most."""

    def give_back(self, route: str, userid: str) -> None:
        """It is free again. Takes no lock: the garbage collector may call it."""


class Admission:
    """Counts the exchanges of one application in this process. Any thread; the lock guards the counts alone.

    Users who have a place here are asked for in `shared` as well, where there are other processes.
    """

    def __init__(self, max_exchanges: int, shared: SharedPlaces | None = None) -> None:
        self.max_exchanges = max_exchanges
        self._shared = shared
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
        shared = self._shared if user is not None else None
        slot = Slot(self._returned.append if shared is None else self._give_back, ticket)
        with self._lock:
            self._settle()
            refusal = self._refusal(ticket, limits)
            if refusal is None:
                self._taken += 1
                self._routes[route] = self._routes.get(route, 0) + 1
                if user is not None:
                    self._users[ticket] = self._users.get(ticket, 0) + 1
        if refusal is None and shared is not None and user is not None:
            refusal = self._refusal_of_all(shared, route, user, limits)
            if refusal is not None:
                self._returned.append(ticket)  # in this process alone: no other one knows of it
        if refusal is None:
            return slot
        slot._ticket.clear()
        raise refusal

    def _refusal_of_all(self, shared: SharedPlaces, route: str, user: str, limits: Limits) -> TooManyExchanges | None:
        """Whether all processes together have too many of a user's. No lock is held."""
        most = limits.max_exchanges_per_user
        return None if most is None or shared.take(route, user, most) else _too_many_of_user(route, most)

    def _give_back(self, ticket: _Ticket) -> None:
        """A place that the other processes know of."""
        self._returned.append(ticket)
        if self._shared is not None and ticket[1] is not None:
            self._shared.give_back(ticket[0], ticket[1])

    def _refusal(self, ticket: _Ticket, limits: Limits) -> TooManyExchanges | None:
        """The first limit that is reached: the user's own before those that others share."""
        route, user = ticket
        most, most_for_user = limits.max_exchanges, limits.max_exchanges_per_user
        if user is not None and most_for_user is not None and self._users.get(ticket, 0) >= most_for_user:
            return _too_many_of_user(route, most_for_user)
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


def _too_many_of_user(route: str, most: int) -> TooManyExchanges:
    return TooManyExchanges(f"proxy.routes.{route}.max_exchanges_per_user ({most})", status=429)


def _count_down(counts: dict[_Key, int], key: _Key) -> None:
    """One less; who has none left is forgotten."""
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]
