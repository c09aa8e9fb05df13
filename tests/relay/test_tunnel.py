"""Switched connections: byte-transparent both ways, opened only by a valid 101, closed as either side wants."""

from __future__ import annotations

import fcntl
import random
import socket
import sys
import termios
import threading
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.leaks import own_threads
from tests.support.origin import MakeOrigin, Script, echo
from tests.support.site import MakeSite, Site, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, Wire

ASK = b"GET /ws/x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def switched(site: Site) -> Wire:
    """A client whose connection was switched."""
    client = site.client()
    client.send(ASK + b"\r\n")
    head = client.until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert b"\r\nUpgrade: websocket\r\n" in head
    return client


def switching(then: Callable[[OriginWire], None]) -> Script:
    """Switches every connection, and goes on with `then`."""

    def script(wire: OriginWire) -> None:
        request = wire.request()
        assert request is not None
        assert request.one("Upgrade") == "websocket"
        assert request.one("Connection") == "Upgrade"
        wire.send(SWITCH)
        then(wire)

    return script


def echo_bytes(wire: OriginWire) -> None:
    """Sends everything back, and closes when the other side has."""
    if wire.buffer:
        wire.send(wire.buffer)
    while data := wire.receive():
        wire.send(data)


def test_bytes_pass_both_ways(origin: MakeOrigin, site: MakeSite, sockets: int) -> None:
    """What the client sends behind the 101 comes back, and a half-close ends both directions in turn."""
    upstream = origin(switching(echo_bytes))
    client = switched(site(route("ws", upstream.url, upgrade="websocket"), sockets=sockets))
    client.send(b"\x81\x05hello")
    assert client.exactly(7) == b"\x81\x05hello"
    client.send(b"bye")
    client.half_close()
    assert client.rest() == b"bye"
    client.close()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    up=st.lists(st.binary(min_size=1, max_size=70_000), max_size=6),
    down=st.lists(st.binary(min_size=1, max_size=70_000), max_size=6),
    client_first=st.booleans(),
    early=st.booleans(),
)
def test_the_tunnel_is_transparent(
    tunnel_site: tuple[Site, list[tuple[list[bytes], list[bytes]]]],
    up: list[bytes],
    down: list[bytes],
    client_first: bool,
    early: bool,
) -> None:
    """Random bytes under random splits and half-closes, some sent before the 101, arrive the same on both sides."""
    site, plans = tunnel_site
    received: list[bytes] = []
    plans.append((down, received))
    client = site.client()
    first = b"".join(up[:1]) if early else b""
    client.send(ASK + b"\r\n" + first)
    assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")

    def send() -> None:
        for piece in up[1:] if early else up:
            client.send(piece)
        client.half_close()

    sender = threading.Thread(target=send)
    if client_first:
        sender.start()
        sender.join()
    else:
        sender.start()
    assert client.rest() == b"".join(down)
    sender.join()
    wait_until(lambda: received, "the upstream's end")
    assert received[0] == b"".join(up)
    client.close()


@pytest.fixture
def tunnel_site(origin: MakeOrigin, site: MakeSite) -> tuple[Site, list[tuple[list[bytes], list[bytes]]]]:
    """A site whose upstream sends and collects what the next plan says."""
    plans: list[tuple[list[bytes], list[bytes]]] = []

    def then(wire: OriginWire) -> None:
        down, received = plans.pop()
        sender = threading.Thread(target=lambda: [wire.send(piece) for piece in down] and None)
        sender.start()
        everything = wire.rest()
        sender.join()
        wire.half_close()
        received.append(everything)

    def script(wire: OriginWire) -> None:
        if wire.request() is not None:
            wire.send(SWITCH)
            then(wire)

    return site(route("ws", origin(script).url, upgrade="websocket")), plans


