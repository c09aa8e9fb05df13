"""The framing of what is sent, and what becomes of a body that was to stream and was read after all."""

from __future__ import annotations

from pyramid_threaded_proxy.app.environ import blocks_of
from pyramid_threaded_proxy.detach.channel import DetachedConnection
from pyramid_threaded_proxy.exchange import Body, UpstreamRequest
from pyramid_threaded_proxy.http.names import Fields

#: Methods that a server expects a body of, so that its absence must be said (RFC 9110 8.6).
_WITH_BODY = ("POST", "PUT", "PATCH")
_FRAMING = ("content-length", "transfer-encoding")


def framing_fields(method: str, body: Body | None) -> Fields:
    """The framing of the request, made from what we hold and never copied (RFC 9112 6)."""
    if body is None:
        return [("Content-Length", "0")] if method in _WITH_BODY else []
    if body.length is None:
        return [("Transfer-Encoding", "chunked")]
    return [("Content-Length", str(body.length))]


def settle_body(request: UpstreamRequest, planned: Body, channel: DetachedConnection) -> None:
    """Send what was received where somebody has read a body that was to stream: a hook, a tween, a subscriber."""
    if channel.unread_body() is not None:
        return
    file, length = channel.received_body()
    if planned.limit is not None and length > planned.limit:
        file.seek(0)
        request.body = Body(chunks=blocks_of(file, planned.limit))  # which says so
    else:
        request.body = Body(file=file, length=length, start=0) if length else None
    kept = [field for field in request.fields if field[0].lower() not in _FRAMING]
    request.fields = kept + framing_fields(request.method, request.body)
