"""What own views' answers cost waitress's loop and the client: one packet where one will do, and no turn in vain."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pyramid.response import Response

from pyramid_threaded_proxy.detach.channel import DetachableChannel
from pyramid_threaded_proxy.detach.small_messages import SmallMessages
from pyramid_threaded_proxy.detach.trigger import SafeTrigger
from pyramid_threaded_proxy.loop.syscalls import KEEPS_LOCK, SMALL
from tests.support.detaching import BIG, slow_client
from tests.support.site import MakeSite, own_view, with_view
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import body, get


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What own views' answers were sent by, call by call."""
    calls: list[bytes] = []
    send = DetachableChannel.send

    def sending(self: Any, data: bytes, do_close: bool = True) -> int:
        calls.append(data)
        return send(self, data, do_close)

    monkeypatch.setattr(DetachableChannel, "send", sending)
    return calls


def test_head_and_body_go_out_together(site: MakeSite, sent: list[bytes]) -> None:
    """A small page is one call of the system, and one packet; the next one on the connection as well."""
    client = site(configure=own_view).client()
    for _ in range(2):
        client.send(get("/own"))
        assert body(client) == b"own"
        (packet,) = sent
        assert packet.startswith(b"HTTP/1.1 200 OK\r\n")
        assert packet.endswith(b"\r\n\r\nown")
        sent.clear()
    client.close()


@pytest.mark.parametrize("size", [SMALL, SMALL + 1, 10 * SMALL])
def test_a_large_body_is_not_copied_behind_its_head(site: MakeSite, sent: list[bytes], size: int) -> None:
    """Where the body is large the head goes out alone, before it."""
    client = site(configure=with_view(lambda request: Response(b"x" * size))).client()
    client.send(get("/own/x"))
    assert body(client) == b"x" * size
    assert sent[0].endswith(b"\r\n\r\n") == (size > SMALL)
    client.close()


@pytest.mark.parametrize(
    ("status", "length", "pieces", "seen"),
    [
        ("204 No Content", None, [b"ignored"], b""),
        ("200 OK", "0", [b"too much"], b""),
        ("200 OK", "4", [b"four", b"more"], b"four"),
        ("200 OK", "4", [b"", b"fo", b"", b"ur"], b"four"),
        ("200 OK", "0", [], b""),
    ],
)
def test_no_head_is_lost(site: MakeSite, status: str, length: str | None, pieces: list[bytes], seen: bytes) -> None:
    """A head whose body is left out, cut off, empty or late is sent all the same, once."""

    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response(status, [("Content-Length", length)] if length else [])
        return pieces

    app = site(configure=own_view, wrap=lambda inner: application)
    client = app.client()
    for _ in range(2 if length else 1):
        client.send(get("/own"))
        first, _ = client.head()
        assert first == f"HTTP/1.1 {status}"
        assert (client.exactly(int(length)) if length else client.rest()) == seen
    client.close()


def test_a_streamed_page_goes_out_piece_by_piece(site: MakeSite, sent: list[bytes]) -> None:
    """A page that is made while it is sent: its first piece comes with the head, before the second one is made."""
    opened = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"first"
        assert opened.wait(PATIENCE)
        yield b"second"

    client = site(configure=with_view(lambda request: Response(app_iter=pieces()))).client()
    client.send(get("/own/x", version="1.0"))
    client.head()
    assert client.exactly(5) == b"first"
    assert len(sent) == 1
    opened.set()
    assert client.rest() == b"second"
    client.close()


def test_waitress_is_not_woken_by_a_page(site: MakeSite, monkeypatch: pytest.MonkeyPatch, sockets: int) -> None:
    """The end of a request wakes waitress's loop only where that does not watch the client: each turn costs a look at
    all connections. Its own look around is an hour away here."""
    pulls: list[Any] = []
    pull = SafeTrigger._physical_pull
    app = site(configure=own_view, sockets=sockets, asyncore_loop_timeout=3600)
    client = app.client()
    client.send(get("/own"))
    assert body(client) == b"own"
    (channel,) = app.channels
    monkeypatch.setattr(SafeTrigger, "_physical_pull", lambda self: (pulls.append(channel.unwatched), pull(self)))
    for _ in range(20):
        client.send(get("/own"))
        assert body(client) == b"own"
    wait_until(lambda: not channel.requests, "the end of the last one")
    assert all(pulls)
    client.close()


def test_waitress_does_not_turn_while_a_worker_sends(site: MakeSite) -> None:
    """What a worker has just written is no reason to watch for room, until it says that some is left."""
    app = site(configure=own_view)
    client = app.client()
    client.send(get("/own"))
    assert body(client) == b"own"
    (channel,) = app.channels
    looks: list[tuple[bool, bool]] = []

    def sending(data: bytes, do_close: bool = True) -> int:
        looks.append((bool(channel.writable()), channel.readable()))
        return 0 if len(looks) == 1 else type(channel).send(channel, data, do_close)

    channel.send = sending
    client.send(get("/own"))
    assert body(client) == b"own"  # what could not be sent at once is sent by the main thread
    assert looks == [(False, True), (True, False)]
    client.close()


def test_a_slow_reader_gets_all_of_a_page(site: MakeSite) -> None:
    """An own page in one piece that the kernel has no room for is sent on as its client reads."""
    page = b"x" * BIG
    client = slow_client(site(configure=with_view(lambda request: Response(page))))
    client.send(get("/own/x", version="1.0"))
    client.head()
    assert client.rest() == page
    client.close()


def test_on_one_core_nothing_stands_between() -> None:
    """Where the lock need not be kept, receiving and sending are waitress's own: a look in vain costs each page."""
    alone = (
        "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n"
        "from pyramid_threaded_proxy.detach.small_messages import SmallMessages\n"
        "print({*vars(SmallMessages)} & {'recv', 'send'})"
    )
    assert subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True).stdout == "set()\n"
    assert ("recv" in vars(SmallMessages)) == ("send" in vars(SmallMessages)) == KEEPS_LOCK
