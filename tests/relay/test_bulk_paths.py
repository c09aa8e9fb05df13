"""Which way a body takes: where it is moved, what wakes the mover, and how much a TLS socket hands over at once."""

from __future__ import annotations

import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from pyramid_threaded_proxy.exceptions import ReadTimedOut
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import READ
from pyramid_threaded_proxy.loop.waits import Ready, Wait, Yield
from pyramid_threaded_proxy.relay.transfer import (
    A_SHORT_TURN,
    LOW_WATER,
    PATIENCE,
    WORTH_A_HOP,
    WORTH_MOVING,
    Pipe,
    splice_body,
)
from pyramid_threaded_proxy.upstream.tls import Tls, TlsSocket, new_context
from tests.support.bodies import content
from tests.support.certificates import Authority
from tests.support.origin import MakeOrigin, MakeTls, answering
from tests.support.pairs import MakePair, low_water
from tests.support.site import MakeSite, Site, route
from tests.support.waiting import wait_until
from tests.support.wire import Wire

#: More than comes with a head.
A_FEW = 4 * WORTH_MOVING


# Where


@pytest.mark.parametrize(("size", "hops"), [(A_FEW, 0), (WORTH_A_HOP, 0), (WORTH_A_HOP + A_FEW, 1)])
def test_only_a_big_body_hops(
    origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch, size: int, hops: int
) -> None:
    """What is soon through a pipe stays in the first loop; for more the movers are there, and wider pipes."""
    body = content(size)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, body)
    where = site(route("r", origin(answering(answer)).url))
    assert _hops(where, monkeypatch, body) == hops
    kept = where.engine.pipes._kept
    wait_until(lambda: (len(kept[False]), len(kept[True])) == (1 - hops, hops), "the pipe's return")


