"""A task: what it waits for, holding no thread, and who may end it."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack

import pytest

from pyramid_threaded_proxy.exceptions import ClientGone, ExchangeClosed, ReadTimedOut
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import READ, WRITE
from pyramid_threaded_proxy.loop.scheduler import Scheduler
from pyramid_threaded_proxy.loop.waits import Call, Hop, Ready, Steps
from tests.support.pairs import Pair
from tests.support.scheduling import Trace, saying, start
from tests.support.waiting import wait_until


def test_a_task_waits_for_a_socket(scheduler: Scheduler, pair: Pair) -> None:
    """`Ready` gives the endpoint and its events; all of a task runs in the loop's thread."""
    endpoint, far = pair
    trace = Trace()

    def steps() -> Steps:
        trace("started")
        trace((yield Ready(endpoint, READ, 10, ReadTimedOut)))

    start(scheduler, steps())
    trace.wait(1)
    far.send(b"x")
    assert trace.wait(2)[1] == (endpoint, READ)
    assert trace.threads == ["pproxy-loop"] * 2


def test_a_task_waits_for_two_sockets(scheduler: Scheduler, stack: ExitStack) -> None:
    """Of two endpoints the one that is ready first ends the wait."""
    pairs = [tuple(map(stack.enter_context, socket.socketpair())) for _ in range(2)]
    first, second = (Endpoint(near) for near, _ in pairs)
    trace = Trace()

    def steps() -> Steps:
        trace("started")
        trace((yield Ready(first, READ, 10, ReadTimedOut, second, READ)))

    start(scheduler, steps())
    trace.wait(1)
    pairs[1][1].send(b"x")
    assert trace.wait(2)[1] == (second, READ)


def test_a_wait_has_an_end(scheduler: Scheduler, pair: Pair) -> None:
    """After the time-out its exception is raised in the task, which may go on."""
    trace = Trace()

    def steps() -> Steps:
        try:
            yield Ready(pair[0], READ, 0.05, ReadTimedOut)
        except ReadTimedOut as error:
            trace(str(error))
        yield Ready(pair[0], WRITE, 5, ReadTimedOut)
        trace("went on")

    start(scheduler, steps())
    assert trace.wait(2) == ["nothing moved for 0.05 s", "went on"]


def test_each_task_that_lasts_is_told_so_once(scheduler: Scheduler, stack: ExitStack) -> None:
    """In whatever order they came, and whoever ended meanwhile."""
    trace = Trace()
    pairs = [tuple(map(stack.enter_context, socket.socketpair())) for _ in range(4)]

    def steps(number: int) -> Steps:
        yield Ready(Endpoint(pairs[number][0]), READ, 10, ReadTimedOut)
        trace(f"end {number}")

    tasks = []
    for number in range(4):
        tasks.append(start(scheduler, steps(number), None, lambda number=number: number and trace(number)))
        if number == 1:
            pairs[0][1].send(b"x")
            trace.wait(1)
            wait_until(lambda: tasks[1].lasting, "the second to last")
    assert [word for word in trace.wait(4) if word != "end 0"] == [1, 2, 3]
    assert set(scheduler.loop.tasks) == set(tasks[1:])
    for _, far in pairs:
        far.send(b"x")
    trace.wait(7)
    wait_until(lambda: not scheduler.loop.tasks, "all to be forgotten")


def test_a_call_runs_in_the_pool(scheduler: Scheduler) -> None:
    """`Call` gives what its function returns and raises what it raises; the task itself stays in the loop."""
    trace = Trace()

    def steps() -> Steps:
        trace((yield Call(lambda: threading.current_thread().name)))
        try:
            yield Call(int, "x")
        except ValueError as error:
            trace(type(error))

    start(scheduler, steps())
    assert trace.wait(2) == ["pproxy-pool-0", ValueError]
    assert trace.threads == ["pproxy-loop"] * 2


