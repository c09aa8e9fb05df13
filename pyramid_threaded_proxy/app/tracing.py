"""Where `opentelemetry-api` is installed and the request has a span, its exchange is a client span below it.

It begins when the exchange is admitted, ends with its last byte, and its context goes upstream. It is made only when
the response is called: of one that never is (pyramid_retry tries again, a later tween fails) nobody would end the span.
Without the package, or without an active span, nothing is done.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pyramid_threaded_proxy.accesslog import how_it_ended, shown_status
from pyramid_threaded_proxy.exchange import Exchange

try:
    from opentelemetry import context, propagate, trace
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ImportError:
    trace = None  # type: ignore[assignment]


class SpanParent(NamedTuple):
    """What a span will be below, and its begin in nanoseconds by `time.time_ns()`."""

    context: Any
    begun: int


def active_span() -> SpanParent | None:
    """What is active in the thread of the request at this moment: when its response is called nothing is any more."""
    if trace is None:
        return None
    current = context.get_current()
    # Most often it is empty, which is quickly seen.
    if not current or not trace.get_current_span(current).get_span_context().is_valid:
        return None
    return SpanParent(current, time.time_ns())


def begin_span(exchange: Exchange, parent: SpanParent) -> None:
    """Make the span, and put its context into the fields that go up. In the thread of the request."""
    sent = exchange.request
    tracer = trace.get_tracer("pyramid_threaded_proxy", version("pyramid_threaded_proxy"))
    exchange.span = tracer.start_span(
        sent.method, parent.context, SpanKind.CLIENT, _attributes(exchange), start_time=parent.begun
    )
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(exchange.span, parent.context))
    ours = {name.lower() for name in carrier} | {"traceparent", "tracestate"}
    sent.fields = [field for field in sent.fields if field[0].lower() not in ours] + list(carrier.items())


def _attributes(exchange: Exchange) -> dict[str, Any]:
    """By OpenTelemetry's conventions for HTTP clients; no query, which may be a secret."""
    sent = exchange.request
    parts = urlsplit(sent.origin)
    return {
        "http.request.method": sent.method,
        "url.full": sent.origin + sent.target.partition("?")[0],
        "server.address": parts.hostname or sent.origin,
        "server.port": parts.port or (443 if parts.scheme == "https" else 80),
        "proxy.route": exchange.route,
        "proxy.request_id": exchange.request_id,
    }


def end_span(exchange: Exchange) -> None:
    """The last byte is out, or there will be none. Any thread; span processors that export at once would hold it up."""
    span, exchange.span = exchange.span, None
    if span is None:
        return
    if exchange.response is not None or exchange.error is not None:
        span.set_attribute("http.response.status_code", shown_status(exchange))
    if exchange.stats.attempts > 1:
        span.set_attribute("http.request.resend_count", exchange.stats.attempts - 1)
    if exchange.error is not None or (exchange.response is not None and exchange.response.status >= 400):
        span.set_attribute("error.type", how_it_ended(exchange) if exchange.error else str(shown_status(exchange)))
        span.set_status(Status(StatusCode.ERROR))
    span.end()
