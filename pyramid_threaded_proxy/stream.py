"""Where nothing can be detached: the same exchange, driven by the server's own thread and given to it as `app_iter`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pyramid_threaded_proxy.client import Output, StreamClient
from pyramid_threaded_proxy.exceptions import RelayFailed
from pyramid_threaded_proxy.exchange import Exchange, Fields
from pyramid_threaded_proxy.tasks import Steps


class StreamedAnswer:
    """An exchange as a WSGI iterable. Lives in the thread that the server calls us on.

    It raises out of the iterator when the answer breaks off, so that the server doesn't end it as if it were whole.
    """

    def __init__(self, steps: Steps, client: StreamClient, exchange: Exchange) -> None:
        self._steps = steps
        self._client = client
        self._exchange = exchange
        self._next = self._advance()

    def start(self, start_response: Callable[[str, Fields], Any]) -> StreamedAnswer:
        """Tell the server the head, which is known by now."""
        if self._client.head is None:
            raise self._exchange.error or RelayFailed("the exchange ended without an answer")
        status, fields = self._client.head
        start_response(status, fields)
        return self

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._next is None:
            if self._client.broken:
                raise self._exchange.error or RelayFailed("the answer broke off")
            raise StopIteration
        data, self._next = self._next, None
        self._next = self._advance()
        return data

    def _advance(self) -> bytes | None:
        """Run the exchange until it has bytes for the server; None at its end."""
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                wait = self._steps.send(value) if error is None else self._steps.throw(error)
            except StopIteration:
                return None
            value = error = None
            if isinstance(wait, Output):
                return wait.data
            try:
                value = wait.block()
            except Exception as raised:
                error = raised

    def close(self) -> None:
        """The server wants no more (PEP 3333)."""
        self._steps.close()
