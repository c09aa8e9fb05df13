"""What a test, or this process, holds and may leave behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from tempfile import TemporaryFile

#: The threads that were there when the present test began; one that blocks may outlive the test that made it.
EARLIER: set[threading.Thread] = set()


def own_threads(*prefixes: str) -> list[str]:
    """The names of the threads that this test's own doings have started, those with one of the prefixes."""
    return sorted(thread.name for thread in set(threading.enumerate()) - EARLIER if thread.name.startswith(prefixes))


def open_descriptors() -> set[str]:
    """What this process has open, as ``number -> target``."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")
    return found


@contextmanager
def strangers() -> Iterator[list[int]]:
    """Files that take the descriptor numbers which are free; in the end nobody may have written to them."""
    with ExitStack() as stack:
        numbers = [stack.enter_context(TemporaryFile()).fileno() for _ in range(50)]
        yield numbers
        assert all(os.fstat(number).st_size == 0 for number in numbers)
