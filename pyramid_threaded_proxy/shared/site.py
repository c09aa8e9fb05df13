"""One application's part in a site of several processes (`proxy.shared`): the same for whoever asks in this process.

Its threads start with the first thing that is to be shared, in the process that serves it: forked servers work.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pyramid_threaded_proxy.exceptions import ThreadsExhausted
from pyramid_threaded_proxy.shared import commands
from pyramid_threaded_proxy.shared.ledger import field_of
from pyramid_threaded_proxy.shared.listener import End, Listener
from pyramid_threaded_proxy.shared.member import PATIENCE, Member
from pyramid_threaded_proxy.shared.notice import Notice
from pyramid_threaded_proxy.shared.orders import Closed, GivenBack, Held, Reports, Take
from pyramid_threaded_proxy.shared.store import Store

log = logging.getLogger("pyramid_threaded_proxy.shared")


class Others(NamedTuple):
    """What the other processes say of themselves; `known` is False while nobody can tell."""

    known: bool
    reports: list[dict[str, Any]]


class _Here:
    """What one process has: a name, and two threads."""

    def __init__(self, url: str, end: End, report: Callable[[str], str | None]) -> None:
        self.pid = os.getpid()
        self.name = f"{socket.gethostname()}:{self.pid}:{secrets.token_hex(2)}"
        notice = Notice(_shown(url))
        self.member = _started(lambda: Member(url, self.name, notice))
        try:
            self.listener = _started(lambda: Listener(url, self.name, notice, end, lambda: report(self.name)))
        except ThreadsExhausted:
            self.member.stop(0.0)
            raise

    def stop(self, timeout: float) -> None:
        self.member.stop(timeout)
        self.listener.stop(timeout)


class SharedSite:
    """Any thread may ask; nobody waits longer than `member.PATIENCE`, and no lock is held meanwhile."""

    def __init__(self, url: str, end: End, report: Callable[[str], str | None]) -> None:
        """`end` ends exchanges of this process; `report` makes the report of the process that it is given."""
        self._url = url
        self._end = end
        self._report = report
        self._lock = threading.Lock()
        self._present: _Here | None = None

    @property
    def place(self) -> str:
        """Where the store is: nothing secret."""
        return _shown(self._url)

    def check(self, timeout: float) -> None:
        """Have the store run a script that changes nothing, on a connection for that alone; no thread is started.

        Waits for each step of it `timeout` seconds at most. Raises `store.StoreAway`, a `ProxyError`.
        """
        store = Store(self._url, timeout)
        try:
            store.ask(commands.leave("nobody"))
        finally:
            store.close()

    def start(self) -> None:
        """Join now, unless this process has. Raises `ThreadsExhausted`, as all do that may be the first to ask."""
        self._here()

    def _here(self) -> _Here:
        here = self._present
        if here is None or here.pid != os.getpid():
            with self._lock:
                here = self._present
                if here is None or here.pid != os.getpid():
                    here = self._present = _Here(self._url, self._end, self._report)
        return here

    @property
    def name(self) -> str:
        """What this process is called."""
        return self._here().name

    def take(self, route: str, userid: str, most: int) -> bool:
        """Whether the user has fewer than `most` places on the route in all processes; takes one then.

        While the store is away or slow, this process's own counts are all there is, and they have said yes already.
        """
        member, field = self._here().member, field_of(route, userid)
        if not member.ready:
            member.order(Held(field))
            return True
        question = Take(field, most)
        member.order(question)
        answered, answer = question.wait(PATIENCE)
        if not answered:
            member.ready = False
        return answer is not False

    def give_back(self, route: str, userid: str) -> None:
        """A place is free again. Takes no lock: the garbage collector may call it."""
        if (here := self._present) is not None:
            here.member.order(GivenBack(field_of(route, userid)))

    def closed(self, what: Mapping[str, str]) -> None:
        """Exchanges were closed here: the other processes are told, as soon as they can be."""
        self._here().member.order(Closed(time.monotonic(), what))

    def others(self) -> Others:
        """What the other processes have said of themselves, a few seconds ago at most."""
        here = self._here()
        if not here.member.ready:
            return Others(False, [])
        question = Reports()
        here.member.order(question)
        _, found = question.wait(PATIENCE)
        if found is None:
            return Others(False, [])
        return Others(True, [json.loads(text) for name, text in sorted(found.items()) if name.decode() != here.name])

    def busy(self) -> bool:
        """Whether the others could still be told of something."""
        here = self._present
        return here is not None and here.pid == os.getpid() and here.member.busy()

    def stop(self, timeout: float) -> None:
        """Leave, and end the threads; waits for each of them, `timeout` seconds at most."""
        with self._lock:
            here, self._present = self._present, None
        if here is not None and here.pid == os.getpid():
            here.stop(timeout)


_T = TypeVar("_T")


def _started(start: Callable[[], _T]) -> _T:
    try:
        return start()
    except (RuntimeError, MemoryError) as error:
        raise ThreadsExhausted(f"a thread can't be started: {error}") from error


def _shown(url: str) -> str:
    """Where the store is, without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
