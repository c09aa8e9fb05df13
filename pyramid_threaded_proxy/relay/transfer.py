"""Moving bodies between sockets: inside the kernel where it can be, through a bounded buffer elsewhere.

All functions are steps of a task (`loop.task`): they run in the loop that the task is in, and hold the two sockets
for as long as they run. `moved` is told the number of bytes after each write.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from typing import IO

from pyramid_threaded_proxy.exceptions import (
    ClientGone,
    ClientTimedOut,
    ExchangeFailed,
    ReadTimedOut,
    SendTimedOut,
    UpstreamGone,
)
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import READ, WRITE
from pyramid_threaded_proxy.loop.waits import Ready, Steps, Yield

#: Bytes: a body with at least so much to go is worth a pipe, and one that is copied a hop to a mover.
WORTH_MOVING = 64 * 1024
#: Bytes: a body that goes through a pipe, with less than so much to go, holds the first loop up for a fraction of a
#: millisecond; the hop to a mover and back would cost more than that saves.
WORTH_A_HOP = 2 * 1024 * 1024
#: Bytes: what the pipe of a body that is worth a hop is asked to hold. More saves system calls, and locks more kernel
#: memory. Other bodies take a pipe as the system makes it: what it consists of stays in the processor's caches.
PIPE_SIZE = 1024 * 1024
#: Pipes of each kind kept for reuse.
KEPT_PIPES = 16
#: Bytes that should be there before a waiting mover is woken.
LOW_WATER = 128 * 1024
#: Bytes that the kernel moves before the other exchanges of a mover have their turn.
A_TURN = 16 * 1024 * 1024
#: The same in the first loop, which a body that is not worth a hop stays in: small answers wait there.
A_SHORT_TURN = 1024 * 1024
#: Seconds that a fast upstream may take to get there, before every byte counts again.
PATIENCE = 0.1
#: Bytes that are taken from an upstream whose client is slower than it.
SMALL_READ = 16 * 1024

Moved = Callable[[int], None]


class Pipe:
    """A pipe that bytes pass through without entering Python. Belongs to one task, or to `Pipes`."""

    __slots__ = ("held", "size", "source", "target", "wide")

    def __init__(self, wide: bool) -> None:
        self.source, self.target = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        self.wide = wide
        try:
            self.size = _size(self.target, wide)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close both ends; what it held is lost."""
        os.close(self.source)
        os.close(self.target)


def _size(pipe: int, wide: bool) -> int:
    """How many bytes a pipe holds; a `wide` one is made as wide as the system allows, up to `PIPE_SIZE`."""
    import fcntl

    # F_SETPIPE_SZ and F_GETPIPE_SZ have no names in Python 3.10 on every build.
    if wide:
        try:
            return fcntl.fcntl(pipe, 1031, PIPE_SIZE)
        except OSError:
            pass  # over the user's soft limit: take what the system gives
    return fcntl.fcntl(pipe, 1032)


class Pipes:
    """Pipes for reuse. Any thread; a pipe is never reused after an error, when it may hold another's bytes."""

    def __init__(self) -> None:
        self._kept: dict[bool, deque[Pipe]] = {True: deque(), False: deque()}
        self._pid = os.getpid()

    def take(self, wide: bool) -> Pipe | None:
        """An empty pipe; None where pipes or splice can't be had."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self.close()  # a fork shares them: parent and child would mix their bytes
        try:
            return self._kept[wide].pop()
        except IndexError:
            pass
        try:
            return Pipe(wide) if can_splice() else None
        except OSError:
            return None

    def give_back(self, pipe: Pipe) -> None:
        """Keep an empty pipe, or close it."""
        kept = self._kept[pipe.wide]
        if pipe.held or len(kept) >= KEPT_PIPES:
            pipe.close()
        else:
            kept.append(pipe)

    def close(self) -> None:
        """Close the kept pipes."""
        for kept in self._kept.values():
            while kept:
                kept.pop().close()


def can_splice() -> bool:
    """Whether this system moves bytes between sockets inside the kernel."""
    return hasattr(os, "splice") and hasattr(os, "pipe2")


def send_to_client(target: Endpoint, data: bytes | memoryview, timeout: float) -> Steps:
    """Steps: write everything to the client."""
    view = memoryview(data)
    while view:
        try:
            view = view[target.sock.send(view) :]
        except BlockingIOError:
            yield Ready(target, WRITE, timeout, ClientTimedOut)
        except OSError as error:
            raise client_gone(error) from None


def upstream_gone(error: OSError) -> UpstreamGone:
    """The upstream's connection broke."""
    gone = UpstreamGone(f"the connection broke: {_strerror(error)}")
    gone.reset = isinstance(error, ConnectionResetError)
    return gone


