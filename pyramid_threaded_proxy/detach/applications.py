"""Which applications are asked about requests that Pyramid has not seen yet."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Applications(Generic[T]):
    """Applications, as long as they live: one that nobody serves any more is asked no more. Any thread."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: tuple[weakref.ref[T], ...] = ()  # replaced as one, so that nobody needs a lock to look

    def add(self, application: T) -> None:
        living = tuple(known for known in self._known if known() is not None)
        self._known = (*living, weakref.ref(application))

    def __bool__(self) -> bool:
        return bool(self._known)

    def __iter__(self) -> Iterator[T]:
        for known in self._known:
            if (application := known()) is not None:
                yield application
