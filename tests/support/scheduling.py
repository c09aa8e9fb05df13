"""Tasks for tests, and what they say."""

from __future__ import annotations

import threading
from typing import Any

from pyramid_threaded_proxy.loop.scheduler import Scheduler
from pyramid_threaded_proxy.loop.task import Task
from pyramid_threaded_proxy.loop.waits import Steps
from tests.support.leaks import own_threads
from tests.support.waiting import wait_until


class Trace:
    """What tasks say, in order, and in which threads."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.threads: list[str] = []

    def __call__(self, what: Any) -> None:
        self.threads.append(threading.current_thread().name)
        self.said.append(what)

    def wait(self, count: int) -> list[Any]:
        wait_until(lambda: len(self.said) >= count, f"{count} words, of which came {self.said}")
        return self.said


def start(scheduler: Scheduler, steps: Steps, *more: Any) -> Task:
    """Make a task and have it begin."""
    task = scheduler.task(steps, *more)
    task.post(task.start)
    return task


def saying(trace: Trace, what: Any) -> Steps:
    """Steps that say one thing and end."""
    trace(what)
    return
    yield


def die() -> None:
    """What no task is to blame for: an exception of a task's own ends that task alone."""
    raise SystemExit("a fault of the loop")


def threads() -> list[str]:
    """The names of the package's threads that this test has started."""
    return own_threads("pproxy")