def test_a_body_that_is_decrypted_hops(
    tls_origin: MakeTls,
    authority: Authority,
    site: MakeSite,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No pipe helps there: even of a body that is not very big the first loop reads no more than came with the head."""
    readers = set()
    recv_into = TlsSocket.recv_into

    def noted(sock: TlsSocket, *arguments: Any) -> int:
        readers.add(threading.current_thread())
        return recv_into(sock, *arguments)

    monkeypatch.setattr(TlsSocket, "recv_into", noted)
    body = content(A_FEW)
    upstream = tls_origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)))
    where = site(route("r", upstream.url, tls__ca_file=authority.ca_file))
    assert _hops(where, monkeypatch, body) == 1
    assert readers < {loop.thread for loop in where.engine.scheduler._loops[1:]}


def _hops(where: Site, monkeypatch: pytest.MonkeyPatch, body: bytes) -> int:
    """Get `body`; returns how often its exchange went to a mover."""
    scheduler = where.engine.scheduler
    next_mover, taken = scheduler.next_mover, []

    def counted() -> Any:
        taken.append(next_mover())
        return taken[-1]

    monkeypatch.setattr(scheduler, "next_mover", counted)
    assert where.get("/r/").body == body
    return len(taken)


@pytest.mark.parametrize(("size", "turns"), [(A_SHORT_TURN + A_FEW, 1), (WORTH_A_HOP, 0)])
def test_turns_are_shorter_in_the_first_loop(make_pair: MakePair, size: int, turns: int) -> None:
    """A body that stays there lets others have their turn after each `A_SHORT_TURN`."""
    (source, upstream), (target, client) = make_pair(), make_pair()
    body, received, pipe = content(size), [], Pipe(wide=size >= WORTH_A_HOP)
    threads = [
        threading.Thread(target=upstream.sendall, args=(body,)),
        threading.Thread(target=lambda: received.append(Wire(client).exactly(size))),
    ]
    for thread in threads:
        thread.start()
    waits = Counter(type(wait) for wait in _driven(splice_body(source, target, size, pipe, 5, 5, lambda count: None)))
    for thread in threads:
        thread.join()
    assert received == [body]
    assert waits[Yield] == turns
    pipe.close()


def _driven(steps: Any) -> list[Wait]:
    """Run steps in this thread; returns what they waited for."""
    waits: list[Wait] = []
    value: Any = None
    while True:
        try:
            waits.append(steps.send(value))
        except StopIteration:
            return waits
        try:
            value = waits[-1].block()
        except ReadTimedOut as error:
            waits.append(steps.throw(error))
            value = waits[-1].block()


# What wakes the mover


class Recorded:
    """A socket that counts how often an option of it is set."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.set = 0

    def setsockopt(self, *arguments: Any) -> None:
        self.set += 1
        self._sock.setsockopt(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def test_what_has_come_needs_no_mark(make_pair: MakePair) -> None:
    """Where nothing is waited for the low-water mark is left alone."""
    (source, upstream), (target, client) = make_pair(), make_pair()
    upstream.sendall(bytes(100_000))
    wait_until(lambda: _peek(source) == 100_000, "all of it to be there")
    source.sock = recorded = Recorded(source.sock)  # type: ignore[assignment]
    pipe = Pipe(wide=True)
    assert _driven(splice_body(source, target, 100_000, pipe, 5, 5, lambda count: None)) == []
    assert recorded.set == 0
    assert Wire(client).exactly(100_000) == bytes(100_000)
    pipe.close()


def _peek(source: Endpoint) -> int:
    """How many bytes are there."""
    try:
        return len(source.sock.recv(1 << 20, socket.MSG_PEEK))
    except BlockingIOError:
        return 0


def test_the_mark_while_it_waits(make_pair: MakePair) -> None:
    """A fast upstream is waited for until many bytes are there, for `PATIENCE`; then every byte counts."""
    steps, source, pipe = _after_a_big_piece(make_pair, 5.0)
    wait = next(steps)
    assert (wait.timeout, low_water(source)) == (PATIENCE, LOW_WATER)
    wait = steps.throw(ReadTimedOut("nothing moved"))
    assert (wait.endpoint, wait.events, wait.timeout, low_water(source)) == (source, READ, 5.0 - PATIENCE, 1)
    steps.close()
    pipe.close()


def test_no_patience_with_a_short_timeout(make_pair: MakePair) -> None:
    """A read timeout that is shorter than `PATIENCE` is never spent on a mark that bytes lie below."""
    steps, source, pipe = _after_a_big_piece(make_pair, PATIENCE / 2)
    wait = next(steps)
    assert isinstance(wait, Ready)
    assert (wait.timeout, low_water(source)) == (PATIENCE / 2, 1)
    steps.close()
    pipe.close()


def _after_a_big_piece(make_pair: MakePair, timeout: float) -> tuple[Any, Endpoint, Pipe]:
    """The steps of a big body whose first piece has come and whose rest has not."""
    (source, upstream), (target, _) = make_pair(), make_pair()
    upstream.sendall(bytes(WORTH_MOVING))
    wait_until(lambda: _peek(source) == WORTH_MOVING, "the first piece")
    pipe = Pipe(wide=True)
    return splice_body(source, target, WORTH_A_HOP, pipe, timeout, 5.0, lambda count: None), source, pipe


# How much TLS hands over

A_RECORD = 16384


@pytest.fixture
def secured(stack: ExitStack, authority: Authority) -> Callable[[], tuple[TlsSocket, ssl.SSLSocket]]:
    """Makes a non-blocking `TlsSocket`, as it comes from the pool of connections, and its peer."""

    def make() -> tuple[TlsSocket, ssl.SSLSocket]:
        ends = socket.socketpair()
        peers: list[Any] = []
        thread = threading.Thread(target=lambda: peers.append(authority.server()(ends[1])))
        thread.start()
        context = new_context(Tls(ca_file=authority.ca_file))
        near = context.wrap_socket(ends[0], server_hostname="localhost", suppress_ragged_eofs=False)
        thread.join()
        near.setblocking(False)
        assert isinstance(near, TlsSocket)
        return stack.enter_context(near), stack.enter_context(peers[0])

    return make


MakeSecured = Callable[[], tuple[TlsSocket, ssl.SSLSocket]]


def test_all_records_that_have_come(secured: MakeSecured) -> None:
    """One call fills the buffer from several records; what did not fit and what is not there come later."""
    near, far = secured()
    body = content(4 * A_RECORD)
    far.sendall(body)
    buffer = bytearray(3 * A_RECORD + 100)
    assert near.recv_into(buffer) == len(buffer)
    assert buffer == body[: len(buffer)]
    assert near.recv_into(buffer, 50) == 50
    rest = len(body) - len(buffer) - 50
    assert near.recv_into(buffer) == rest
    assert buffer[:rest] == body[-rest:]
    with pytest.raises(BlockingIOError):
        near.recv_into(buffer)


def test_an_end_behind_good_bytes(secured: MakeSecured) -> None:
    """The bytes come first and then the end, however often it is asked for."""
    near, far = secured()
    far.sendall(b"last words")
    far.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        far.unwrap()  # the close_notify is out, and nobody has answered it
    buffer = bytearray(2 * A_RECORD)
    assert [near.recv_into(buffer) for _ in range(3)] == [10, 0, 0]


@pytest.mark.parametrize(
    ("behind", "reason"),
    [(b"", "EOF occurred in violation of protocol"), (b"\x17\x03\x03\x00\x20" + bytes(32), "BAD_RECORD_MAC")],
)
def test_a_failure_behind_good_bytes(secured: MakeSecured, behind: bytes, reason: str) -> None:
    """The bytes come first and then what went wrong, by its own name, however often it is asked for."""
    near, far = secured()
    far.sendall(b"last words")
    with socket.socket(fileno=far.detach()) as raw:
        raw.sendall(behind)
    buffer = bytearray(2 * A_RECORD)
    assert near.recv_into(buffer) == 10
    for _ in range(2):
        with pytest.raises(OSError, match=reason):
            near.recv_into(buffer)


def test_flags_are_refused(secured: MakeSecured) -> None:
    """There is no peeking through TLS, and who tries is told."""
    near, _ = secured()
    with pytest.raises(ValueError, match="TLS knows no flags"):
        near.recv_into(bytearray(1), None, socket.MSG_PEEK)
