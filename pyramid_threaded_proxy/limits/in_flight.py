"""``request.proxy_exchanges``: what is in flight in this process, and the way to end it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import inf

from pyramid_threaded_proxy.exceptions import ExchangeClosed, ExchangeFailed
from pyramid_threaded_proxy.exchange import Exchange

Cancel = Callable[[ExchangeFailed], None]


class InFlight:
    """The exchanges in flight in *this* process. Any thread: each step on the table is atomic.

    Iterating gives `Exchange` objects; they belong to the relay, so read them, and change nothing but through `close`.
    """

    def __init__(self, on_close: Callable[[Mapping[str, str]], None] | None = None) -> None:
        """`on_close` is told what was closed here, for other processes."""
        self._cancels: dict[Exchange, Cancel] = {}
        self._on_close = on_close

    def add(self, exchange: Exchange, cancel: Cancel) -> None:
        """An exchange has begun; `cancel` ends it from any thread."""
        self._cancels[exchange] = cancel

    def remove(self, exchange: Exchange) -> None:
        """It has ended."""
        self._cancels.pop(exchange, None)

    def cancel_all(self, error: ExchangeFailed) -> None:
        """The process stops: end them with `error`."""
        for cancel in list(self._cancels.values()):
            cancel(error)

    def __len__(self) -> int:
        return len(self._cancels)

    def __iter__(self) -> Iterator[Exchange]:
        return iter(list(self._cancels))

    def close(self, *, userid: object = None, route: str | None = None, request_id: str | None = None) -> int:
        """Tell the exchanges to end that match everything given; returns how many, and does not wait for them.

        With `proxy.shared` those of all other processes are told as well, soon; they are not among the number. The
        client of one that has no head yet gets 503, the others a broken connection. Raises `TypeError` where nothing
        is given: ending them all is not to happen by a variable that is None.
        """
        if userid is None and route is None and request_id is None:
            raise TypeError("close() needs userid, route or request_id")
        given = {"userid": userid, "route": route, "request_id": request_id}
        what = {name: str(value) for name, value in given.items() if value is not None}
        told = self.end(what, inf)
        if self._on_close is not None:
            self._on_close(what)
        return told

    def end(self, what: Mapping[str, str], before: float) -> int:
        """The same for those that began before a time by `time.monotonic()`; nobody else is told."""
        told = 0
        for exchange, cancel in list(self._cancels.items()):
            if exchange.stats.started < before and all(getattr(exchange, name) == what[name] for name in what):
                cancel(ExchangeClosed("closed by the application"))
                told += 1
        return told
