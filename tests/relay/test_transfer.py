"""Bodies through pipes and through buffers: the same bytes, and no pipe is ever used again that may hold another's."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import struct
import termios
import threading
from typing import Any

import pytest

from pyramid_threaded_proxy.exceptions import ClientGone, ReadTimedOut, SendTimedOut, UpstreamGone
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import WRITE
from pyramid_threaded_proxy.relay import transfer
from pyramid_threaded_proxy.relay.transfer import KEPT_PIPES, Pipe, Pipes, send_file, send_to_client, splice_body
from tests.support.bodies import content
from tests.support.leaks import open_descriptors
from tests.support.origin import MakeOrigin, answering
from tests.support.pairs import MakePair, low_water
from tests.support.site import MakeSite, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, Wire


def drive(steps: Any) -> Any:
    """Run steps in this thread, as a streamed exchange does; returns their value."""
    value: Any = None
    error: Exception | None = None
    while True:
        try:
            wait = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value
        value = error = None
        try:
            value = wait.block()
        except Exception as raised:
            error = raised


# Through a site


@pytest.fixture(params=["splice", "no splice", "no pipe left"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How big bodies move."""

    def none_left(flags: int) -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    if request.param == "no splice":
        monkeypatch.setattr(transfer, "can_splice", lambda: False)
    elif request.param == "no pipe left":
        monkeypatch.setattr(transfer.os, "pipe2", none_left)
    return str(request.param)


@pytest.mark.parametrize("size", [65535, 65536, 131073, 5 << 20])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_big_body_moves_the_same_every_way(
    origin: MakeOrigin, site: MakeSite, way: str, size: int, version: str
) -> None:
    """With and without splice, and where no pipe can be had, each byte arrives, twice over kept connections."""
    body = content(size)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, body)
    upstream = origin(answering(answer, answer))
    client = site(route("r", upstream.url)).client()
    for _ in range(2):
        client.send(f"GET /r/ HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n".encode())
        client.head()
        assert hashlib.sha256(client.exactly(size)).digest() == hashlib.sha256(body).digest()
    client.close()
    assert upstream.accepted == 1


def test_a_slow_client_gets_a_copied_body(origin: MakeOrigin, site: MakeSite, way: str) -> None:
    """A client that reads late gets the same bytes every way."""
    body = content(6 << 20)
    where = site(
        route("r", origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))).url)
    )
    client = Wire(socket.socket())
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sock.connect(("127.0.0.1", where.port))
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    wait_until(lambda: where.parked(WRITE), "an exchange that waits for its client")
    client.head()
    assert hashlib.sha256(client.rest()).digest() == hashlib.sha256(body).digest()
    client.close()


def test_a_body_that_breaks_every_way(origin: MakeOrigin, site: MakeSite, way: str) -> None:
    """A big body that ends early is broken off, and nothing of it shows up in the next one."""
    size = 2 << 20

    def script(wire: OriginWire) -> None:
        request = wire.request()
        assert request is not None
        byte = request.target[1:].encode()
        rest = 0 if byte == b"b" else 1_000_000
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + byte * (size - rest))

    where = site(route("r", origin(script).url))
    client = where.client()
    client.send(b"GET /r/a HTTP/1.1\r\nHost: a\r\n\r\n")
    client.head()
    with pytest.raises(ConnectionResetError):
        client.rest()
    client.close()
    assert where.get("/r/b").body == b"b" * size


# Pipes


def kept(pipes: Pipes) -> list[Pipe]:
    return [pipe for kind in pipes._kept.values() for pipe in kind]


@pytest.mark.parametrize("wide", [True, False])
def test_pipes_are_used_again_up_to_a_number(wide: bool) -> None:
    """What is given back empty is taken again; more than `KEPT_PIPES` of a kind are not kept."""
    pipes = Pipes()
    taken = [pipes.take(wide) for _ in range(KEPT_PIPES + 1)]
    assert all(isinstance(pipe, Pipe) for pipe in taken)
    for pipe in taken:
        assert pipe is not None
        pipes.give_back(pipe)
    assert len(kept(pipes)) == KEPT_PIPES
    assert pipes.take(wide) in taken[:KEPT_PIPES]
    pipes.give_back(taken[KEPT_PIPES - 1])  # type: ignore[arg-type]
    other = pipes.take(not wide)
    assert other is not None
    assert other not in taken
    assert other.wide is not wide
    pipes.give_back(other)
    assert len(kept(pipes)) == KEPT_PIPES + 1
    pipes.close()
    assert not kept(pipes)


def test_a_pipe_that_holds_bytes_is_not_kept() -> None:
    """It would give them to the next exchange."""
    pipes = Pipes()
    pipe = pipes.take(wide=True)
    assert pipe is not None
    os.write(pipe.target, b"x")
    pipe.held = 1
    pipes.give_back(pipe)
    assert not kept(pipes)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe.source)


