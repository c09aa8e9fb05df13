"""Beside an upstream that can't be reached, in whatever way, everything else answers as fast as before.

The site is a process of its own. An upstream that can't be reached has its answer at the time-out, not later.
"""

from __future__ import annotations

import http.client
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import pytest

from pyramid_threaded_proxy.upstream.names import THREADS_PER_NAME
from tests.support.origin import Origin, echo
from tests.support.programs import leave_out, program_path
from tests.support.site import route
from tests.support.site_process import SiteProcess
from tests.support.upstreams import FullBacklog
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems answer a full backlog in other ways")

#: How many ask at once for what is dead: many more than there are threads of any kind.
CROWD = 100
#: Seconds: the dead route's `connect_timeout`.
TIME_OUT = 1.0
#: Seconds by which the 99th percentile of the healthy routes may grow.
MAY_GROW = 0.02


def full_backlog(stack: ExitStack) -> str:
    return stack.enter_context(FullBacklog()).url


def silent_name(stack: ExitStack) -> str:
    return "http://backend.silent:80"


def silent_tls(stack: ExitStack) -> str:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4 * CROWD))
    return f"https://127.0.0.1:{listener.getsockname()[1]}"


def silent_unix(stack: ExitStack) -> str:
    path = f"/tmp/pproxy-{time.monotonic_ns()}.sock"
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    stack.callback(Path(path).unlink)
    listener.listen(0)
    stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
    return "http+unix://" + path.replace("/", "%2F")


def black_hole(stack: ExitStack) -> str:
    """A network namespace that takes what comes, and has no way back."""
    name = f"pp{time.monotonic_ns() % 10**8}"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        leave_out("no network namespace can be made")
    stack.callback(ip, "netns", "del", name)
    try:
        ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        stack.callback(subprocess.run, ["ip", "link", "del", f"{name}a"], capture_output=True)
        ip("addr", "add", "10.213.77.1/24", "dev", f"{name}a")
        ip("link", "set", f"{name}a", "up")
        ip("-n", name, "addr", "add", "10.213.77.2/24", "dev", f"{name}b")
        ip("-n", name, "link", "set", f"{name}b", "up")
        ip("-n", name, "route", "add", "blackhole", "10.213.77.1/32")
    except subprocess.CalledProcessError as error:
        leave_out(f"no network can be made: {error.stderr!r}")
    return "http://10.213.77.2:80"


DEAD: dict[str, Callable[[ExitStack], str]] = {
    "full-backlog": full_backlog,
    "black-hole": black_hole,
    "silent-name": silent_name,
    "silent-tls": silent_tls,
    "silent-unix": silent_unix,
}


@pytest.fixture(params=list(DEAD))
def proxy(request: pytest.FixtureRequest, stack: ExitStack, tmp_path: Path) -> Iterator[SiteProcess]:
    """A site with a dead route, and healthy ones with and without kept connections."""
    if request.param == "black-hole":
        program_path("ip")
    well = stack.enter_context(Origin(echo))
    settings = (
        route("dead", DEAD[request.param](stack), connect_timeout=f"{TIME_OUT}")
        | route("kept", well.url)
        | route("fresh", well.url, keepalive="0")
    )
    with SiteProcess(tmp_path, settings, python=()) as site:
        yield site
        assert "Traceback" not in site.log


def seconds(connection: http.client.HTTPConnection, path: str) -> float:
    """How long an answer takes."""
    begun = time.monotonic()
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200
    return time.monotonic() - begun


def p99(site: SiteProcess, path: str, count: int = 100) -> float:
    """The 99th percentile of so many answers, one after the other on one connection."""
    with closing(http.client.HTTPConnection("127.0.0.1", site.port, timeout=PATIENCE)) as connection:
        seconds(connection, path)
        return sorted(seconds(connection, path) for _ in range(count))[-2]


class Asked(NamedTuple):
    sock: socket.socket
    begun: float


def ask(site: SiteProcess) -> Asked:
    """Ask for what is dead."""
    sock = socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE)
    sock.sendall(b"GET /dead/ HTTP/1.1\r\nHost: a\r\n\r\n")
    return Asked(sock, time.monotonic())


class Crowd(threading.Thread):
    """Many who ask for what is dead, and when each of them is answered with what."""

    def __init__(self, site: SiteProcess) -> None:
        super().__init__(daemon=True)
        self._waiting = {asked.sock: asked.begun for asked in (ask(site) for _ in range(CROWD))}
        self.answers: list[tuple[bytes, float]] = []
        self.start()

    def run(self) -> None:
        while self._waiting and (ready := select.select(list(self._waiting), [], [], PATIENCE)[0]):
            for sock in ready:
                took = time.monotonic() - self._waiting.pop(sock)
                self.answers.append((sock.recv(12)[9:12], took))
                sock.close()


def measured(site: SiteProcess) -> dict[str, float]:
    """How slow the healthy routes are."""
    return {path: p99(site, path) for path in ("/own", "/kept/", "/fresh/")}


def beside_a_crowd(site: SiteProcess) -> dict[str, float]:
    """How slow they are while a hundred wait for what is dead, all of whom have their answers in time."""
    crowd = Crowd(site)
    meanwhile = measured(site)
    crowd.join()
    times = sorted(took for _, took in crowd.answers)
    assert [status for status, _ in crowd.answers] == [b"504"] * CROWD
    assert times[0] > TIME_OUT - 0.1, times
    assert times[-1] < TIME_OUT + 0.5, times
    return meanwhile


def test_beside_a_dead_upstream(proxy: SiteProcess) -> None:
    """A hundred who ask for what is dead hold nobody up, have their answers in time, and leave nothing behind."""
    with closing(ask(proxy).sock) as first:
        first.recv(12)
    measured(proxy)
    held = proxy.quiet_vitals()
    seen = []
    for _ in range(4):  # whatever else the machine does may be slow, but not each time
        before, meanwhile = measured(proxy), beside_a_crowd(proxy)
        seen.append({path: meanwhile[path] - before[path] for path in before})
        if max(seen[-1].values()) < MAY_GROW:
            break
    else:
        pytest.fail(f"healthy routes are slower by {seen}")
    after = proxy.quiet_vitals()
    assert after.descriptors == held.descriptors
    own = [name for name in after.threads if not name.startswith("pproxy-pool")]  # as many as `threads` may be started
    assert len([name for name in own if name == "pproxy-name"]) <= THREADS_PER_NAME
    assert {*own} - {"pproxy-name"} <= {*held.threads}


def test_who_leaves_while_it_is_connected(proxy: SiteProcess) -> None:
    """A client that does not wait takes its sockets with it at once."""
    with closing(ask(proxy).sock) as first:
        first.recv(12)
    held = proxy.quiet_vitals()
    for asked in [ask(proxy) for _ in range(20)]:
        asked.sock.close()
    begun = time.monotonic()
    assert proxy.quiet_vitals().descriptors == held.descriptors
    assert time.monotonic() - begun < TIME_OUT
