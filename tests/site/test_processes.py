"""What SIGTERM and SIGINT do to a real `pserve`: nothing received is lost, and the exit code is as without us."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.origin import Gate, Origin, Script
from tests.support.processes import ask, first_exchange, pserve, wait_refused, write_site
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import OriginWire, Wire, get, post, read_answer

TERM, INT = signal.SIGTERM, signal.SIGINT
#: What pserve's exit codes are without us.
EXIT_CODES = [pytest.param(TERM, -15, id="SIGTERM"), pytest.param(INT, 0, id="SIGINT")]


class Served:
    """A running `pserve` behind whose /r stands `gate`."""

    def __init__(self, stack: ExitStack, folder: Path, script: Script, sockets: int, settings: dict[str, str]) -> None:
        self.origin = stack.enter_context(Origin(script))
        options = {"listen": " ".join(["127.0.0.1:0"] * sockets)}
        options.update({key[9:]: settings.pop(key) for key in list(settings) if key.startswith("waitress.")})
        self.process = stack.enter_context(pserve(write_site(folder, self.origin.authority, settings, **options)))
        self.ports = self.process.ports(sockets)

    def connect(self) -> Wire:
        return self.process.connect(self.ports[-1])

    def first_exchange(self, gate: Gate | None = None) -> Wire:
        return first_exchange(self.process, self.ports[-1], gate)


Start = Callable[..., Served]


@pytest.fixture
def run(stack: ExitStack, tmp_path: Path, gate: Gate, sockets: int) -> Start:
    """Starts an application, on one socket and on two."""

    def start(script: Script = gate, **settings: str) -> Served:
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        return Served(stack, tmp_path, script, sockets, dotted)

    return start


def hold(site: Served, gate: Gate, target: str) -> Wire:
    """A request that waits for the upstream."""
    client = site.connect()
    client.send(get(target))
    gate.wait_asked()
    return client


def tell(site: Served, number: int) -> None:
    """Send the signal, and wait until nobody listens and the process has looked more than once at what is left."""
    site.process.tell(number)
    for port in site.ports:
        wait_refused(port)
    site.process.wait_for("another signal cuts them")


def last_answer(client: Wire) -> bytes:
    """The body of an answer that says that it is the connection's last, and is."""
    first, fields, body = read_answer(client)
    assert first in ("HTTP/1.1 200 OK", "HTTP/1.0 200 OK")
    assert fields["connection"] == "close"
    assert client.rest() == b""
    return body


# Idle


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
def test_nothing_is_taken_before_the_first_exchange(run: Start, number: int, code: int) -> None:
    """An application that has relayed nothing has its signals to itself, and no threads of ours."""
    site = run()
    assert json.loads(ask(site.connect(), "/taken")) == [["signal", "_signal"], []]
    site.process.tell(number)
    assert site.process.ended() == code


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
def test_an_idle_process_ends_at_once(run: Start, gate: Gate, number: int, code: int) -> None:
    """After an exchange the exit code is the same, and kept connections delay nothing."""
    site = run(proxy__drain_timeout="5m")
    client = site.first_exchange(gate)
    idle = site.connect()
    assert ask(idle, "/own") == b"own"
    site.process.tell(number)
    assert site.process.ended() == code
    assert client.rest() == idle.rest() == b""
    assert "is cut" not in site.process.text


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
def test_a_client_that_waits_in_the_loop_delays_nothing(run: Start, gate: Gate, number: int, code: int) -> None:
    """Behind an exchange that has lasted its connection is out of waitress's tables; it is closed all the same."""
    site = run(proxy__drain_timeout="5m")
    client = hold(site, gate, "/r/x")
    assert ask(site.connect(), "/own") == b"own"
    threading.Event().wait(0.2)  # an upstream that takes so long
    gate.opened.set()
    assert read_answer(client)[2] == b"/x"
    site.process.tell(number)
    assert site.process.ended() == code
    assert client.rest() == b""
    assert "is cut" not in site.process.text


# What was received is answered


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
def test_those_in_flight_end(run: Start, gate: Gate, number: int, code: int) -> None:
    """Relayed and own requests under way are answered whole, each with Connection: close, while nobody listens."""
    site = run(proxy__drain_timeout="5m")
    site.first_exchange(gate)
    relayed, own = hold(site, gate, "/r/x"), hold(site, gate, "/held")
    tell(site, number)
    gate.opened.set()
    assert last_answer(relayed) == b"/x"
    assert last_answer(own) == b"/held"
    assert site.process.ended() == code


