"""A socket and what a loop knows about it; and how waits and tasks see their loop."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

from pyramid_threaded_proxy.exceptions import ExchangeFailed
from pyramid_threaded_proxy.loop.timers import Timed

FOREVER = float("inf")


class Endpoint:
    """A non-blocking socket and what a poller knows about it. Touched only by the loop that its task is in."""

    __slots__ = ("armed", "fd", "loop", "may_half_close", "owner", "released", "reset", "sock", "wanted", "watched")
    #: Whether what the descriptor carries is what is read and written: nothing is encrypted.
    raw: ClassVar[bool] = True

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.armed = -1  # the events that the poller watches for; -1: it doesn't know this socket
        self.wanted = 0  # the events that the owner waits for
        self.watched = False  # whether a hang-up ends the owner
        self.may_half_close = False  # a hang-up means no more than that no more bytes come
        self.reset = False  # the peer reset it: there is nothing to wait for
        self.released = False  # it is another's by now: only its number is known here
        self.owner: Owner | None = None
        self.loop: LoopOfTasks | None = None  # the loop whose poller knows it

    def close(self) -> None:
        """Close the socket, after its poller was told to forget it. In the thread of its loop, if it has one."""
        if self.loop is not None:
            self.loop.forget(self)
        self.sock.close()


class TlsEndpoint(Endpoint):
    """A `tls.TlsSocket`: reads and writes as a plain one, but the kernel can't move its bytes."""

    __slots__ = ()
    raw = False


class Owner(Protocol):
    """Whoever is told what happens on an endpoint: a task, or the pool that keeps an idle connection."""

    def on_event(self, endpoint: Endpoint, events: int) -> None:
        """The poller saw `events`. Runs in the thread of the endpoint's loop."""


class Taking(Protocol):
    """What a loop receives with (`syscalls.Receiver`)."""

    def take(self, sock: socket.socket) -> bytes | None:
        """What has come, None where nothing can be taken this way."""


class LoopOfTasks(Protocol):
    """What tasks, waits and owners of sockets see of their `loop.Loop`. Its thread alone, but for `post`."""

    now: float
    heard: float
    batched: list[Any]
    thread: threading.Thread
    receiver: Taking

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have ``function(*arguments)`` run in the loop's thread. Any thread."""

    def want(self, endpoint: Endpoint, events: int, owner: Owner) -> None:
        """Tell `owner` when `endpoint` is ready for `events`."""

    def watch(self, endpoint: Endpoint, owner: Any) -> None:
        """Tell `owner` when the peer of `endpoint` hangs up."""

    def disarm(self, endpoint: Endpoint, events: int) -> None:
        """The poller reported `events` that nobody waits for."""

    def forget(self, endpoint: Endpoint) -> None:
        """Stop watching `endpoint`."""

    def call_at(self, entry: Timed, due: float) -> None:
        """Call ``entry.on_timer`` soon after `due`."""

    def look_at(self, task: Any, due: float) -> None:
        """Have the task look at its deadline at `due`."""

    def enter(self, task: Any) -> None:
        """A task is here from now on."""

    def leave(self, task: Any) -> None:
        """A task ended, or goes to another loop."""


class Threads(Protocol):
    """What a wait sees of the `scheduler.Scheduler`."""

    @property
    def loop(self) -> LoopOfTasks:
        """The loop for all that is short."""

    @property
    def pool(self) -> Pool:
        """The threads for the application's own code."""

    def next_mover(self) -> LoopOfTasks:
        """A loop for a big body."""


class Pool(Protocol):
    """What a wait sees of the `thread_pool.ThreadPool`."""

    def submit(self, function: Callable[[Any], None], argument: Any, share: str | None = None) -> Any:
        """Run ``function(argument)`` in one of the threads; what is returned can be withdrawn."""

    def withdraw(self, job: Any) -> bool:
        """Whether it had not begun; then it never will."""

    def away(self, share: str | None) -> AbstractContextManager[None]:
        """Around what a function that runs for `share` waits for: meanwhile others have its thread's place."""


class Waiting(Protocol):
    """What a wait sees of the `task.Task` that waits. The thread of the task's loop, but for `post`."""

    scheduler: Threads
    loop: LoopOfTasks
    share: str | None
    deadline: float
    next_look: float
    interruption: ExchangeFailed | None

    @property
    def wait(self) -> object:
        """What it waits for at this moment."""

    def advance(self, value: Any, error: BaseException | None) -> None:
        """Run until the next wait."""

    def resume(self, wait: Any, value: Any, error: BaseException | None) -> None:
        """Go on with what `wait` has brought, if it is still what the task waits for."""

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have `function` run in this task's loop. Any thread."""

    def move(self, loop: LoopOfTasks) -> None:
        """Go on in another loop."""

    def on_event(self, endpoint: Endpoint, events: int) -> None:
        """The poller saw `events` on a socket of this task."""
