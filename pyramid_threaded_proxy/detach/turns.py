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


_applications: Applications[Mounted] = Applications()


def let_wait(application: Mounted) -> None:
    """Have requests that `application` calls proxied take turns with all others, from now on. Any thread."""
    _applications.add(application)


class TaskQueue:
    """The channels whose request waits, in two rows that take turns; in each as they came.

    In place of the deque of waitress's dispatcher, and like that touched under the dispatcher's lock alone.
    """

    __slots__ = ("_own", "_proxied", "_threads", "_was_own", "held")

    def __init__(self, threads: Collection[Any] = ()) -> None:
        """`threads` are the dispatcher's."""
        self._own: deque[Any] = deque()
        self._proxied: deque[Any] = deque()
        self._threads = threads
        self._was_own = False  # whose turn the last one was
        self.held = False  # whether proxied ones stay here, as if they had not come yet (`crowd`)

    def append(self, channel: Any) -> None:
        """Where nobody waits it does not matter whose turn it is, and nobody is asked."""
        at_once = not self._own and not self._proxied and not self.held
        (self._proxied if at_once or _is_proxied(channel) else self._own).append(channel)

    def popleft(self) -> Any:
        """The next one. Raises IndexError where none waits."""
        own = not self._proxied or self._holds() or (bool(self._own) and not self._was_own)
        channel = (self._own if own else self._proxied).popleft()
        self._was_own = own
        return channel

    def __len__(self) -> int:
        return len(self._own) + (0 if self._holds() else len(self._proxied))

    def _holds(self) -> bool:
        """Not where no thread is left: then waitress cancels all that wait."""
        return self.held and bool(self._threads)


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
