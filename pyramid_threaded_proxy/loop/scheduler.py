"""The threads that run exchanges: loops, each with a poller, and lanes for what may block.

There is one loop for all that is short and a few, the *movers*, for big bodies. What may block has threads that others
can't take: the application's own code, rechecks. Threads start with the first task.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pyramid_threaded_proxy.exceptions import DescriptorsExhausted, RelayFailed, ThreadsExhausted
from pyramid_threaded_proxy.loop import log_writer
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.loop import Loop
from pyramid_threaded_proxy.loop.task import Task
from pyramid_threaded_proxy.loop.thread_pool import ThreadPool
from pyramid_threaded_proxy.loop.waits import Steps

log = logging.getLogger("pyramid_threaded_proxy.scheduler")

#: Loops that move big bodies.
MOVERS = 2
#: Threads that ask for permissions again.
RECHECKERS = 8
#: Seconds between two tries to start a loop in the place of one that broke.
RETRY = 0.1


class Scheduler:
    """The loops and the lanes of one application in one process.

    `pool` has `threads` threads for the application's own code; `on_wait` is told of a route whose code waits for one.

    `task` may be called by any thread; `loop` and `next_mover` are for tasks. Nothing starts before the first
    task. After a fork the child begins with none of the parent's threads, and so with loops of its own.
    """

    def __init__(self, threads: int, on_wait: Callable[[str], None] | None = None) -> None:
        self._pool_size = threads
        self._on_wait = on_wait
        self._lock = threading.Lock()
        self._pid = 0
        self._loops: list[Loop] = []
        self._parents: list[Loop] = []
        self._turn = itertools.count()
        self._new_lanes()

    def _new_lanes(self) -> None:
        #: For hooks, subscribers, filters and iterables.
        self.pool = ThreadPool(self._pool_size, "pproxy-pool", self._on_wait)
        #: For the questions of `recheck`.
        self.recheckers = ThreadPool(RECHECKERS, "pproxy-recheck")

    @property
    def loop(self) -> Loop:
        """The loop for all that is short."""
        return self._loops[0]

    def next_mover(self) -> Loop:
        """A loop for a big body."""
        return self._loops[1 + next(self._turn) % MOVERS]

    def task(self, steps: Steps, client: Endpoint | None = None, on_lasting: Callable[[], None] | None = None) -> Task:
        """Make a task of a generator; it begins with ``task.post(task.start)``.

        `client` is the socket whose hang-up ends it with `ClientGone`, from the moment it lasts; `on_lasting` is
        called once in the loop's thread then.
        """
        if self._pid != os.getpid():
            self._start_threads()
        return Task(self, self._loops[0], steps, client, on_lasting)

    def start(self) -> Loop:
        """Start the threads where they don't run in this process yet; returns the first loop. Any thread.

        Raises `DescriptorsExhausted` or `ThreadsExhausted`, and then nothing has started.
        """
        if self._pid != os.getpid():
            self._start_threads()
        return self._loops[0]

    def busy(self) -> bool:
        """Whether a task with a client has not ended, or what is done behind it, the close included. Any thread.

        A task that goes from loop to loop may be missed.
        """
        return any(
            loop.batch.waiting or loop.lingering.busy or any(task.client is not None for task in loop.tasks)
            for loop in self._loops
        )

    def let_clients_go(self) -> None:
        """Give the clients' idle connections back to their servers, soon. Any thread."""
        for loop in self._loops:
            loop.post(loop.idle_clients.let_all_go)

    def _start_threads(self) -> None:
        with self._lock:
            if self._pid != os.getpid():
                loops = self._new_loops()
                # Kept: the parent's exchanges, collected here, would let go of sockets that are not the child's.
                self._parents, self._loops = self._loops, loops
                self._new_lanes()
                self._pid = os.getpid()

    def _new_loops(self) -> list[Loop]:
        """All of them and the log's writer, or nothing."""
        loops: list[Loop] = []
        try:
            for number in range(1 + MOVERS):
                loops.append(self._new_loop(number))
            _started(log_writer.join)
        except BaseException:
            for loop in loops:
                loop.stop()
            raise
        return loops

    def _new_loop(self, number: int) -> Loop:
        name = "pproxy-loop" if number == 0 else f"pproxy-mover-{number}"
        return _started(lambda: Loop(name, self._replace).start())

    def _replace(self, loop: Loop) -> Loop | None:
        """What takes the place of a loop that broke; None where the scheduler has stopped. Waits if it has to."""
        told = False
        while True:
            try:
                return self._replace_now(loop)
            except (DescriptorsExhausted, ThreadsExhausted) as error:
                if not told:
                    told = True
                    log.error("%s broke, and no other one can be started yet: %s", loop.thread.name, error)
            time.sleep(RETRY)

    def _replace_now(self, loop: Loop) -> Loop | None:
        with self._lock:
            if loop not in self._loops or self._pid != os.getpid():
                return None
            number = self._loops.index(loop)
            if number == 0:
                # It looked after what the movers' exchanges may and may not do any more.
                for mover in self._loops[1:]:
                    for task in mover.tasks:
                        task.cancel(RelayFailed("the loop broke"))
            self._loops[number] = self._new_loop(number)
            return self._loops[number]

    def stop(self, timeout: float = 5.0) -> None:
        """End the threads and wait for them, `timeout` seconds at most for each. What is under way is broken off."""
        with self._lock:
            runs = self._pid == os.getpid()
            loops, self._loops, self._pid = self._loops, [], 0
        for loop in loops:
            loop.stop()
        for loop in loops:
            loop.thread.join(timeout)
        # After the loops: what they break off may still have something to do there.
        for lane in (self.pool, self.recheckers):
            for thread in lane.stop():
                thread.join(timeout)
        if runs:
            log_writer.leave(timeout)


_T = TypeVar("_T")


def _started(start: Callable[[], _T]) -> _T:
    """What `start` returns; what the system refuses is said in this package's words."""
    try:
        return start()
    except OSError as error:
        raise DescriptorsExhausted(f"a loop can't be started: {error.strerror}") from error
    except (RuntimeError, MemoryError) as error:
        raise ThreadsExhausted(f"a thread can't be started: {error}") from error
