"""``request.proxy_exchanges``: what is in flight in this process, and the way to end it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pyramid_threaded_proxy.exceptions import ExchangeClosed, ExchangeFailed
from pyramid_threaded_proxy.exchange import Exchange

Cancel = Callable[[ExchangeFailed], None]


class InFlight:
    """The exchanges in flight in *this* process. Any thread: each step on the table is atomic.

    Iterating gives `Exchange` objects; they belong to the relay, so read them, and change nothing but through `close`.
    """

    def __init__(self) -> None:
        self._cancels: dict[Exchange, Cancel] = {}

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

        The client of one that has no head yet gets 503, the others a broken connection. Raises `TypeError` where
        nothing is given: ending them all is not to happen by a variable that is None.
        """
        if userid is None and route is None and request_id is None:
            raise TypeError("close() needs userid, route or request_id")
        told = 0
        for exchange, cancel in list(self._cancels.items()):
            if (
                (userid is None or exchange.userid == str(userid))
                and (route is None or exchange.route == route)
                and (request_id is None or exchange.request_id == request_id)
            ):
                cancel(ExchangeClosed("closed by the application"))
                told += 1
        return told
