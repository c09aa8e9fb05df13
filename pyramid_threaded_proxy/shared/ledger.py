"""The bookkeeping of places: what this process holds, and what the store has been told of it."""

from __future__ import annotations

import json


def field_of(route: str, userid: str) -> str:
    """What a user's places on a route are counted under; ASCII, whatever the user is called."""
    return json.dumps([route, userid])


class Ledger:
    """Places by field. One thread's.

    What is held is the truth. Where the store knows something else, `changes` tells the difference; after a joining it
    knows what was held then.
    """

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._other: set[str] = set()  # where the two may differ

    def hold(self, field: str) -> None:
        """A place that the store knows nothing of yet."""
        self.held[field] = self.held.get(field, 0) + 1
        self._other.add(field)

    def granted(self, field: str) -> None:
        """A place that the store itself has given."""
        self.held[field] = self.held.get(field, 0) + 1
        self._told[field] = self._told.get(field, 0) + 1

    def give_back(self, field: str) -> None:
        """One less; one that is not known, of a former life of this application, changes nothing."""
        held = self.held.get(field, 0)
        if held > 1:
            self.held[field] = held - 1
        elif held:
            del self.held[field]
        self._other.add(field)

    def changes(self) -> list[tuple[str, int]]:
        """What the store is to be told now; from here on it counts as told."""
        found = []
        for field in sorted(self._other):
            held = self.held.get(field, 0)
            if change := held - self._told.get(field, 0):
                found.append((field, change))
            if held:
                self._told[field] = held
            else:
                self._told.pop(field, None)
        self._other.clear()
        return found

    def all(self) -> dict[str, int]:
        """Everything, for a joining; from here on it counts as told."""
        self._other.clear()
        self._told = dict(self.held)
        return dict(self.held)
