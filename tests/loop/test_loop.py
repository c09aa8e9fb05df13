"""A loop: its turns, what is done together in one, and what survives when it breaks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from pyramid_threaded_proxy.exceptions import ExchangeClosed, ReadTimedOut, RelayFailed
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.loop import BATCH_SIZE, run_in_batch
from pyramid_threaded_proxy.loop.poller import READ
from pyramid_threaded_proxy.loop.scheduler import Scheduler
from pyramid_threaded_proxy.loop.waits import IN_BATCH, Call, Ready, Steps
from tests.support.leaks import open_descriptors
from tests.support.scheduling import Trace, die, saying, start
from tests.support.waiting import wait_until


def test_a_short_task_leaves_nothing_behind(scheduler: Scheduler) -> None:
    """What has ended is not remembered until its deadline would have been: one timer looks at all that is young."""
    trace = Trace()

    def short() -> Steps:
        trace("short")
        return
        yield

    def see() -> Steps:
        loop = scheduler.loop
        trace((len(loop.tasks), [entry for bucket in loop._timers._buckets.values() for entry in bucket]))
        return
        yield

    for _ in range(3):
        start(scheduler, short())
    start(scheduler, see())
    assert trace.wait(4)[3] == (1, [scheduler.loop])


def together(scheduler: Scheduler, *functions: Callable[[], Any]) -> None:
    """Have the functions run in one turn of the loop."""
    loop = scheduler.start()
    loop.post(lambda: [loop.post(function) for function in functions])


def abreast(trace: Trace, name: int) -> Steps:
    trace(("a", name))
    yield IN_BATCH
    trace(("b", name))
    yield IN_BATCH
    trace(("c", name))


def test_tasks_of_a_turn_keep_abreast(scheduler: Scheduler) -> None:
    """Each step is taken for all of them before the next one is."""
    trace = Trace()
    together(scheduler, *(scheduler.task(abreast(trace, number)).start for number in range(3)))
    assert trace.wait(9) == [(step, number) for step in "abc" for number in range(3)]


def test_no_more_than_some_keep_abreast(scheduler: Scheduler, stack: ExitStack) -> None:
    """Each may hold bytes: the first ones go on before another begins. Woken by posts, and by events."""
    trace, count = Trace(), BATCH_SIZE + 2
    together(scheduler, *(scheduler.task(abreast(trace, number)).start for number in range(count)))
    expected = [(step, number) for step in "abc" for number in range(BATCH_SIZE)]
    expected += [(step, number) for step in "abc" for number in range(BATCH_SIZE, count)]
    assert trace.wait(3 * count) == expected

    trace = Trace()
    pairs = [list(map(stack.enter_context, socket.socketpair())) for _ in range(count)]

    def steps(number: int) -> Steps:
        endpoint = Endpoint(pairs[number][0])
        yield Ready(endpoint, READ, 60, ReadTimedOut)
        scheduler.loop.forget(endpoint)
        yield from abreast(trace, number)

    tasks = [start(scheduler, steps(number)) for number in range(count)]
    wait_until(lambda: all(task.wait is not None for task in tasks))
    # In the loop's own time, so that one poll finds them all.
    scheduler.loop.post(lambda: [far.send(b"x") for _, far in pairs])
    said = trace.wait(3 * count)
    waiting = most = 0
    for step, _ in said:
        waiting += {"a": 1, "b": 0, "c": -1}[step]
        most = max(most, waiting)
    assert most == BATCH_SIZE
    assert sorted(said) == sorted(expected)


def test_a_task_that_keeps_abreast_is_not_ended_there(scheduler: Scheduler) -> None:
    """There may be a head already that was not sent: what ends the task is heard of at its next wait."""
    trace = Trace()

    def steps() -> Steps:
        yield from abreast(trace, 0)
        try:
            yield Call(trace, "never")
        except ExchangeClosed:
            trace("closed")

    task = scheduler.task(steps())
    together(scheduler, task.start, lambda: task.interrupt(ExchangeClosed("enough")))
    assert trace.wait(4) == [("a", 0), ("b", 0), ("c", 0), "closed"]


def test_one_that_fails_abreast_fails_alone(scheduler: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    """The others go on."""
    trace = Trace()

    def failing() -> Steps:
        yield IN_BATCH
        raise LookupError("a fault of one")

    tasks = [scheduler.task(failing()), scheduler.task(abreast(trace, 0))]
    together(scheduler, *(task.start for task in tasks))
    assert trace.wait(3) == [(step, 0) for step in "abc"]
    assert "a fault of one" in caplog.text


def test_a_loop_breaks_while_tasks_keep_abreast(scheduler: Scheduler) -> None:
    """They are told, as those are that wait for a socket."""
    trace = Trace()

    def steps() -> Steps:
        try:
            yield IN_BATCH
        except RelayFailed:
            trace("told")

    together(scheduler, scheduler.task(steps()).start, die)
    assert trace.wait(1) == ["told"]


def test_posts_keep_their_order(scheduler: Scheduler) -> None:
    """What one thread posts runs in that order, though many threads post and the loop falls asleep in between."""
    trace = Trace()
    start(scheduler, saying(trace, None))
    trace.wait(1)

    def post(name: int) -> None:
        for number in range(2000):
            scheduler.loop.post(trace.said.append, (name, number))

    posters = [threading.Thread(target=post, args=(name,)) for name in range(4)]
    for thread in posters:
        thread.start()
    for thread in posters:
        thread.join()
    trace.wait(8001)
    for name in range(4):
        assert [said[1] for said in trace.said[1:] if said[0] == name] == list(range(2000))


# What survives


def test_a_timer_that_raises_ends_its_own_task_alone(
    scheduler: Scheduler, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop is the same, the others that begin to last in the same turn do so, and later deadlines are kept."""
    trace = Trace()

    def steps(name: str) -> Steps:
        near, _far = map(stack.enter_context, socket.socketpair())
        near.setblocking(False)
        try:
            yield Ready(Endpoint(near), READ, 0.3, ReadTimedOut)
        except Exception as error:
            trace((name, type(error).__name__))

    def fail() -> None:
        raise LookupError("no such thing")

    loop = scheduler.start()
    tasks = [scheduler.task(steps("broken"), None, fail), scheduler.task(steps("well"), None, lambda: trace("lasts"))]
    loop.post(lambda: [task.start() for task in tasks])
    assert trace.wait(3) == [("broken", "RelayFailed"), "lasts", ("well", "ReadTimedOut")]
    assert scheduler.loop is loop
    assert "LookupError: no such thing" in caplog.text


