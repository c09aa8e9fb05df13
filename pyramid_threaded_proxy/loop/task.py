"""A task is one exchange under way: a generator that yields what it waits for, and holds no thread meanwhile.

A `Task` belongs to one loop at a time, and only that loop's thread touches it or its sockets. What it may yield:

* `Ready`: a socket is ready. Nothing runs until then; the task is *parked*.
* `Call`: a function that may block, such as a hook, has run in the pool.
* `Hop`: the task goes on in another loop, so that moving a big body disturbs nobody.

Where nothing was detached, the same generator is driven by one thread: each wait can also `block`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from pyramid_threaded_proxy.exceptions import ClientGone, ExchangeFailed, TotalTimedOut
from pyramid_threaded_proxy.loop.endpoint import FOREVER, Endpoint, LoopOfTasks, Threads
from pyramid_threaded_proxy.loop.poller import BROKEN, HANGUP, READ, RESET
from pyramid_threaded_proxy.loop.waits import CHECK_CANCELLED, Ready, Steps, Wait

log = logging.getLogger("pyramid_threaded_proxy.tasks")

#: Seconds after which a task counts as lasting: what only long exchanges need is done then, and not before.
LASTING = 0.06
#: Seconds: how far ahead a task's next look at its deadline may lie. Bounds how long a finished task is remembered.
LOOK_AHEAD = 5.0


class Task:
    """One exchange under way. Touched by the thread of its `loop` alone; any thread may call `cancel`."""

    __slots__ = (
        "cancelled",
        "client",
        "deadline",
        "done",
        "interruption",
        "lasting",
        "limit",
        "loop",
        "next_look",
        "on_lasting",
        "scheduler",
        "share",
        "steps",
        "wait",
    )

    def __init__(
        self,
        scheduler: Threads,
        loop: LoopOfTasks,
        steps: Steps,
        client: Endpoint | None = None,
        on_lasting: Callable[[], None] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.loop = loop
        self.share: str | None = None  # whose threads its calls take (`thread_pool`)
        self.steps = steps
        self.client = client
        self.on_lasting = on_lasting
        self.wait: Wait | None = None
        self.deadline = FOREVER
        self.limit = FOREVER  # by `time.monotonic()`: when the whole task takes too long
        self.next_look = FOREVER
        self.interruption: ExchangeFailed | None = None
        self.lasting = False
        self.cancelled = False
        self.done = False

    def start(self) -> None:
        """Take the first step."""
        self.loop.enter(self)
        self.advance(None, None)

    def advance(self, value: Any, error: BaseException | None) -> None:
        """Run until the next wait: `value` is what the last one waited for, `error` what became of it instead."""
        self.wait = None
        while True:
            try:
                wait = self.steps.send(value) if error is None else self.steps.throw(error)
            except StopIteration:
                return self._end()
            except BaseException:
                log.exception("an exchange ended with an unforeseen error")
                return self._end()
            value = error = None
            if self.interruption is not None and wait.may_end:
                error, self.interruption = self.interruption, None
                if self.is_over:
                    error = None
            if error is not None or wait is CHECK_CANCELLED:
                continue
            self.wait = wait
            try:
                # Once it has begun, another thread may run the task already: nothing here touches it then.
                return wait.begin(self)
            except Exception as failure:
                self.wait, error = None, failure

    def resume(self, wait: Wait, value: Any, error: BaseException | None) -> None:
        """Go on with what `wait` has brought. A task that waits for something else by now does not get it."""
        if self.wait is wait:
            self.advance(value, error)

    def _end(self) -> None:
        self.done = True
        self.loop.leave(self)
        if self.client is not None and self.client.loop is not None:
            self.client.loop.forget(self.client)

    def on_event(self, endpoint: Endpoint, events: int) -> None:
        """The poller saw `events` on a socket of this task."""
        wanted = endpoint.wanted
        if events & wanted or (wanted and events & (BROKEN | (HANGUP if wanted & READ else 0))):
            wait = self.wait
            assert isinstance(wait, Ready)
            wait.stop()
            self.advance((endpoint, events), None)
        elif endpoint.watched and events & (HANGUP | BROKEN):
            self.loop.forget(endpoint)  # said once is enough: the poller would report it without end
            self.interrupt(ClientGone("the client closed its connection"))
        elif endpoint.may_half_close and events & RESET:
            # Nothing was awaited from this side, but what the other one sends has nowhere to go any more.
            endpoint.reset = True
            self.loop.forget(endpoint)
            if isinstance(self.wait, Ready):
                self.wait.stop()
                self.advance((endpoint, events), None)
        else:
            self.loop.disarm(endpoint, events)

    def on_timer(self, now: float) -> None:
        """Look at what has become due (`timers.Timed`)."""
        if self.loop.thread is not threading.current_thread() or self.done or now < self.next_look:
            return  # it hopped away, ended, or looks again later: buckets forget nothing
        if not self.lasting:
            self.lasting = True
            self._begin_to_last()
        wait = self.wait
        assert wait is not None
        due = min(wait.due(self), self.limit)
        self.loop.look_at(self, min(due, now + LOOK_AHEAD) if due > now else now + LOOK_AHEAD)
        if self.limit <= now:
            self.limit = FOREVER
            self.interrupt(TotalTimedOut("the exchange took longer than its total_timeout"))
        elif due <= now:
            self.interrupt(wait.timed_out())

    def _begin_to_last(self) -> None:
        if self.client is not None and self.client.released:
            return  # only what follows the answer is still under way
        if self.on_lasting is not None:
            self.on_lasting()
        if self.client is not None:
            self.loop.watch(self.client, self)

    def move(self, loop: LoopOfTasks) -> None:
        """Go on in another loop; called in the present one, and nothing here touches the task afterwards."""
        if self.client is not None and self.client.loop is not None:
            self.client.loop.forget(self.client)
        self.loop.leave(self)
        self.next_look = FOREVER
        self.loop = loop
        loop.post(self._arrive)

    def _arrive(self) -> None:
        loop = self.loop
        loop.enter(self)
        if self.client is not None and self.lasting and not self.client.released:
            loop.watch(self.client, self)
        self.advance(None, None)

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have `function` run in this task's loop. Any thread."""
        self.loop.post(function, *arguments)

    def cancel(self, error: ExchangeFailed) -> None:
        """End the task with `error`, soon. Any thread. A second time is no news: what it still says is not cut."""
        self.post(self._cancel_here, error)

    def _cancel_here(self, error: ExchangeFailed) -> None:
        if self.loop.thread is not threading.current_thread():
            self.cancel(error)  # it hopped meanwhile: after it
        elif not self.cancelled:
            self.cancelled = True
            self.interrupt(error)

    @property
    def is_over(self) -> bool:
        """Whether the client's connection was let go of: what still runs tells of an end that nothing can change."""
        return self.done or (self.client is not None and self.client.released)

    def interrupt(self, error: ExchangeFailed) -> None:
        """Raise `error` in the task. Only in its loop's thread."""
        if self.is_over:
            return
        if self.wait is None:
            self.interruption = error  # it has not begun yet
        else:
            self.wait.interrupt(self, error)
