"""Loops, movers and the pool: what waits where, who is told what, and what survives when one of them breaks."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from pyramid_threaded_proxy.exceptions import ClientGone, ExchangeClosed, ReadTimedOut, RelayFailed
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.loop import BATCH_SIZE, Loop, run_in_batch
from pyramid_threaded_proxy.loop.poller import READ, WRITE
from pyramid_threaded_proxy.loop.scheduler import MOVERS, Scheduler
from pyramid_threaded_proxy.loop.task import Task
from pyramid_threaded_proxy.loop.waits import IN_BATCH, Call, Hop, Ready, Steps
from tests.support.leaks import open_descriptors, own_threads
from tests.support.origin import MakeOrigin, echo, in_turn
from tests.support.pairs import Pair
from tests.support.paths import ROOT
from tests.support.site import MakeSite, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    """A scheduler with a pool of two, stopped when the test ends."""
    made = Scheduler(2)
    yield made
    made.stop()


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


def threads() -> list[str]:
    """The names of our threads."""
    return own_threads("pproxy")


# Tasks


def test_nothing_starts_before_the_first_task(scheduler: Scheduler) -> None:
    """A scheduler is made without threads; the first task brings the loops, the first call a pool thread."""
    before = threads()
    assert Scheduler(2) is not None
    assert threads() == before == []
    trace = Trace()
    start(scheduler, _saying(trace, "a"))
    trace.wait(1)
    assert len(threads()) == 2 + MOVERS  # and the log's writer


def _saying(trace: Trace, what: Any) -> Steps:
    trace(what)
    return
    yield


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

    together(scheduler, scheduler.task(steps()).start, _die)
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
    start(scheduler, _saying(trace, "loops"))
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


def test_posts_keep_their_order(scheduler: Scheduler) -> None:
    """What one thread posts runs in that order, though many threads post and the loop falls asleep in between."""
    trace = Trace()
    start(scheduler, _saying(trace, None))
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


def test_stop_ends_the_threads_and_what_is_under_way(pair: Pair) -> None:
    """After `stop` no thread is left, and generators were closed."""
    scheduler, trace = Scheduler(2), Trace()

    def steps() -> Steps:
        try:
            yield Call(trace, "called")
            yield Ready(pair[0], READ, 10, ReadTimedOut)
        finally:
            trace("closed")

    start(scheduler, steps())
    trace.wait(1)
    scheduler.stop()
    assert trace.said == ["called", "closed"]
    assert threads() == []


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


def _die() -> None:
    """What no task is to blame for: an exception of a task's own ends that task alone."""
    raise SystemExit("a fault of the loop")


def test_what_breaks_a_loop_again_and_again(scheduler: Scheduler) -> None:
    """Whatever waits for others behind it is done all the same, and its descriptors are closed."""
    trace = Trace()
    loop = scheduler.start()
    before = len(open_descriptors())

    def turn() -> None:
        for _ in range(2):
            assert run_in_batch(lambda: _die())
        assert run_in_batch(lambda: trace("other"))

    loop.post(turn)
    loop.thread.join(10)
    assert not loop.thread.is_alive()
    assert trace.said == ["other"]
    assert loop is not scheduler.loop
    assert len(open_descriptors()) == before


