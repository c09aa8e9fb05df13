"""Full duplex: an upstream that answers while the request is still sent to it, whoever is slow."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy.exchange import Exchange
from tests.support.bodies import content
from tests.support.certificates import Authority
from tests.support.detaching import servers
from tests.support.origin import MakeOrigin, Origin, echo, in_turn
from tests.support.servers import ENGINE, SERVERS
from tests.support.site import DETACHED, MakeSite, Site, route
from tests.support.uploads import put, streaming
from tests.support.waiting import wait_until
from tests.support.wire import Closed, OriginWire, Wire

SIZE = 8 << 20
BODY = content(SIZE)
HEADS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: %d\r\n\r\n" % SIZE,
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
#: Bytes that fit into no buffers of the system's.
LARGE = 64 << 20


def pieces(wire: OriginWire, fields: dict[str, str]) -> Iterator[bytes]:
    """A request's body as it comes."""
    if "content-length" in fields:
        left = int(fields["content-length"])
        while left:
            found, wire.buffer = wire.buffer[:left], wire.buffer[left:]
            found = found or wire.receive()[:left]
            assert found, f"{left} bytes of the request are missing"
            left -= len(found)
            yield found
        return
    while size := int(wire.until(b"\r\n"), 16):
        yield wire.exactly(size)
        wire.exactly(2)
    wire.exactly(2)


class Echo:
    """Sends its head as soon as it has the request's, and each piece of the body as it comes; keeps the connection."""

    def __init__(self, framing: str = "length") -> None:
        self.framing = framing
        self.received = 0

    def __call__(self, wire: OriginWire) -> None:
        while True:
            try:
                first, fields = wire.head()
            except (Closed, OSError):
                return
            if first.startswith("GET"):
                wire.answer(first.encode())
                continue
            wire.send(HEADS[self.framing])
            for piece in pieces(wire, fields):
                self.received += len(piece)
                wire.send(b"%x\r\n%b\r\n" % (len(piece), piece) if self.framing == "chunked" else piece)
            if self.framing == "chunked":
                wire.send(b"0\r\n\r\n")
            if self.framing == "close":
                return


def fetching(site: MakeSite, url: str, make: Callable[[Request], Any], **options: Any) -> Site:
    """A site whose /f sends a body of the application's own."""

    def configure(config: Configurator) -> None:
        config.add_route("f", "/f")
        config.add_view(lambda request: request.proxy_fetch(url, method="POST", body=make(request)), route_name="f")

    return site(route("r", url), configure=configure, **options)


SOURCES: dict[str, Callable[[Request], Any]] = {
    "the client": lambda request: request,
    "memory": lambda request: BODY,
    "object": lambda request: BytesIO(BODY),
    "iterable": lambda request: iter([BODY[at : at + 100_000] for at in range(0, SIZE, 100_000)]),
}


@pytest.mark.parametrize("poll", [True, False], ids=["poll", "select"])
@pytest.mark.parametrize("framing", HEADS)
@pytest.mark.parametrize("source", SOURCES)
def test_what_goes_up_comes_down(origin: MakeOrigin, site: MakeSite, source: str, framing: str, poll: bool) -> None:
    """8 MiB up and 8 MiB down at once, from each source and in each framing; then the connection is in step."""
    echoing = Echo(framing)
    upstream = origin(echoing)
    where = fetching(site, upstream.url, SOURCES[source], asyncore_use_poll=poll)
    answer = where.get("/f", method="POST", body=BODY if source == "the client" else b"")
    assert (answer.status, answer.body == BODY, echoing.received) == (200, True, SIZE)
    wait_until(lambda: where.engine.admission.in_flight == 0, "the end of the exchange")
    assert where.get("/r/after").body == b"GET /after HTTP/1.1"
    assert upstream.accepted == (2 if framing == "close" else 1)


def test_over_tls(
    site: MakeSite, stack: ExitStack, tmp_path: Path, need_program: Callable[[str], str], mode: dict[str, Any]
) -> None:
    """The same over TLS, where no kernel moves anything."""
    authority = Authority(tmp_path, need_program("openssl"))
    echoing = Echo("chunked")
    upstream = stack.enter_context(Origin(echoing, wrap=authority.server()))
    where = site(route("r", upstream.url, tls__ca_file=authority.ca_file), **mode)
    answer = where.get("/r/x", method="POST", body=BODY)
    assert (answer.status, answer.body == BODY, echoing.received) == (200, True, SIZE)