def test_queued_requests_are_served(run: Start, gate: Gate) -> None:
    """Requests that wait for waitress's only thread are answered, own and relayed ones."""
    site = run(proxy__drain_timeout="5m", waitress__threads="1")
    site.first_exchange(gate)
    running = hold(site, gate, "/held")
    queued = [site.connect(), site.connect()]
    queued[0].send(get("/own"))
    queued[1].send(post("/r/posted", b"data"))
    site.process.wait_for("Task queue depth is 2")
    tell(site, TERM)
    gate.opened.set()
    assert last_answer(running) == b"/held"
    assert last_answer(queued[0]) == b"own"
    assert last_answer(queued[1]) == b"/posted"
    assert site.process.ended() == -15


def test_pipelined_requests_are_served(run: Start, gate: Gate) -> None:
    """Of several requests that were received on one connection, only the last is told that the connection closes."""
    site = run(proxy__drain_timeout="5m")
    site.first_exchange(gate)
    client = site.connect()
    client.send(get("/r/a") + get("/own") + get("/r/b") + get("/held"))
    gate.wait_asked()
    tell(site, TERM)
    gate.opened.set()
    for body in (b"/a", b"own", b"/b"):
        first, fields, received = read_answer(client)
        assert (first, received, fields.get("connection")) == ("HTTP/1.1 200 OK", body, None)
    assert last_answer(client) == b"/held"
    assert site.process.ended() == -15


@pytest.mark.parametrize("target", ["/own", "/r/new"])
def test_a_new_request_on_a_kept_connection(run: Start, gate: Gate, target: str) -> None:
    """While others end, a kept connection still takes a request, and is closed behind its answer; HTTP/1.0 too."""
    site = run(proxy__drain_timeout="5m")
    kept = site.first_exchange(gate)
    old = site.connect()
    old.send(get("/own", "Connection: keep-alive", version="1.0"))
    assert read_answer(old)[1]["connection"].lower() == "keep-alive"
    held = hold(site, gate, "/held")
    tell(site, TERM)
    kept.send(get(target))
    old.send(get(target, "Connection: keep-alive", version="1.0"))
    if target != "/own":
        gate.wait_asked(2)
    else:
        assert last_answer(kept) == last_answer(old) == b"own"
    gate.opened.set()
    assert last_answer(held) == b"/held"
    if target != "/own":
        assert last_answer(kept) == last_answer(old) == b"/new"
    assert site.process.ended() == -15


@pytest.mark.parametrize("target", ["/r/second", "/own"])
@pytest.mark.parametrize("poll", ["true", "false"], ids=["poll", "select"])
def test_a_request_in_the_socket_is_served(run: Start, gate: Gate, target: str, poll: str) -> None:
    """What came before the signal and waits unread, behind an exchange that is held, is answered, and is the last."""
    site = run(waitress__asyncore_use_poll=poll)
    site.first_exchange(gate)
    client = hold(site, gate, "/r/first")
    client.send(get(target))  # waitress does not read it while the first one is in work
    tell(site, TERM)
    gate.opened.set()
    first, fields, body = read_answer(client)
    assert (first, fields.get("connection"), body) == ("HTTP/1.1 200 OK", None, b"/first")
    assert last_answer(client) == (b"/second" if target != "/own" else b"own")
    assert site.process.ended() == -15


@pytest.mark.parametrize("poll", ["true", "false"], ids=["poll", "select"])
@pytest.mark.parametrize("target", ["/r/big", "/held"])
def test_a_request_that_crosses_the_close(run: Start, poll: str, target: str) -> None:
    """6,000,000 bytes arrive at a client that reads slowly, though it sends its next request during the stop."""
    size, asked, go_on = 6_000_000, threading.Event(), threading.Event()

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            if "first" in request.target:
                wire.answer(request.target.encode())
            else:
                asked.set()
                assert go_on.wait(PATIENCE)
                wire.answer(bytes(size))

    site = run(script, waitress__asyncore_use_poll=poll)
    site.first_exchange()
    client = Wire(socket.socket())
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.sock.connect(("127.0.0.1", site.ports[-1]))
    client.send(get(target))
    assert asked.wait(PATIENCE)
    tell(site, TERM)
    go_on.set()
    _, fields = client.head()
    assert fields["connection"] == "close"
    client.send(get("/r/next"))
    found = len(client.buffer)
    while data := client.receive():
        found += len(data)
        if found < 1_000_000:
            threading.Event().wait(0.02)
    assert found == size
    client.close()
    assert site.process.ended() == -15