def test_what_comes_while_a_loop_is_replaced_begins_in_the_next(
    origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exchange that is handed to a loop in its last moments is not lost."""
    where = site(route("r", origin(echo).url))
    assert where.get("/r/").status == 200
    scheduler = where.engine.scheduler
    loop = scheduler.loop
    replace, replacing, go_on = loop._replace, threading.Event(), threading.Event()

    def slowly(dying: Loop) -> Loop | None:
        replacing.set()
        assert go_on.wait(10)
        return replace(dying)

    monkeypatch.setattr(loop, "_replace", slowly)
    loop.post(_die)
    assert replacing.wait(10)
    clients = [where.client() for _ in range(5)]
    for client in clients:
        client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: where.engine.admission.in_flight == 5, "their hand-over")
    wait_until(lambda: len(loop._inbox) >= 5, "their arrival")
    go_on.set()
    for client in clients:
        assert client.head()[0] == "HTTP/1.1 200 OK"
        client.close()


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


@pytest.mark.parametrize("number", [0, 1], ids=["loop", "mover"])
def test_a_loop_that_breaks_is_replaced(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Its exchanges are broken off, it is logged, and the next exchange starts in the one that took its place."""
    size = 4 << 20

    def held(wire: OriginWire) -> None:
        wire.request()
        if number:
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size - 1))
        wire.wait_closed()

    where = site(route("r", origin(in_turn(held, echo)).url))
    scheduler = where.engine.scheduler
    client = where.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    if number:
        client.head()
        client.exactly(size - 1)
    wait_until(lambda: any(loop.tasks for loop in scheduler._loops[number :: number + 1]), "the exchange to be there")
    wait_until(lambda: where.parked(READ), "it to wait")
    (loop,) = [loop for loop in scheduler._loops if loop.tasks]
    loop.post(_die)
    if number:
        with pytest.raises(ConnectionResetError):
            client.receive()
    else:
        assert client.head()[0] == "HTTP/1.1 500 Internal Server Error"
    client.close()
    loop.thread.join(10)
    assert loop not in scheduler._loops
    assert [where.get("/r/", method="POST", body=bytes(100_000)).status for _ in range(4)] == [200] * 4
    broke = [entry for entry in caplog.records if "broke; its exchanges" in entry.getMessage()]
    assert [entry.levelno for entry in broke] == [logging.ERROR]


def test_an_exchange_that_had_not_begun_survives_its_loop(scheduler: Scheduler) -> None:
    """A task that was posted to a loop that was about to break starts in the next one."""
    trace, go_on = Trace(), threading.Event()
    start(scheduler, _saying(trace, "first"))
    trace.wait(1)
    loop = scheduler.loop
    loop.post(go_on.wait, 10)
    loop.post(_die)
    start(scheduler, _saying(trace, "second"))
    go_on.set()
    assert trace.wait(2) == ["first", "second"]
    assert scheduler.loop is not loop
    # And one that is posted when the loop is over already.
    loop.thread.join(10)
    task = start(scheduler, _saying(trace, "third"))
    trace.wait(3)
    task.loop = loop
    task.steps = _saying(trace, "fourth")
    loop.post(task.start)
    assert trace.wait(4)[3] == "fourth"


_FORK = """
import os, sys, threading
from http.client import HTTPConnection
from tests.support.origin import Origin, echo
from tests.support.site import Site, route
from tests.support.waiting import wait_until
import waitress

with Origin(echo) as upstream, Site(route("r", upstream.url)) as site:
    assert site.get("/r/parent").status == 200
    wait_until(lambda: site.idle() == 1)
    child = os.fork()
    if child == 0:
        server = waitress.create_server(site.application, listen="127.0.0.1:0")
        threading.Thread(target=server.run, daemon=True).start()
        connection = HTTPConnection("127.0.0.1", server.effective_port, timeout=10)
        connection.request("POST", "/r/child", bytes(200_000))
        answer = connection.getresponse()
        body = answer.read()
        names = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("pproxy"))
        whole = answer.status == 200 and body.startswith(b"POST /child ") and body.endswith(bytes(200_000))
        print(whole, names, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert site.get("/r/again").body.startswith(b"GET /again ")
    print(upstream.accepted)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_after_use_starts_anew() -> None:
    """A child has loops and connections of its own; the parent's kept connection is still the parent's."""
    done = subprocess.run(
        [sys.executable, "-c", _FORK], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    child, parent = done.stdout.splitlines()
    assert child.startswith("True ['pproxy-log', 'pproxy-loop', 'pproxy-mover-1', 'pproxy-mover-2'")
    assert parent == "2"
