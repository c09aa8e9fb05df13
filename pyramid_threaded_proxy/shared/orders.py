"""What other threads want of the one that speaks to the store. None of them waits longer than it says."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple


class Held(NamedTuple):
    """A place was taken by this process's own counts alone."""

    field: str


class GivenBack(NamedTuple):
    """A place is free again."""

    field: str


class Closed(NamedTuple):
    """Exchanges were closed here, at `when` by `time.monotonic()`; the other processes shall do so too."""

    when: float
    what: Mapping[str, str]


class Question:
    """Asked by one thread, answered by another; whoever waits may give up, and both agree on whether it did."""

    def __init__(self) -> None:
        self._answer: Any = None
        self._answered = threading.Event()
        self._open = [None]  # taken out once, by whoever is first

    @property
    def given_up(self) -> bool:
        """Whether nobody waits any more."""
        return not self._open

    def answer(self, answer: Any) -> bool:
        """Whether somebody still waited for it."""
        self._answer = answer
        try:
            self._open.pop()
        except IndexError:
            return False
        self._answered.set()
        return True

    def wait(self, patience: float) -> tuple[bool, Any]:
        """Whether it was answered within `patience` seconds, and with what."""
        if not self._answered.wait(patience):
            try:
                self._open.pop()
                return False, None
            except IndexError:
                pass  # answered in this very moment
        return True, self._answer


class Take(Question):
    """May there be one place more, if all processes together have less than `most`? None: it can't be known."""

    def __init__(self, field: str, most: int) -> None:
        super().__init__()
        self.field = field
        self.most = most


class Reports(Question):
    """What do all processes say of themselves? Bytes by process; None: it can't be known."""


Order = Held | GivenBack | Closed | Take | Reports
