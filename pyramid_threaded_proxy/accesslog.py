"""One line an exchange, on the logger ``pyramid_threaded_proxy.access``.

The combined format, then route, upstream, attempts, seconds to connect / first byte / end, body bytes up / down, and
how it ended. Paths and Referer are shown without their query, cookies and Authorization not at all.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import threading
import time
from functools import lru_cache, partial
from typing import Any

from pyramid_threaded_proxy.exceptions import ClientGone, ClientTimedOut, ExchangeFailed
from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.loop import log_writer
from pyramid_threaded_proxy.loop.loop import run_in_batch

access_log = logging.getLogger("pyramid_threaded_proxy.access")

#: Seconds between two looks whether the log's file was moved away: each lets go of the interpreter's lock.
LOOK_EVERY = 1.0

_UNSAFE = re.compile(r"[^ !#-\[\]-~]")


def _shown(text: str) -> str:
    """Text of a client's, made safe for a quoted part of a line."""
    return _UNSAFE.sub(lambda match: f"\\x{ord(match[0]):02x}", text) if _UNSAFE.search(text) else text


def how_it_ended(exchange: Exchange) -> str:
    """One word: ``whole``, or what broke it."""
    error = exchange.error
    if error is None:
        return "whole"
    return error.ended if isinstance(error, ExchangeFailed) else "failed"


def _status(exchange: Exchange) -> int:
    """The status that the client got, or would have got; 408 and 499 where it was the client that ended it."""
    error, answer = exchange.error, exchange.response
    if answer is not None and not isinstance(error, (ClientGone, ClientTimedOut)):
        return answer.status
    return error.status if isinstance(error, ExchangeFailed) else 500


def _seconds(since: float, until: float | None) -> str:
    return "-" if until is None else f"{until - since:.3f}"


@lru_cache(maxsize=2)
def _clock(second: int) -> str:
    return time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(second))


def write(exchange: Exchange, later: bool = False) -> None:
    """Write the line: in the loop's thread it is made, and the log's writer has it handled (`log_writer`).

    `later`, when nobody touches the exchange any more, it is written with those of others, a moment later: several
    lines in a row cost less than they do one by one, with all that lies between.
    """
    if not access_log.isEnabledFor(logging.INFO):
        return
    if not (later and run_in_batch(partial(_write, exchange))):
        _write(exchange)


def _write(exchange: Exchange) -> None:
    record = _record(_line(exchange))
    if not log_writer.hand_over(access_log, record):
        try:
            access_log.handle(record)
        except Exception:  # a filter's, or a handler's: the exchange has ended well all the same
            _handler.handleError(record)
    if exchange.error is not None and access_log.isEnabledFor(logging.DEBUG):
        access_log.debug("%s %s: %s", exchange.route, exchange.request_id, exchange.error)


#: Tells what went wrong with a record, as `logging` does it.
_handler = logging.Handler()


class BufferedFileHandler(logging.handlers.WatchedFileHandler):
    """A `WatchedFileHandler` that writes what the log's writer has found waiting in one go.

    Under load that is many lines, and else one. Lines of other threads are written at once. Whether the file was moved
    away is looked at once in `LOOK_EVERY` seconds. Any thread, as with all handlers.
    """

    _looked = 0.0  # by `time.time()`

    def emit(self, record: logging.LogRecord) -> None:
        if not 0 <= record.created - self._looked < LOOK_EVERY:  # or the clock was set back
            self._looked = record.created
            self.reopenIfNeeded()
        if self.stream is None or not log_writer.behind_batch(self.flush):
            logging.FileHandler.emit(self, record)
            return
        try:
            self.stream.write(self.format(record) + self.terminator)
        except Exception:
            self.handleError(record)


def _record(line: str) -> logging.LogRecord:
    """What `Logger.info` makes, without its look through the stack for who called it.

    Nor is it found out for each line what is the same for all of them.
    """
    if logging.getLogRecordFactory() is not logging.LogRecord or type(access_log) is not logging.Logger:
        return _new_record(line)
    known = _known_of_records(threading.current_thread(), os.getpid())
    record = logging.LogRecord.__new__(logging.LogRecord)
    record.__dict__ = values = known.copy()
    values["msg"], values["created"] = line, (created := time.time())
    values["msecs"] = int(created % 1 * 1000) + 0.0
    values["relativeCreated"] += (created - known["created"]) * 1000
    return record


def _new_record(line: str) -> logging.LogRecord:
    return access_log.makeRecord(access_log.name, logging.INFO, __file__, 0, line, (), None, "write")


@lru_cache(maxsize=16)
def _known_of_records(thread: threading.Thread, process: int) -> dict[str, Any]:
    """The attributes of a record that this thread has made."""
    return vars(_new_record(""))


def _line(exchange: Exchange) -> str:
    stats, values = exchange.stats, exchange.log_values
    if _UNSAFE.search("".join(values)):
        method, path, protocol, referer, agent = map(_shown, values)
    else:
        method, path, protocol, referer, agent = values
    user = "-" if not exchange.userid else _shown(exchange.userid[:256]).replace(" ", "\\x20")
    started = stats.started
    return (
        f'{exchange.client_addr or "-"} - {user} [{_clock(int(time.time()))}] "{method} {path} {protocol}" '
        f'{_status(exchange)} {stats.bytes_down} "{referer}" "{agent}" {exchange.route} {exchange.request.origin} '
        f"{stats.attempts} {_seconds(started, stats.connected)}/{_seconds(started, stats.first_byte)}/"
        f"{_seconds(started, stats.finished)} {stats.bytes_up}/{stats.bytes_down} {how_it_ended(exchange)}"
    )
