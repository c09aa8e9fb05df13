"""A task is one exchange under way: a generator that yields what it waits for, and holds no thread meanwhile.

A `Task` belongs to one loop at a time, and only that loop's thread touches it or its sockets. What it may yield:

* `Ready`: a socket is ready. Nothing runs until then; the task is *parked*.
* `Call`: a function that may block (look-up, connect, TLS, hook) has run in the pool.
* `Hop`: the task goes on in another loop, so that moving a big body disturbs nobody.

Where nothing was detached, the same generator is driven by one thread: each wait can also `block`.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pyramid_threaded_proxy.exceptions import ClientGone, ExchangeFailed, TotalTimedOut
from pyramid_threaded_proxy.loop.poller import BROKEN, HANGUP, READ, RESET, wait_for

if TYPE_CHECKING:
    from pyramid_threaded_proxy.loop.scheduler import Loop, Scheduler

log = logging.getLogger("pyramid_threaded_proxy.tasks")

#: Seconds after which a task counts as lasting: what only long exchanges need is done then, and not before.
LASTING = 0.06
#: Seconds: how far ahead a task's next look at its deadline may lie. Bounds how long a finished task is remembered.
LOOK_AHEAD = 5.0

FOREVER = float("inf")

Steps = Generator["Wait", Any, None]


class Endpoint:
    """A non-blocking socket and what a poller knows about it. Touched only by the loop that its task is in."""

    __slots__ = ("armed", "fd", "loop", "may_half_close", "owner", "released", "reset", "sock", "wanted", "watched")
    #: Whether what the descriptor carries is what is read and written: nothing is encrypted.
    raw: ClassVar[bool] = True

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.armed = -1  # the events that the poller watches for; -1: it doesn't know this socket
        self.wanted = 0  # the events that the owner waits for
        self.watched = False  # whether a hang-up ends the owner
        self.may_half_close = False  # a hang-up means no more than that no more bytes come
        self.reset = False  # the peer reset it: there is nothing to wait for
        self.released = False  # it is another's by now: only its number is known here
        self.owner: Owner | None = None
        self.loop: Loop | None = None  # the loop whose poller knows it

    def close(self) -> None:
        """Close the socket, after its poller was told to forget it. In the thread of its loop, if it has one."""
        if self.loop is not None:
            self.loop.forget(self)
        self.sock.close()


class TlsEndpoint(Endpoint):
    """A `tls.TlsSocket`: reads and writes as a plain one, but the kernel can't move its bytes."""

    __slots__ = ()
    raw = False


class Owner(Protocol):
    """Whoever is told what happens on an endpoint: a task, or the pool that keeps an idle connection."""

    def on_event(self, endpoint: Endpoint, events: int) -> None:
        """The poller saw `events`. Runs in the thread of the endpoint's loop."""


class Wait:
    """What a task can yield."""

    __slots__ = ()
    #: Whether a task that was told to end hears of it here; if not, at its next wait.
    may_end: ClassVar[bool] = True

    def begin(self, task: Task) -> None:
        """Start waiting. Runs in the task's loop, or in the thread that drives a streamed exchange."""
        raise NotImplementedError  # pragma: no cover

    def block(self) -> Any:
        """Wait in this very thread and return the value: how an exchange is driven where nothing was detached."""
        raise NotImplementedError  # pragma: no cover

    def interrupt(self, task: Task, error: ExchangeFailed) -> None:
        """End the wait early, or see to it that the task hears of `error` when it ends."""
        raise NotImplementedError  # pragma: no cover

    def due(self, task: Task) -> float:
        """When the wait takes too long, by `time.monotonic()`."""
        return FOREVER

    def timed_out(self) -> ExchangeFailed:
        """What is raised in the task then."""
        raise NotImplementedError  # pragma: no cover


