"""A value that another thread will bring, and those who wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Promise(Generic[Value]):
    """Kept once, by any thread; any number of others may wait for it. No lock is held while they are told."""

    __slots__ = ("_error", "_event", "_lock", "_told", "_value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._told: dict[object, Callable[[], None]] = {}
        self._value: Value | None = None
        self._error: Exception | None = None

    def keep(self, value: Value | None, error: Exception | None = None) -> None:
        """Here is the value, or what went wrong. Tells all who wait, in this thread."""
        with self._lock:
            self._value, self._error = value, error
            self._event.set()
            told, self._told = self._told, {}
        for tell in told.values():
            tell()

    def when_kept(self, who: object, tell: Callable[[], None]) -> None:
        """Call `tell` once: in the thread that keeps the promise, or at once where it is kept."""
        with self._lock:
            if not self._event.is_set():
                self._told[who] = tell
                return
        tell()

    def forget(self, who: object) -> None:
        """`who` waits no more; may have been told already."""
        with self._lock:
            self._told.pop(who, None)

    def wait(self, timeout: float) -> bool:
        """Wait in this very thread, for `timeout` seconds at most; whether it is kept."""
        return self._event.wait(timeout)

    @property
    def kept(self) -> bool:
        """Whether the value, or what went wrong, is here."""
        return self._event.is_set()

    def result(self) -> Value:
        """The value of a promise that is kept. Raises what went wrong, anew for each who asks."""
        if self._error is not None:
            raise type(self._error)(*self._error.args) from self._error
        return self._value  # type: ignore[return-value]
