"""One line an exchange, on the logger ``pyramid_threaded_proxy.access``.

The combined format, then route, upstream, attempts, seconds to connect / first byte / end, body bytes up / down,
how it ended, and the exchange's id. Paths and Referer are shown without their query, cookies and Authorization not at
all. A record bears the same values as attributes (`VALUES`), and `JsonFormatter` writes them.
"""

from __future__ import annotations

import json
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

#: The word for an exchange that nothing broke.
WHOLE = "whole"

_UNSAFE = re.compile(r"[^ !#-\[\]-~]")


def _shown(text: str) -> str:
    """Text of a client's, made safe for a quoted part of a line."""
    return _UNSAFE.sub(lambda match: f"\\x{ord(match[0]):02x}", text) if _UNSAFE.search(text) else text


def how_it_ended(exchange: Exchange) -> str:
    """One word: ``whole``, or what broke it."""
    error = exchange.error
    if error is None:
        return WHOLE
    return error.ended if isinstance(error, ExchangeFailed) else "failed"


def shown_status(exchange: Exchange) -> int:
    """The status that the client got, or would have got; 408 and 499 where it was the client that ended it."""
    error, answer = exchange.error, exchange.response
    if answer is not None and (answer.status == 101 or not isinstance(error, (ClientGone, ClientTimedOut))):
        return answer.status  # browsers leave a switched connection as they like
    return error.status if isinstance(error, ExchangeFailed) else 500


def _between(since: float, until: float | None) -> float | None:
    return None if until is None else round(until - since, 6)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f}"


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
    values = _values(exchange)
    record = _record(_line(values), values)
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


def _record(line: str, shown: dict[str, Any]) -> logging.LogRecord:
    """What `Logger.info` makes, without its look through the stack for who called it.

    Nor is it found out for each line what is the same for all of them.
    """
    if logging.getLogRecordFactory() is not logging.LogRecord or type(access_log) is not logging.Logger:
        record = _new_record(line)
        record.__dict__.update(shown)
        return record
    known = _known_of_records(threading.current_thread(), os.getpid())
    record = logging.LogRecord.__new__(logging.LogRecord)
    record.__dict__ = values = known.copy()
    values["msg"], values["created"] = line, (created := time.time())
    values["msecs"] = int(created % 1 * 1000) + 0.0
    values["relativeCreated"] += (created - known["created"]) * 1000
    values.update(shown)
    return record


def _new_record(line: str) -> logging.LogRecord:
    return access_log.makeRecord(access_log.name, logging.INFO, __file__, 0, line, (), None, "write")


@lru_cache(maxsize=16)
def _known_of_records(thread: threading.Thread, process: int) -> dict[str, Any]:
    """The attributes of a record that this thread has made."""
    return vars(_new_record(""))


def _values(exchange: Exchange) -> dict[str, Any]:
    """What a record says of an exchange, by the names of `VALUES`."""
    stats = exchange.stats
    method, path, protocol, referer, agent = exchange.log_values
    started, finished = stats.started, stats.finished
    return {
        "client_addr": exchange.client_addr,
        "userid": exchange.userid,
        "method": method,
        "path": path,
        "protocol": protocol,
        "status": shown_status(exchange),
        "referer": referer,
        "user_agent": agent,
        "route": exchange.route,
        "upstream": exchange.request.origin,
        "attempts": stats.attempts,
        "connect_seconds": _between(started, stats.connected),
        "first_byte_seconds": _between(started, stats.first_byte),
        "total_seconds": _between(started, finished),
        "bytes_up": stats.bytes_up,
        "bytes_down": stats.bytes_down,
        "ended": how_it_ended(exchange),
        "request_id": exchange.request_id,
    }


#: The attributes of a record, in the order of the line.
VALUES = (
    "client_addr", "userid", "method", "path", "protocol", "status", "referer", "user_agent", "route", "upstream",
    "attempts", "connect_seconds", "first_byte_seconds", "total_seconds", "bytes_up", "bytes_down", "ended",
    "request_id",
)  # fmt: skip


def _line(values: dict[str, Any]) -> str:
    texts = (values["method"], values["path"], values["protocol"], values["referer"], values["user_agent"])
    if _UNSAFE.search("".join(texts)):
        method, path, protocol, referer, agent = map(_shown, texts)
    else:
        method, path, protocol, referer, agent = texts
    userid = values["userid"]
    user = "-" if not userid else _shown(userid[:256]).replace(" ", "\\x20")
    times = "/".join([_seconds(values[f"{what}_seconds"]) for what in ("connect", "first_byte", "total")])
    return (
        f'{values["client_addr"] or "-"} - {user} [{_clock(int(time.time()))}] "{method} {path} {protocol}" '
        f'{values["status"]} {values["bytes_down"]} "{referer}" "{agent}" {values["route"]} {values["upstream"]} '
        f"{values['attempts']} {times} {values['bytes_up']}/{values['bytes_down']} {values['ended']} "
        f"{values['request_id']}"
    )


class JsonFormatter(logging.Formatter):
    """Writes a record of the access log as one JSON object a line, in ASCII; other records with level, logger, message.

    For ini files: ``class = pyramid_threaded_proxy.accesslog.JsonFormatter`` in a ``[formatter_…]`` section. Any
    thread. Seconds and bytes are numbers, what is not known is null, and `time` is RFC 3339 in UTC.
    """

    def format(self, record: logging.LogRecord) -> str:
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said: dict[str, Any] = {"time": f"{second}.{int(record.msecs):03d}Z"}
        known = vars(record)
        if record.name == access_log.name and "request_id" in known:
            said |= {name: known[name] for name in VALUES}
        else:
            said |= {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
            if record.exc_info:
                said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)
