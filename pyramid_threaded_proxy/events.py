"""What subscribers can hear of (``config.add_subscriber``)."""

from __future__ import annotations

from dataclasses import dataclass

from pyramid_threaded_proxy.exchange import Exchange


@dataclass(frozen=True, slots=True)
class ExchangeStarted:
    """An exchange was admitted. Sent in the thread that runs the request."""

    #: The exchange, to be read.
    exchange: Exchange


@dataclass(frozen=True, slots=True)
class UpstreamDown:
    """An upstream of a route failed so often in a row that it is marked down. Sent once; in a pool thread."""

    #: Its URL, as it stands in the settings.
    upstream: str
    #: The route's name.
    route: str


@dataclass(frozen=True, slots=True)
class UpstreamUp:
    """An upstream that was marked down has answered again. Sent once; in a pool thread."""

    #: Its URL, as it stands in the settings.
    upstream: str
    #: The route's name.
    route: str


@dataclass(frozen=True, slots=True)
class ExchangeFinished:
    """An exchange ended, well or not; see ``exchange.error`` and ``exchange.stats``. Sent in a pool thread."""

    #: The exchange, to be read.
    exchange: Exchange
