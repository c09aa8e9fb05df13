"""Functions in pool threads that ask their task for something on the way."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pyramid_threaded_proxy.exceptions import UpstreamGone
from pyramid_threaded_proxy.loop.dialogue import Dialogue
from pyramid_threaded_proxy.loop.scheduler import Scheduler
from pyramid_threaded_proxy.loop.waits import Call, Returning, Steps, run_here
from tests.support.waiting import PATIENCE, wait_until


@pytest.fixture
def scheduler() -> Any:
    """One with a single thread for the application's code."""
    made = Scheduler(1)
    yield made
    made.stop()


def run(scheduler: Scheduler, steps: Returning[Any]) -> Any:
    """Run steps as a task, and wait for what they return or raise."""
    done = threading.Event()
    outcome: list[Any] = []

    def noting() -> Steps:
        try:
            outcome.append((yield from steps))
        except BaseException as error:
            outcome.append(error)
            if isinstance(error, GeneratorExit):
                raise
        finally:
            done.set()

    task = scheduler.task(noting())
    task.post(task.start)
    assert done.wait(PATIENCE)
    return outcome[0]


def serving(*values: Any) -> Any:
    """Makes steps that bring the next of `values`, in the loop's thread; an exception is raised."""
    left = list(values)

    def serve() -> Returning[Any]:
        assert threading.current_thread().name.startswith("pproxy-loop")
        yield Call(lambda: None)  # it may wait, and for the only thread of the pool at that
        value = left.pop(0)
        if isinstance(value, BaseException):
            raise value
        return value

    return serve


def test_a_function_gets_what_it_asks_for(scheduler: Scheduler) -> None:
    """Its thread waits meanwhile, and others have its place in the pool."""
    threads = []

    def function() -> list[Any]:
        threads.append(threading.current_thread().name)
        return [dialogue.ask() for _ in range(3)]

    dialogue = Dialogue(serving(1, 2, 3), function)
    assert run(scheduler, dialogue.steps()) == [1, 2, 3]
    assert threads[0].startswith("pproxy-pool")
    wait_until(lambda: (scheduler.pool.busy, scheduler.pool._away) == (0, 0), "the pool at rest")


def test_a_function_that_asks_nothing(scheduler: Scheduler) -> None:
    """It is a call like any other: what it returns or raises is its value."""
    assert run(scheduler, Dialogue(serving(), lambda: 7).steps()) == 7
    assert isinstance(run(scheduler, Dialogue(serving(), lambda: 1 / 0).steps()), ZeroDivisionError)


@pytest.mark.parametrize("swallows", [False, True])
def test_what_fails_in_serving(swallows: bool, scheduler: Scheduler) -> None:
    """It is raised in the function, whose thread ends first, and then in the steps whatever came of that."""
    seen: list[str] = []

    def function() -> str:
        try:
            dialogue.ask()
        except UpstreamGone as error:
            seen.append(str(error))
            if not swallows:
                raise
        return "never mind"

    dialogue = Dialogue(serving(UpstreamGone("gone")), function)
    assert isinstance(run(scheduler, dialogue.steps()), UpstreamGone)
    assert seen == ["gone"]


@pytest.mark.parametrize("swallows", [False, True])
def test_a_task_that_is_told_to_end_lets_the_thread_go(swallows: bool, scheduler: Scheduler) -> None:
    """Where what is asked for is there at once too: then nothing is waited for in which the task could hear of it."""
    began, told = threading.Event(), threading.Event()
    seen: list[BaseException] = []

    def function() -> None:
        began.set()
        assert told.wait(PATIENCE)
        try:
            dialogue.ask()
        except UpstreamGone as error:
            seen.append(error)
            if not swallows:
                raise
        task.interruption = UpstreamGone("and once more")
        dialogue.ask()

    def serve() -> Returning[int]:
        yield from ()
        return 7

    dialogue = Dialogue(serve, function)
    outcome: list[BaseException] = []

    def steps() -> Steps:
        try:
            yield from dialogue.steps()
        except UpstreamGone as error:
            outcome.append(error)

    task = scheduler.task(steps())
    task.post(task.start)
    assert began.wait(PATIENCE)
    task.post(task.interrupt, UpstreamGone("told to end"))
    task.post(told.set)
    wait_until(lambda: outcome, "the steps to end")
    assert [str(error) for error in [*seen, *outcome]] == ["told to end", "told to end"]
    wait_until(lambda: (scheduler.pool.busy, scheduler.pool._away) == (0, 0), "the pool at rest")


def test_a_loop_that_stops_lets_the_thread_go() -> None:
    """Who waits for an answer that nobody brings any more is told so."""
    scheduler = Scheduler(1)
    asked, told = threading.Event(), threading.Event()

    def function() -> None:
        asked.set()
        try:
            dialogue.ask()
        finally:
            told.set()

    def never() -> Returning[None]:
        yield Call(told.wait, PATIENCE)

    dialogue = Dialogue(never, function)

    def steps() -> Steps:
        yield from dialogue.steps()

    task = scheduler.task(steps())
    task.post(task.start)
    assert asked.wait(PATIENCE)
    scheduler.stop()
    assert told.is_set()


def test_in_one_thread() -> None:
    """Where a task is driven by the thread that called, function and steps take turns in it."""

    def serve() -> Returning[int]:
        yield Call(lambda: None)
        return 7

    dialogue = Dialogue(serve, lambda: dialogue.ask())
    block = lambda wait: wait.block_with(run_here) if wait is dialogue else wait.block()  # noqa: E731
    assert run_here(dialogue.steps(), block) == 7
