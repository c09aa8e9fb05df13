"""Event streams: each event reaches the client as it comes, and either side's end is the other's."""

from __future__ import annotations

import queue
import threading
import time

import pytest
from pyramid.request import Request

from tests.support.origin import MakeOrigin
from tests.support.site import MakeSite, Site, route
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import OriginWire, Wire

GET = b"GET /events/x HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n"
HEADS = {
    "chunked": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    "close-delimited": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n",
    "http-1.0": b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
}


class Stream:
    """An upstream that sends an event for each text put into `events`; None ends the stream."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.events: queue.Queue[str | None] = queue.Queue()
        self.closed = threading.Event()

    def script(self, wire: OriginWire) -> None:
        if wire.request() is None:
            return
        wire.send(HEADS[self.kind])
        while (text := self.events.get(timeout=PATIENCE)) is not None:
            event = f"data: {text}\n\n".encode()
            wire.send(b"%x\r\n%b\r\n" % (len(event), event) if self.kind == "chunked" else event)
        if self.kind == "chunked":
            wire.send(b"0\r\n\r\n")

    def waiting(self, wire: OriginWire) -> None:
        """Sends one event, and then nothing until the proxy closes."""
        wire.request()
        wire.send(HEADS[self.kind])
        wire.send(b"9\r\ndata: 1\n\n\r\n" if self.kind == "chunked" else b"data: 1\n\n")
        wire.wait_closed()
        self.closed.set()


@pytest.fixture(params=list(HEADS))
def stream(request: pytest.FixtureRequest) -> Stream:
    return Stream(request.param)


def listening(site: Site, request: bytes = GET) -> Wire:
    """A client that has the head, before there was any event."""
    client = site.client()
    client.send(request)
    head, fields = client.head()
    assert head == "HTTP/1.1 200 OK"
    assert fields["content-type"] == "text/event-stream"
    return client


def test_each_event_comes_at_once(origin: MakeOrigin, site: MakeSite, stream: Stream, sockets: int) -> None:
    """The next event is sent only when the client has the one before; then the stream ends in order, for both."""
    made = site(route("events", origin(stream.script).url), sockets=sockets)
    client = listening(made)
    for number in range(20):
        stream.events.put(str(number))
        assert client.until(b"\r\ndata: %d\n\n\r\n" % number)
    stream.events.put(None)
    assert client.until(b"0\r\n\r\n") == b"0\r\n\r\n"
    client.send(GET)
    assert client.head()[0] == "HTTP/1.1 200 OK"
    stream.events.put(None)
    client.until(b"0\r\n\r\n")
    client.close()


def test_an_http_1_0_client_hears_each_event(origin: MakeOrigin, site: MakeSite, stream: Stream) -> None:
    """Without chunks the end of the connection is the end of the stream."""
    made = site(route("events", origin(stream.script).url))
    client = listening(made, GET.replace(b"HTTP/1.1", b"HTTP/1.0"))
    for number in range(5):
        stream.events.put(str(number))
        assert client.until(b"\n\n") == b"data: %d\n\n" % number
    stream.events.put(None)
    assert client.rest() == b""
    client.close()


def test_a_client_that_leaves_ends_the_stream(origin: MakeOrigin, site: MakeSite, stream: Stream) -> None:
    """The upstream of a quiet stream hears within a second that nobody listens any more, and the place is free."""
    made = site(route("events", origin(stream.waiting).url))
    client = listening(made)
    client.until(b"data: 1\n\n")
    left = time.monotonic()
    client.close()
    assert stream.closed.wait(PATIENCE)
    assert time.monotonic() - left < 1
    wait_until(lambda: made.engine.admission.in_flight == 0, "the place")


def test_many_listeners_hear_their_own(origin: MakeOrigin, site: MakeSite) -> None:
    """Fifty streams at once need no threads of their own, and each carries its own events."""
    gate = threading.Event()

    def script(wire: OriginWire) -> None:
        request = wire.request()
        assert request is not None
        wire.send(HEADS["close-delimited"] + b"data: hello %b\n\n" % request.target.encode())
        assert gate.wait(PATIENCE)
        wire.send(b"data: bye %b\n\n" % request.target.encode())

    made = site(route("events", origin(script).url), connection_limit=200)
    clients = [listening(made, GET.replace(b"/x", b"/%d" % number)) for number in range(50)]
    for number, client in enumerate(clients):
        client.until(b"data: hello /%d\n\n" % number)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(("pproxy", "waitress"))]
    assert len(threads) < 25
    gate.set()
    for number, client in enumerate(clients):
        assert client.until(b"0\r\n\r\n").count(b"data: bye /%d\n\n" % number) == 1
        client.close()


def test_a_stream_that_breaks_is_reset(origin: MakeOrigin, site: MakeSite, stream: Stream) -> None:
    """An upstream that resets in the middle of its stream does not look like one that has ended."""
    heard = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(HEADS[stream.kind] + (b"9\r\ndata: 1\n\n\r\n" if stream.kind == "chunked" else b"data: 1\n\n"))
        assert heard.wait(PATIENCE)
        wire.reset()

    client = listening(site(route("events", origin(script).url)))
    client.until(b"data: 1\n\n\r\n")
    heard.set()
    with pytest.raises(ConnectionResetError):
        client.rest()
    client.close()


def test_streamed_events_come_at_once(origin: MakeOrigin, site: MakeSite, stream: Stream) -> None:
    """Where nothing is detached the iterable gives each event as it comes, and ends with the stream."""
    made = site(route("events", origin(stream.script).url))
    stream.events.put("0")  # where nothing is detached, the head comes with the first bytes
    status, _, body = Request.blank("/events/x").call_application(made.application)
    assert status == "200 OK"
    for number in range(5):
        assert next(body) == b"data: %d\n\n" % number
        stream.events.put(str(number + 1))
    stream.events.put(None)
    assert b"".join(body) == b"data: 5\n\n"
    body.close()