def test_what_breaks_a_loop_again_and_again(scheduler: Scheduler) -> None:
    """Whatever waits for others behind it is done all the same, and its descriptors are closed."""
    trace = Trace()
    loop = scheduler.start()
    before = len(open_descriptors())

    def turn() -> None:
        for _ in range(2):
            assert run_in_batch(lambda: die())
        assert run_in_batch(lambda: trace("other"))

    loop.post(turn)
    loop.thread.join(10)
    assert not loop.thread.is_alive()
    assert trace.said == ["other"]
    assert loop is not scheduler.loop
    assert len(open_descriptors()) == before


def in_a_row(scheduler: Scheduler, trace: Trace, count: int) -> Callable[[], None]:
    """What has `count` functions wait for each other; it says "turn" in the next turn."""

    def turn() -> None:
        for number in range(count):
            assert run_in_batch(lambda number=number: trace((number, scheduler.busy())))  # type: ignore[misc]
        scheduler.loop.post(trace, "turn")

    return turn


def test_some_are_enough_for_a_row(scheduler: Scheduler) -> None:
    """As many as that are run at the end of their turn, in their order; until the last has ended the loop is busy."""
    trace = Trace()
    scheduler.start().post(in_a_row(scheduler, trace, BATCH_SIZE))
    row = [(number, True) for number in range(BATCH_SIZE)]
    assert trace.wait(BATCH_SIZE + 1) == [*row, "turn"]
    assert set(trace.threads) == {"pproxy-loop"}
    wait_until(lambda: not scheduler.busy(), "the row's end")


def test_fewer_wait_a_moment_for_others(scheduler: Scheduler) -> None:
    """They run in a later turn, though nothing else comes; the process would wait for them if it stopped."""
    trace = Trace()
    loop = scheduler.start()
    for name in ("first", "second"):
        loop.post(in_a_row(scheduler, trace, 2))
        expected = ["turn", (0, True), (1, True)]
        assert trace.wait(3) == expected, name
        trace.said.clear()
    wait_until(lambda: not scheduler.busy(), "the row's end")


def test_one_of_a_row_fails_alone(scheduler: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the others run."""
    trace = Trace()

    def fail() -> None:
        raise LookupError("no such thing")

    def turn() -> None:
        assert run_in_batch(fail)
        assert run_in_batch(lambda: trace("other"))

    scheduler.start().post(turn)
    assert trace.wait(1) == ["other"]
    assert "LookupError: no such thing" in caplog.text
    assert not run_in_batch(fail), "this thread is no loop's"
