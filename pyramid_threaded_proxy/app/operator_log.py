"""What an operator should see besides the access log: one clear line, and no flood of them."""

from __future__ import annotations

import logging
import time

from pyramid_threaded_proxy.exceptions import AnswerRefused, TooManyExchanges
from pyramid_threaded_proxy.exchange import Exchange

log = logging.getLogger("pyramid_threaded_proxy.operator_log")

#: Seconds in which the same limit is told of once.
QUIET = 10.0


class LimitLog:
    """Tells of a limit that is reached, and later how often it was since. Any thread: a line too many does no harm."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, int]] = {}

    def reached(self, error: TooManyExchanges) -> None:
        """A request was refused for it."""
        now = time.monotonic()
        last, unsaid = self._told.get(error.limit, (-QUIET, 0))
        if now - last < QUIET:
            self._told[error.limit] = (last, unsaid + 1)
            return
        self._told[error.limit] = (now, 0)
        more = f" ({unsaid} more since the last line)" if unsaid else ""
        log.warning("a request was refused with %d: %s%s", error.status, error, more)


def answer_refused(exchange: Exchange) -> None:
    """Which rule an upstream's answer broke; nothing of its values, which may be secrets."""
    if isinstance(exchange.error, AnswerRefused):
        log.warning("an answer of %s on %s was refused: %s", exchange.request.origin, exchange.route, exchange.error)
