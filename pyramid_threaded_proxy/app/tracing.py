"""Where `opentelemetry-api` is installed and the request has a span, its exchange is a client span below it.

It begins when the exchange is admitted, ends with its last byte, and its context goes upstream. Without the package, or
without an active span, nothing is done.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from pyramid_threaded_proxy.accesslog import how_it_ended, shown_status
from pyramid_threaded_proxy.exchange import Exchange

try:
    from opentelemetry import propagate, trace
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ImportError:
    trace = None  # type: ignore[assignment]


def begin_span(exchange: Exchange) -> None:
    """Begin the span, and put its context into the fields that go up. In the thread of the request."""
    if trace is None or not trace.get_current_span().get_span_context().is_valid:
        return
    sent = exchange.request
    tracer = trace.get_tracer("pyramid_threaded_proxy", version("pyramid_threaded_proxy"))
    exchange.span = tracer.start_span(sent.method, kind=SpanKind.CLIENT, attributes=_attributes(exchange))
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(exchange.span))
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
