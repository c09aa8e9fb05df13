"""OpenTelemetry's provider, of which a process has one."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider


def tracer_provider() -> TracerProvider:
    """That of this process; whichever test asks first makes it, so that their order does not matter."""
    known = trace.get_tracer_provider()
    if isinstance(known, TracerProvider):
        return known
    made = TracerProvider()
    trace.set_tracer_provider(made)
    return made