def test_a_slow_reader_stops_the_sender(origin: MakeOrigin, site: MakeSite) -> None:
    """While the client takes nothing, the upstream can't send more than the kernel's buffers hold; then all arrives."""
    size = 24 * 1024 * 1024
    block = random.Random(1).randbytes(1024 * 1024)
    sent = [0]

    def flood(wire: OriginWire) -> None:
        for _ in range(size // len(block)):
            wire.send(block)
            sent[0] += len(block)
        wire.half_close()
        wire.wait_closed()

    client = switched(site(route("ws", origin(switching(flood)).url, upgrade="websocket")))
    client.send(b"go")
    last = -1
    while sent[0] != last:
        last = sent[0]
        threading.Event().wait(0.1)
    assert last < size
    client.half_close()
    assert client.rest() == block * (size // len(block))
    client.close()


def test_an_upgrade_that_is_not_allowed_is_an_ordinary_request(origin: MakeOrigin, site: MakeSite) -> None:
    """Without the `upgrade` setting, and for other protocols than it names, no Upgrade goes up."""
    upstream = origin(echo)
    here = site(route("ws", upstream.url) | route("chat", upstream.url, upgrade="chat"))
    for path in ("/ws/", "/chat/"):
        body = here.get(path, {"Connection": "Upgrade", "Upgrade": "websocket"}).body
        assert b"pgrade" not in body


def test_only_the_allowed_protocols_go_up(origin: MakeOrigin, site: MakeSite) -> None:
    """Of several asked protocols those that the route allows are asked for, in lower case and in the client's order."""
    here = site(route("r", origin(echo).url, upgrade="websocket foo/2"))
    body = here.get("/r", {"Connection": "Upgrade", "Upgrade": "h2c, FOO/2, bar, WebSocket"}).body
    assert b"\r\nUpgrade: foo/2, websocket\r\n" in body


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n\r\n",
    ],
    ids=["other", "no-connection", "no-upgrade", "twice"],
)
def test_a_101_that_was_not_asked_for_is_502(origin: MakeOrigin, site: MakeSite, answer: bytes) -> None:
    """Only a 101 that names one asked-for protocol in both fields switches (RFC 9110 7.8)."""

    def script(wire: OriginWire) -> None:
        if wire.request() is not None:
            wire.send(answer)
            wire.wait_closed()

    here = site(route("ws", origin(script).url, upgrade="websocket"))
    assert here.get("/ws/", {"Connection": "Upgrade", "Upgrade": "websocket"}).status == 502


@pytest.mark.parametrize("path", ["/ws/denied", "/own", "/nowhere"])
def test_early_bytes_are_never_run(origin: MakeOrigin, site: MakeSite, path: str, sockets: int) -> None:
    """Bytes behind a request for an upgrade are no request, also where the upgrade is denied; the connection closes."""
    run: list[str] = []

    def configure(config: object) -> None:
        from pyramid.config import Configurator
        from pyramid.response import Response

        assert isinstance(config, Configurator)
        config.add_route("own", "/own")
        config.add_view(lambda request: Response("own"), route_name="own")
        config.add_route("secret", "/secret")
        config.add_view(lambda request: run.append("secret") or Response("secret"), route_name="secret")

    upstream = origin(echo)
    here = site(route("ws", upstream.url, upgrade="websocket"), configure=configure, sockets=sockets)
    everything = here.raw(ASK.replace(b"/ws/x", path.encode()) + b"\r\nGET /secret HTTP/1.1\r\nHost: a\r\n\r\n")
    assert everything.count(b"HTTP/1.1 ") == 1
    assert run == []


