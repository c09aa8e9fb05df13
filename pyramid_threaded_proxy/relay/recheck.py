"""Long-lived exchanges stay authorized: the permission is asked for again while they last."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

from pyramid_threaded_proxy.exceptions import PermissionWithdrawn, ThreadsExhausted
from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.loop.scheduler import Scheduler
from pyramid_threaded_proxy.loop.task import Task
from pyramid_threaded_proxy.loop.thread_pool import Job
from pyramid_threaded_proxy.relay.prepared import Check, Recheck

log = logging.getLogger("pyramid_threaded_proxy.recheck")

#: Seconds for an answer: with what timers are late, one is there, or counts as no, a second after the interval.
ANSWER_WITHIN = 0.9

#: Where the environ of a repeated question keeps its `PermissionQuestion`.
QUESTION = "pyramid_threaded_proxy.recheck"
#: Where the environ of a request that is only explained says who wants to hear of it.
EXPLAINED = "pyramid_threaded_proxy.explained"

_LEFT_BEHIND = ("webob.", "waitress.", "pyramid_threaded_proxy.", "CONTENT_", "HTTP_CONTENT_", "HTTP_TRANSFER_")


class PermissionQuestion:
    """Tells the package's own view that it is only asked whether the request would be let in.

    A client can't make one: nothing of a request becomes an object in the environ.
    """

    def __init__(self, userid: str | None) -> None:
        self._userid = userid
        self.allowed = False

    def answer(self, userid: object) -> None:
        """The view was reached: yes, if it is still the same user who asks."""
        self.allowed = (None if userid is None else str(userid)) == self._userid


def question_for(environ: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a request to ask again: a GET with its fields, without its body.

    Whatever else tweens and middleware have put there speaks of the first request, a transaction's mark for one.
    """
    kept = {
        key: value
        for key, value in environ.items()
        if (isinstance(value, str) or (key.startswith("wsgi.") and isinstance(value, (bool, tuple))))
        and not key.startswith(_LEFT_BEHIND)
    }
    return kept | {"REQUEST_METHOD": "GET"}


def route_check(router: Callable[..., Any], question: Mapping[str, Any]) -> Check:
    """Asks the application once more: a fresh request through the router, with tweens, factory and policy.

    The answer is yes if our view was reached, and its 204 is what came out of the application.
    """

    def check(exchange: Exchange) -> bool:
        asked = PermissionQuestion(exchange.userid)
        statuses: list[str] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
            statuses.append(status)
            return _ignore

        environ = dict(question) | {QUESTION: asked, "wsgi.input": BytesIO(), "wsgi.errors": sys.stderr}
        answer = router(environ, start_response)
        try:
            for _ in answer:
                pass
        finally:
            close = getattr(answer, "close", None)
            if close is not None:
                close()
        return asked.allowed and statuses[-1].startswith("204 ")

    return check


def _ignore(data: bytes) -> None:
    """Takes what the answer to a question writes."""


def allows(check: Check, exchange: Exchange) -> bool:
    """Ask; a question that can't be answered counts as no. A thread for such, or that of a streamed exchange."""
    try:
        return bool(check(exchange))
    except BaseException:
        log.exception("the permission of %r could not be asked for again", exchange)
        return False


class PermissionWatch:
    """Asks at the recheck's interval until the task is done or the answer is no.

    An answer that has not come `ANSWER_WITHIN` seconds after its time counts as no, and so does a question that can't
    be asked: whatever else happens, nobody goes on for longer than the interval and a second once he may not.

    `on_timer` runs in the first loop, the question in one of the threads for them; one follows the other. A route's
    questions can't take all of these threads. `unanswered` is told the route of one that was not answered.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        task: Task,
        exchange: Exchange,
        recheck: Recheck,
        unanswered: Callable[[str], None],
    ) -> None:
        self.task = task  # a loop that breaks passes on what is to be done for it
        self._scheduler = scheduler
        self._exchange = exchange
        self._recheck = recheck
        self._unanswered = unanswered
        self._question: Job | None = None  # the one that is under way
        self._asked = 0.0  # when it was asked, by the loop's clock
        self._due = 0.0  # when something is to be done next

    def start(self) -> None:
        """Any thread."""
        self._scheduler.loop.post(self._begin)

    def _begin(self) -> None:
        # Exchanges that began together do not ask together: sooner is no less safe, and spreads them.
        self._look_at(self._scheduler.loop.now + self._recheck.interval * random.uniform(0.5, 1.0))

    def _look_at(self, due: float) -> None:
        self._due = due
        self._scheduler.loop.call_at(self, due)

    def on_timer(self, now: float) -> None:
        """The interval is over, or the time for an answer (`timers.Timed`)."""
        if self.task.done or now < self._due:
            return
        if self._question is not None:
            self._scheduler.recheckers.withdraw(self._question)
            return self._end_unanswered("there was no answer in time")
        self._asked = now
        try:
            self._question = self._scheduler.recheckers.submit(self._ask, None, self._exchange.route)
        except ThreadsExhausted as error:
            return self._end_unanswered(str(error))
        self._look_at(now + ANSWER_WITHIN)

    def _ask(self, _: None) -> None:
        if not self.task.done:
            self._scheduler.loop.post(self._answered, allows(self._recheck.check, self._exchange))

    def _answered(self, allowed: bool) -> None:
        self._question = None
        if allowed:
            self._look_at(max(self._scheduler.loop.now, self._asked + self._recheck.interval))
        else:
            self._end("the permission was asked for again, and the answer was no")

    def _end_unanswered(self, why: str) -> None:
        self._unanswered(self._exchange.route)
        self._end(f"the permission could not be asked for again: {why}")

    def _end(self, why: str) -> None:
        self.task.cancel(PermissionWithdrawn(why))
