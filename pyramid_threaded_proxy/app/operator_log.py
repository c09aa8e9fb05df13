"""What an operator should see besides the access log: one clear line, and no flood of them."""

from __future__ import annotations

import logging
import sys
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
        more = self._more(error.limit)
        if more is not None:
            log.warning("a request was refused with %d: %s%s", error.status, error, more)

    def waits(self, route: str) -> None:
        """Code of the application's waits for a thread."""
        more = self._more(f"threads of {route}")
        if more is not None:
            log.warning("code of the application's for %s waits for a thread: see proxy.threads%s", route, more)

    def unanswered(self, route: str) -> None:
        """A question of `recheck` was not answered in time."""
        more = self._more(f"recheck of {route}")
        if more is not None:
            log.warning("an exchange of %s was ended: its permission could not be asked for again%s", route, more)

    def _more(self, what: str) -> str | None:
        """Words for how often it was since the last line; None where it is too early for another one."""
        now = time.monotonic()
        last, unsaid = self._told.get(what, (-QUIET, 0))
        if now - last < QUIET:
            self._told[what] = (last, unsaid + 1)
            return None
        self._told[what] = (now, 0)
        return f" ({unsaid} more since the last line)" if unsaid else ""


def answer_refused(exchange: Exchange) -> None:
    """Which rule an upstream's answer broke; nothing of its values, which may be secrets."""
    if isinstance(exchange.error, AnswerRefused):
        log.warning("an answer of %s on %s was refused: %s", exchange.request.origin, exchange.route, exchange.error)


class MisuseLog:
    """Tells once of each place in the code that takes a `ProxyResponse` for the fetched thing. Any thread."""

    #: Places that are told of; code that is made up as it goes has more than anybody reads.
    MOST = 100

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def read(self, exchange: Exchange) -> None:
        """Its body was read, or an ETag or compression of it was asked for."""
        self._tell("was read", exchange, "it reads as empty, and the client gets the upstream's all the same")

    def written(self, exchange: Exchange) -> None:
        """Its body or status was set. That raises; who swallows what was raised is told of here."""
        self._tell("was to be changed", exchange, "that is an error: a `headers` or `response` hook can")

    def _tell(self, what: str, exchange: Exchange, why: str) -> None:
        place = what, _place()
        if place in self._told or len(self._told) >= self.MOST:
            return
        self._told.add(place)
        log.warning("a proxied response of %s %s in %s: %s", exchange.route, *place, why)


#: Whose frames say nothing of who it was.
_BETWEEN = frozenset({"webob", "pyramid_threaded_proxy"})


def _place() -> str:
    """Where in the code that is neither ours nor WebOb's we are: file and line."""
    frame = sys._getframe(1)
    while (caller := frame.f_back) is not None and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        frame = caller
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
