"""When descriptors run out, new exchanges get 503 and the application's own pages stay up, with `select` and `poll`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pyramid_threaded_proxy.exceptions import DescriptorsExhausted
from pyramid_threaded_proxy.limits.descriptors import RESERVE, Descriptors
from tests.support.paths import ROOT

SCRIPT = """
import logging, resource, select, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
sys.path.insert(0, {root!r})
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
logging.getLogger("waitress.queue").setLevel(logging.ERROR)
from pyramid.response import Response
from tests.support.origin import Origin
from tests.support.site import Site, route
from tests.support.waiting import wait_until
gate = threading.Event()
def hold(wire):
    while wire.request() is not None:
        gate.wait(30)
        wire.answer(b"held")
def configure(config):
    config.add_route("own", "/own")
    config.add_view(lambda request: Response("own"), route_name="own")
with Origin(hold) as origin, Site(
    route("r", origin.url), configure=configure, asyncore_use_poll=sys.argv[2] == "poll", connection_limit=5000
) as site:
    clients, refused = [], 0
    while not refused:
        client = site.client()
        client.send(b"GET /r/ HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        clients.append(client)
        poll = select.poll()
        poll.register(client.sock, select.POLLIN)
        wait_until(lambda: origin.accepted == len(clients) or poll.poll(0))
        if poll.poll(0):
            assert client.head()[0].split()[1] == "503"
            refused += 1
    print("held", len(clients) - 1)
    for _ in range(20):
        assert site.get("/own").body == b"own"
    assert site.get("/r/").status == 503
    gate.set()
    for client in clients[:-1]:
        client.until(b"held")
    for client in clients:
        client.close()
    wait_until(lambda: site.engine.admission.in_flight == 0)
    assert site.get("/r/").status == 200
print("done")
"""


@pytest.mark.parametrize(
    ("limit", "way", "remedy"), [(4096, "select", "asyncore_use_poll = true"), (700, "poll", "ulimit")]
)
def test_at_the_limit_the_own_pages_stay_up(limit: int, way: str, remedy: str) -> None:
    """Exchanges are held until one is refused with 503; then own pages answer, and afterwards all is as before."""
    script = SCRIPT.format(root=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", script, str(limit), way], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.rstrip().endswith("done"), done.stdout[-3000:] + done.stderr[-3000:]
    assert remedy in done.stdout
    assert done.stdout.count("descriptors are in use") == 1


def test_the_reserve_is_kept() -> None:
    """The last numbers are refused; with `select` those below 1024 count, whatever the system allows."""
    descriptors = Descriptors()
    descriptors.limit = 10_000
    descriptors.check(10_000 - RESERVE - 1)
    with pytest.raises(DescriptorsExhausted):
        descriptors.check(10_000 - RESERVE)
    descriptors.with_select()
    with pytest.raises(DescriptorsExhausted):
        descriptors.check(1024 - RESERVE)
    descriptors.check(-1)
