"""Several processes: a reloader and its worker, two on one socket, and children that are forked."""

from __future__ import annotations

import http.client
import itertools
import os
import re
import signal
import socket
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.origin import Gate, Origin, echo
from tests.support.paths import ROOT
from tests.support.processes import Process, ask, first_exchange, pserve, wait_refused, write_site
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import get, read_answer

OPERATING = ROOT / "docs" / "operating.md"
#: Loads the application, and forks two processes that serve it. The parent ends when they have.
FORKING = r"""
import os, socket, sys
from pyramid.paster import get_app, setup_logging
from waitress import serve

setup_logging(sys.argv[1])
application = get_app(sys.argv[1])
listening = socket.socket(fileno=3)
for number in range(2):
    child = os.fork()
    if child == 0:
        os.write(1, f"child {os.getpid()}\n".encode())
        serve(application, sockets=[listening])
        os._exit(0)
listening.close()
for _ in range(2):
    child, status = os.wait()
    os.write(1, f"ended {child} {os.waitstatus_to_exitcode(status)}\n".encode())
"""


def listening_socket(stack: ExitStack) -> socket.socket:
    """A socket that processes inherit; this one never accepts."""
    return stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))


def inherit(stack: ExitStack, ini: Path, script: Path, listening: socket.socket) -> Process:
    """Start a script of which descriptor 3 is the listening socket."""
    start = "import os, runpy, sys; os.dup2(int(sys.argv.pop(1)), 3); sys.argv.pop(0); runpy.run_path(sys.argv[0])"
    fd = listening.fileno()
    return stack.enter_context(Process(ini.parent, "-c", start, str(fd), str(script), str(ini), pass_fds=(fd,)))


# The reloader


def test_a_reload_waits(stack: ExitStack, tmp_path: Path, gate: Gate) -> None:
    """When a file changes, the old worker answers what it has, and the new one serves."""
    origin = stack.enter_context(Origin(gate))
    ini = write_site(tmp_path, origin.authority)
    process = stack.enter_context(pserve(ini, "--reload", "--reload-interval", "3"))
    port = process.ports()[0]
    first_exchange(process, port, gate)
    client = process.connect(port)
    client.send(get("/r/x"))
    gate.wait_asked()
    process.wait_for("Starting monitor")
    process.tell(signal.SIGHUP)
    wait_refused(port)
    gate.opened.set()
    first, fields, body = read_answer(client)
    assert (first, fields["connection"], body) == ("HTTP/1.1 200 OK", "close", b"/x")
    port = process.ports(2)[1]
    assert ask(first_exchange(process, port, gate), "/own") == b"own"
    process.tell_all(signal.SIGINT)
    assert process.ended() == 0


@pytest.mark.parametrize("relayed", [False, True], ids=["never-relayed", "relayed"])
def test_ctrl_c_ends_reloader_and_worker(stack: ExitStack, tmp_path: Path, gate: Gate, relayed: bool) -> None:
    """Ctrl-C reaches both, and the exit code is the same with an exchange behind it and without one."""
    origin = stack.enter_context(Origin(gate))
    # By default hupper kills its worker after a second, of which its own thread may need one.
    process = stack.enter_context(pserve(write_site(tmp_path, origin.authority), "--reload", "--reload-interval", "5"))
    port = process.ports()[0]
    if relayed:
        first_exchange(process, port, gate)
    process.tell_all(signal.SIGINT)
    assert process.ended() == 0


def test_a_worker_ends_with_its_reloader(stack: ExitStack, tmp_path: Path, gate: Gate) -> None:
    """If the reloader is killed its worker notices, answers what it has, and ends."""
    origin = stack.enter_context(Origin(gate))
    process = stack.enter_context(pserve(write_site(tmp_path, origin.authority), "--reload"))
    port = process.ports()[0]
    first_exchange(process, port, gate)
    client = process.connect(port)
    client.send(get("/r/x"))
    gate.wait_asked()
    process.tell(signal.SIGKILL)
    wait_refused(port)
    gate.opened.set()
    assert read_answer(client)[2] == b"/x"
    process.all_ended()


