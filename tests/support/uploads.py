"""Routes whose request bodies stream, and what is sent to them."""

from __future__ import annotations

from typing import Any

from tests.support.site import route

CHUNKED = "Transfer-Encoding: chunked"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def streaming(upstream: str, **keys: str) -> dict[str, Any]:
    """Settings of a route ``/r`` whose bodies stream."""
    return route("r", upstream, **{"request__buffering": "false", **keys})


def put(target: str, length: int, *fields: str, method: str = "PUT") -> bytes:
    """The head of a request with a body of `length` bytes."""
    return "\r\n".join(
        [f"{method} {target} HTTP/1.1", "Host: a", f"Content-Length: {length}", *fields, "", ""]
    ).encode()


def put_chunked(target: str, *fields: str, method: str = "PUT") -> bytes:
    """The head of a request with a chunked body."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: a", CHUNKED, *fields, "", ""]).encode()


def chunks(data: bytes, size: int) -> bytes:
    """A chunked body."""
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
