"""The scheduler: which threads there are, and what survives when a loop breaks."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading

import pytest

from pyramid_threaded_proxy.exceptions import ReadTimedOut
from pyramid_threaded_proxy.loop.loop import Loop
from pyramid_threaded_proxy.loop.poller import READ
from pyramid_threaded_proxy.loop.scheduler import MOVERS, Scheduler
from pyramid_threaded_proxy.loop.waits import Call, Ready, Steps
from tests.support.origin import MakeOrigin, echo, in_turn
from tests.support.pairs import Pair
from tests.support.paths import ROOT
from tests.support.scheduling import Trace, die, saying, start, threads
from tests.support.site import MakeSite, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire


def test_nothing_starts_before_the_first_task(scheduler: Scheduler) -> None:
    """A scheduler is made without threads; the first task brings the loops, the first call a pool thread."""
    before = threads()
    assert Scheduler(2) is not None
    assert threads() == before == []
    trace = Trace()
    start(scheduler, saying(trace, "a"))
    trace.wait(1)
    assert len(threads()) == 2 + MOVERS  # and the log's writer


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
    loop.post(die)
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
    loop.post(die)
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
    start(scheduler, saying(trace, "first"))
    trace.wait(1)
    loop = scheduler.loop
    loop.post(go_on.wait, 10)
    loop.post(die)
    start(scheduler, saying(trace, "second"))
    go_on.set()
    assert trace.wait(2) == ["first", "second"]
    assert scheduler.loop is not loop
    # And one that is posted when the loop is over already.
    loop.thread.join(10)
    task = start(scheduler, saying(trace, "third"))
    trace.wait(3)
    task.loop = loop
    task.steps = saying(trace, "fourth")
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
