"""Several processes act as one site by way of a real Redis: logouts, limits, what an operator sees, and faults."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyramid_threaded_proxy.shared.commands import LEASE
from tests.site.test_several_processes import FORKING, Load, inherit, listening_socket
from tests.support.origin import MakeOrigin, Origin, echo
from tests.support.processes import write_site
from tests.support.redis_server import RedisServer
from tests.support.site import route
from tests.support.site_process import SiteProcess
from tests.support.status import STATUS
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import OriginWire, Wire, get, over_http

#: Seconds that Redis may cost, whatever it does.
MOST_COST = 0.05
#: And one of many requests on a busy machine: to wait as long as its connection does would take half a second.
AT_MOST = 0.3

Start = Callable[..., list[SiteProcess]]


def slow_or_quick(wire: OriginWire) -> None:
    """An upstream whose answers to ``/slow`` do not end."""
    while (request := wire.request()) is not None:
        if request.target == "/slow":
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            return wire.wait_closed()
        wire.answer(b"quick")
    return None


@pytest.fixture
def start(stack: ExitStack, tmp_path: Path, origin: MakeOrigin, redis_server: RedisServer) -> Start:
    """Starts processes of one site: ``/r/slow`` is answered without an end, ``/r/quick`` at once."""

    def make(count: int, **keys: str) -> list[SiteProcess]:
        settings = {
            **STATUS,
            **route("r", origin(slow_or_quick).url, **keys),
            "proxy.shared": redis_server.url,
            "test.users": "tests.support.status.Root",
        }
        folders = [tmp_path / f"{number}" for number in range(count)]
        for folder in folders:
            folder.mkdir()
        with ThreadPoolExecutor(count) as together:
            return [stack.enter_context(one) for one in together.map(lambda at: SiteProcess(at, settings), folders)]

    return make


def ask(process: SiteProcess, path: str, user: str) -> int:
    """The status of an answer."""
    return over_http(process.port, path, headers={"X-User": user}).status


def hold(stack: ExitStack, process: SiteProcess, user: str) -> Wire:
    """An exchange of the user's that does not end."""
    client = Wire(socket.create_connection(("127.0.0.1", process.port), timeout=PATIENCE))
    stack.callback(client.close)
    client.send(get("/r/slow", f"X-User: {user}"))
    client.until(b"hello")
    return client


def refused(process: SiteProcess, user: str = "ann") -> bool:
    """Whether the user may have no exchange more."""
    status = ask(process, "/r/quick", user)
    assert status in (200, 429)
    return status == 429


def refused_by_all(processes: list[SiteProcess]) -> None:
    """Wait until ann gets nothing more anywhere: on a busy machine an answer of Redis's may come too late to count."""
    wait_until(lambda: all(refused(process) for process in processes), "a limit that holds")


# Logout


def test_a_logout_ends_exchanges_in_every_process(stack: ExitStack, start: Start) -> None:
    """Ann's end wherever they are, and Bob's go on; what Ann begins after a new login goes on as well."""
    processes = start(4)
    hers = [hold(stack, process, "ann") for process in processes]
    his = hold(stack, processes[3], "bob")
    assert over_http(processes[0].port, "/logout", headers={"X-User": "ann"}).body == b"1"
    for client in hers:
        client.wait_closed()
    again = hold(stack, processes[1], "ann")
    assert over_http(processes[2].port, "/logout", headers={"X-User": "nobody"}).body == b"0"
    assert not his.is_closed()
    assert not again.is_closed()


def test_a_process_without_an_exchange_tells_the_others(stack: ExitStack, start: Start) -> None:
    """The logout may be the first thing that a process does."""
    one, other = start(2)
    client = hold(stack, one, "ann")
    assert over_http(other.port, "/logout", headers={"X-User": "ann"}).body == b"0"
    client.wait_closed()


def test_a_logout_while_redis_is_away(stack: ExitStack, start: Start, redis_server: RedisServer) -> None:
    """It is said as soon as Redis is back, though that has lost all it knew."""
    one, other = start(2)
    client = hold(stack, one, "ann")
    hold(stack, other, "bob")
    redis_server.kill()
    wait_until(lambda: "can't be used" in other.log)
    assert over_http(other.port, "/logout", headers={"X-User": "ann"}).body == b"0"
    redis_server.start()
    client.wait_closed()


# Limits


def test_a_users_limit_holds_over_all(stack: ExitStack, start: Start) -> None:
    """Two in four processes, whichever; when one ends, there is room for one in another process."""
    processes = start(4, max_exchanges_per_user="2")
    clients = [hold(stack, process, "ann") for process in processes[:2]]
    refused_by_all(processes)
    assert not refused(processes[0], "bob")
    clients[0].close()
    wait_until(lambda: not refused(processes[3]), "a place")


def test_a_killed_process_gives_its_places_back(stack: ExitStack, start: Start) -> None:
    """Within its lease, by nobody's doing."""
    one, other = start(2, max_exchanges_per_user="2")
    hold(stack, one, "ann")
    hold(stack, one, "ann")
    refused_by_all([other])
    one.process.kill()
    killed = time.monotonic()
    wait_until(lambda: not refused(other), "a place")
    assert time.monotonic() - killed < LEASE + 1


