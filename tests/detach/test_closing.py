"""A close keeps the answer: bytes of the client that cross it are read and dropped, and do not reset the connection."""

from __future__ import annotations

import socket
import threading

import pytest

from pyramid_threaded_proxy.loop import lingering
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, Site, own_view, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, Wire

CONTENT = bytes(range(256)) * 12_000
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(CONTENT), CONTENT)
CLOSE = b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT
#: How an answer's connection comes to be closed: the request, and what the upstream says.
CLOSES = {
    "the client says so": (b"GET /r/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", LENGTH),
    "HTTP/1.0": (b"GET /r/x HTTP/1.0\r\n\r\n", LENGTH),
    "the end is the close": (b"GET /r/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", CLOSE),
    "an upgrade that is denied": (
        b"GET /r/x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", LENGTH
    ),
}  # fmt: skip
CROSSING = {
    "a line end": b"\r\n",
    "a request": b"GET /r/y HTTP/1.1\r\nHost: a\r\n\r\n",
    "a large request": b"POST /r/y HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n" + bytes(500_000),
}


def all_lingering(site: Site) -> list[lingering.Lingering]:
    return [loop.lingering for loop in site.engine.scheduler._loops]


def slow(site: Site) -> Wire:
    """A client that has read nothing yet, and whose window is small."""
    client = Wire(socket.socket())
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.sock.connect(("127.0.0.1", site.port))
    return client


def read_all(client: Wire) -> bytes:
    """Everything until an orderly end; a reset raises."""
    found = [client.buffer]
    while data := client.receive():
        found.append(data)
    return b"".join(found)


@pytest.mark.parametrize("poll", [True, False], ids=["poll", "select"])
@pytest.mark.parametrize("crossing", CROSSING)
@pytest.mark.parametrize("how", CLOSES)
def test_the_answer_survives(origin: MakeOrigin, site: MakeSite, how: str, crossing: str, poll: bool) -> None:
    """What the client sends while its answer is written, and behind it, takes nothing of the answer from it."""
    request, answer = CLOSES[how]
    written = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(answer)
        written.set()

    where = site(route("r", origin(script).url), asyncore_use_poll=poll)
    client = slow(where)
    client.send(request)
    assert written.wait(10)
    client.send(CROSSING[crossing])
    head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == CONTENT
    client.close()
    wait_until(lambda: not any(entry.busy for entry in all_lingering(where)), "the close")


@pytest.mark.parametrize("poll", [True, False], ids=["poll", "select"])
def test_an_error_survives(site: MakeSite, poll: bool) -> None:
    """The page of an upstream that can't be reached is read though the client goes on talking."""
    where = site(route("r", "http://127.0.0.1:1"), asyncore_use_poll=poll)
    client = where.client()
    client.send(b"GET /r/x HTTP/1.0\r\n\r\n")
    client.until(b"\r\n\r\n")
    client.send(b"\r\n" * 1000)
    assert b"could not be reached" in read_all(client)
    client.close()


def closed_in(client: Wire, seconds: float) -> bool:
    """Whether the connection was closed for good by then: what is sent to it is answered by a reset."""

    def was_reset() -> bool:
        try:
            client.sock.sendall(b"x")
        except OSError:
            return True
        return False

    try:
        wait_until(was_reset, "the close", seconds)
    except AssertionError:
        return False
    return True


def answered(site: Site, request: bytes = b"GET /r/x HTTP/1.0\r\n\r\n") -> Wire:
    """A client that has its whole answer and does not close."""
    client = site.client()
    client.send(request)
    read_all(client)
    return client


def test_a_client_that_does_not_close(origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for as long as is said, and no longer; nothing is left open behind it."""
    monkeypatch.setattr(lingering, "SECONDS", 0.2)
    where = site(route("r", origin(echo).url))
    client = answered(where)
    assert any(entry.busy for entry in all_lingering(where))
    wait_until(lambda: not any(entry.busy for entry in all_lingering(where)), "the close")
    assert closed_in(client, 5)
    client.close()


def test_a_client_that_does_not_stop(origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is dropped is bounded."""
    monkeypatch.setattr(lingering, "SECONDS", 60)
    where = site(route("r", origin(echo).url))
    client = answered(where)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        client.send(bytes(64 << 20))
    wait_until(lambda: not any(entry.busy for entry in all_lingering(where)), "the close")
    client.close()


def test_a_client_that_still_reads_has_more_time(
    origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it takes bytes of its answer the connection is not closed on what it says meanwhile."""
    monkeypatch.setattr(lingering, "SECONDS", 0.3)

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(LENGTH)

    where = site(route("r", origin(script).url))
    client = slow(where)
    client.send(b"GET /r/x HTTP/1.0\r\n\r\n")
    found = []
    while data := client.sock.recv(65536):
        found.append(data)
        if len(found) < 30:
            threading.Event().wait(0.05)
            client.send(b"x")
    assert b"".join(found).endswith(CONTENT)
    client.close()


@pytest.mark.parametrize("poll", [True, False], ids=["poll", "select"])
def test_a_broken_answer_is_still_reset(origin: MakeOrigin, site: MakeSite, poll: bool) -> None:
    """An answer that is not whole must not look as if it were: no end is said behind it."""

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    where = site(route("r", origin(script).url), asyncore_use_poll=poll)
    client = where.client()
    client.send(b"GET /r/x HTTP/1.0\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        read_all(client)
    assert not any(entry.busy for entry in all_lingering(where))
    client.close()


def test_more_than_may_linger(origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many the oldest are closed."""
    monkeypatch.setattr(lingering, "MOST", 2)
    monkeypatch.setattr(lingering, "SECONDS", 60)
    where = site(route("r", origin(echo).url))
    clients = [answered(where) for _ in range(3)]
    assert closed_in(clients[0], 5)
    assert not closed_in(clients[2], 0.2)
    for client in clients:
        client.close()


def test_own_views_close_as_ever(site: MakeSite) -> None:
    """Where the process does not stop, an own view's connection is waitress's to close."""
    where: Site = site({}, configure=own_view)
    client = where.client()
    client.send(b"GET /own HTTP/1.0\r\n\r\n")
    assert read_all(client).endswith(b"own")
    assert closed_in(client, 5)
    client.close()
