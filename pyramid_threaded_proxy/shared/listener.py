"""The thread of one process that hears what others have closed, and says how it is itself.

Closings stand in a log that is read from its beginning with each joining: who was away misses none. Only exchanges
that began before a closing are ended by it, so that hearing one twice, or late, does no harm.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from pyramid_threaded_proxy.shared import commands
from pyramid_threaded_proxy.shared.notice import Notice
from pyramid_threaded_proxy.shared.store import Store, StoreAway

log = logging.getLogger("pyramid_threaded_proxy.shared")

#: Seconds for which it waits for a closing before it looks around.
LISTEN = 0.25
#: Seconds after which a connection that brings nothing is given up.
TIMEOUT = LISTEN + 0.5
#: Seconds between two tries to connect.
RETRY = 0.5
#: Seconds between two reports, and for which one counts.
REPORT = 2.0
REPORT_KEPT = 6.0
#: Seconds after a closing in which an exchange may have begun that it is still meant for: it was let in before.
GRACE = 1.0

#: Ends the exchanges that match, and began before a time by `time.monotonic()`.
End = Callable[[Mapping[str, str], float], object]


class Listener:
    """Begins at once. `stop` may be called by any thread, all else is its own."""

    def __init__(self, url: str, name: str, notice: Notice, end: End, report: Callable[[], str | None]) -> None:
        """`report` tells what this process says of itself, or None: nothing."""
        self._url = url
        self._name = name
        self._notice = notice
        self._end = end
        self._report = report
        self._last = "0"
        self._reported = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="pproxy-closings", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread, and wait for that, `timeout` seconds at most."""
        self._stopping.set()
        self._thread.join(timeout)

    def _main(self) -> None:
        while not self._stopping.is_set():
            store = Store(self._url, TIMEOUT)
            try:
                self._listen(store)
            except StoreAway as error:
                self._notice.away("closings", str(error))
            except Exception:
                log.exception("a fault of this package: closings of other processes are not heard for a while")
            finally:
                store.close()
            self._stopping.wait(RETRY)

    def _listen(self, store: Store) -> None:
        """Until it is stopped. Raises `StoreAway`."""
        self._last, self._reported = "0", -REPORT
        while not self._stopping.is_set():
            self._say(store)
            answer, time_there = store.ask(commands.hear(self._last, LISTEN), ("TIME",))
            self._notice.back("closings")
            last, found = commands.heard(answer)
            self._last = last or self._last
            now = commands.milliseconds(time_there)
            for said in found:
                self._close(said, (now - said.when) / 1000)
        store.ask(commands.forget_report(self._name))

    def _say(self, store: Store) -> None:
        now = time.monotonic()
        if now >= self._reported + REPORT:
            self._reported = now
            if (text := self._report()) is None:
                return
            try:
                store.ask(commands.report(self._name, REPORT_KEPT, text))
            except StoreAway as error:  # a full one may still have closings to tell
                self._notice.away("reports", str(error))
            else:
                self._notice.back("reports")

    def _close(self, said: commands.Said, age: float) -> None:
        if said.process != self._name:
            self._end(said.what, time.monotonic() - age + GRACE)
