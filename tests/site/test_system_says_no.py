"""When the system says no: no thread, no descriptor. Nothing is lost but what asked just then, and all comes back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.loop.test_thread_pool import run_without_threads
from tests.support.paths import ROOT

SITE = """
import http.client, logging, os, subprocess, threading
from contextlib import closing
from pyramid.authorization import Allow
from pyramid.response import Response
from tests.support.origin import Origin, echo
from tests.support.site import Policy, Site, route
from tests.support.waiting import wait_until
logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
logging.getLogger("waitress.queue").setLevel(logging.ERROR)
ran, asked = [], []
def hook(exchange):
    ran.append(exchange.request.target)
sys.modules["hooks"] = sys.modules["__main__"]
class Context:
    __acl__ = [(Allow, "alice", "view")]
def configure(config):
    config.set_security_policy(Policy())
    config.set_root_factory(lambda request: (asked.append(request.path_info), Context())[1])
    config.add_route("own", "/own")
    config.add_view(lambda request: Response("own"), route_name="own")
def ask(connection, path):
    connection.request("GET", path, headers={"X-User": "alice"})
    response = connection.getresponse()
    response.read()
    return response.status
def ours():
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("pproxy"))
def connect(site):
    return closing(http.client.HTTPConnection("127.0.0.1", site.port, timeout=10))
def origin_apart():
    code = (
        "import sys; sys.path.insert(0, " + repr(sys.path[0]) + ")\\n"
        "from tests.support.origin import Origin, echo\\n"
        "origin = Origin(echo); print(origin.url, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()
"""


def test_no_thread_for_a_hook() -> None:
    """Its exchanges get 503 and the hook never runs for them; others go on; then the pool has all its threads."""
    out = run_without_threads(
        SITE
        + """
(first, plain), (second, hooked) = origin_apart(), origin_apart()
with Site(
    {"proxy.threads": "4"} | route("plain", plain) | route("hook", hooked, hooks__headers="hooks.hook"),
    configure=configure,
) as site, connect(site) as connection:
    print(ask(connection, "/plain/"))
    alive = any("pool" in name for name in ours())
    with no_threads():
        no = [ask(connection, f"/{name}/{number}") for number in range(20) for name in ("hook", "plain")]
    refused = no.count(503)
    print(refused == (0 if alive else 20), no[1::2] == [200] * 20)
    print([ask(connection, f"/hook/{number}") for number in range(20, 40)] == [200] * 20, len(ran) == 40 - refused)
    wait_until(lambda: not site.engine.admission.in_flight)
    print(any("pool" in name for name in ours()))
for process in (first, second):
    process.communicate()
"""
    )
    assert out.splitlines() == ["200", "True True", "True True", "True"]


def test_no_thread_for_a_question() -> None:
    """A stream whose permission can't be asked for again ends; one that begins afterwards goes on."""
    out = run_without_threads(
        SITE
        + """
def endless(wire):
    wire.request()
    wire.send(b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n5\\r\\nhello\\r\\n")
    wire.wait_closed()
with Origin(endless) as origin:
    settings = route("r", origin.url, permission="view", recheck="1s")
    with Site(settings, configure=configure) as site:
        def begin():
            client = site.client()
            client.send(b"GET /r/ HTTP/1.1\\r\\nHost: a\\r\\nX-User: alice\\r\\n\\r\\n")
            client.until(b"hello\\r\\n")
            return client
        client = begin()  # whose first question comes half a second later at the soonest
        with no_threads():
            client.wait_closed()
        print(ours())
        client.close()
        client = begin()
        wait_until(lambda: asked.count("/r/") > 3)  # once each when they began
        print("ended" if client.is_closed() else "goes on")
        client.close()
"""
    )
    names, then = out.splitlines()
    assert "pproxy-recheck" not in names
    assert then == "goes on"


def test_no_thread_for_the_first_exchange() -> None:
    """It gets 503, and nothing of what it would have started is left; the next one gets its answer."""
    out = run_without_threads(
        SITE
        + """
with Origin(echo) as origin, Site(route("r", origin.url), configure=configure) as site, connect(site) as connection:
    def count():
        return len(os.listdir("/proc/self/fd"))
    assert ask(connection, "/own") == 200
    before = count()
    with no_threads():
        refused = [ask(connection, "/r/") for _ in range(5)]
    print(refused, ask(connection, "/own"), count() - before, ours(), site.engine.admission.in_flight)
    print(ask(connection, "/r/"), [name for name in ours() if "pool" not in name])
"""
    )
    assert out.splitlines() == [
        "[503, 503, 503, 503, 503] 200 0 [] 0",
        "200 ['pproxy-log', 'pproxy-loop', 'pproxy-mover-1', 'pproxy-mover-2']",
    ]


DESCRIPTORS = (
    f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    + SITE
    + """
free = int(sys.argv[1])
upstream, url = origin_apart()
with Site(route("r", url), configure=configure, asyncore_use_poll=True) as site, connect(site) as connection:
    assert ask(connection, "/own") == 200
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    for _ in range(free):
        os.close(taken.pop())
    refused = [ask(connection, "/r/") for _ in range(5)]
    own = ask(connection, "/own")
    wait_until(lambda: not ours(), "the end of the loops that could be started")  # these close what they opened
    threads, in_flight = ours(), site.engine.admission.in_flight
    left = 0
    try:
        while True:
            taken.append(os.dup(0))
            left += 1
    except OSError:
        pass
    for number in taken:
        os.close(number)
    print(refused, own, left, threads, in_flight)
    print(ask(connection, "/r/"))
upstream.communicate()
"""
)


@pytest.mark.parametrize("free", [0, 1, 2, 3, 4, 5])
def test_few_descriptors_for_the_first_exchange(free: int) -> None:
    """With so many left, fewer than the loops need, it gets 503; own pages answer; no loop and no descriptor leaks."""
    script = 'ulimit -n 256; exec "$0" -X dev -c "$1" "$2"'
    command = ["bash", "-c", script, sys.executable, DESCRIPTORS, str(free)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"[503, 503, 503, 503, 503] 200 {free} [] 0", "200"]