@pytest.mark.parametrize("server", [name for name in SERVERS if name != "webtest"])
def test_under_other_servers(server: str, stack: ExitStack, tmp_path: Path) -> None:
    """A client that sends all before it reads gets all of it, though nothing was detached."""
    echoing = Echo("length")
    upstream = stack.enter_context(Origin(echoing))
    ask = stack.enter_context(SERVERS[server](application, upstream.url, tmp_path))
    answer = ask("/r/x", "POST", BODY)
    assert (answer.status, answer.body == BODY, echoing.received) == (200, True, SIZE)


def application(upstream: str) -> Any:
    config = Configurator(settings=route("r", upstream))
    config.include("pyramid_threaded_proxy")
    return config.make_wsgi_app()


def test_a_client_that_reads_late(origin: MakeOrigin, site: MakeSite) -> None:
    """What the client does not take is waited for with bounded memory, up and down; then everything arrives."""
    size = 32 << 20
    echoing = Echo("chunked")
    upstream = origin(echoing)
    where = site(route("r", upstream.url))
    client = Wire(socket.socket())
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sock.connect(("127.0.0.1", where.port))
    client.send(
        b"POST /r/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size + content(size)
    )
    last = -1
    while echoing.received != last:
        last = echoing.received
        threading.Event().wait(0.3)
    assert 0 < last < size
    client.head()
    found = [client.buffer]
    while found[-1] or len(found) == 1:
        found.append(client.receive())
    assert unchunked(b"".join(found)) == content(size)
    client.close()


def unchunked(data: bytes) -> bytes:
    """The body of a chunked message."""
    found, at = [], 0
    while size := int(data[at : (end := data.index(b"\r\n", at))], 16):
        found.append(data[end + 2 : end + 2 + size])
        at = end + 4 + size
    assert data[at:] == b"0\r\n\r\n"
    return b"".join(found)


