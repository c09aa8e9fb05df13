"""Which applications are asked about requests that Pyramid has not seen yet."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Applications(Generic[T]):
    """Applications, as long as they live: one that nobody serves any more is asked no more. Any thread."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        #: Replaced as one, so that nobody needs a lock to look.
        self.known: tuple[weakref.ref[T], ...] = ()

    def add(self, application: T) -> None:
        living = tuple(known for known in self.known if known() is not None)
        self.known = (*living, weakref.ref(application))

    def __iter__(self) -> Iterator[T]:
        for known in self.known:
            if (application := known()) is not None:
                yield application
