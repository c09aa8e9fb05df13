"""The pool: it grows as it must, leaves something for others, and stays whole when the system lets no thread start."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyramid_threaded_proxy.loop.thread_pool import ThreadPool
from tests.support.paths import ROOT
from tests.support.scheduling import threads
from tests.support.waiting import wait_until

PATIENCE = 10


class Blocked:
    """Has jobs of some shares hold threads until the test lets them go."""

    def __init__(self, pool: ThreadPool) -> None:
        self.pool = pool
        self.go_on = threading.Event()
        self.begun: list[str] = []
        self.jobs: list[Any] = []

    def hold(self, *shares: str) -> None:
        for share in shares:
            self.jobs.append(self.pool.submit(self._run, share, share))

    def _run(self, share: str) -> None:
        self.begun.append(share)
        assert self.go_on.wait(PATIENCE)

    def wait(self, *shares: str) -> None:
        """Wait until just these have begun."""
        wait_until(lambda: sorted(self.begun) == sorted(shares), f"{shares} to begin, of which {self.begun} have")


@pytest.fixture
def make_pool() -> Iterator[Callable[..., ThreadPool]]:
    """Makes pools, which are stopped when the test ends."""
    made: list[ThreadPool] = []

    def make(size: int, *more: Any) -> ThreadPool:
        made.append(ThreadPool(size, "pproxy-pool", *more))
        return made[-1]

    yield make
    for pool in made:
        for thread in pool.stop():
            thread.join(PATIENCE)
    assert threads() == []


def test_it_grows_only_as_it_must(make_pool: Callable[..., ThreadPool]) -> None:
    """An idle thread is used before one is started, and there are never more than its size."""
    pool, done = make_pool(2), threading.Semaphore(0)
    for _ in range(5):
        pool.submit(lambda _: done.release(), None)
        assert done.acquire(timeout=PATIENCE)
        wait_until(lambda: pool._given == 0, "the thread to be idle")
    assert threads() == ["pproxy-pool-0"]
    gate = threading.Event()
    for _ in range(6):
        pool.submit(lambda _: (gate.wait(PATIENCE), done.release()), None)
    assert len(threads()) == 2
    gate.set()
    for _ in range(6):
        assert done.acquire(timeout=PATIENCE)


def test_a_share_leaves_as_many_as_it_takes(make_pool: Callable[..., ThreadPool]) -> None:
    """The first takes half of the threads, the second half of the rest, and a fourth still gets one at once."""
    said: list[str] = []
    blocked = Blocked(make_pool(8, said.append))
    blocked.hold(*["a"] * 6)
    blocked.wait(*["a"] * 4)
    blocked.hold(*["b"] * 6, *["c"] * 2, *["d"] * 2)
    blocked.wait(*["a"] * 4, *["b"] * 2, "c", "d")
    assert said == ["a"] * 2 + ["b"] * 4 + ["c", "d"]
    blocked.go_on.set()
    wait_until(lambda: len(blocked.begun) == 16, "all of them")


def test_turns_go_round(make_pool: Callable[..., ThreadPool]) -> None:
    """Of two shares that wait, the one with the longer queue does not go first all the time."""
    pool, gate, order = make_pool(1), threading.Event(), []
    pool.submit(lambda _: gate.wait(PATIENCE), None, "x")
    for share in ("a", "a", "a", "b"):
        pool.submit(order.append, share, share)
    gate.set()
    wait_until(lambda: len(order) == 4, "all four")
    assert order == ["a", "b", "a", "a"]


def test_what_is_withdrawn_never_runs_and_is_not_kept(make_pool: Callable[..., ThreadPool]) -> None:
    """One that waits is taken out; one that has begun is not; a withdrawn one's turn goes to the next."""
    pool = make_pool(1)
    blocked, ran = Blocked(pool), threading.Event()
    blocked.hold("a")
    blocked.wait("a")
    waiting = pool.submit(lambda _: pytest.fail("withdrawn"), None, "a")
    behind = pool.submit(lambda _: ran.set(), None, "a")
    assert pool.withdraw(waiting)
    assert not pool.withdraw(waiting)
    assert [list(jobs) for jobs in pool._waiting.values()] == [[behind]]
    assert not pool.withdraw(blocked.jobs[0])
    blocked.go_on.set()
    assert ran.wait(PATIENCE)
    assert pool._waiting == {}