def test_a_whole_answer_does_not_end_the_upload(origin: MakeOrigin, site: MakeSite) -> None:
    """An upstream that has said all and reads on gets all; its client has its answer and may leave."""
    go_on, got = threading.Event(), []

    def script(wire: OriginWire) -> None:
        _, fields = wire.head()
        wire.send(OK)
        assert go_on.wait(10)
        got.append(b"".join(pieces(wire, fields)))
        echo(wire)

    upstream = origin(script)
    where = site(route("r", upstream.url))
    client = where.client()
    client.send(b"POST /r/ HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % SIZE + BODY)
    client.head()
    assert client.exactly(2) == b"ok"
    client.close()
    go_on.set()
    wait_until(lambda: got, "the whole request")
    assert got == [BODY]
    wait_until(lambda: where.engine.admission.in_flight == 0, "the end of the exchange")
    assert where.get("/r/after").body.startswith(b"GET /after ")
    assert upstream.accepted == 1


@pytest.mark.parametrize("mode", DETACHED, indirect=True)
@pytest.mark.parametrize("status", ["200 OK", "413 Too Large"])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("how", ["closes", "resets later"])
def test_an_upstream_that_ends_the_upload(
    origin: MakeOrigin, site: MakeSite, status: str, framing: str, how: str, mode: dict[str, Any]
) -> None:
    """Its answer counts, and the connection is not used again."""
    fields = {"length": "Content-Length: 300000", "chunked": "Transfer-Encoding: chunked", "close": "X: y"}[framing]
    answer = bytes(300_000)
    sent = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode())
        wire.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(answer), answer) if framing == "chunked" else answer)
        if how == "closes":
            wire.half_close()
        assert sent.wait(10)  # what is not read then is answered by a reset

    upstream = origin(in_turn(script, echo))
    where = site(route("r", upstream.url), **mode)
    client = where.client()
    client.send(b"POST /r/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % SIZE + BODY)
    first, _ = client.head()
    assert first == f"HTTP/1.1 {status}"
    while client.buffer.count(b"\0") < len(answer):
        client.buffer += client.receive()
    sent.set()
    if framing == "close" and how == "resets later" and status.startswith("2"):
        assert not client.rest_or_reset().endswith(b"0\r\n\r\n")  # nobody knows whether that was all
    else:
        assert client.rest().endswith(b"\0" if framing == "length" else b"\r\n0\r\n\r\n")
    client.close()
    assert where.get("/r/after").body.startswith(b"GET /after ")
    assert upstream.accepted == 2


def test_an_upstream_that_takes_no_more(origin: MakeOrigin, site: MakeSite) -> None:
    """It has begun its answer and neither reads nor says more: after `send_timeout` the answer is broken off."""
    over = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(HEADS["length"])
        over.wait(10)

    where = site(route("r", origin(script).url, send_timeout="300ms", read_timeout="60s"))
    client = where.client()
    client.send(b"POST /r/ HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (20 << 20) + bytes(20 << 20))
    client.head()
    with pytest.raises(ConnectionResetError):
        client.rest()
    over.set()
    client.close()


def test_an_upstream_that_reads_slowly(origin: MakeOrigin, site: MakeSite) -> None:
    """While it takes the request an upstream need not speak: `read_timeout` begins when it has all."""

    def script(wire: OriginWire) -> None:
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        _, fields = wire.head()
        wire.send(HEADS["length"])
        taken = []
        for number, piece in enumerate(pieces(wire, fields)):
            taken.append(piece)
            if number < 40:
                threading.Event().wait(0.02)
        wire.send(b"".join(taken))

    where = site(route("r", origin(script).url, read_timeout="500ms"))
    answer = where.get("/r/", method="POST", body=BODY)
    assert (answer.status, answer.body == BODY) == (200, True)


def test_a_client_that_leaves_in_the_midst(origin: MakeOrigin, site: MakeSite) -> None:
    """Both ends are let go, and the place is free."""
    gone = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(HEADS["length"] + bytes(1000))
        gone.wait(10)

    where = site(route("r", origin(script).url))
    client = where.client()
    client.send(b"POST /r/ HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (20 << 20) + bytes(20 << 20))
    client.head()
    client.reset()
    wait_until(lambda: where.engine.admission.in_flight == 0, "the end of the exchange")
    gone.set()


@pytest.mark.parametrize("hook", ["answering", "without_a_body"])
def test_a_hook_that_ends_the_upload_says_so(origin: MakeOrigin, site: MakeSite, hook: str) -> None:
    """Where a hook drops the upstream's answer while the body flows, that is not read on: the client is told that the
    connection ends."""

    def script(wire: OriginWire) -> None:
        wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        wire.wait_closed()

    name = "response" if hook == "answering" else "headers"
    where = site(streaming(origin(script).url, **{f"hooks__{name}": f"{__name__}.{hook}"}))
    client = where.client()
    client.send(put("/r/x", 1_000_000) + bytes(1000))
    first, fields = client.head()
    assert (first.split(" ")[1], fields.get("connection")) == ("203" if hook == "answering" else "204", "close")
    client.rest()
    client.close()


def answering(exchange: Exchange) -> Response:
    """A hook that answers itself."""
    return Response(b"mine", status=203)


def without_a_body(exchange: Exchange) -> None:
    """A hook that makes an answer of one without a body."""
    assert exchange.response is not None
    exchange.response.status, exchange.response.reason = 204, "No Content"


def test_the_last_answer_while_its_body_flows(origin: MakeOrigin, site: MakeSite) -> None:
    """A process that stops takes bytes of the body for no other request's: the answer says that it is the last."""
    go_on, whole = threading.Event(), threading.Event()

    def script(wire: OriginWire) -> None:
        wire.head()
        assert go_on.wait(10)
        wire.send(OK)
        for _ in pieces(wire, {"content-length": str(LARGE)}):
            pass
        whole.set()

    upstream = origin(script)
    where = site(streaming(upstream.url))
    client = where.client()
    client.send(put("/r/x", LARGE))
    wait_until(lambda: upstream.accepted == 1 and where.engine.admission.in_flight == 1, "the exchange")
    servers(where)[0].trigger.stopping = True
    client.sock.setblocking(False)
    sent = fill(client.sock, LARGE)
    go_on.set()
    client.sock.setblocking(True)
    client.sock.settimeout(20)
    assert client.head()[1].get("connection") == "close"
    client.send(bytes(LARGE - sent))
    assert client.rest() == b"ok"
    client.close()
    assert whole.wait(10)


def fill(sock: socket.socket, most: int) -> int:
    """Send zeros until nothing more is taken; how many bytes those were."""
    sent = 0
    while select.select([], [sock], [], 0.2)[1]:
        sent += sock.send(bytes(min(65536, most - sent)))
    return sent


@pytest.mark.parametrize("body", [b"", b"x" * 70_000, b"x" * (3 << 20)])
def test_streamed_in_this_thread(origin: MakeOrigin, body: bytes) -> None:
    """Without a server the iterable gives the echo, and what it was spooled to is closed."""

    def script(wire: OriginWire) -> None:
        _, fields = wire.head()
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces(wire, fields):
            wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        wire.send(b"0\r\n\r\n")

    wsgi = application(origin(script).url)
    answer = Request.blank("/r/x", method="POST", body=body).get_response(wsgi)
    assert (answer.status_int, answer.body == body) == (200, True)
    wsgi.registry[ENGINE].close()
