"""What an operator should see besides the access log: one clear line, and no flood of them."""

from __future__ import annotations

import logging
import sys
import time

from pyramid_threaded_proxy.exceptions import (
    AnswerRefused,
    ClientGone,
    ClientTimedOut,
    ExchangeClosed,
    PermissionWithdrawn,
    TooManyExchanges,
    TunnelIdle,
)
from pyramid_threaded_proxy.exchange import Exchange

log = logging.getLogger("pyramid_threaded_proxy.operator_log")

#: Seconds in which the same limit is told of once.
QUIET = 10.0


class _Quiet:
    """How often something was not told of since it was last: once in `QUIET` seconds is enough."""

    #: Things that are kept apart at a time; what was told of more of them is forgotten.
    MOST = 1000

    def __init__(self) -> None:
        self._told: dict[object, tuple[float, int]] = {}

    def may_tell(self, of: object) -> str | None:
        """How the line ends, if there is to be one now. Any thread: a line too many does no harm."""
        now = time.monotonic()
        last, unsaid = self._told.get(of, (-QUIET, 0))
        if now - last < QUIET:
            self._told[of] = (last, unsaid + 1)
            return None
        if len(self._told) >= self.MOST:
            self._told.clear()
        self._told[of] = (now, 0)
        return f" ({unsaid} more since the last line)" if unsaid else ""


class LimitLog:
    """Tells of a limit that is reached, and later how often it was since. Any thread."""

    def __init__(self) -> None:
        self._quiet = _Quiet()

    def reached(self, error: TooManyExchanges) -> None:
        """A request was refused for it."""
        if (more := self._quiet.may_tell(error.limit)) is not None:
            log.warning("a request was refused with %d: %s%s", error.status, error, more)

    def waits(self, route: str) -> None:
        """Code of the application's waits for a thread."""
        more = self._quiet.may_tell(f"threads of {route}")
        if more is not None:
            log.warning("code of the application's for %s waits for a thread: see proxy.threads%s", route, more)

    def unanswered(self, route: str) -> None:
        """A question of `recheck` was not answered in time."""
        more = self._quiet.may_tell(f"recheck of {route}")
        if more is not None:
            log.warning("an exchange of %s was ended: its permission could not be asked for again%s", route, more)


class FailureLog:
    """Tells of exchanges that failed after the detach, where no exception view and no tween sees them. Any thread."""

    def __init__(self) -> None:
        self._quiet = _Quiet()

    def failed(self, exchange: Exchange) -> None:
        """Which rule an exchange broke, and where; nothing of values, which may be secrets. Who left is no failure."""
        error = exchange.error
        if error is None or isinstance(error, _NOBODYS_FAULT):
            return
        what = exchange.route, exchange.request.origin, type(error)
        if (more := self._quiet.may_tell(what)) is None:
            return
        if isinstance(error, AnswerRefused):
            text = "an answer of %s on %s was refused: %s [%s, request %s]%s"
        else:
            text = "an exchange with %s on %s failed: %s [%s, request %s]%s"
        log.warning(
            text, exchange.request.origin, exchange.route, error, type(error).__name__, exchange.request_id, more
        )

    def answered(self, exchange: Exchange, status: int, body: bytes) -> None:
        """What an upstream said with an error's status, where a route wants that in the log."""
        if (more := self._quiet.may_tell((exchange.route, exchange.request.origin, status))) is None:
            return
        text, told = "%s on %s answered %d: %s [request %s]%s", (status, quoted(body), exchange.request_id, more)
        log.warning(text, exchange.request.origin, exchange.route, *told)


def quoted(body: bytes) -> str:
    """Bytes of somebody else's as one line of ASCII between quotes: nothing in them begins another line."""
    return '"' + body.decode("utf-8", "replace").encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'


#: The client left, or the application itself has ended it.
_NOBODYS_FAULT = (ClientGone, ClientTimedOut, ExchangeClosed, PermissionWithdrawn, TunnelIdle)


class FrontLog:
    """Tells of a front server that asks with the right key, and still wrongly. Any thread."""

    def __init__(self) -> None:
        self._quiet = _Quiet()

    def faulty(self, fault: str) -> None:
        """What it asks can't be answered."""
        if (more := self._quiet.may_tell(fault)) is not None:
            log.error("a front server's request can't be used: %s%s", fault, more)

    def stale(self, theirs: str, ours: str) -> None:
        """A front was configured with other routes."""
        self.faulty(f"its configuration was made of other routes (digest {theirs!r}, not {ours!r}): export it anew")

    def relayed(self, fault: str) -> None:
        """A request that nginx can't be handed."""
        if (more := self._quiet.may_tell(fault)) is not None:
            log.warning("relayed by this process rather than by nginx: %s%s", fault, more)

    def untrusted(self, address: str | None) -> None:
        """A front that waitress does not believe who its clients are."""
        if (more := self._quiet.may_tell(("untrusted", address))) is not None:
            log.warning(
                "the front server at %s has the right key, but waitress does not trust it: its own address, host and "
                "scheme count as the client's; set trusted_proxy and trusted_proxy_headers%s",
                address, more,
            )  # fmt: skip


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
