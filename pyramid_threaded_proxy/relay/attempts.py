"""The tries of one exchange: on which connection an upstream is asked, what is noted of it, and whether once more.

What RFC 9110 9.2.2 and RFC 9112 9.3.1 let a proxy send again is decided in one place: `Attempts.go_on`.
"""

from __future__ import annotations

import time
from typing import Any, Literal, Protocol

from pyramid_threaded_proxy.exceptions import AnswerRefused, ConnectFailed, ExchangeFailed, ReadTimedOut, UpstreamGone
from pyramid_threaded_proxy.limits.descriptors import Descriptors
from pyramid_threaded_proxy.loop.waits import Returning, Steps, pause
from pyramid_threaded_proxy.relay.answer_head import AnswerHead
from pyramid_threaded_proxy.relay.prepared import PreparedExchange
from pyramid_threaded_proxy.upstream.balance import Upstream
from pyramid_threaded_proxy.upstream.connections import Connection, OriginPool
from pyramid_threaded_proxy.upstream.health import Health

#: RFC 9110 9.2.2, less TRACE, which never goes up.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
#: What a try can fail with, so that another one is worth a thought.
FAILED_TRY = (ConnectFailed, UpstreamGone, ReadTimedOut, AnswerRefused)

#: Seconds before an upstream without another beside it is connected to once more; each further pause is twice as long.
FIRST_PAUSE = 0.05

Way = Literal["same", "next", "give up"]


class AttemptsContext(Protocol):
    """Where connections come from, and who is told of an upstream's change."""

    descriptors: Descriptors

    def pool(self, prepared: PreparedExchange, watched: bool) -> OriginPool:
        """The connections to where `prepared` goes; `watched` for an exchange that runs in a loop."""

    def upstream_changed(self, route: str, upstream: Upstream, reason: str) -> Steps:
        """Steps: an upstream was marked down, for `reason`, or is back (see its `health`): tell log and subscribers."""


class Attempts:
    """The tries of one exchange. Belongs to its task; `watched` says that this runs in a loop."""

    def __init__(self, prepared: PreparedExchange, answer: AnswerHead, context: AttemptsContext, watched: bool) -> None:
        self._prepared = prepared
        self._exchange = prepared.exchange
        self._answer = answer
        self._context = context
        self._watched = watched
        self._left = prepared.policy.settings.retries
        self._flight: Upstream | None = None  # the one that counts this exchange among its own
        self._connection: Connection | None = None  # the idle one that the present try was given
        self._fresh = False  # the present try makes a connection, whatever lies idle
        self._pool = context.pool(prepared, watched)
        self._began = 0.0  # when the present try did; this and the next by `time.monotonic()`
        self._wanted: float | None = None  # since when a connection to the present upstream is wanted
        self._pauses = 0  # how often that was tried again

    def take(self) -> Connection | None:
        """Begin a try: an idle connection to where the exchange goes now, if there is one."""
        self._exchange.stats.attempts += 1
        self._began = time.monotonic()
        if self._fresh:
            self._fresh, self._connection = False, None
            return None
        choice = self._prepared.destination.choice
        self._exchange.stats.upstream = self._exchange.request.origin if choice is None else choice.upstream.url
        if choice is not None and choice.counts_flights:
            self.release()
            self._flight = choice.upstream
            self._flight.flights.append(None)
        settings = self._prepared.policy.settings
        if settings.keepalive:
            look = not self._left or not self._may_send_again()
            self._connection = self._pool.take(look, self._began - settings.keepalive_time)
        return self._connection

    def connect(self) -> Any:
        """Steps: a connection that is made now. Raises `ConnectFailed`, and what `Descriptors.check` raises."""
        if self._wanted is None:
            self._wanted = time.monotonic()
        connection = yield from self._pool.connect(self._prepared.policy.timeouts.connect, self._wanted)
        try:
            self._context.descriptors.check(connection.endpoint.fd)
        except ExchangeFailed:
            connection.close()
            raise
        self._exchange.stats.connected = time.monotonic()
        return connection

    def succeeded(self, now: float) -> Steps | None:
        """The final head has come at `now`; steps that tell of an upstream that is up again, None where it was."""
        choice = self._prepared.destination.choice
        if choice is None or not choice.upstream.health.succeeded(now):
            return None
        return self._context.upstream_changed(self._exchange.route, choice.upstream, "")

    def go_on(self, error: ExchangeFailed) -> Any:
        """Steps: note what a failed try says of its upstream; whether there is another try."""
        stale = self._was_stale(error)
        if not stale:
            yield from self._note_failure(error)
        way = self._way_on(error, stale)
        if way == "same":
            self._fresh = True
            return True
        if way == "give up":
            return False
        if self._prepared.destination.is_alone:
            return (yield from self._once_more(error))
        if not self._prepared.destination.next_upstream(self._exchange.request):
            return False
        self._left -= 1
        self._wanted = None
        self._pool = self._context.pool(self._prepared, self._watched)
        return True

    def _once_more(self, error: ExchangeFailed) -> Returning[bool]:
        """Steps: whether the same upstream is tried again, as there is no other; after a pause where it refused."""
        self._fresh = True
        if not isinstance(error, ConnectFailed):
            self._left -= 1
            self._wanted = None
            return True
        assert self._wanted is not None
        seconds = FIRST_PAUSE * 2**self._pauses
        limit = self._prepared.policy.timeouts.connect
        if not error.temporary or time.monotonic() + seconds >= self._wanted + limit:
            return False
        if not self._pool.starts_anew(limit):
            self._left -= 1
        self._pauses += 1
        yield from pause(seconds)
        return True

    def keep(self, connection: Connection) -> None:
        """Keep a connection whose messages both ended where their framing says."""
        settings = self._prepared.policy.settings
        self._pool.give_back(connection, settings.keepalive, self._began - settings.keepalive_time)

    def release(self) -> None:
        """The exchange is under way there no more."""
        if self._flight is not None:
            self._flight.flights.pop()
            self._flight = None

    def _way_on(self, error: ExchangeFailed, stale: bool) -> Way:
        """Ask the same upstream once more, the next one, or nobody."""
        if not self._left:
            return "give up"
        if stale:
            return "same" if self._may_send_again() else "give up"
        if isinstance(error, ConnectFailed) or (isinstance(error, UpstreamGone) and self._may_send_again()):
            return "next"  # it is certain that this one did nothing, or harmless if it did
        return "give up"

    def _was_stale(self, error: ExchangeFailed) -> bool:
        """A kept connection that turns out to be closed says nothing of upstream or request (RFC 9112 9.3.1)."""
        return self._connection is not None and not self._answer.heard and isinstance(error, UpstreamGone)

    def _note_failure(self, error: ExchangeFailed) -> Steps:
        choice = self._prepared.destination.choice
        if choice is None or not self._tells_of_upstream(error, choice.upstream.health):
            return
        if choice.upstream.health.failed(choice.user, choice.trial):
            yield from self._context.upstream_changed(self._exchange.route, choice.upstream, str(error))

    def _tells_of_upstream(self, error: ExchangeFailed, health: Health) -> bool:
        """Whether the failure is the upstream's, rather than that of what was asked for.

        What breaks or never comes may be one bad page, as long as other answers come; an answer that is not passed on
        is one.
        """
        if isinstance(error, ConnectFailed):
            return True
        return isinstance(error, (UpstreamGone, ReadTimedOut)) and not health.succeeded_since(self._began)

    def _may_send_again(self) -> bool:
        request = self._exchange.request
        return (
            not self._answer.heard
            and request.method in IDEMPOTENT
            and (request.body is None or request.body.repeatable)
        )
