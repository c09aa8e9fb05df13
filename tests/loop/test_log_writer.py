"""The log's writer: handlers and filters that raise, take long or stand still cost no loop, exchange or slot."""

from __future__ import annotations

import http.client
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.loop import log_writer
from tests.support.leaks import own_threads
from tests.support.origin import MakeOrigin, answering, echo
from tests.support.paths import ROOT
from tests.support.processes import Process, pserve, write_site
from tests.support.processes import ask as processes_ask
from tests.support.site import MakeSite, Site, route
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import Wire

ours = logging.getLogger("pyramid_threaded_proxy.scheduler")


@pytest.fixture
def writing() -> Iterator[None]:
    """The writer runs while the test does."""
    log_writer.join()
    yield
    log_writer.leave(PATIENCE)
    assert own_threads("pproxy-log") == []


@pytest.fixture
def add_handler() -> Iterator[Callable[..., None]]:
    """Gives loggers of ours, at INFO, handlers of the test's; all is as before afterwards."""
    touched: list[tuple[logging.Logger, logging.Handler, int, bool]] = []

    def add(handler: logging.Handler, name: str = "pyramid_threaded_proxy", propagate: bool = False) -> None:
        logger = logging.getLogger(name)
        touched.append((logger, handler, logger.level, logger.propagate))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = propagate

    yield add
    for logger, handler, level, propagate in reversed(touched):
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class Raising(logging.Handler):
    """A handler, and a filter, that raise for every record."""

    def __init__(self, error: type[BaseException] = LookupError) -> None:
        super().__init__()
        self.error = error
        self.asked = 0

    def handle(self, record: logging.LogRecord) -> bool:
        self.asked += 1
        raise self.error("no such place")

    filter = handle


