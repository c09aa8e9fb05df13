"""A small pool of threads for what may block: looking names up, connecting, TLS handshakes, hooks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any


class ThreadPool:
    """Threads for what may block, started one by one as they are needed, up to `size`.

    `submit` may be called by any thread. The lock guards two counters and is never held while a function runs.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._queue: queue.SimpleQueue[tuple[Callable[..., None], Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._stopped = False
        self._threads: list[threading.Thread] = []

    @property
    def busy(self) -> int:
        """Threads that run something at this moment. Any thread."""
        return len(self._threads) - self._idle

    def submit(self, function: Callable[[Any], None], argument: Any) -> None:
        """Run ``function(argument)`` in one of the threads. `function` must not raise."""
        thread = None
        with self._lock:
            if self._stopped:
                # Nobody waits in the queue any more, and what is still to be given back must be.
                thread = threading.Thread(target=function, args=(argument,), name=f"{self._name}-late", daemon=True)
            else:
                self._queue.put((function, argument))
                if self._idle < self._queue.qsize() and len(self._threads) < self._size:
                    name = f"{self._name}-{len(self._threads)}"
                    thread = threading.Thread(target=self._main, name=name, daemon=True)
                    self._threads.append(thread)
        if thread is not None:
            thread.start()

    def _main(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            item = self._queue.get()
            with self._lock:
                self._idle -= 1
            if item is None:
                return
            item[0](item[1])
            del item  # an idle thread keeps nothing of the last exchange alive

    def stop(self) -> list[threading.Thread]:
        """Let the threads end when the queue is empty; returns them."""
        with self._lock:
            self._stopped = True
            threads = list(self._threads)
        for _ in threads:
            self._queue.put(None)
        return threads
