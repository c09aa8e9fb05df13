"""What this package logs is written by a thread of its own, so that handlers and filters cost no exchange.

They are the application's: they may take long, raise, or stand still on a pipe that nobody reads. While a scheduler
runs, the records of this package's loggers are handed over, from whatever thread, and their handlers and filters run
in the writer, in the order of the records. `MOST_WAITING` may wait; what comes on top is dropped, counted and said.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

log = logging.getLogger("pyramid_threaded_proxy.log_writer")

#: Records that may wait: at some hundred bytes each, a few MiB.
MOST_WAITING = 10_000
#: With more than so many waiting, a traceback is kept as text, so that nothing in it is kept alive.
FEW = 100
#: Seconds for which the writer lets records come together: woken for each, it would cost the loop more than they do.
GATHER = 0.02
#: Seconds after which a writer that stands still is not waited for.
PATIENCE = 1.0
#: Seconds in which it is told once that a handler or filter raises.
QUIET = 10.0

_PACKAGE = __name__.partition(".")[0]


class LogWriter:
    """One thread that writes what others hand over. `take`, `flush` and `stop` may be called by any thread."""

    def __init__(self) -> None:
        #: What is to be done once all that waits at this moment is written; in the writer's thread.
        self.endings: dict[Callable[[], None], None] = {}
        self._waiting: deque[tuple[logging.Logger, logging.LogRecord]] = deque()  # the first one is being written
        self._wake = threading.Event()
        self._asleep = False
        self._writing = False
        self._stopping = False
        self._moved = 0.0  # when one was written last, by `time.monotonic()`
        self._dropped = 0
        self._dropping = threading.Lock()
        self._told = -QUIET
        self._failed = 0
        self._thread = threading.Thread(target=self._main, name="pproxy-log", daemon=True)
        self._thread.start()

    @property
    def here(self) -> bool:
        """Whether its thread calls."""
        return threading.get_ident() == self._thread.ident

    def take(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        """Have `record` handled by `logger`, soon; never waits."""
        waiting = self._waiting
        if len(waiting) >= MOST_WAITING:
            with self._dropping:
                self._dropped += 1
            return
        if record.exc_info and len(waiting) > FEW:
            record.exc_text, record.exc_info = logging.Formatter().formatException(record.exc_info), None
        waiting.append((logger, record))
        if self._asleep:
            self._asleep = False
            self._moved = time.monotonic()
            self._wake.set()

    def busy(self) -> bool:
        """Whether something waits to be written, and the writer does not stand still."""
        return bool(self._waiting or self._writing) and time.monotonic() - self._moved < PATIENCE

    def flush(self, timeout: float) -> None:
        """Wait until what was handed over is written, or the writer stands still. Takes no lock."""
        deadline = time.monotonic() + timeout
        while self.busy() and time.monotonic() < deadline:
            time.sleep(0.002)

    def stop(self, timeout: float) -> None:
        """Write what waits, and end the thread."""
        self._stopping = True
        self._wake.set()
        self.flush(timeout)
        if not self._waiting:
            self._thread.join(timeout)

    def _main(self) -> None:
        while not (self._stopping and not self._waiting):
            self._wake.clear()
            self._asleep = True
            if not self._waiting and not self._stopping:
                self._wake.wait()
            self._asleep = False
            if not self._stopping:
                time.sleep(GATHER)
            self._writing = True
            self._write()
            self._writing = False

    def _write(self) -> None:
        """Write those that wait at this moment."""
        waiting = self._waiting
        for _ in range(len(waiting)):
            logger, record = waiting[0]
            try:
                logger.handle(record)
            except BaseException as error:  # it runs an application's code, which raises whatever it likes
                self._complain(error)
            waiting.popleft()  # behind it: until then there is something to write
            self._moved = time.monotonic()
        while self.endings:
            ending = next(iter(self.endings))
            del self.endings[ending]
            try:
                ending()
            except BaseException as error:
                self._complain(error)
        with self._dropping:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            try:
                log.warning("%d lines were dropped: what writes the log stood still, or was too slow", dropped)
            except BaseException as error:
                self._complain(error)

    def _complain(self, error: BaseException) -> None:
        """Tell that a handler or filter raised, and how often it was since the last time."""
        self._failed += 1
        if time.monotonic() - self._told < QUIET:
            return
        self._told, failed, self._failed = time.monotonic(), self._failed, 0
        try:
            log.error("a handler or filter of the log raised (%d times)", failed, exc_info=error)
        except BaseException:
            pass  # the same one: there is nobody left who could be told


class _HandOver(logging.Filter):
    """The first filter of a logger of ours: what another thread logs is the writer's."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger

    def filter(self, record: logging.LogRecord) -> bool:
        return not hand_over(self._logger, record)


# One for the process, while a scheduler runs in it.

_lock = threading.Lock()
_users = 0
_writer: LogWriter | None = None


def join() -> None:
    """A scheduler runs from now on: start the writer, if it is the first. Raises RuntimeError if there is no thread."""
    global _users, _writer
    with _lock:
        if _writer is None:
            _writer = LogWriter()
            _stand_first()
        _users += 1


def leave(timeout: float) -> None:
    """A scheduler has stopped: behind the last one records are handled where they are made again."""
    global _users, _writer
    with _lock:
        _users -= 1
        if _users:
            return
        writer, _writer = _writer, None
    if writer is not None:
        writer.stop(timeout)


def _stand_first() -> None:
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith(_PACKAGE) and isinstance(logger, logging.Logger):
            logger.filters = [_HandOver(logger), *(one for one in logger.filters if not isinstance(one, _HandOver))]


def hand_over(logger: logging.Logger, record: logging.LogRecord) -> bool:
    """Have the writer handle `record`; False where there is none, or it calls."""
    writer = _writer
    if writer is None or writer.here:
        return False
    writer.take(logger, record)
    return True


def behind_batch(function: Callable[[], None]) -> bool:
    """Have `function` run once, when all that waits is written; False where this is not the writer's thread."""
    writer = _writer
    if writer is None or not writer.here:
        return False
    writer.endings[function] = None
    return True


def busy() -> bool:
    """Whether lines wait to be written, and the process should wait for them. Any thread."""
    writer = _writer
    return writer is not None and writer.busy()


def flush(timeout: float) -> None:
    """Wait until what was handed over is written, `timeout` seconds at most. Any thread, and a signal's handler."""
    writer = _writer
    if writer is not None:
        writer.flush(timeout)


def _forget() -> None:
    """A child process has none of its parent's threads; what waited there is written there."""
    global _lock, _users, _writer
    _lock, _users, _writer = threading.Lock(), 0, None


atexit.register(flush, PATIENCE)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
