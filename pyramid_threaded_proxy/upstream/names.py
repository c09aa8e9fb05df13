"""Looking names up: in threads of their own, because the system's resolver blocks, and asked once for all who wait.

A name server that does not answer holds up its own names alone: each name has its own threads, and few of them.
"""

from __future__ import annotations

import socket
import threading
import time
from functools import lru_cache
from itertools import zip_longest

from pyramid_threaded_proxy.exceptions import ConnectFailed, ConnectTimedOut
from pyramid_threaded_proxy.loop.promise import Promise
from pyramid_threaded_proxy.loop.waits import Kept, Returning
from pyramid_threaded_proxy.upstream.origin import UNIX, Origin

#: Seconds for which the addresses of a name are believed.
LOOK_UP_SECONDS = 10.0
#: Seconds after which a name that is in use is looked up again: before what is known is too old.
REFRESH_SECONDS = 8.0
#: Threads that may ask for one name at a time: the second where the first has had no answer for `SECOND_AFTER`.
THREADS_PER_NAME = 2
#: Seconds after which a question is put once more, while the first is still under way.
SECOND_AFTER = 5.0
#: Threads that may look names up at a time, for all of them. A process has no more to spare.
MOST_THREADS = 512
#: Names that are remembered; of more, those are forgotten that nobody has asked for lately.
MOST_NAMES = 1024


@lru_cache(maxsize=1024)
def is_name(origin: Origin) -> bool:
    """Whether an origin's host has to be looked up: it is no address, and was not looked up before."""
    if origin.scheme == UNIX or origin.address is not None:
        return False
    host = origin.host.strip("[]").partition("%")[0]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, UnicodeError):
            continue
        return False
    return True


def addresses_of(origin: Origin) -> list[str]:
    """The addresses that an origin's name has at this moment; none for a Unix socket.

    In the system's order, but families alternate, so that a broken one costs one try (RFC 8305 4). May block for
    as long as the system lets. Raises `ConnectFailed`.
    """
    if origin.scheme == UNIX:
        return []
    try:
        found = socket.getaddrinfo(origin.host.strip("[]"), origin.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no name that can be looked up"
        raise ConnectFailed(f"{origin}: the name {origin.host!r} can't be resolved: {reason}") from None
    first = found[0][0]
    ours = [str(address[0]) for family, *_, address in found if family == first]
    others = [str(address[0]) for family, *_, address in found if family != first]
    pairs = zip_longest(dict.fromkeys(ours), dict.fromkeys(others))
    return [address for pair in pairs for address in pair if address is not None]


class _Name:
    """What is known of a name, and who is asking for it."""

    __slots__ = ("addresses", "asking", "promise", "since", "until")

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.until = 0.0  # when its addresses are too old to be believed; by `time.monotonic()`, as `since`
        self.asking = 0  # threads
        self.since = 0.0  # when the last of them began
        self.promise: Promise[list[str]] | None = None  # what all who wait for the name wait for


class Names:
    """The names of one process's upstreams. Any thread; the lock guards the table, and is not held while one asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[str, _Name] = {}
        self._threads = 0

    def known(self, origin: Origin) -> list[str] | None:
        """The addresses of a name that was looked up lately; None where it has to be looked up."""
        name = self._names.get(origin.host)
        return name.addresses if name is not None and time.monotonic() < name.until else None

    def look_up(self, origin: Origin, timeout: float) -> Returning[list[str]]:
        """Steps: the addresses of a name. Raises `ConnectFailed`, and `ConnectTimedOut` after `timeout` seconds."""
        known = self.known(origin)
        if known is not None:
            return known
        promise = self.ask(origin)
        if not promise.kept:
            yield Kept(promise, timeout, ConnectTimedOut)
        return promise.result()

    def look_up_here(self, origin: Origin, timeout: float) -> list[str]:
        """The addresses that a name has now, whatever was known of it; waits in this very thread, else as `look_up`."""
        promise = self.ask(origin)
        if not promise.wait(timeout):
            raise ConnectTimedOut(f"{origin}: the name {origin.host!r} was not resolved after {timeout:g} s")
        return promise.result()

    def ask(self, origin: Origin) -> Promise[list[str]]:
        """Ask for a name, or wait with those who do already, whatever is known of it."""
        now = time.monotonic()
        with self._lock:
            name = self._names.get(origin.host) or self._new_name(origin.host, now)
            promise = name.promise
            if promise is None:
                promise = name.promise = Promise()
            elif name.asking and (name.asking >= THREADS_PER_NAME or now - name.since < SECOND_AFTER):
                return promise
            if self._threads >= MOST_THREADS:
                name.promise = name.promise if name.asking else None
                thread = None
            else:
                name.asking += 1
                name.since = now
                self._threads += 1
                thread = threading.Thread(target=self._answer, args=(origin, name), name="pproxy-name", daemon=True)
        if thread is None or not self._started(thread, name):
            promise = Promise()
            promise.keep(None, ConnectFailed(f"{origin}: no thread is left to resolve the name {origin.host!r}"))
        return promise

    def _started(self, thread: threading.Thread, name: _Name) -> bool:
        try:
            thread.start()
        except RuntimeError:  # the system has none to give
            self._came(name, None, ConnectFailed("no thread could be started to resolve a name"))
            return False
        return True

    def _answer(self, origin: Origin, name: _Name) -> None:
        addresses, failure = None, None
        try:
            addresses = addresses_of(origin)
        except ConnectFailed as error:
            failure = error
        except Exception as error:
            failure = ConnectFailed(f"{origin}: the name {origin.host!r} can't be resolved: {error}")
        self._came(name, addresses, failure)

    def _came(self, name: _Name, addresses: list[str] | None, failure: ConnectFailed | None) -> None:
        """An answer is here. A failure is not remembered: the next who wants the name asks again."""
        with self._lock:
            name.asking -= 1
            self._threads -= 1
            if addresses is not None:
                name.addresses, name.until = addresses, time.monotonic() + LOOK_UP_SECONDS
            promise, name.promise = name.promise, None
        if promise is not None:
            promise.keep(addresses, failure)

    def _new_name(self, host: str, now: float) -> _Name:
        if len(self._names) >= MOST_NAMES:
            for old, name in list(self._names.items()):
                if not name.asking and name.until < now:
                    del self._names[old]
        name = self._names[host] = _Name()
        return name
