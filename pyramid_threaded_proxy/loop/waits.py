"""What a task can yield: what it waits for, holding no thread meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

from pyramid_threaded_proxy.exceptions import ExchangeFailed
from pyramid_threaded_proxy.loop.endpoint import FOREVER, Endpoint, Waiting
from pyramid_threaded_proxy.loop.poller import wait_for
from pyramid_threaded_proxy.loop.promise import Promise

Value = TypeVar("Value")
Steps = Generator["Wait", Any, None]
#: Steps that bring something.
Returning = Generator["Wait", Any, Value]


class Wait:
    """What a task can yield."""

    __slots__ = ()
    #: Whether a task that was told to end hears of it here; if not, at its next wait.
    may_end: ClassVar[bool] = True

    def begin(self, task: Waiting) -> None:
        """Start waiting. Runs in the task's loop, or in the thread that drives a streamed exchange."""
        raise NotImplementedError  # pragma: no cover

    def block(self) -> Any:
        """Wait in this very thread and return the value: how an exchange is driven where nothing was detached."""
        raise NotImplementedError  # pragma: no cover

    def interrupt(self, task: Waiting, error: ExchangeFailed) -> None:
        """End the wait early, or see to it that the task hears of `error` when it ends."""
        raise NotImplementedError  # pragma: no cover

    def due(self, task: Waiting) -> float:
        """When the wait takes too long, by `time.monotonic()`."""
        return FOREVER

    def timed_out(self) -> ExchangeFailed:
        """What is raised in the task then."""
        raise NotImplementedError  # pragma: no cover


class Bounded(Wait):
    """A wait that takes `timeout` seconds at most: after them `expired` is raised in the task."""

    __slots__ = ("expired", "timeout")
    timeout: float
    expired: type[ExchangeFailed]

    def begin_clock(self, task: Waiting) -> None:
        """The seconds are counted from now on."""
        task.deadline = deadline = task.loop.now + self.timeout
        if deadline < task.next_look:
            task.loop.look_at(task, deadline)

    def block(self) -> Any:
        found = self.block_for(self.timeout)
        if found is None:
            raise self.timed_out()
        return found

    def block_for(self, timeout: float) -> Any | None:
        """Wait in this very thread, for `timeout` seconds at most; None when nothing came."""
        raise NotImplementedError  # pragma: no cover

    def due(self, task: Waiting) -> float:
        return task.deadline

    def timed_out(self) -> ExchangeFailed:
        return self.expired(f"nothing moved for {self.timeout:g} s")


class Ready(Bounded):
    """Waits until `endpoint`, or `other`, is ready for one of the events; its value is ``(endpoint, events)``.

    After `timeout` seconds `expired` is raised in the task.
    """

    __slots__ = ("endpoint", "events", "other", "other_events")

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

    def begin(self, task: Waiting) -> None:
        loop = task.loop
        loop.want(self.endpoint, self.events, task)
        if self.other is not None:
            loop.want(self.other, self.other_events, task)
        task.deadline = deadline = loop.now + self.timeout
        if deadline < task.next_look:
            loop.look_at(task, deadline)

    def block_for(self, timeout: float) -> tuple[Endpoint, int] | None:
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

    def interrupt(self, task: Waiting, error: ExchangeFailed) -> None:
        self.stop()
        task.advance(None, error)


class TimeIsUp(ExchangeFailed):
    """So many seconds are over; raised where nobody but the steps that waited for them hears of it."""


class AnyReady(Ready):
    """Waits until one of several endpoints is ready for its events; of none, until `TimeIsUp` is raised."""

    __slots__ = ("wanted",)

    def __init__(self, wanted: Mapping[Endpoint, int], timeout: float) -> None:
        self.wanted = wanted
        self.timeout = timeout
        self.expired = TimeIsUp

    def begin(self, task: Waiting) -> None:
        for endpoint, events in self.wanted.items():
            task.loop.want(endpoint, events, task)
        self.begin_clock(task)

    def block_for(self, timeout: float) -> tuple[Endpoint, int] | None:
        fd, events = wait_for({endpoint.fd: events for endpoint, events in self.wanted.items()}, timeout)
        return next(((endpoint, events) for endpoint in self.wanted if endpoint.fd == fd and events), None)

    def stop(self) -> None:
        for endpoint in self.wanted:
            endpoint.wanted = 0