def test_what_raises_costs_no_thread(make_pool: Callable[..., ThreadPool], caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, even where it would end a thread, and the same thread does the next."""
    pool, done = make_pool(1), threading.Event()

    def fail(_: None) -> None:
        raise SystemExit("out of here")

    pool.submit(fail, None)
    pool.submit(lambda _: done.set(), None)
    assert done.wait(PATIENCE)
    assert threads() == ["pproxy-pool-0"]
    assert "SystemExit: out of here" in caplog.text


def test_a_stop_runs_what_waits(make_pool: Callable[..., ThreadPool]) -> None:
    """Whosever share it is: what it would give back must be. What comes later has a thread of its own."""
    pool, done = make_pool(2), []
    blocked = Blocked(pool)
    blocked.hold("a", "a", "a")
    blocked.wait("a")
    stopping = pool.stop()
    blocked.go_on.set()
    for thread in stopping:
        thread.join(PATIENCE)
    assert blocked.begun == ["a"] * 3
    pool.submit(done.append, "late")
    wait_until(lambda: done == ["late"], "the late one")


#: Threads get a stack that the address space has room for, or not, as `limit` says.
NO_THREADS = """
import resource, sys, threading
from contextlib import contextmanager
sys.path.insert(0, {root!r})
threading.stack_size(512 << 20)
@contextmanager
def no_threads():
    pages = int(open("/proc/self/statm").read().split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
"""


def run_without_threads(script: str) -> str:
    """What a process writes that can have itself refused any further thread, by `no_threads`."""
    command = [sys.executable, "-X", "dev", "-c", NO_THREADS.format(root=str(ROOT)) + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_no_thread_can_be_started() -> None:
    """With none there the item is withdrawn; with one, it waits for that; afterwards the pool grows to its size."""
    out = run_without_threads("""
from pyramid_threaded_proxy.exceptions import ThreadsExhausted
from pyramid_threaded_proxy.loop.thread_pool import ThreadPool
pool, ran, done, gate = ThreadPool(2, "pool"), [], threading.Semaphore(0), threading.Event()
def note(what):
    ran.append(what)
    done.release()
with no_threads():
    for _ in range(5):
        try:
            pool.submit(note, "withdrawn")
        except ThreadsExhausted as error:
            said = str(error)
print(said)
pool.submit(note, "first")
assert done.acquire(timeout=10)
pool.submit(lambda _: gate.wait(10), None)
with no_threads():
    pool.submit(note, "second")
    print(len(pool._threads), ran)
    gate.set()
    assert done.acquire(timeout=10)
gate.clear()
for _ in range(2):
    pool.submit(lambda _: (gate.wait(10), done.release()), None)
print(len(pool._threads), ran)
gate.set()
assert done.acquire(timeout=10) and done.acquire(timeout=10)
for thread in pool.stop():
    thread.join(10)
""")
    refused, *counts = out.splitlines()
    assert "pool-0 can't be started: can't start new thread" in refused
    assert counts == ["1 ['first']", "2 ['first', 'second']"]


def test_a_call_gets_its_own_result() -> None:
    """A task whose first call found no thread gets the result of its second one from that, and the first never runs."""
    out = run_without_threads("""
from pyramid_threaded_proxy.loop.scheduler import Scheduler
from pyramid_threaded_proxy.loop.waits import Call
scheduler, refused, again, over, said = Scheduler(2), threading.Event(), threading.Event(), threading.Event(), []
def call(name):
    said.append(name)
    return name
def steps():
    try:
        yield Call(call, "first")
    except Exception as error:
        said.append(type(error).__name__)
    refused.set()
    again.wait(10)
    said.append(("second", (yield Call(call, "second"))))
    said.append(("third", (yield Call(call, "third"))))
    over.set()
task = scheduler.task(steps())
with no_threads():
    task.post(task.start)
    assert refused.wait(10)
again.set()
assert over.wait(10)
print(said)
scheduler.stop()
""")
    assert out.strip() == str(["ThreadsExhausted", "second", ("second", "second"), "third", ("third", "third")])
