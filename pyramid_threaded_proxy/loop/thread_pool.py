"""Threads for what may block: a pool of them is a lane, which others can't take.

In one pool nobody takes all: each *share* (a route) gets a thread only while more are free than it has. So a route
alone gets half of them, and whoever comes next still finds some.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyramid_threaded_proxy.exceptions import ThreadsExhausted

log = logging.getLogger("pyramid_threaded_proxy.thread_pool")

#: Threads of a pool that may be away at a time: what they wait for is bounded, and so is what they cost.
MOST_AWAY = 256


class Job:
    """A function that waits for a thread. Who claims it first, a thread or whoever withdraws it, decides its fate."""

    __slots__ = ("_unclaimed", "argument", "function", "share")

    def __init__(self, function: Callable[[Any], None], argument: Any, share: str | None) -> None:
        self.function = function
        self.argument = argument
        self.share = share
        self._unclaimed = [None]

    def claim(self) -> bool:
        """Whether it is the caller's from now on. Any thread; the first one wins."""
        try:
            self._unclaimed.pop()
        except IndexError:
            return False
        return True


class ThreadPool:
    """Threads for what may block, started one by one as they are needed, up to `size`.

    Any thread may call. The lock guards the counts and is never held while a function runs. `on_wait` is called with a
    share that has to wait for a thread, without the lock.
    """

    def __init__(self, size: int, name: str, on_wait: Callable[[str], None] | None = None) -> None:
        self._size = size
        self._name = name
        self._on_wait = on_wait
        self._lock = threading.Lock()
        self._ready: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # never more than there are threads for
        self._given = 0  # threads that run something, or will at once
        self._held: dict[str | None, int] = {}  # of these, by share
        self._away = 0  # threads that wait for a network in what they run: others run in their place
        self._waiting: dict[str | None, deque[Job]] = {}  # by share; the one whose turn is next comes first
        self._stopped = False
        self._threads: list[threading.Thread] = []

    @property
    def busy(self) -> int:
        """Threads that run something at this moment. Any thread."""
        return self._given

    def submit(self, function: Callable[[Any], None], argument: Any, share: str | None = None) -> Job:
        """Run ``function(argument)`` in one of the threads; without a `share` in any that is free.

        Raises `ThreadsExhausted` if there is no thread and none can be started; then nothing waits here.
        """
        job = Job(function, argument, share)
        with self._lock:
            if self._stopped:
                # Nobody waits in the queue any more, and what is still to be given back must be.
                self._start(lambda: _run(job), f"{self._name}-late")
                return job
            self._waiting.setdefault(share, deque()).append(job)
            try:
                self._give(may_start=True)
            except ThreadsExhausted:
                self._take_out(job)
                raise
            waits = share is not None and share in self._waiting
        if waits and self._on_wait is not None:
            self._on_wait(share or "")
        return job

    def withdraw(self, job: Job) -> bool:
        """Whether it had not begun; then it never will, and nothing of it is kept."""
        if not job.claim():
            return False
        with self._lock:
            self._take_out(job)
        return True

    def _take_out(self, job: Job) -> None:
        waiting = self._waiting.get(job.share)
        if waiting is not None and job in waiting:
            waiting.remove(job)
            if not waiting:
                del self._waiting[job.share]

    def _give(self, may_start: bool) -> None:
        """Give the free threads to those whose turn it is. Under the lock."""
        while self._given < self._size and (share := self._next()) is not _NOBODY:
            if self._given >= len(self._threads) - self._away and not (may_start and self._grow()):
                return
            waiting = self._waiting.pop(share)
            self._ready.put(waiting.popleft())
            self._given += 1
            self._held[share] = self._held.get(share, 0) + 1
            if waiting:
                self._waiting[share] = waiting  # behind the others

    def _next(self) -> Any:
        free = self._size - self._given
        for share in self._waiting:
            if share is None or free > self._held.get(share, 0):
                return share
        return _NOBODY

    def _grow(self) -> bool:
        """Start one more thread; False where that fails and those that there are have to do."""
        try:
            self._threads.append(self._start(self._main, f"{self._name}-{len(self._threads)}"))
        except ThreadsExhausted:
            if not self._threads:
                raise
            return False
        return True

    def _start(self, main: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=main, name=name, daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            raise ThreadsExhausted(f"{name} can't be started: {error}") from None
        return thread

    @contextmanager
    def away(self, share: str | None) -> Iterator[None]:
        """Around what a function that runs for `share` waits for, and that is no work: meanwhile others have its place.

        When it goes on it is one more than `size` until somebody ends. Where `MOST_AWAY` wait so, it keeps its place.
        """
        with self._lock:
            if gone := self._away < MOST_AWAY and not self._stopped:
                self._away += 1
                self._given -= 1
                self._let_go(share)
                try:
                    self._give(may_start=True)
                except ThreadsExhausted:
                    pass  # whoever waits goes on waiting: this thread comes back
        try:
            yield
        finally:
            if gone:
                with self._lock:
                    self._away -= 1
                    self._given += 1
                    self._held[share] = self._held.get(share, 0) + 1

    def _main(self) -> None:
        while (job := self._ready.get()) is not None:
            _run(job)
            with self._lock:
                self._given -= 1
                self._let_go(job.share)
                del job  # an idle thread keeps nothing of the last exchange alive
                self._give(may_start=False)
                if self._is_one_too_many():
                    self._threads.remove(threading.current_thread())
                    return

    def _is_one_too_many(self) -> bool:
        """Whether there are threads that were started in the place of others, which are back. Under the lock."""
        left = len(self._threads) - 1
        return left >= self._size + self._away and left >= self._given + self._away and not self._stopped

    def _let_go(self, share: str | None) -> None:
        left = self._held[share] - 1
        if left:
            self._held[share] = left
        else:
            del self._held[share]

    def stop(self) -> list[threading.Thread]:
        """Let the threads end when nothing waits any more; returns them."""
        with self._lock:
            self._stopped = True
            for waiting in self._waiting.values():  # whoever's turn it is: what is to be given back must be
                for job in waiting:
                    self._given += 1
                    self._held[job.share] = self._held.get(job.share, 0) + 1
                    self._ready.put(job)
            self._waiting.clear()
            threads = list(self._threads)
        for _ in threads:
            self._ready.put(None)
        return threads


#: No share is next.
_NOBODY = object()


def _run(job: Job) -> None:
    """Whatever it raises, the thread goes on."""
    if not job.claim():
        return
    try:
        job.function(job.argument)
    except BaseException:
        log.exception("what ran in a thread of a pool raised")
