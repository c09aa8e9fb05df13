"""A call whose function asks its task for something on the way, such as the next bytes of a socket.

The task and the thread that runs the function take turns and never run at the same time, so that what they share needs
no lock: a socket is touched by its loop alone, and the application's code by the thread alone.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from pyramid_threaded_proxy.exceptions import ExchangeClosed
from pyramid_threaded_proxy.loop.endpoint import Waiting
from pyramid_threaded_proxy.loop.waits import Call, Returning

#: Runs steps to their end in the calling thread.
Drive = Callable[[Returning[Any]], Any]

#: What a dialogue brings in place of the function's value, if that asks for something.
_ASKED = object()


class Dialogue(Call):
    """Runs ``function(*arguments)`` in the pool; `serve` makes the steps that bring what it asks for.

    A task goes through `steps`; nobody yields a dialogue twice. While the function waits for what it has asked for, its
    thread is away from the pool, where others have its place.
    """

    __slots__ = ("_answers", "_asked", "_drive", "_reply", "_serve", "_task")

    def __init__(self, serve: Callable[[], Returning[Any]], function: Callable[..., Any], *arguments: Any) -> None:
        super().__init__(function, *arguments)
        self._serve = serve
        self._asked = False  # whether the function waits for a reply; the task may be told to end before it gives one
        self._reply: tuple[Any, BaseException | None] = (None, None)
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._task: Waiting | None = None
        self._drive: Drive | None = None

    def steps(self) -> Returning[Any]:
        """Steps: what the function returns; what it raises is raised here, and so is what fails in serving it."""
        try:
            found = yield self
            while found is _ASKED:
                try:
                    self._reply = (yield from self._serve()), None
                    found = yield self
                except Exception as error:
                    if self._asked:
                        yield from self._end(error)
                    raise
            return found
        except GeneratorExit:
            self._answers.put((None, ExchangeClosed("the exchange has ended")))  # nobody hears the function any more
            raise

    def _end(self, error: Exception) -> Returning[None]:
        """Steps: what it has asked for will not come; its thread is done with it first."""
        found: object = _ASKED
        while found is _ASKED:
            self._reply = None, error
            try:
                found = yield self
            except Exception:  # what had gone wrong before is what counts
                if not self._asked:
                    return

    def ask(self) -> Any:
        """What `serve` brings; raises what fails there. Called by the function, in its thread."""
        if self._task is None:
            assert self._drive is not None
            return self._drive(self._serve())
        self._asked = True
        self._task.post(self._task.resume, self, _ASKED, None)
        with self._task.scheduler.pool.away(self._task.share):
            value, error = self._answers.get()
        if error is not None:
            raise error
        return value

    # As a wait

    def begin(self, task: Waiting) -> None:
        if self._asked:
            self._asked = False
            self._answers.put(self._reply)
        else:
            super().begin(task)

    def _run(self, task: Waiting) -> None:
        self._task = task
        super()._run(task)

    def block(self) -> Any:
        raise AssertionError("whoever blocks for a dialogue says how its function is served")

    def block_with(self, drive: Drive) -> Any:
        """Run the function in this very thread; what it asks for is brought by `drive` meanwhile."""
        self._drive = drive
        return self.function(*self.arguments)
