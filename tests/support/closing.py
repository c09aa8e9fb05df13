"""What is closed at the end of a block."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import TypeVar

Closed = TypeVar("Closed", bound="Closing")


class Closing:
    """Closed at the end of its block; if that failed already, what closing finds wrong as well is not told."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self: Closed) -> Closed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(BaseException):
                self.close()