def test_early_bytes_in_a_later_packet_are_never_run(origin: MakeOrigin, site: MakeSite) -> None:
    """With lookahead waitress goes on reading while the request runs: those bytes stay raw too."""
    gate = threading.Event()

    def script(wire: OriginWire) -> None:
        if wire.request() is not None:
            gate.wait(10)
            wire.answer(b"no")

    upstream = origin(script)
    here = site(route("ws", upstream.url, upgrade="websocket"), channel_request_lookahead=5)
    client = here.client()
    client.send(ASK + b"\r\n")
    wait_until(lambda: upstream.accepted, "the upstream's connection")
    client.send(b"GET /ws/second HTTP/1.1\r\nHost: a\r\n\r\n")
    gate.set()
    everything = client.rest_or_reset()
    assert everything.startswith(b"HTTP/1.1 200 ")
    assert everything.count(b"HTTP/1.1 ") == 1
    assert upstream.accepted == 1
    client.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (None, 101),
        ("http://AUTHORITY", 101),
        ("HTTP://AUTHORITY", 101),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://AUTHORITY http://evil.example", 403),
        ("https://partner.example:443", 101),
    ],
)
def test_the_origin_is_asked_first(origin: MakeOrigin, site: MakeSite, sent: str | None, status: int) -> None:
    """A foreign Origin gets 403 before the upstream is asked; a request without one is let in."""
    upstream = origin(switching(echo_bytes))
    here = site(route("ws", upstream.url, upgrade="websocket", origins="https://partner.example"))
    client = here.client()
    field = f"Origin: {sent}\r\n".replace("AUTHORITY", here.authority).encode() if sent else b""
    client.send(ASK.replace(b"Host: a", f"Host: {here.authority}".encode()) + field + b"\r\n")
    head = client.until(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert upstream.accepted == (1 if status == 101 else 0)
    client.close()


def test_an_idle_tunnel_is_closed(origin: MakeOrigin, site: MakeSite) -> None:
    """After `idle_timeout` with nothing moving both sides are closed."""
    upstream = origin(switching(lambda wire: wire.wait_closed()))
    client = switched(site(route("ws", upstream.url, upgrade="websocket", idle_timeout="200ms")))
    client.wait_closed()
    wait_until(lambda: upstream.wires[0].sock.fileno() < 0, "the upstream's end")
    client.close()


def test_a_reset_reaches_the_other_side(origin: MakeOrigin, site: MakeSite) -> None:
    """When the client resets, the upstream's connection is closed at once."""
    closed = threading.Event()

    def then(wire: OriginWire) -> None:
        wire.wait_closed()
        closed.set()

    client = switched(site(route("ws", origin(switching(then)).url, upgrade="websocket")))
    client.reset()
    assert closed.wait(5)


@pytest.mark.parametrize("poll", [True, False], ids=["poll", "select"])
@pytest.mark.parametrize("talks", [False, True], ids=["silent", "talking"])
def test_an_upstream_that_resets_behind_data(origin: MakeOrigin, site: MakeSite, talks: bool, poll: bool) -> None:
    """A client that reads late still gets all that came before the reset, and then an orderly end."""
    size = 300_000
    told = threading.Event()

    def then(wire: OriginWire) -> None:
        wire.send(bytes(size))
        wait_until(lambda: not unsent(wire.sock), "all of it to be with the relay")
        wire.reset()
        told.set()

    here = site(route("ws", origin(switching(then)).url, upgrade="websocket"), asyncore_use_poll=poll)
    client = Wire(socket.socket())
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sock.connect(("127.0.0.1", here.port))
    client.send(ASK + b"\r\n")
    client.until(b"\r\n\r\n")
    assert told.wait(10)
    if talks:
        client.send(b"more")  # which has nowhere to go any more
    assert len(client.rest()) == size
    client.close()
    wait_until(lambda: here.engine.admission.in_flight == 0, "the end of the exchange")


def unsent(sock: socket.socket) -> int:
    """Bytes that the other end has not acknowledged."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def test_tunnels_hold_no_thread(origin: MakeOrigin, site: MakeSite) -> None:
    """Forty quiet tunnels need no more threads than one."""
    here = site(route("ws", origin(switching(echo_bytes)).url, upgrade="websocket"), connection_limit=200)
    clients = [switched(here)]

    def ours() -> int:
        return len(own_threads("pproxy", "waitress"))

    clients += [switched(here) for _ in range(7)]
    before = ours()
    clients += [switched(here) for _ in range(32)]
    assert ours() <= max(before, 4 + 1 + 8 + 3)
    for client in clients:
        client.send(b"x")
        assert client.exactly(1) == b"x"
        client.sock.shutdown(socket.SHUT_RDWR)
        client.close()