def test_a_half_received_request_is_served(run: Start, gate: Gate) -> None:
    """A client that is still sending its request gets its answer."""
    site = run(proxy__drain_timeout="5m")
    site.first_exchange(gate)
    client = site.connect()
    request = post("/own", b"data", "Expect: 100-continue")
    client.send(request[:-4])
    assert client.head()[0] == "HTTP/1.1 100 Continue"
    tell(site, TERM)
    client.send(request[-4:])
    assert last_answer(client) == b"own"
    assert site.process.ended() == -15


def test_a_new_connection_is_served(run: Start, gate: Gate) -> None:
    """A connection that was made before the signal is waited for a moment: its first request is on its way."""
    site = run(proxy__drain_timeout="5m", first_request="60")
    kept = site.first_exchange(gate)
    client = site.connect()
    tell(site, TERM)
    assert ask(kept, "/own") == b"own"
    client.send(get("/own"))
    assert last_answer(client) == b"own"
    assert site.process.ended() == -15


@pytest.mark.parametrize("kept", [False, True], ids=["new", "kept"])
def test_what_the_kernel_has_is_served(run: Start, gate: Gate, kept: bool) -> None:
    """Requests that the process has not read yet are served: on a connection that it had, or had not accepted yet."""
    site = run(proxy__drain_timeout="5m")
    known = site.first_exchange(gate)
    site.process.tell(signal.SIGSTOP)
    os.waitid(os.P_PID, site.process.pid, os.WSTOPPED | os.WNOWAIT)
    client = known if kept else site.connect()
    client.send(get("/own"))
    site.process.tell(TERM)
    site.process.tell(signal.SIGCONT)
    assert read_answer(client)[2] == b"own"  # it may have been read before the signal was
    assert client.rest() == b""
    assert site.process.ended() == -15


def test_a_silent_connection_is_not_waited_for(run: Start, gate: Gate) -> None:
    """A new connection that says nothing delays the end for no more than that moment."""
    site = run(proxy__drain_timeout="5m")
    site.first_exchange(gate)
    client = site.connect()
    site.process.tell(TERM)
    assert site.process.ended() == -15
    client.wait_closed()


def test_a_view_whose_client_has_left_ends(run: Start, gate: Gate) -> None:
    """An own view under way is not cut short because nobody waits for its answer."""
    site = run(proxy__drain_timeout="5m", waitress__channel_request_lookahead="1")
    site.first_exchange(gate)
    hold(site, gate, "/held").close()
    tell(site, TERM)
    gate.opened.set()
    assert site.process.ended() == -15
    assert "held has been answered" in site.process.text


def test_idle_upstream_connections_close(run: Start, gate: Gate) -> None:
    """A kept connection to the upstream is closed at once, not when the process ends."""
    site = run(proxy__drain_timeout="5m")
    site.first_exchange(gate)
    held = hold(site, gate, "/held")
    assert not site.origin.wires[0].is_closed()
    tell(site, TERM)
    wait_until(lambda: site.origin.wires[0].sock.fileno() < 0, "the upstream's end being closed")
    assert site.process.process.poll() is None
    gate.opened.set()
    assert last_answer(held) == b"/held"
    assert site.process.ended() == -15


def test_the_last_hook_runs(run: Start, gate: Gate) -> None:
    """The process ends behind the `complete` hook of its last exchange, and its line in the log."""

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            if request.target == "/complete":
                gate.asked.release()
                assert gate.opened.wait(PATIENCE)
            wire.answer(request.target.encode())

    site = run(script, proxy__drain_timeout="5m", proxy__routes__r__hooks__complete="application.complete")
    gate.opened.set()
    site.first_exchange()
    gate.wait_asked()
    gate.opened.clear()
    client = site.connect()
    assert ask(client, "/r/last") == b"/last"
    gate.wait_asked()
    tell(site, TERM)
    gate.opened.set()
    assert site.process.ended() == -15
    assert site.process.text.count("the complete hook has run") == 2
    assert '"GET /r/last HTTP/1.1" 200' in site.process.text