class Noting(logging.Handler):
    """Notes what came, and in which thread."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.threads: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        self.threads.add(threading.current_thread().name)


def test_order_and_threads(writing: None, add_handler: Callable[..., None]) -> None:
    """What several threads say is written by one, each thread's lines in their order; a record keeps its own thread."""
    noting = Noting()
    add_handler(noting)
    names: set[str | None] = set()
    noting.addFilter(lambda record: names.add(record.threadName) or True)

    def say(name: str) -> None:
        for number in range(500):
            ours.info("%s %d", name, number)

    threads = [threading.Thread(target=say, args=(name,), name=f"says-{name}") for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log_writer.flush(PATIENCE)
    assert noting.threads == {"pproxy-log"}
    assert names == {"says-a", "says-b", "says-c"}
    for name in "abc":
        assert [line for line in noting.said if line[0] == name] == [f"{name} {number}" for number in range(500)]


def test_without_a_scheduler_it_is_written_at_once(add_handler: Callable[..., None]) -> None:
    """Before the first exchange, and behind the last scheduler, nobody is needed; another one begins anew."""
    noting = Noting()
    add_handler(noting)
    for number in range(2):
        ours.info("before %d", number)
        assert noting.said[-1] == f"before {number}"
        log_writer.join()
        ours.info("in between %d", number)
        log_writer.leave(PATIENCE)
        assert noting.said[-1] == f"in between {number}"
    assert noting.threads == {threading.current_thread().name, "pproxy-log"}


@pytest.mark.parametrize("where", ["handler", "filter"])
@pytest.mark.parametrize("error", [LookupError, SystemExit])
def test_what_raises_is_told_of_once(
    writing: None, add_handler: Callable[..., None], where: str, error: type[BaseException]
) -> None:
    """The others of the log get their lines, the writer goes on, and it is told once, not for each line."""
    raising, noting = Raising(error), Noting()
    access = logging.getLogger("pyramid_threaded_proxy.access")
    add_handler(noting)
    if where == "handler":
        add_handler(raising, access.name, propagate=True)
    else:
        access.addFilter(raising)
    for number in range(100):
        access.warning("lost %d", number)
        ours.info("line %d", number)
    log_writer.flush(PATIENCE)
    access.removeFilter(raising)
    assert raising.asked == 100
    assert [line for line in noting.said if line.startswith("line")] == [f"line {number}" for number in range(100)]
    assert [line for line in noting.said if "raised" in line] == ["a handler or filter of the log raised (1 times)"]


def test_one_that_raises_for_what_tells_of_it(writing: None, add_handler: Callable[..., None]) -> None:
    """There is nobody left to tell; what comes after it is gone is written."""
    raising, noting = Raising(), Noting()
    add_handler(raising)
    ours.info("lost")
    log_writer.flush(PATIENCE)
    add_handler(noting)
    logging.getLogger("pyramid_threaded_proxy").removeHandler(raising)
    ours.info("found")
    log_writer.flush(PATIENCE)
    assert noting.said == ["found"]


def ask(connection: http.client.HTTPConnection, path: str) -> int:
    """The status of an answer."""
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response.status


#: An upstream whose every answer breaks a rule: for each there is a line besides the access log's.
refused = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx")


def failing(exchange: Exchange) -> None:
    """A hook whose traceback is logged."""
    raise LookupError("the hook")


def raising_site(origin: MakeOrigin, site: MakeSite) -> Site:
    """Routes that are well, whose answers are refused, and whose hook fails."""
    made = route("well", origin(echo).url) | route("refused", origin(refused).url, health__fails="0")
    return site(made | route("hook", origin(echo).url, hooks__headers=f"{__name__}.failing"))


def test_a_handler_that_raises_costs_nothing(
    origin: MakeOrigin, site: MakeSite, add_handler: Callable[..., None]
) -> None:
    """Whatever is logged in whichever thread: the loop is the same as before, each answer came, no slot is held."""
    add_handler(Raising())
    where = raising_site(origin, site)
    with closing(http.client.HTTPConnection("127.0.0.1", where.port, timeout=PATIENCE)) as connection:
        assert ask(connection, "/well/") == 200
        loops = where.engine.scheduler._loops[:]
        for _ in range(20):
            assert [ask(connection, f"/{name}/") for name in ("well", "refused", "hook")] == [200, 502, 500]
    wait_until(lambda: not where.engine.admission.in_flight, "an end of all")
    assert where.engine.scheduler._loops == loops
    assert all(loop.thread.is_alive() for loop in loops)


def test_a_pipe_that_nobody_reads(
    origin: MakeOrigin, site: MakeSite, add_handler: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exchanges go on while it is full, some lines wait and the rest is dropped; read again, it has all but those."""
    monkeypatch.setattr(log_writer, "MOST_WAITING", 300)
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w", buffering=1)
    handler = logging.StreamHandler(stream)
    add_handler(handler)
    where = raising_site(origin, site)
    count = 600
    with closing(http.client.HTTPConnection("127.0.0.1", where.port, timeout=PATIENCE)) as connection:
        for number in range(count):  # each line has more than 250 bytes, and a pipe has room for 65536
            assert ask(connection, f"/well/{number:0200}") == 200
        assert [ask(connection, f"/{name}/") for name in ("refused", "hook")] == [502, 500]
        wait_until(lambda: not where.engine.admission.in_flight and not where.engine.scheduler.busy(), "an end of all")
        assert not log_writer.busy() or wait_until(lambda: not log_writer.busy(), "it to be given up")
        lines: list[str] = []

        def read_all() -> None:
            with os.fdopen(reading) as pipe:
                lines.extend(pipe)

        read = threading.Thread(target=read_all)
        read.start()
        wait_until(lambda: any("were dropped" in line for line in lines), "what was dropped")
        assert ask(connection, "/well/last") == 200
        wait_until(lambda: any("/well/last" in line for line in lines), "the last line")
    logging.getLogger("pyramid_threaded_proxy").removeHandler(handler)
    stream.close()
    read.join(PATIENCE)
    numbers = [int(found[1]) for line in lines if (found := re.search(r"/well/(\d{200}) ", line))]
    assert numbers == list(range(len(numbers)))
    dropped = sum(int(line.split()[0]) for line in lines if "were dropped" in line)
    assert len(numbers) + dropped >= count
    assert dropped > 100


def test_a_process_stops_although_its_log_stands_still(origin: MakeOrigin, tmp_path: Path) -> None:
    """`pserve` whose stderr nobody reads: exchanges and own pages go on, and SIGTERM ends it as ever."""
    command = [sys.executable, "-m", "pyramid.scripts.pserve", str(write_site(tmp_path, origin(echo).authority))]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr as log:
        port = next(int(found[1]) for line in log if (found := re.search(r"Serving on http://127.0.0.1:(\d+)", line)))
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
            for number in range(500):  # of more than 250 bytes each; a pipe has room for 65536
                assert ask(connection, f"/r/{number:0200}") == 200
            assert ask(connection, "/own") == 200
            process.terminate()
            assert process.wait(PATIENCE) == -signal.SIGTERM


def test_what_waits_is_written_at_a_stop(origin: MakeOrigin, tmp_path: Path) -> None:
    """SIGTERM right behind an answer: its line is in the log."""
    ini = write_site(tmp_path, origin(echo).authority)
    with pserve(ini) as process:
        client = first_exchange_on(process)
        for number in range(20):
            client.send(f"GET /r/{number} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            head, fields = client.head()
            assert head == "HTTP/1.1 200 OK"
            client.exactly(int(fields["content-length"]))
        process.tell(signal.SIGTERM)
        assert process.ended() == -signal.SIGTERM
        asked = re.findall(r'"GET /r/(\d+) HTTP', process.text)
        assert asked == [str(number) for number in range(20)]


def first_exchange_on(process: Process) -> Wire:
    """A connection to a process that takes signals, because it has relayed something."""
    (port,) = process.ports()
    client = process.connect(port)
    client.send(b"GET /r/first HTTP/1.1\r\nHost: a\r\n\r\n")
    client.exactly(int(client.head()[1]["content-length"]))
    wait_until(lambda: b"stopping" in processes_ask(client, "/taken"), "taking the signals")
    return client


def test_many_tracebacks_keep_nothing_alive(
    writing: None, add_handler: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With some lines waiting, a traceback becomes text when it is handed over."""
    monkeypatch.setattr(log_writer, "FEW", 3)
    gate, seen = threading.Event(), []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert gate.wait(PATIENCE)
            seen.append((record.exc_info is None, self.format(record)))

    add_handler(Noting())
    for _ in range(10):
        try:
            raise LookupError("no such thing")
        except LookupError:
            ours.exception("it failed")
    gate.set()
    log_writer.flush(PATIENCE)
    assert all("LookupError: no such thing" in text for _, text in seen)
    assert [as_text for as_text, _ in seen].count(True) == 6
