"""Which sockets are ready: epoll where the system has it, `selectors` elsewhere.

Both pollers are level-triggered and speak the same three event bits.
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import threading
from typing import Protocol

READ = 0x001
WRITE = 0x004
#: The peer closed its sending side. Only epoll can tell that apart from readable bytes.
HANGUP = 0x2000
#: An error, or both sides closed: epoll reports these whatever was asked for.
BROKEN = 0x008 | 0x010
#: An error alone: the peer reset the connection.
RESET = 0x008


#: A poll that reports as many may have left some out.
MOST_EVENTS = 1000


class Poller(Protocol):
    """One thread polls; `wake` alone may be called from any thread."""

    def set(self, fd: int, events: int, known: bool) -> None:
        """Watch `fd` for `events`; `known` says whether it is watched already."""

    def forget(self, fd: int) -> None:
        """Stop watching `fd`, which must still be open."""

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Return the ready ``(fd, events)``; `timeout` in seconds, None waits for ever. A wake-up is not among them.

        Where they are `MOST_EVENTS` or more, others may be ready too.
        """

    def wake(self) -> None:
        """Make a poll under way, or the next one, return at once."""

    def close(self) -> None:
        """Release the poller's own descriptors."""


class EpollPoller:
    """Linux: one epoll instance and an eventfd. Polled by one thread; `wake` is called by any."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        try:
            self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:
            self._epoll.close()
            raise
        # Edge-triggered: each write is an event of its own, and nobody has to read the counter back.
        self._epoll.register(self._eventfd, READ | select.EPOLLET)
        self._closing = threading.Lock()  # a wake-up that comes late must not reach a descriptor of somebody else's

    def set(self, fd: int, events: int, known: bool) -> None:
        if known:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)

    def forget(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        events = self._epoll.poll(timeout, MOST_EVENTS)
        if len(events) == 1 and events[0][0] == self._eventfd:
            return []
        return events

    def wake(self) -> None:
        with self._closing:
            if not self._epoll.closed:
                os.eventfd_write(self._eventfd, 1)

    def close(self) -> None:
        with self._closing:
            self._epoll.close()
            os.close(self._eventfd)


class SelectorPoller:
    """Systems without epoll or eventfd: the standard library's selector and a socket pair.

    A hang-up can't be asked for alone: the socket is watched for bytes, and a peek tells bytes from an end.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._wanted: dict[int, int] = {}

    def set(self, fd: int, events: int, known: bool) -> None:
        mask = (selectors.EVENT_READ if events & (READ | HANGUP) else 0) | (
            selectors.EVENT_WRITE if events & WRITE else 0
        )
        self._wanted[fd] = events
        registered = fd in self._selector.get_map()
        if not mask:
            if registered:
                self._selector.unregister(fd)
        elif registered:
            self._selector.modify(fd, mask)
        else:
            self._selector.register(fd, mask)

    def forget(self, fd: int) -> None:
        self._wanted.pop(fd, None)
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        ready = []
        for key, mask in self._selector.select(timeout):
            if key.fd == self._wakeup.fileno():
                self._drain()
                continue
            events = self._events(key.fd, mask)
            if events:
                ready.append((key.fd, events))
        return ready

    def _events(self, fd: int, mask: int) -> int:
        wanted = self._wanted[fd]
        events = WRITE if mask & selectors.EVENT_WRITE else 0
        if mask & selectors.EVENT_READ:
            if wanted & READ:
                events |= READ
            elif _at_end(fd):
                events |= HANGUP
            else:
                # Bytes nobody asked for: without this the selector would report them without end.
                self.set(fd, wanted & ~HANGUP, known=True)
        return events

    def _drain(self) -> None:
        try:
            while self._wakeup.recv(4096):
                pass
        except BlockingIOError:
            pass

    def wake(self) -> None:
        try:
            self._waker.send(b"x")
        except BlockingIOError:
            pass  # so full of wake-ups that one more would say nothing new
        except OSError:
            pass  # closed: nobody polls any more

    def close(self) -> None:
        self._selector.close()
        self._wakeup.close()
        self._waker.close()


def _at_end(fd: int) -> bool:
    peek = socket.socket(fileno=os.dup(fd))
    try:
        return not peek.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        peek.close()


def new_poller() -> Poller:
    """The best poller of this system."""
    if hasattr(select, "epoll") and hasattr(os, "eventfd"):
        return EpollPoller()
    return SelectorPoller()


def wait_for(wanted: dict[int, int], timeout: float) -> tuple[int, int]:
    """Block until one of the descriptors is ready for its events, `timeout` seconds at most.

    Returns ``(fd, events)``; ``(-1, 0)`` when the time is over.
    """
    if hasattr(select, "poll"):
        poll = select.poll()
        for fd, events in wanted.items():
            poll.register(fd, events)
        ready = poll.poll(min(timeout, 2_000_000) * 1000)
        return ready[0] if ready else (-1, 0)
    reads = [fd for fd, events in wanted.items() if events & READ]
    writes = [fd for fd, events in wanted.items() if events & WRITE]
    readable, writable, _ = select.select(reads, writes, [], timeout)
    if readable:
        return readable[0], READ
    return (writable[0], WRITE) if writable else (-1, 0)