def client_gone(error: OSError) -> ClientGone:
    """The client's connection broke."""
    return ClientGone(_strerror(error))


def _strerror(error: OSError) -> str:
    return error.strerror or str(error)


def splice_body(
    source: Endpoint, target: Endpoint, length: int, pipe: Pipe, read_timeout: float, send_timeout: float, moved: Moved
) -> Steps:
    """Steps: move exactly `length` bytes from the upstream to the client through a pipe."""
    left, turn = length, 0
    a_turn = A_TURN if length >= WORTH_A_HOP else A_SHORT_TURN
    arrival = _Arrival(source, read_timeout)
    while left or pipe.held:
        if left and pipe.held < pipe.size // 2:
            taken = splice(source.fd, pipe.target, min(left, pipe.size - pipe.held), upstream_gone)
            if taken == 0:
                raise UpstreamGone(f"closed with {left} bytes of its answer missing")
            if taken is not None:
                left -= taken
                pipe.held += taken
                arrival.last = taken
            elif not pipe.held:
                yield from arrival.wait(left)
                continue
        sent = splice(pipe.source, target.fd, pipe.held, client_gone)
        if sent is None:
            yield Ready(target, WRITE, send_timeout, ClientTimedOut)
        else:
            pipe.held -= sent
            moved(sent)
            if (turn := turn + sent) >= a_turn:
                turn = 0
                yield Yield()
    arrival.every_byte_counts()


class _Arrival:
    """Waits for an upstream's bytes, with SO_RCVLOWAT for many at once. Lives in the task that made it."""

    __slots__ = ("_low_water", "_source", "_timeout", "last")

    def __init__(self, source: Endpoint, timeout: float) -> None:
        self._source = source
        self._timeout = timeout
        self._low_water = 1  # the mark in force
        self.last = 0  # bytes that came last

    def wait(self, left: int) -> Steps:
        """Steps: until a good number of the `left` bytes is there, or any once the upstream proves slow."""
        timeout = self._timeout
        if self.last >= WORTH_MOVING and timeout > PATIENCE:
            self._mark(min(LOW_WATER, left))
            try:
                yield Ready(self._source, READ, PATIENCE, ReadTimedOut)
                return
            except ReadTimedOut:
                timeout -= PATIENCE
        self.last = 0
        self.every_byte_counts()
        yield Ready(self._source, READ, timeout, ReadTimedOut)

    def every_byte_counts(self) -> None:
        """What a connection needs that is waited for in vain, or kept."""
        self._mark(1)

    def _mark(self, count: int) -> None:
        # Only now: where all has come already the mark is never touched.
        if count != self._low_water:
            self._source.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._low_water = count


def splice(source: int, target: int, count: int, gone: Callable[[OSError], ExchangeFailed]) -> int | None:
    """Move up to `count` bytes; None when it would block."""
    try:
        return os.splice(source, target, count, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
    except BlockingIOError:
        return None
    except OSError as error:
        raise gone(error) from None


def send_file(source: IO[bytes], start: int, length: int, target: Endpoint, timeout: float, moved: Moved) -> Steps:
    """Steps: send `length` bytes of a real file to the upstream."""
    offset, end, turn = start, start + length, 0
    descriptor = source.fileno()
    while offset < end:
        try:
            sent = os.sendfile(target.fd, descriptor, offset, min(end - offset, PIPE_SIZE))
        except BlockingIOError:
            yield Ready(target, WRITE, timeout, SendTimedOut)
        except OSError as error:
            raise upstream_gone(error) from None
        else:
            if sent == 0:
                raise EOFError(f"the request body ends {end - offset} bytes early")
            offset += sent
            moved(sent)
            if (turn := turn + sent) >= A_TURN:
                turn = 0
                yield Yield()
