"""A loop: one thread, one poller, its tasks and their deadlines."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pyramid_threaded_proxy.exceptions import RelayFailed
from pyramid_threaded_proxy.loop.endpoint import Endpoint, Owner, Taking
from pyramid_threaded_proxy.loop.idle_clients import IdleClients
from pyramid_threaded_proxy.loop.lingering import Lingering
from pyramid_threaded_proxy.loop.poller import BROKEN, HANGUP, MOST_EVENTS, Poller, new_poller
from pyramid_threaded_proxy.loop.syscalls import Receiver
from pyramid_threaded_proxy.loop.task import LASTING, Task
from pyramid_threaded_proxy.loop.timers import Timed, Timers

log = logging.getLogger("pyramid_threaded_proxy.scheduler")
#: Tasks that wait for each other in a turn: more save nothing, and each may hold a small body.
BATCH_SIZE = 16


class _Here(threading.local):
    """The loop whose thread this is."""

    loop: Loop | None = None


_here = _Here()


def current_loop() -> Loop | None:
    """The loop whose thread calls."""
    return _here.loop


def run_in_batch(function: Callable[[], None]) -> bool:
    """Have `function` run in this thread's loop, in a row with others, soon; False where it is no loop's."""
    loop = _here.loop
    if loop is None:
        return False
    loop.batch.add(function)
    return True


class Batch:
    """What can wait a little, to be done for several exchanges in a row: it takes less time so (`waits.InBatch`).

    In the order in which it came, at the end of a turn with `BATCH_SIZE`, or a bucket of the timers later. Lives in
    the loop's thread; any thread may look at `waiting`.
    """

    def __init__(self, loop: Loop) -> None:
        self.waiting: deque[Callable[[], None]] = deque()
        self._loop = loop
        self._timed = False

    def add(self, function: Callable[[], None]) -> None:
        """Have `function` run once."""
        self.waiting.append(function)
        if not self._timed:
            self._timed = True
            self._loop.call_at(self, self._loop.now)

    def on_timer(self, now: float) -> None:
        """None of them waits any longer (`timers.Timed`)."""
        self._timed = False
        self.run()

    def run(self) -> None:
        """Run all that wait."""
        while self.waiting:
            try:
                self.waiting[0]()
            except Exception as error:
                _step_failed(None, error)
            finally:
                self.waiting.popleft()  # behind it: until then the loop is busy


class Loop:
    """One thread, one poller, its tasks and their deadlines.

    Everything here belongs to that thread, but `post`, which any thread may call. The hand-over is a deque: an
    append and a look at `_asleep`. The loop announces its sleep *before* it looks at the deque a last time, so
    an item is either seen there or its poster sees the announcement and wakes the poller.
    """

    def __init__(self, name: str, replace: Callable[[Loop], Loop | None]) -> None:
        self.now = time.monotonic()
        #: When the sockets were asked whose every event has been dealt with; 0 while that is under way.
        self.heard = 0.0
        #: For what the tasks here receive, in this loop's thread.
        self.receiver: Taking = Receiver()
        #: Clients' connections that wait here for their next request.
        self.idle_clients = IdleClients(self)
        #: Clients' connections that were answered for the last time.
        self.lingering = Lingering(self)
        self.dead = False
        #: Tasks that wait for each other in the present turn (`waits.InBatch`).
        self.batched: list[Task] = []
        #: What is done for several exchanges in a row.
        self.batch = Batch(self)
        #: When each task that came here lately has lasted, in that order: most end before, and cost no timer.
        self._young: dict[Task, float] = {}
        self._lasting: set[Task] = set()
        self._looks = False  # whether a timer looks at the young ones
        self._replace = replace
        self._replacement: Loop | None = None
        self._poller: Poller = new_poller()
        self._endpoints: dict[int, Endpoint] = {}
        self._timers = Timers()
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._asleep = False
        self._stopping = False
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)

    @property
    def tasks(self) -> list[Task]:
        """Those that are here. Any thread; from another one it is a glimpse."""
        return [*list(self._young), *list(self._lasting)]

    def start(self) -> Loop:
        """Start the thread; raises what keeps it from starting, with nothing left open."""
        try:
            self.thread.start()
        except BaseException:
            self._poller.close()
            raise
        return self

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have ``function(*arguments)`` run in the loop's thread, in the order of the posts. Any thread."""
        self._inbox.append((function, arguments))
        if self._asleep:
            self._asleep = False
            self._poller.wake()
        elif self.dead:
            self._pass_on()

    def stop(self) -> None:
        """Let the thread end after its present turn. Any thread; tasks still there are broken off."""
        self._stopping = True
        self.post(_nothing)

    def _main(self) -> None:
        _here.loop = self
        try:
            while not self._stopping:
                self._turn()
        except BaseException:
            log.exception("%s broke; its exchanges are broken off", self.thread.name)
        finally:
            self._asleep = False
            self._disown()
            self._replacement = self._replace(self)
            self.dead = True  # not before: from now on what is posted here is passed on at once
            self.idle_clients.let_all_go()
            self._break_off()
            self._do_what_is_left()
            self.lingering.close_all()
            self._pass_on()
            self._poller.close()

    def _turn(self) -> None:
        self._asleep = True
        events = self._poller.poll(0 if self._inbox else self._timers.timeout(time.monotonic()))
        self._asleep = False
        self.now, self.heard = time.monotonic(), 0.0
        endpoints = self._endpoints
        for fd, mask in events:
            endpoint = endpoints.get(fd)
            if endpoint is not None and (owner := endpoint.owner) is not None:
                try:
                    owner.on_event(endpoint, mask)
                except Exception as error:
                    _step_failed(owner, error)
                if len(self.batched) >= BATCH_SIZE:
                    self._run_batched()
        self._run_batched()
        if len(events) < MOST_EVENTS:
            self.heard = self.now
        inbox = self._inbox
        for _ in range(len(inbox)):
            function, arguments = inbox.popleft()
            try:
                function(*arguments)
            except Exception as error:
                _step_failed(getattr(function, "__self__", None), error)
            if len(self.batched) >= BATCH_SIZE:
                self._run_batched()
        self._run_batched()
        self._timers.run(self.now, _step_failed)
        if len(self.batch.waiting) >= BATCH_SIZE:
            self.batch.run()

    def _run_batched(self) -> None:
        while self.batched:
            tasks, self.batched = self.batched, []
            for task in tasks:
                try:
                    task.advance(None, None)
                except Exception as error:
                    _step_failed(task, error)

    def _do_what_is_left(self) -> None:
        """Behind the last turn; each is taken out as it is run, even one that would break this thread once more."""
        while self.batch.waiting:
            try:
                self.batch.run()
            except BaseException:
                log.exception("while %s, which broke, did what was left", self.thread.name)

    def _disown(self) -> None:
        """Idle connections outlive the loop that watched them."""
        for endpoint in self._endpoints.values():
            endpoint.armed, endpoint.loop, endpoint.wanted = -1, None, 0
        self._endpoints.clear()

    def _break_off(self) -> None:
        for task in self.tasks:
            try:
                task.advance(None, RelayFailed(f"{self.thread.name} broke"))
            except BaseException:
                log.exception("while an exchange was broken off")
            task.steps.close()

    def _pass_on(self) -> None:
        """Exchanges that had not begun when the loop died begin in the one that took its place."""
        while True:
            try:
                function, arguments = self._inbox.popleft()
            except IndexError:
                return  # another thread may pass on the same items
            owner = getattr(function, "__self__", None)
            task: object = getattr(owner, "task", owner)  # its own step, or of what is done beside it
            if not isinstance(task, Task) or self._replacement is None or (task.done and function != task.start):
                continue
            if isinstance(owner, Task):
                owner.loop = self._replacement
            self._replacement.post(function, *arguments)

    def enter(self, task: Task) -> None:
        """A task is here from now on; it looks at its deadline once it has lasted."""
        self._young[task] = task.next_look = due = self.now + LASTING
        if not self._looks:
            self._looks = True
            self._timers.add(self, due)

    def leave(self, task: Task) -> None:
        """A task ended, or goes to another loop."""
        if self._young.pop(task, None) is None:
            self._lasting.discard(task)

    def on_timer(self, now: float) -> None:
        """Have those look at their deadlines that last by now (`timers.Timed`)."""
        while self._young:
            task, due = next(iter(self._young.items()))
            if now < due:
                return self._timers.add(self, due)
            del self._young[task]
            self._lasting.add(task)
            try:
                task.on_timer(now)
            except Exception as error:
                _step_failed(task, error)
        self._looks = False

    def look_at(self, task: Task, due: float) -> None:
        """Have the task look at its deadline at `due`."""
        task.next_look = due
        self._timers.add(task, due)

    def call_at(self, entry: Timed, due: float) -> None:
        """Call ``entry.on_timer`` soon after `due`."""
        self._timers.add(entry, due)

    def want(self, endpoint: Endpoint, events: int, owner: Owner) -> None:
        """Tell `owner` when `endpoint` is ready for `events`."""
        endpoint.owner = owner
        endpoint.wanted = events
        if endpoint.reset and not events:
            return
        if endpoint.watched:
            events |= HANGUP
        if endpoint.armed != events:
            self._arm(endpoint, events)

    def watch(self, endpoint: Endpoint, owner: Task) -> None:
        """Tell `owner` when the peer of `endpoint` hangs up."""
        endpoint.owner = owner
        if endpoint.may_half_close:
            return
        endpoint.watched = True
        self._arm(endpoint, endpoint.wanted | HANGUP)

    def _arm(self, endpoint: Endpoint, events: int) -> None:
        known = endpoint.armed >= 0
        self._poller.set(endpoint.fd, events, known)
        endpoint.armed = events
        if not known:
            self._endpoints[endpoint.fd] = endpoint
            endpoint.loop = self

    def disarm(self, endpoint: Endpoint, events: int) -> None:
        """The poller reported `events` that nobody waits for: it must not do so again and again."""
        if events & BROKEN:
            self.forget(endpoint)
        else:
            self._arm(endpoint, endpoint.wanted | (HANGUP if endpoint.watched else 0))

    def forget(self, endpoint: Endpoint) -> None:
        """Stop watching `endpoint`; call before its socket is closed or goes to another loop."""
        endpoint.wanted = 0
        endpoint.watched = False
        if endpoint.armed >= 0:
            endpoint.armed = -1
            endpoint.loop = None
            del self._endpoints[endpoint.fd]
            self._poller.forget(endpoint.fd)


def _step_failed(owner: object, error: Exception) -> None:
    """One step of one task raised; what goes wrong there is that task's affair."""
    log.error("a step of the loop failed", exc_info=error)
    failure = RelayFailed(f"{type(error).__name__}: {error}")
    if isinstance(owner, Task) and not owner.done:
        owner.advance(None, failure)
    else:
        task = getattr(owner, "task", None)
        if isinstance(task, Task):
            task.cancel(failure)  # what looked after it does so no more


def _nothing() -> None:
    """Wakes a loop."""