class Ready(Wait):
    """Waits until `endpoint`, or `other`, is ready for one of the events; its value is ``(endpoint, events)``.

    After `timeout` seconds `expired` is raised in the task.
    """

    __slots__ = ("endpoint", "events", "expired", "other", "other_events", "timeout")

    def __init__(
        self,
        endpoint: Endpoint,
        events: int,
        timeout: float,
        expired: type[ExchangeFailed],
        other: Endpoint | None = None,
        other_events: int = 0,
    ) -> None:
        self.endpoint = endpoint
        self.events = events
        self.timeout = timeout
        self.expired = expired
        self.other = other
        self.other_events = other_events

    def begin(self, task: Task) -> None:
        loop = task.loop
        loop.want(self.endpoint, self.events, task)
        if self.other is not None:
            loop.want(self.other, self.other_events, task)
        task.deadline = deadline = loop.now + self.timeout
        if deadline < task.next_look:
            loop.look_at(task, deadline)

    def block(self) -> tuple[Endpoint, int]:
        found = self.block_for(self.timeout)
        if found is None:
            raise self.timed_out()
        return found

    def block_for(self, timeout: float) -> tuple[Endpoint, int] | None:
        """Wait in this very thread, for `timeout` seconds at most; None when nothing was ready."""
        wanted = {self.endpoint.fd: self.events}
        if self.other is not None:
            wanted[self.other.fd] = self.other_events
        fd, events = wait_for(wanted, timeout)
        if not events:
            return None
        other = self.other
        return (other if other is not None and other.fd == fd else self.endpoint), events

    def stop(self) -> None:
        """Nobody waits for these sockets any more; what the poller watches is left until it says something."""
        self.endpoint.wanted = 0
        if self.other is not None:
            self.other.wanted = 0

    def interrupt(self, task: Task, error: ExchangeFailed) -> None:
        self.stop()
        task.advance(None, error)

    def due(self, task: Task) -> float:
        return task.deadline

    def timed_out(self) -> ExchangeFailed:
        return self.expired(f"nothing moved for {self.timeout:g} s")


class Call(Wait):
    """Runs ``function(*arguments)`` in the pool; its value is what that returns, what it raises is raised in the task.

    One that has begun is never abandoned half-way: an interruption waits until it ends, so that what it made has an
    owner. One that still waits for a thread is withdrawn.
    """

    __slots__ = ("_ticket", "arguments", "function")

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments
        self._ticket = [None]  # who takes it, the pool or an interruption, decides

    def begin(self, task: Task) -> None:
        task.scheduler.pool.submit(self._run, task)

    def _taken(self) -> bool:
        try:
            self._ticket.pop()
        except IndexError:
            return True
        return False

    def _run(self, task: Task) -> None:
        if self._taken():
            return
        try:
            value = self.function(*self.arguments)
        except BaseException as error:
            task.post(task.advance, None, error)
        else:
            task.post(task.advance, value, None)

    def block(self) -> Any:
        return self.function(*self.arguments)

    def interrupt(self, task: Task, error: ExchangeFailed) -> None:
        if self._taken():
            task.interruption = error
        else:
            task.advance(None, error)


class Hop(Wait):
    """Goes on in a mover (`home` False) or back in the first loop; `endpoints` go along."""

    __slots__ = ("endpoints", "home")

    def __init__(self, home: bool, *endpoints: Endpoint) -> None:
        self.home = home
        self.endpoints = endpoints

    def begin(self, task: Task) -> None:
        target = task.scheduler.loop if self.home else task.scheduler.next_mover()
        for endpoint in self.endpoints:
            if endpoint.loop is not None:
                endpoint.loop.forget(endpoint)
        task.move(target)

    def block(self) -> None:
        return None

    def interrupt(self, task: Task, error: ExchangeFailed) -> None:
        task.interruption = error


class Turn(Wait):
    """Lets the loop's other tasks have their turn; what ends the task is heard of then."""

    __slots__ = ()

    def begin(self, task: Task) -> None:
        task.post(task.advance, None, None)

    def block(self) -> None:
        return None

    def interrupt(self, task: Task, error: ExchangeFailed) -> None:
        task.interruption = error


class Abreast(Wait):
    """Waits until the others whose event has come in this turn are as far: no longer than they take for it.

    The same steps, taken for each of them in a row, cost less than with all that an exchange needs in between: code
    and data are still in the processor's caches.
    """

    __slots__ = ()
    may_end = False  # there may be a head already that was not sent yet

    def begin(self, task: Task) -> None:
        task.loop.abreast.append(task)

    def block(self) -> None:
        return None

    def interrupt(self, task: Task, error: ExchangeFailed) -> None:
        task.interruption = error


ABREAST = Abreast()


class Checkpoint(Wait):
    """Waits for nothing, but an exchange that was told to end meanwhile goes no further."""

    __slots__ = ()

    def block(self) -> None:
        return None


CHECKPOINT = Checkpoint()


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
        "steps",
        "wait",
    )

    def __init__(
        self,
        scheduler: Scheduler,
        loop: Loop,
        steps: Steps,
        client: Endpoint | None = None,
        on_lasting: Callable[[], None] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.loop = loop
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
            if error is not None or wait is CHECKPOINT:
                continue
            self.wait = wait
            try:
                # Once it has begun, another thread may run the task already: nothing here touches it then.
                return wait.begin(self)
            except Exception as failure:
                self.wait, error = None, failure

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

    def move(self, loop: Loop) -> None:
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
