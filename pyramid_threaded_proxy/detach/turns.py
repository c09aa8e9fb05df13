"""Whose turn it is among requests that wait for a worker thread: own pages and proxied requests, one after the other.

Waitress calls them as they came. Where more proxied requests come than its threads can ask about, each of the
application's own pages would wait for all that came before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from operator import methodcaller
from typing import Any, Protocol

from pyramid_threaded_proxy.detach.applications import Applications
from pyramid_threaded_proxy.detach.asked_first import asked_host, asked_path_info


class Mounted(Protocol):
    """An application that has proxied routes."""

    def is_proxied(self, path_info: str, host: str | None) -> bool:
        """Whether a request may be for one of them; None where the host can't be told yet.

        For each request, under the lock of waitress's dispatcher: what is said decides nothing but who waits.
        """


#: So many may wait for each thread before it matters whose turn it is.
FEW = 2

_applications: Applications[Mounted] = Applications()


def let_wait(application: Mounted) -> None:
    """Have requests that `application` calls proxied take turns with all others, from now on. Any thread."""
    _applications.add(application)


class TaskQueue(deque[Any]):
    """The channels whose request waits, as they will be called: own pages and proxied requests take turns, and in each
    kind those that came first are first.

    In place of the deque of waitress's dispatcher, and like that touched under the dispatcher's lock alone. Each is put
    in its place when it comes: what waitress does most often, to look and to take, stays the deque's own.
    """

    __slots__ = ("_tail", "_tail_is_own", "_threads")

    def __init__(self, threads: Collection[Any] = ()) -> None:
        """`threads` are the dispatcher's."""
        super().__init__()
        self._threads = threads
        self._tail = 0  # so many of one kind were at the end when the last one came, or one more: the other is next
        self._tail_is_own = False

    def append(self, channel: Any) -> None:
        """Where few wait it matters little whose turn it is, and nobody is asked."""
        if len(self) < FEW * len(self._threads):
            self._tail = 0
            deque.append(self, channel)
        else:
            self.put(channel, not _is_proxied(channel))

    def put(self, channel: Any, own: bool) -> None:
        """In its turn: who is the first of one kind waits for one of the other."""
        waiting, tail = len(self), self._tail
        if not tail or not waiting:  # behind whoever is here; an own page goes before the first proxied one
            self._tail, self._tail_is_own = 1 if own else 2, own
            deque.append(self, channel)
        elif own is self._tail_is_own:
            self._tail = min(tail, waiting) + 1
            deque.append(self, channel)
        elif waiting < tail:  # the last one that was taken was of the tail
            self._tail = waiting
            self.insert(0, channel)
        else:
            self.insert(waiting - tail + 1, channel)
            self._tail = tail - 1
            if tail == 1:
                self._tail, self._tail_is_own = 1, own

    def held(self) -> Holding:
        """What takes this one's place while proxied ones are held."""
        holding = Holding(self._threads)
        for channel in self:
            holding.append(channel)
        return holding


class Holding:
    """A queue whose proxied requests wait as if they had not come yet, while a `crowd` is read. As `TaskQueue`."""

    __slots__ = ("_holders", "_own", "_proxied", "_threads")

    def __init__(self, threads: Collection[Any]) -> None:
        self._threads = threads
        self._holders = 1
        self._own: deque[Any] = deque()
        self._proxied: deque[Any] = deque()

    def append(self, channel: Any) -> None:
        (self._proxied if _is_proxied(channel) else self._own).append(channel)

    def popleft(self) -> Any:
        """The next one. Raises IndexError where none waits."""
        return (self._own or self._seen()).popleft()

    def __len__(self) -> int:
        return len(self._own) + len(self._seen())

    def _seen(self) -> deque[Any]:
        """Where no thread is left waitress cancels all that wait, and these too."""
        return deque() if self._threads else self._proxied

    def held(self) -> Holding:
        """Another socket's crowd comes as well."""
        self._holders += 1
        return self

    def let_go(self) -> TaskQueue | Holding:
        """What takes this one's place when one of those who hold them does so no more."""
        self._holders -= 1
        if self._holders:
            return self
        queue = TaskQueue(self._threads)
        for own, row in ((True, self._own), (False, self._proxied)):
            for channel in row:
                queue.put(channel, own)
        return queue


def _is_proxied(channel: Any) -> bool:
    """Whether the request that the channel is to run may be for a proxied route."""
    request = channel.requests[0]
    if request.error is not None:  # it may have no path
        return False
    path, host = asked_path_info(request), asked_host(request)
    return any(map(methodcaller("is_proxied", path, host), _applications))


def take_turns(dispatcher: Any) -> None:
    """Have the tasks of waitress's `dispatcher` take turns, from now on. Main thread."""
    if type(dispatcher.queue) is deque:
        with dispatcher.lock:
            waiting, dispatcher.queue = dispatcher.queue, TaskQueue(dispatcher.threads)
            for channel in waiting:
                dispatcher.queue.append(channel)
