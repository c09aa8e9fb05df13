"""What subscribers can hear of (``config.add_subscriber``)."""

from __future__ import annotations

from dataclasses import dataclass

from pyramid_threaded_proxy.exchange import Exchange


@dataclass(frozen=True, slots=True)
class ExchangeStarted:
    """An exchange was admitted. Sent in the thread that runs the request."""

    exchange: Exchange


@dataclass(frozen=True, slots=True)
class ExchangeFinished:
    """An exchange ended, well or not; see ``exchange.error`` and ``exchange.stats``. Sent in a pool thread."""

    exchange: Exchange