def pause(seconds: float) -> Steps:
    """Steps: wait so long."""
    try:
        yield AnyReady({}, seconds)
    except TimeIsUp:
        pass


class Kept(Bounded):
    """Waits until another thread has kept a promise; `expired` is raised in the task after `timeout` seconds."""

    __slots__ = ("promise",)

    def __init__(self, promise: Promise[Any], timeout: float, expired: type[ExchangeFailed]) -> None:
        self.promise = promise
        self.timeout = timeout
        self.expired = expired

    def begin(self, task: Waiting) -> None:
        self.begin_clock(task)
        self.promise.when_kept(self, partial(task.post, self._arrive, task))

    def _arrive(self, task: Waiting) -> None:
        if task.wait is self:  # else it was interrupted meanwhile, and waits for something else
            task.advance(None, None)

    def block_for(self, timeout: float) -> bool | None:
        return self.promise.wait(timeout) or None

    def interrupt(self, task: Waiting, error: ExchangeFailed) -> None:
        self.promise.forget(self)
        task.advance(None, error)


class Call(Wait):
    """Runs ``function(*arguments)`` in the pool; its value is what that returns, what it raises is raised in the task.

    One that has begun is never abandoned half-way: an interruption waits until it ends, so that what it made has an
    owner. One that still waits for a thread is withdrawn. What it returns reaches the task only while that waits for
    this very call. Raises `ThreadsExhausted` in the task if there is no thread for it.
    """

    __slots__ = ("_job", "arguments", "function")

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments
        self._job: Any = None

    def begin(self, task: Waiting) -> None:
        self._job = task.scheduler.pool.submit(self._run, task, task.share)

    def _run(self, task: Waiting) -> None:
        try:
            value = self.function(*self.arguments)
        except BaseException as error:
            task.post(task.resume, self, None, error)
        else:
            task.post(task.resume, self, value, None)

    def block(self) -> Any:
        return self.function(*self.arguments)

    def interrupt(self, task: Waiting, error: ExchangeFailed) -> None:
        if task.scheduler.pool.withdraw(self._job):
            task.advance(None, error)
        else:
            task.interruption = error


class Hop(Wait):
    """Goes on in a mover (`home` False) or back in the first loop; `endpoints` go along."""

    __slots__ = ("endpoints", "home")

    def __init__(self, home: bool, *endpoints: Endpoint) -> None:
        self.home = home
        self.endpoints = endpoints

    def begin(self, task: Waiting) -> None:
        target = task.scheduler.loop if self.home else task.scheduler.next_mover()
        for endpoint in self.endpoints:
            if endpoint.loop is not None:
                endpoint.loop.forget(endpoint)
        task.move(target)

    def block(self) -> None:
        return None

    def interrupt(self, task: Waiting, error: ExchangeFailed) -> None:
        task.interruption = error


class Yield(Wait):
    """Lets the loop's other tasks have their turn; what ends the task is heard of then."""

    __slots__ = ()

    def begin(self, task: Waiting) -> None:
        task.post(task.advance, None, None)

    def block(self) -> None:
        return None

    def interrupt(self, task: Waiting, error: ExchangeFailed) -> None:
        task.interruption = error


class InBatch(Wait):
    """Waits until the others whose event has come in this turn are as far: no longer than they take for it.

    The same steps, taken for each of them in a row, cost less than with all that an exchange needs in between: code
    and data are still in the processor's caches.
    """

    __slots__ = ()
    may_end = False  # there may be a head already that was not sent yet

    def begin(self, task: Waiting) -> None:
        task.loop.batched.append(task)

    def block(self) -> None:
        return None

    def interrupt(self, task: Waiting, error: ExchangeFailed) -> None:
        task.interruption = error


IN_BATCH = InBatch()


class CheckCancelled(Wait):
    """Waits for nothing, but an exchange that was told to end meanwhile goes no further."""

    __slots__ = ()

    def block(self) -> None:
        return None


CHECK_CANCELLED = CheckCancelled()


def run_here(steps: Returning[Any], block: Callable[[Wait], Any] | None = None) -> Any:
    """Drive steps in this very thread, each wait blocking it; returns what they return. For what runs beside a site.

    `block` is how it waits, where that is not as each wait does.
    """
    value: Any = None
    error: Exception | None = None
    while True:
        try:
            wait = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value
        value = error = None
        try:
            value = wait.block() if block is None else block(wait)
        except Exception as raised:
            error = raised