# Two on one socket


class Load:
    """Clients that ask without a pause until they are stopped; each checks that its answers are whole and its own.

    A request is sent again only as RFC 9112 9.3.1 allows: GET, on a connection that was used before, and only if that
    closed before a byte of the answer. A POST never is, so each has a connection of its own.
    """

    def __init__(self, port: int, clients: int) -> None:
        self._port = port
        self.lost: list[BaseException] = []
        self.answers: Counter[int] = Counter()  # by process
        self.retried = 0
        self._stop = threading.Event()
        self._number = itertools.count()
        targets = (self._get, self._post)
        self._threads = [threading.Thread(target=self._run, args=(targets[one % 2],)) for one in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, pids: set[int], more: int) -> None:
        """Wait until each of the processes has answered so many more requests."""
        wanted = {pid: self.answers[pid] + more for pid in pids}
        wait_until(lambda: self.lost or all(self.answers[pid] >= count for pid, count in wanted.items()), "answers")
        assert not self.lost

    def _run(self, ask: Any) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            while not self._stop.is_set() and not self.lost:
                ask(connection, f"{next(self._number)}")
        except BaseException as error:
            self.lost.append(error)
        finally:
            connection.close()

    def _get(self, connection: http.client.HTTPConnection, token: str) -> None:
        used = connection.sock is not None
        try:
            self._ask(connection, "GET", token, b"")
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            if not used:
                raise
            connection.close()
            self.retried += 1
            self._ask(connection, "GET", token, b"")

    def _post(self, connection: http.client.HTTPConnection, token: str) -> None:
        connection.close()
        self._ask(connection, "POST", token, b"a body")

    def _ask(self, connection: http.client.HTTPConnection, method: str, token: str, body: bytes) -> None:
        connection.request(method, f"/r/{token}", body)
        response = connection.getresponse()
        received = response.read()
        assert response.status == 200, received
        assert received.startswith(f"{method} /{token} HTTP/1.1\r\n".encode())
        assert received.endswith(body)
        self.answers[int(response.headers["X-Pid"])] += 1


def test_two_processes_on_one_socket(stack: ExitStack, tmp_path: Path) -> None:
    """Under load one of two processes is told to stop, and not one exchange is lost. The script is the manual's."""
    listening = listening_socket(stack)
    ini = write_site(tmp_path, stack.enter_context(Origin(echo)).authority)
    script = tmp_path / "serve.py"
    found = re.search(r"^```python\n(.*?)^```$", OPERATING.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    script.write_text(found[1], encoding="utf-8")
    first, second = (inherit(stack, ini, script, listening) for _ in range(2))
    with Load(listening.getsockname()[1], clients=8) as load:
        load.wait_for({first.pid, second.pid}, 100)
        first.tell(signal.SIGTERM)
        assert first.ended() == -15
        load.wait_for({second.pid}, 100)
    assert not load.lost
    second.tell(signal.SIGTERM)
    assert second.ended() == -15
    assert "Traceback" not in first.text + second.text


def test_fork_after_configuration(stack: ExitStack, tmp_path: Path) -> None:
    """An application that is loaded once serves in each forked child; one is stopped under load, then the other."""
    listening = listening_socket(stack)
    ini = write_site(tmp_path, stack.enter_context(Origin(echo)).authority)
    script = tmp_path / "forking.py"
    script.write_text(FORKING, encoding="utf-8")
    parent = inherit(stack, ini, script, listening)
    one, other = (int(pid) for pid in parent.wait_for(r"child (\d+)", 2))
    with Load(listening.getsockname()[1], clients=4) as load:
        load.wait_for({one, other}, 50)
        os.kill(one, signal.SIGTERM)
        parent.wait_for(f"ended {one} -15")
        load.wait_for({other}, 50)
    assert not load.lost
    assert set(load.answers) == {one, other}
    os.kill(other, signal.SIGTERM)
    assert parent.ended() == 0
    assert f"ended {other} -15" in parent.text
