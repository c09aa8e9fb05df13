"""Long-lived exchanges stay authorized: the permission is asked for again while they last."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

from pyramid_threaded_proxy.exceptions import PermissionWithdrawn
from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.loop.scheduler import Scheduler
from pyramid_threaded_proxy.loop.task import Task
from pyramid_threaded_proxy.relay.prepared import Check, Recheck

log = logging.getLogger("pyramid_threaded_proxy.recheck")

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
    """Ask; a question that can't be answered counts as no. A pool thread, or the one of a streamed exchange."""
    try:
        return bool(check(exchange))
    except BaseException:
        log.exception("the permission of %r could not be asked for again", exchange)
        return False


class PermissionWatch:
    """Asks at the recheck's interval until the task is done or the answer is no.

    `on_timer` runs in the first loop, the question in a pool thread; one follows the other.
    """

    def __init__(self, scheduler: Scheduler, task: Task, exchange: Exchange, recheck: Recheck) -> None:
        self._scheduler = scheduler
        self._task = task
        self._exchange = exchange
        self._recheck = recheck

    def start(self) -> None:
        """Any thread."""
        self._scheduler.loop.post(self._wait)

    def _wait(self) -> None:
        self._scheduler.loop.call_at(self, self._scheduler.loop.now + self._recheck.interval)

    def on_timer(self, now: float) -> None:
        """The interval is over (`timers.Timed`)."""
        if not self._task.done:
            self._scheduler.pool.submit(self._ask, None)

    def _ask(self, _: None) -> None:
        if self._task.done:
            return
        if allows(self._recheck.check, self._exchange):
            self.start()
        else:
            self._task.cancel(PermissionWithdrawn("the permission was asked for again, and the answer was no"))
