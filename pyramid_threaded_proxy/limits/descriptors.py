"""How many files the relay may have open, so that the application always keeps some for itself.

The system gives the lowest free number, so the number of a socket that was just made tells how many are in use. Nothing
is counted: whoever opened them, what is left is what is left.
"""

from __future__ import annotations

import logging

from pyramid_threaded_proxy.exceptions import DescriptorsExhausted

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger("pyramid_threaded_proxy.descriptors")

#: Descriptors from here on break `select()`.
SELECT_LIMIT = 1024
#: Left for the application, its database connections, and the clients of its own pages.
RESERVE = 160


class Descriptors:
    """Any thread: two values that are set once."""

    def __init__(self) -> None:
        self.limit = system_limit()
        self._remedy = "raise the limit of open files (ulimit -n)"
        self._warned = False

    def with_select(self) -> None:
        """Waitress's loop uses `select()`: its own connections must stay below 1024."""
        if self.limit > SELECT_LIMIT:
            self.limit = SELECT_LIMIT
            self._remedy = "set waitress's asyncore_use_poll = true"

    def check(self, number: int) -> None:
        """Raise `DescriptorsExhausted` if `number`, a socket's that was just made, is one of the last."""
        if number < self.limit - min(RESERVE, self.limit // 4):
            return
        if not self._warned:
            self._warned = True
            log.warning("%d of %d descriptors are in use: new exchanges get 503; %s", number, self.limit, self._remedy)
        raise DescriptorsExhausted(f"descriptor {number} of {self.limit}")


def system_limit() -> int:
    """How many descriptors this process may have open."""
    if resource is None:
        return 512
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**20 if soft == resource.RLIM_INFINITY else soft
