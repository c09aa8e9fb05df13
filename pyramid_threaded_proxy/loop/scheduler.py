"""The threads that run exchanges: loops, each with a poller, and the `pool` for what may block.

There is one loop for all that is short and a few, the *movers*, for big bodies. Threads start with the first task.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable

from pyramid_threaded_proxy.exceptions import RelayFailed
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.loop import Loop
from pyramid_threaded_proxy.loop.task import Task
from pyramid_threaded_proxy.loop.thread_pool import ThreadPool
from pyramid_threaded_proxy.loop.waits import Steps

#: Loops that move big bodies.
MOVERS = 2


class Scheduler:
    """The loops and the pool of one application in one process.

    `task` may be called by any thread; `loop` and `next_mover` are for tasks. Nothing starts before the first
    task. After a fork the child begins with none of the parent's threads, and so with loops of its own.
    """

    def __init__(self, threads: int) -> None:
        self._pool_size = threads
        self._lock = threading.Lock()
        self._pid = 0
        self._loops: list[Loop] = []
        self._parents: list[Loop] = []
        self._turn = itertools.count()
        self.pool = ThreadPool(threads, "pproxy-pool")

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
        """Start the threads where they don't run in this process yet; returns the first loop. Any thread."""
        if self._pid != os.getpid():
            self._start_threads()
        return self._loops[0]

    def busy(self) -> bool:
        """Whether a task with a client has not ended, or what is done behind it, the close included. Any thread.

        A task that goes from loop to loop may be missed.
        """
        return any(
            loop.batch.waiting
            or loop.endings
            or loop.lingering.busy
            or any(task.client is not None for task in loop.tasks)
            for loop in self._loops
        )

    def let_clients_go(self) -> None:
        """Give the clients' idle connections back to their servers, soon. Any thread."""
        for loop in self._loops:
            loop.post(loop.idle_clients.let_all_go)

    def _start_threads(self) -> None:
        with self._lock:
            if self._pid != os.getpid():
                # Kept: the parent's exchanges, collected here, would let go of sockets that are not the child's.
                self._parents = self._loops
                self.pool = ThreadPool(self._pool_size, "pproxy-pool")
                self._loops = [self._new_loop(number) for number in range(1 + MOVERS)]
                self._pid = os.getpid()

    def _new_loop(self, number: int) -> Loop:
        loop = Loop("pproxy-loop" if number == 0 else f"pproxy-mover-{number}", self._replace)
        loop.thread.start()
        return loop

    def _replace(self, loop: Loop) -> Loop | None:
        with self._lock:
            if loop not in self._loops or self._pid != os.getpid():
                return None
            number = self._loops.index(loop)
            self._loops[number] = self._new_loop(number)
            if number == 0:
                # It looked after what the movers' exchanges may and may not do any more.
                for mover in self._loops[1:]:
                    for task in mover.tasks:
                        task.cancel(RelayFailed("the loop broke"))
            return self._loops[number]

    def stop(self, timeout: float = 5.0) -> None:
        """End the threads and wait for them, `timeout` seconds at most for each. What is under way is broken off."""
        with self._lock:
            loops, self._loops, self._pid = self._loops, [], 0
        for loop in loops:
            loop.stop()
        for loop in loops:
            loop.thread.join(timeout)
        # After the loops: what they break off may still have something to do in the pool.
        for thread in self.pool.stop():
            thread.join(timeout)
