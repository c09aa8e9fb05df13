"""Where nothing can be detached: the same exchange, driven by the server's own thread and given to it as `app_iter`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from pyramid_threaded_proxy.exceptions import (
    ClientGone,
    ExchangeFailed,
    PermissionWithdrawn,
    RelayFailed,
    TotalTimedOut,
)
from pyramid_threaded_proxy.http.names import Fields
from pyramid_threaded_proxy.loop.dialogue import Dialogue
from pyramid_threaded_proxy.loop.endpoint import FOREVER
from pyramid_threaded_proxy.loop.waits import Bounded, Returning, Steps, Wait, run_here
from pyramid_threaded_proxy.relay.client import Output, StreamClient
from pyramid_threaded_proxy.relay.prepared import PreparedExchange
from pyramid_threaded_proxy.relay.recheck import allows

#: Seconds after which a waiting thread looks whether its exchange was told to end.
SLICE = 0.5


class StreamedAnswer:
    """An exchange as a WSGI iterable. Lives in the thread that the server calls us on.

    It raises out of the iterator when the answer breaks off, so that the server doesn't end it as if it were whole.
    """

    def __init__(self, steps: Steps, client: StreamClient, prepared: PreparedExchange) -> None:
        self._steps = steps
        self._client = client
        self._exchange = prepared.exchange
        self._recheck = prepared.recheck
        total = prepared.policy.timeouts.total
        self._limit = FOREVER if total is None else prepared.exchange.stats.started + total
        self._asked = time.monotonic()
        self._interruption: ExchangeFailed | None = None  # set by any thread
        self._told = False  # the exchange was told to end: what it still says is not to be cut
        self._first: bytes | None = None
        self._left: int | None = None  # bytes that the head has promised and the server has not had
        self._ended = False

    def start(self, start_response: Callable[[str, Fields], Any]) -> StreamedAnswer:
        """Run until the head is known, and tell the server."""
        self._first = self._advance()
        if self._client.head is None:
            raise self._exchange.error or RelayFailed("the exchange ended without an answer")
        status, fields = self._client.head
        self._left = next((int(value) for name, value in fields if name.lower() == "content-length"), None)
        try:
            start_response(status, fields)
        except BaseException:
            self.close()  # the server has not got this object yet, and so will not close it
            raise
        return self

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data, self._first = self._first, None
        if data is None and not self._ended:
            data = self._advance(self._interrupted())
        if data is None:
            if self._client.broken:
                raise self._exchange.error or RelayFailed("the answer broke off")
            raise StopIteration
        if self._left is not None:
            self._left -= len(data)
        return data

    def _advance(self, error: BaseException | None = None) -> bytes | None:
        """Run the exchange until it has bytes for the server; None at its end. `error` is raised in it first."""
        value: Any = None
        while True:
            try:
                wait = self._steps.send(value) if error is None else self._steps.throw(error)
            except StopIteration:
                self._ended = True
                return None
            value = error = None
            if isinstance(wait, Output):
                return wait.data
            try:
                value = self._block(wait)
            except Exception as raised:
                error = raised

    def _drive(self, steps: Returning[Any]) -> Any:
        """Run steps that give the server nothing; returns what they return."""
        return run_here(steps, self._block)

    def _block(self, wait: Wait) -> Any:
        """Wait in this thread, in slices: nobody can wake it to say that the exchange is to end."""
        if not isinstance(wait, Bounded):
            interruption = self._interrupted() if wait.may_end else None
            if interruption is not None:
                raise interruption
            return wait.block_with(self._drive) if isinstance(wait, Dialogue) else wait.block()
        deadline = time.monotonic() + wait.timeout
        while True:
            interruption = self._interrupted()
            if interruption is not None:
                raise interruption
            left = deadline - time.monotonic()
            found = wait.block_for(min(SLICE, max(0.0, left)))
            if found is not None:
                return found
            if left <= SLICE:
                raise wait.timed_out()

    def _interrupted(self) -> ExchangeFailed | None:
        """Why the exchange is to end now, if it is. Says so once."""
        if self._told:
            return None
        if self._recheck is not None and time.monotonic() - self._asked >= self._recheck.interval:
            self._asked = time.monotonic()
            if not allows(self._recheck.check, self._exchange):
                self.cancel(PermissionWithdrawn("the permission was asked for again, and the answer was no"))
        if time.monotonic() >= self._limit:
            self.cancel(TotalTimedOut("the exchange took longer than its total_timeout"))
        self._told = self._interruption is not None
        return self._interruption

    def cancel(self, error: ExchangeFailed) -> None:
        """End the exchange with `error`, within a second. Any thread."""
        self._interruption = error

    def close(self) -> None:
        """The server wants no more (PEP 3333): its client is gone, unless it has had all there is."""
        gone = None if self._left == 0 else ClientGone("the server wanted no more of the answer")
        while not self._ended:
            self._advance(gone)
