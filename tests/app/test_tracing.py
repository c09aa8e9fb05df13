"""One trace from the front server through the view to the upstream, with the real OpenTelemetry packages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.instrumentation.pyramid import PyramidInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from pyramid.config import Configurator
from pyramid.response import Response
from pyramid_retry import RetryableException

from pyramid_threaded_proxy.app import tracing
from tests.support.origin import MakeOrigin, answering, echo
from tests.support.site import MakeSite, route
from tests.support.tracing import tracer_provider
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, received

FRONT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """What was exported."""
    exporter = InMemorySpanExporter()
    tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter
    exporter.shutdown()


def instrumented(config: Configurator) -> None:
    """As OpenTelemetry's own page says."""
    PyramidInstrumentor().instrument_config(config)


def two(spans: InMemorySpanExporter) -> tuple[ReadableSpan, ReadableSpan]:
    """The server's span and the client's."""
    found = wait_until(lambda: len(spans.get_finished_spans()) >= 2 and spans.get_finished_spans())
    server, client = sorted(found, key=lambda span: span.kind is SpanKind.CLIENT)
    return server, client


def test_front_view_and_upstream_are_one_trace(origin: MakeOrigin, site: MakeSite, spans: InMemorySpanExporter) -> None:
    """The upstream's parent is the client span, whose parent is the view's, whose parent is the front server's."""
    here = site(route("r", origin(echo).url), configure=instrumented)
    request = received(here.get("/r/a?token=hush", {"traceparent": FRONT}))
    server, client = two(spans)
    assert server.context is not None
    assert client.context is not None
    assert server.parent is not None
    assert client.parent is not None
    assert f"{server.context.trace_id:032x}" == FRONT.split("-")[1]
    assert f"{server.parent.span_id:016x}" == FRONT.split("-")[2]
    assert client.parent.span_id == server.context.span_id
    _, trace_id, parent, _ = (request.one("traceparent") or "").split("-")
    assert (trace_id, parent) == (f"{client.context.trace_id:032x}", f"{client.context.span_id:016x}")
    attributes = dict(client.attributes or {})
    assert attributes["http.response.status_code"] == 200
    assert attributes["url.full"] == f"{here.engine.routes['r'].settings.upstream[0]}/a"
    assert "hush" not in str(attributes)


def test_the_span_ends_with_the_last_byte(origin: MakeOrigin, site: MakeSite, spans: InMemorySpanExporter) -> None:
    """The view is long over; the span goes on until the body is."""
    go_on = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        go_on.wait(30)
        wire.send(b"cd")

    here = site(route("r", origin(script).url), configure=instrumented)
    client = here.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    client.until(b"ab")
    wait_until(lambda: spans.get_finished_spans())
    assert [span.kind for span in spans.get_finished_spans()] == [SpanKind.SERVER]
    go_on.set()
    client.until(b"cd")
    server, ours = two(spans)
    assert (ours.end_time or 0) > (server.end_time or 0)
    client.close()


class Begun(SpanProcessor):
    """Which spans were begun and are not ended."""

    def __init__(self) -> None:
        self.count = 0
        self.open: list[str] = []

    def on_start(self, span: Span, parent_context: object = None) -> None:
        if span.kind is SpanKind.CLIENT:
            self.count += 1
            self.open.append(span.name)

    def on_end(self, span: ReadableSpan) -> None:
        if span.kind is SpanKind.CLIENT:
            self.open.remove(span.name)


def failing_tween(handler: Callable[[Any], Any], registry: Any) -> Callable[[Any], Any]:
    """Fails over a response that was admitted, as a commit may, so many times as the settings say."""
    left = int(registry.settings["test.failures"])

    def tween(request: Any) -> Any:
        nonlocal left
        response = handler(request)
        left -= 1
        if left >= 0:
            raise RetryableException
        return response

    return tween


@pytest.mark.parametrize(("failures", "status", "begun"), [(2, 200, 1), (3, 500, 0)])
def test_a_try_that_was_not_called_has_no_span(
    origin: MakeOrigin, site: MakeSite, failures: int, status: int, begun: int
) -> None:
    """pyramid_retry makes a response for each try: the one that is called has a span, which ends; others have none."""
    seen = Begun()
    tracer_provider().add_span_processor(seen)

    def configure(config: Configurator) -> None:
        instrumented(config)
        config.include("pyramid_retry")
        config.add_tween(f"{__name__}.failing_tween", over="pyramid_threaded_proxy.tween.proxy_tween_factory")
        config.add_exception_view(lambda error, request: Response(status=500), context=Exception)

    more = {"retry.attempts": "3", "test.failures": str(failures)}
    here = site(route("r", origin(echo).url) | more, configure=configure)
    assert here.get("/r/").status == status
    wait_until(lambda: not seen.open, "the end of all spans")
    assert seen.count == begun


def test_an_error_is_on_the_span(origin: MakeOrigin, site: MakeSite, spans: InMemorySpanExporter) -> None:
    """With the access log's word for it."""
    here = site(route("r", origin(answering(b"nonsense\r\n\r\n")).url), configure=instrumented)
    here.get("/r/")
    _, client = two(spans)
    assert dict(client.attributes or {})["error.type"] == "answer-refused"
    assert not client.status.is_ok


def test_without_a_span_nothing_is_added(origin: MakeOrigin, site: MakeSite, spans: InMemorySpanExporter) -> None:
    """An application that is not instrumented sends the client's own context on."""
    request = received(site(route("r", origin(echo).url)).get("/r/", {"traceparent": FRONT}))
    assert request.one("traceparent") == FRONT
    assert spans.get_finished_spans() == ()


def test_without_the_package_nothing_is_done(
    origin: MakeOrigin, site: MakeSite, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `opentelemetry-api` is not installed the exchange goes its way, with the client's own context."""
    monkeypatch.setattr(tracing, "trace", None)
    here = site(route("r", origin(echo).url), configure=instrumented)
    assert received(here.get("/r/", {"traceparent": FRONT})).one("traceparent") == FRONT
    wait_until(lambda: spans.get_finished_spans())
    assert [span.kind for span in spans.get_finished_spans()] == [SpanKind.SERVER]