def test_forked_children_are_processes_of_their_own(
    stack: ExitStack, tmp_path: Path, redis_server: RedisServer
) -> None:
    """An application that was loaded once joins in each child that serves it, and in none that does not."""
    listening = listening_socket(stack)
    settings = {"proxy.shared": redis_server.url}
    ini = write_site(tmp_path, stack.enter_context(Origin(echo)).authority, settings)
    script = tmp_path / "forking.py"
    script.write_text(FORKING, encoding="utf-8")
    parent = inherit(stack, ini, script, listening)
    children = {int(pid) for pid in parent.wait_for(r"child (\d+)", 2)}
    with Load(listening.getsockname()[1], clients=4) as load:
        load.wait_for(children, 20)
    names = redis_server.ask("ZRANGE", "pproxy:processes", 0, -1)
    assert {int(name.split(":")[1]) for name in names} == children
    for child in children:
        os.kill(child, signal.SIGTERM)
    assert parent.ended() == 0


# What an operator sees


def test_the_page_shows_all_processes(stack: ExitStack, start: Start) -> None:
    """Whoever answers knows of all: page, JSON and metrics; and an exchange anywhere can be closed."""
    processes = start(3)
    clients = [hold(stack, process, "ann") for process in processes]
    pids = {process.process.pid for process in processes}

    def listed() -> list[dict[str, object]]:
        found = json.loads(processes[0].get("/status/status.json", "watcher"))
        lines: list[dict[str, object]] = found["processes"]
        return lines if sum(one["active"] == 1 for one in lines[1:]) == 3 else []  # type: ignore[misc]

    lines = wait_until(listed, "reports of all")
    names = {line["process"] for line in lines[1:]}
    assert (lines[0]["process"], lines[0]["active"]) == ("", 3)
    assert {int(str(name).split(":")[1]) for name in names} == pids

    def hers() -> bool:
        found = json.loads(processes[0].get("/status/status.json?user=ann", "watcher"))
        return {one["process"] for one in found["exchanges"]} == names and found["in_flight"] == 3

    def page() -> bool:
        text = processes[1].get("/status", "watcher").decode()
        return all(str(name) in text for name in names)

    def metrics() -> bool:
        text = processes[2].get("/status/metrics", "watcher").decode()
        active = next(one for one in text_string_to_metric_families(text) if one.name == "proxy_exchanges_active")
        of_route = {
            sample.labels["process"]: sample.value for sample in active.samples if sample.labels["route"] == "r"
        }
        return of_route == dict.fromkeys(names, 1)

    # On a busy machine an answer of Redis's may come too late to count: what another process says is left out then.
    for seen, what in ((hers, "the exchanges of all"), (page, "the page"), (metrics, "the metrics")):
        wait_until(seen, what)
    assert not any(client.is_closed() for client in clients)


# Faults under load


class Asking:
    """Clients of their own users, one for each process, that ask without a pause; how long each answer took."""

    def __init__(self, stack: ExitStack, processes: list[SiteProcess]) -> None:
        self.took: list[float] = []
        self._stop = threading.Event()
        self._faults: list[BaseException] = []
        threads = [
            threading.Thread(target=self._run, args=(process, f"user{number}"))
            for number, process in enumerate(processes)
        ]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(self._stop.set)

    def _run(self, process: SiteProcess, user: str) -> None:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", process.port, timeout=PATIENCE)) as connection:
                while not self._stop.is_set():
                    began = time.monotonic()
                    connection.request("GET", "/r/quick", headers={"X-User": user})
                    response = connection.getresponse()
                    response.read()
                    self.took.append(time.monotonic() - began)
                    assert response.status == 200
        except BaseException as error:
            self._faults.append(error)

    def more(self, count: int) -> None:
        """Wait for so many answers more."""
        wanted = len(self.took) + count
        wait_until(lambda: self._faults or len(self.took) >= wanted, "answers")
        assert not self._faults


class Faults:
    """What may befall a redis-server, how it ends, and what the processes have logged of it."""

    def __init__(self, server: RedisServer, processes: list[SiteProcess]) -> None:
        self.all = {
            "killed": (server.kill, server.start),
            "held": (server.hold, server.go_on),
            "full": (server.fill, server.make_room),
        }
        self._processes = processes
        self._count = 0

    def begin(self, name: str) -> None:
        """Wait until each process has said so once."""
        self._count += 1
        self.all[name][0]()
        self._wait_said("can't be used")

    def end(self, name: str) -> None:
        """Wait until each process has said so once."""
        self.all[name][1]()
        self._wait_said("can be used again")

    def _wait_said(self, text: str) -> None:
        wait_until(lambda: all(one.log.count(text) == self._count for one in self._processes), f"{text} in the logs")


def test_faults_under_load(stack: ExitStack, start: Start, redis_server: RedisServer) -> None:
    """Four processes under load while Redis is killed and comes back empty, stands still, and is full: every answer
    comes soon, each process keeps the limit for its own, and afterwards the limit holds over all again."""
    processes = start(4, max_exchanges_per_user="2")
    asking, faults = Asking(stack, processes), Faults(redis_server, processes)
    asking.more(50)
    for name in faults.all:
        first = [hold(stack, processes[0], "ann"), hold(stack, processes[1], "ann")]
        refused_by_all(processes)
        before = len(asking.took)
        faults.begin(name)
        second = hold(stack, processes[0], "ann")
        assert all(refused(processes[0]) for _ in range(10))
        asking.more(100)
        assert statistics.median(asking.took[before:]) < MOST_COST, name
        faults.end(name)
        wait_until(lambda: redis_server.places().get("r ann") == 3, "counts that agree")
        refused_by_all(processes)
        asking.more(50)
        for client in (*first, second):
            client.close()
        wait_until(lambda: "r ann" not in redis_server.places(), "places that are given back")
    assert max(asking.took) < AT_MOST
    assert not any("a fault of" in process.log for process in processes)
