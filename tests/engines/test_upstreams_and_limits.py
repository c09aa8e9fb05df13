"""What an export says of upstreams, limits and times, held against what the real servers then do."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from pyramid_threaded_proxy.engines.export import export
from tests.engines.conftest import HANDSHAKE, Way, guarded, holding, switching
from tests.support.fronts import ACCEPTED, TRUSTED, RealFront, fronted, verifying, with_root
from tests.support.origin import Gate, MakeOrigin, MakeTls, Origin, echo
from tests.support.site import MakeSite, Site
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import OriginWire, Wire, get, received


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder that nginx's workers may look into, who are nobody."""
    folder = Path(tempfile.mkdtemp(prefix="proxied-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@holding("traefik")
def test_an_upstream_on_a_unix_socket(site: MakeSite, way: Way, stack: ExitStack, socket_folder: Path) -> None:
    """Its path leads there, and the Host that it sees is the one that the relay sends."""
    path = socket_folder / "upstream.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o777)
    listener.listen()
    upstream = stack.enter_context(Origin(echo, listener=listener))
    there = site({**guarded("r", f"{upstream.url}/base"), **way.settings}, configure=with_root, **TRUSTED)
    front = way.start(there)
    relayed, moved = received(there.get("/r/x", {"X-User": "alice"})), received(front.get("/r/x"))
    assert (moved.target, moved.one("Host")) == (relayed.target, relayed.one("Host")) == ("/base/x", "localhost")


def test_a_certificate_for_the_upstream(tls_origin: MakeTls, authority: Any, site: MakeSite, way: Way) -> None:
    """An upstream that asks for one gets `tls.cert_file`, and a route without one does not get through."""
    certificate, key = authority.issue("client")
    shutil.copy(key, f"{certificate}.key")
    upstream = tls_origin(echo, "DNS:localhost", wants_client=True)
    known = {"tls__ca_file": str(authority.ca_file), "tls__server_name": "localhost"}
    ours = known | {"tls__cert_file": certificate, "tls__key_file": f"{certificate}.key"}
    settings = {**guarded("r", upstream.url, **ours), **guarded("without", upstream.url, **known), **way.settings}
    front = way.start(site(settings, configure=with_root, **TRUSTED))
    assert received(front.get("/r/x")).target == "/x"
    assert front.get("/without/x").status // 100 == 5
    assert len(upstream.requests) == 1


def asking(front: RealFront) -> Wire:
    """A client whose request is sent, and not answered yet."""
    client = front.client()
    client.send(get("/r/x", "X-User: alice"))
    return client


@holding("caddy")
def test_no_more_exchanges_than_that(origin: MakeOrigin, site: MakeSite, way: Way, gate: Gate) -> None:
    """One more than `max_exchanges` is refused, and afterwards there is a place again."""
    upstream = origin(gate)
    settings = {**guarded("r", upstream.url, max_exchanges="1"), **way.settings}
    front = way.start(site(settings, configure=with_root, **TRUSTED))
    with closing(asking(front)) as first:
        gate.wait_asked()
        assert front.get("/r/x").status == (429 if way.engine == "traefik" else 503)
        assert len(upstream.requests) == 1
        gate.opened.set()
        assert first.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    wait_until(lambda: front.get("/r/x").status == 200, "another place")


@holding("nginx", "accel")
def test_probes(origin: MakeOrigin, site: MakeSite, way: Way) -> None:
    """Two of three upstreams answer their probes with 503: these are asked nothing else, until they are well again.

    For all but Caddy a redirect is as good as a page.
    """
    sick = threading.Event()
    sick.set()

    def ill(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            fails = request.target == "/well?now" and sick.is_set()
            wire.answer(b"ill", status="503 Service Unavailable" if fails else "200 OK")

    def well(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            probed = request.target == "/well?now"
            moved = probed and way.engine != "caddy"
            wire.answer(b"" if probed else b"well", "Location: /else", status="302 Found" if moved else "200 OK")

    upstreams = [origin(script) for script in (ill, well, ill)]
    keys = {"health__path": "/well?now", "health__interval": "200ms", "connect_timeout": "150ms"}
    settings = {**guarded("r", " ".join(one.url for one in upstreams), **keys), **way.settings}
    front = way.start(site(settings, configure=with_root, **TRUSTED))

    def answers() -> set[bytes]:
        return {front.get("/r/x").body for _ in range(6)}

    wait_until(lambda: answers() == {b"well"}, "only the one that is well")
    assert answers() == {b"well"}
    sick.clear()
    wait_until(lambda: answers() == {b"well", b"ill"}, "all of them")
    probe = next(request for request in upstreams[0].requests if request.target == "/well?now")
    assert (probe.method, probe.one("X-User"), probe.one("X-Proxy-Key")) == ("GET", None, None)


def dripping(wire: OriginWire) -> None:
    """Answers with one letter after the other, and no end."""
    while wire.request() is not None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not wire.is_closed():
            wire.send(b"x")
            time.sleep(0.01)


@holding("nginx", "accel", "haproxy", "caddy", "traefik")
def test_an_end_for_the_whole_exchange(origin: MakeOrigin, site: MakeSite, way: Way, gate: Gate) -> None:
    """After `total_timeout` nobody waits: not for an answer, and not for the rest of one that comes slowly."""
    silent, slow = origin(gate), origin(dripping)
    settings = {
        **guarded("r", silent.url, total_timeout="300ms"), **guarded("slow", slow.url, total_timeout="300ms"),
        **way.settings,
    }  # fmt: skip
    front = way.start(site(settings, configure=with_root, **TRUSTED))
    assert front.get("/r/x").status == 504
    with closing(front.client()) as client:
        client.send(get("/slow/x", "X-User: alice"))
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        assert 0 < len(client.rest_or_reset()) < 1_000_000


@holding("nginx", "accel", "haproxy", "caddy", "traefik")
def test_a_switched_connection_goes_on(origin: MakeOrigin, site: MakeSite, way: Way) -> None:
    """`total_timeout` ends one in the relay; in Envoy it does not, as the table says."""
    upstream = origin(switching)
    settings = {**guarded("r", upstream.url, upgrade="websocket", total_timeout="300ms"), **way.settings}
    there = site(settings, configure=with_root, **TRUSTED)
    with closing(way.start(there).client()) as moved, closing(there.client()) as relayed:
        for client in (moved, relayed):
            client.send(f"GET /r/x HTTP/1.1\r\nHost: a\r\nX-User: alice\r\n{HANDSHAKE}\r\n".encode())
            assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        relayed.wait_closed()
        moved.send(b"bytes")
        assert moved.exactly(5) == b"bytes"


@holding("nginx", "accel", "haproxy", "caddy", "traefik")
def test_an_upload_takes_its_time(origin: MakeOrigin, site: MakeSite, way: Way) -> None:
    """What a body takes to come does not count for `total_timeout`, as where the relay stores it first."""
    upstream = origin(echo)
    settings = {**guarded("r", upstream.url, total_timeout="300ms"), **way.settings}
    there = site(settings, configure=with_root, **TRUSTED)
    for server in (there, way.start(there)):
        with closing(server.client()) as client:
            client.send(b"POST /r/x HTTP/1.1\r\nHost: a\r\nX-User: alice\r\nContent-Length: 6\r\n\r\n")
            for _ in range(6):
                time.sleep(0.1)  # so slow it is
                client.send(b"x")
            assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_what_is_under_way_outlives_the_application(origin: MakeOrigin, way: Way) -> None:
    """A permitted answer goes on when the application is not there any more."""
    gone = threading.Event()

    def halves(wire: OriginWire) -> None:
        assert wire.request() is not None
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
        assert gone.wait(PATIENCE)
        wire.send(b"half")

    settings = {**guarded("r", origin(halves).url), **way.settings}
    with Site(settings, configure=with_root, **TRUSTED) as there:
        client = asking(way.start(there))
        client.until(b"half")
    gone.set()
    assert client.exactly(4) == b"half"
    client.close()


def test_traefik_has_no_way_to_a_socket(site: MakeSite) -> None:
    """So it is refused, rather than that it would start with an upstream that leads nowhere."""
    settings = {**guarded("r", "http+unix://%2Frun%2Fx.sock"), **verifying("traefik")}
    made = export("traefik", fronted(site(settings, configure=with_root), 1), ACCEPTED["traefik"])
    assert (made.files, [str(one) for one in made.refused]) == ({}, ["upstream (r): it knows no Unix sockets"])