def test_an_interruption_waits_for_a_call(scheduler: Scheduler) -> None:
    """What a call has made gets its owner; then, at the next wait, the task hears of the interruption."""
    trace, inside, go_on = Trace(), threading.Event(), threading.Event()

    def make() -> str:
        inside.set()
        assert go_on.wait(10)
        return "made"

    def steps() -> Steps:
        trace((yield Call(make)))
        try:
            yield Call(trace, "never")
        except ExchangeClosed:
            trace("closed")

    task = start(scheduler, steps())
    assert inside.wait(10)
    task.cancel(ExchangeClosed("enough"))
    scheduler.loop.post(go_on.set)  # behind the cancellation
    assert trace.wait(2) == ["made", "closed"]


def test_an_interruption_that_comes_too_late(scheduler: Scheduler, pair: Pair) -> None:
    """Once the client was let go of, what still tells of the exchange's end is not cut by what ended before it."""
    client, _ = pair
    trace, began, go_on = Trace(), threading.Event(), threading.Event()

    def hook() -> None:
        began.set()
        go_on.wait()

    def steps() -> Steps:
        yield Call(hook)
        client.released = True
        trace((yield Call(lambda: "told")))

    task = scheduler.task(steps(), client)
    task.post(task.start)
    began.wait()
    task.cancel(ClientGone("while the hook ran"))
    cancelled = threading.Event()
    task.post(cancelled.set)
    cancelled.wait()
    go_on.set()
    assert trace.wait(1) == ["told"]


def test_a_task_hops(scheduler: Scheduler, pair: Pair) -> None:
    """A hop goes on in a mover, another one back home; the sockets go along, and the movers take turns."""
    endpoint, far = pair
    trace = Trace()

    def steps() -> Steps:
        for away in (True, False) * 2:
            yield Hop(not away, endpoint)
            far.send(b"x")
            yield Ready(endpoint, READ, 10, ReadTimedOut)
            endpoint.sock.recv(1)
            trace(away)

    start(scheduler, steps())
    trace.wait(4)
    assert trace.threads == ["pproxy-mover-1", "pproxy-loop", "pproxy-mover-2", "pproxy-loop"]


def test_a_cancellation_follows_a_hop(scheduler: Scheduler, pair: Pair) -> None:
    """A task that is cancelled while it is on its way hears of it where it arrives."""
    trace = Trace()

    def steps() -> Steps:
        task.cancel(ExchangeClosed("enough"))  # posted to this loop; the task hops before it is read
        yield Hop(False, pair[0])
        try:
            yield Ready(pair[0], READ, 10, ReadTimedOut)
        except ExchangeClosed:
            trace("closed")

    ready = threading.Event()
    start(scheduler, saying(trace, "loops"))
    trace.wait(1)
    scheduler.loop.post(ready.wait, 10)
    task = start(scheduler, steps())
    ready.set()
    assert trace.wait(2)[1] == "closed"
    assert trace.threads[1].startswith("pproxy-mover")


def test_a_client_that_hangs_up_ends_a_task_that_lasts(scheduler: Scheduler, pair: Pair, stack: ExitStack) -> None:
    """`on_lasting` is called once, in the loop; from then on the client's end raises `ClientGone`."""
    client, far = pair
    other = Endpoint(stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
    trace = Trace()

    def steps() -> Steps:
        try:
            yield Ready(other, READ, 10, ReadTimedOut)
        except ClientGone:
            trace("gone")

    start(scheduler, steps(), client, lambda: trace("lasts"))
    assert trace.wait(1) == ["lasts"]
    far.close()
    assert trace.wait(2) == ["lasts", "gone"]
    assert trace.threads == ["pproxy-loop"] * 2
    assert client.loop is None


def test_an_exception_ends_its_task_alone(scheduler: Scheduler, pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """What a task does not catch is logged; its neighbour and the loop go on."""
    trace = Trace()

    def neighbour() -> Steps:
        yield Ready(pair[0], READ, 10, ReadTimedOut)
        trace("alive")

    def failing() -> Steps:
        raise RuntimeError("its own fault")
        yield

    start(scheduler, neighbour())
    loop = scheduler.loop
    start(scheduler, failing())
    wait_until(lambda: caplog.records, "the log's line")
    pair[1].send(b"x")
    assert trace.wait(1) == ["alive"]
    assert scheduler.loop is loop
    assert "its own fault" in caplog.text