def test_the_last_line_is_written(run: Start, gate: Gate) -> None:
    """The access log's lines are made a moment behind their exchanges; a stop waits for that."""
    gate.opened.set()
    site = run()
    client = site.first_exchange()
    assert ask(client, "/r/last") == b"/last"
    site.process.tell(TERM)
    assert site.process.ended() == -15
    assert '"GET /r/last HTTP/1.1" 200' in site.process.text


# What does not end is cut


class Staged:
    """An upstream that says nothing, or breaks off behind its head; other targets it answers at once."""

    def __init__(self) -> None:
        self.silent = threading.Event()

    def __call__(self, wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            if request.target == "/body":
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
                return wire.wait_closed()
            if request.target == "/silent":
                self.silent.set()
                return wire.wait_closed()
            wire.answer(request.target.encode())


@pytest.fixture
def staged() -> Staged:
    return Staged()


def hold_two(site: Served, staged: Staged) -> tuple[Wire, Wire]:
    """Two exchanges that do not end: one without an answer, one in the midst of it."""
    site.first_exchange()
    silent, body = site.connect(), site.connect()
    silent.send(get("/r/silent"))
    body.send(get("/r/body"))
    assert body.until(b"hello")
    assert staged.silent.wait(PATIENCE)
    return silent, body


def check_cut(site: Served, silent: Wire, body: Wire) -> None:
    """Before its head an exchange is answered with 503, behind it its connection is broken; both are in the log."""
    first, fields, _ = read_answer(silent)
    assert first.startswith("HTTP/1.1 503")
    assert fields["connection"] == "close"
    with pytest.raises(ConnectionResetError):
        body.rest()
    assert '"GET /r/silent HTTP/1.1" 503' in site.process.text
    assert '"GET /r/body HTTP/1.1" 200' in site.process.text
    assert "what is still in flight is cut" in site.process.text


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
def test_after_the_drain_timeout(run: Start, staged: Staged, number: int, code: int) -> None:
    """What has not ended within `drain_timeout` is cut, and the exit code stays."""
    site = run(staged, proxy__drain_timeout="300ms")
    silent, body = hold_two(site, staged)
    site.process.tell(number)
    assert site.process.ended() == code
    assert "requests in flight have 0.3 s to end" in site.process.text
    check_cut(site, silent, body)


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
def test_a_second_signal_cuts(run: Start, staged: Staged, number: int, code: int) -> None:
    """With a second signal nobody waits any longer; the exit code is the first one's."""
    site = run(staged, proxy__drain_timeout="5m")
    silent, body = hold_two(site, staged)
    tell(site, number)
    assert not silent.is_closed()
    site.process.tell(TERM)
    assert site.process.ended() == code
    check_cut(site, silent, body)


def test_an_own_view_that_hangs_is_left(run: Start, gate: Gate) -> None:
    """A view of the application's that does not end is not waited for behind `drain_timeout`."""
    site = run(proxy__drain_timeout="300ms")
    site.first_exchange(gate)
    client = hold(site, gate, "/held")
    site.process.tell(TERM)
    assert site.process.ended() == -15
    gate.opened.set()
    client.wait_closed()


# Whose signals they are


def test_an_application_keeps_the_signal_that_it_took(run: Start, gate: Gate) -> None:
    """SIGTERM is the application's own where it has a handler for it; SIGINT is still ours."""
    site = run(proxy__drain_timeout="5m", exit_on_sigterm="yes")
    client = site.first_exchange(gate)
    assert json.loads(ask(client, "/taken"))[0] == ["application", "pyramid_threaded_proxy.loop.stopping"]
    held = hold(site, gate, "/r/x")
    site.process.tell(TERM)
    assert site.process.ended() == 0  # SystemExit ends waitress's loop, and pserve as well
    held.wait_closed()


def test_a_forked_child_has_its_signals_back(run: Start, gate: Gate) -> None:
    """A child that the application forks after the first exchange is ended by SIGTERM, and its parent goes on."""
    site = run(proxy__drain_timeout="5m")
    client = site.first_exchange(gate)
    assert ask(client, "/fork") == b"-15"
    gate.opened.set()
    assert ask(client, "/r/x") == b"/x"
    site.process.tell(TERM)
    assert site.process.ended() == -15
