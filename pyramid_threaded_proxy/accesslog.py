"""One line an exchange, on the logger ``pyramid_threaded_proxy.access``.

The combined format, then route, upstream, attempts, seconds to connect / first byte / end, body bytes up / down, and
how it ended. Paths and Referer are shown without their query, cookies and Authorization not at all.
"""

from __future__ import annotations

import logging
import re
import time

from pyramid_threaded_proxy.exceptions import ClientGone, ClientTimedOut, ExchangeFailed
from pyramid_threaded_proxy.exchange import Exchange

access_log = logging.getLogger("pyramid_threaded_proxy.access")

_UNSAFE = re.compile(r'[^ !#-\[\]-~]')


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


def write(exchange: Exchange) -> None:
    """Write the line. Runs in the loop's thread, so the logger's handlers should not block for long."""
    if not access_log.isEnabledFor(logging.INFO):
        return
    stats, error = exchange.stats, exchange.error
    method, path, protocol, referer, agent = map(_shown, exchange.log_values)
    times = "/".join(_seconds(stats.started, at) for at in (stats.connected, stats.first_byte, stats.finished))
    access_log.info(
        '%s - %s [%s] "%s %s %s" %d %d "%s" "%s" %s %s %d %s %d/%d %s',
        exchange.client_addr or "-",
        _shown((exchange.userid or "-")[:256]).replace(" ", "\\x20"),
        time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime()),
        method,
        path,
        protocol,
        _status(exchange),
        stats.bytes_down,
        referer,
        agent,
        exchange.route,
        exchange.request.origin,
        stats.attempts,
        times,
        stats.bytes_up,
        stats.bytes_down,
        how_it_ended(exchange),
    )
    if error is not None:
        access_log.debug("%s %s: %s", exchange.route, exchange.request_id, error)