def test_a_fork_shares_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another process the kept pipes are closed: both would read from the same one."""
    pipes = Pipes()
    pipe = pipes.take(wide=True)
    assert pipe is not None
    pipes.give_back(pipe)
    monkeypatch.setattr(transfer.os, "getpid", lambda: -1)
    other = pipes.take(wide=True)
    assert other is not None
    assert other is not pipe
    assert not kept(pipes)
    other.close()


def test_a_pipe_that_can_not_grow_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the user's soft limit for pipe pages the system's own size is taken."""
    real = fcntl.fcntl

    def limited(fd: int, command: int, *rest: Any) -> Any:
        if command == 1031:
            raise PermissionError(1, "Operation not permitted")
        return real(fd, command, *rest)

    monkeypatch.setattr(fcntl, "fcntl", limited)
    pipe = Pipe(wide=True)
    assert 0 < pipe.size <= 1 << 20
    pipe.close()


@pytest.mark.parametrize("wide", [True, False])
def test_a_pipe_that_can_not_be_asked_is_closed(monkeypatch: pytest.MonkeyPatch, wide: bool) -> None:
    """A system that tells no pipe's size has none for us, and keeps no descriptor of it."""

    def refused(*arguments: Any) -> Any:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(fcntl, "fcntl", refused)
    before = open_descriptors()
    assert Pipes().take(wide) is None
    assert open_descriptors() == before


# Single steps


def test_splice_takes_exactly_the_body(make_pair: MakePair) -> None:
    """What lies behind the body stays in the upstream's socket, whose low-water mark is one again."""
    (source, upstream), (target, client) = make_pair(), make_pair()
    body = content(100_000)
    upstream.sendall(body + b"next")
    pipe, moved = Pipe(wide=True), []
    drive(splice_body(source, target, len(body), pipe, 5.0, 5.0, moved.append))
    assert (sum(moved), pipe.held) == (len(body), 0)
    assert Wire(client).exactly(len(body)) == body
    assert source.sock.recv(10) == b"next"
    assert source.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
    pipe.close()


def test_splice_waits_for_many_bytes_but_not_long(make_pair: MakePair) -> None:
    """After a big piece the next ones are awaited together; a single byte goes on all the same."""
    (source, upstream), (target, client) = make_pair(), make_pair()
    source.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # the kernel's first window may be less
    upstream.sendall(bytes(100_000))
    wait_until(lambda: _waiting(source) == 100_000, "all of it to be there")
    pipe, moved, marks = Pipe(wide=True), [], []
    steps = splice_body(source, target, 400_000, pipe, 5.0, 5.0, moved.append)
    mover = threading.Thread(target=drive, args=(steps,))
    mover.start()
    received = Wire(client)
    received.exactly(100_000)
    wait_until(lambda: marks.append(low_water(source)) or marks[-1] > 1, "many bytes to be awaited")
    upstream.sendall(b"x")
    assert received.exactly(1) == b"x"
    upstream.sendall(bytes(299_999))
    received.exactly(299_999)
    mover.join(10)
    assert (sum(moved), low_water(source)) == (400_000, 1)
    pipe.close()


def _waiting(endpoint: Endpoint) -> int:
    """Bytes in the receive buffer."""
    return struct.unpack("i", fcntl.ioctl(endpoint.fd, termios.FIONREAD, bytes(4)))[0]


def test_splice_times_out_and_tells_who_is_gone(make_pair: MakePair) -> None:
    """Each side's silence and each side's end have a name of their own."""
    pipe = Pipe(wide=True)
    (source, upstream), (target, client) = make_pair(), make_pair()
    with pytest.raises(ReadTimedOut):
        drive(splice_body(source, target, 10, pipe, 0.02, 5.0, lambda count: None))
    upstream.close()
    with pytest.raises(UpstreamGone, match="closed with 10 bytes of its answer missing"):
        drive(splice_body(source, target, 10, pipe, 5.0, 5.0, lambda count: None))
    (source, upstream), (target, client) = make_pair(), make_pair()
    client.close()
    upstream.sendall(bytes(1_000_000))
    with pytest.raises(ClientGone):
        drive(splice_body(source, target, 1_000_000, pipe, 5.0, 5.0, lambda count: None))
    pipe.close()


def test_send_to_client_times_out(make_pair: MakePair) -> None:
    """A client that takes nothing is a time-out."""
    with pytest.raises(transfer.ClientTimedOut):
        drive(send_to_client(make_pair()[0], bytes(32 << 20), 0.02))


def test_send_file_sends_what_is_asked_for(make_pair: MakePair, tmp_path: Any) -> None:
    """A file goes up from its start to its end; an upstream that takes nothing, and a file that is short, are told."""
    path, body = tmp_path / "body", content(16 << 20)
    path.write_bytes(body)
    with path.open("rb") as file:
        target, upstream = make_pair()
        drive(send_file(file, 5, 100, target, 5, lambda count: None))
        assert Wire(upstream).exactly(100) == body[5:105]
        with pytest.raises(SendTimedOut):
            drive(send_file(file, 0, len(body), target, 0.02, lambda count: None))
        with pytest.raises(EOFError, match="the request body ends 1 bytes early"):
            drive(send_file(file, len(body), 1, make_pair()[0], 5, lambda count: None))
