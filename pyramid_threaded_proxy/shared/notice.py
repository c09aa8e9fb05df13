"""What the log says of the store: once that it is away, once that it is back."""

from __future__ import annotations

import logging
import threading

log = logging.getLogger("pyramid_threaded_proxy.shared")


class Notice:
    """Several threads have a connection each; it is away when one of them has none. Any thread."""

    def __init__(self, place: str) -> None:
        """`place` is host, port and database: nothing secret."""
        self._place = place
        self._lock = threading.Lock()
        self._away: set[str] = set()

    def away(self, who: str, reason: str) -> None:
        """`who` has no connection."""
        with self._lock:
            told = bool(self._away)
            self._away.add(who)
        if not told:
            log.warning(
                "proxy.shared: %s can't be used: %s; this process goes on with its own counts, and tries again",
                self._place,
                reason,
            )

    def back(self, who: str) -> None:
        """`who` has one again."""
        with self._lock:
            told = bool(self._away)
            self._away.discard(who)
            still = bool(self._away)
        if told and not still:
            log.warning("proxy.shared: %s can be used again: limits and closings hold in all processes", self._place)
