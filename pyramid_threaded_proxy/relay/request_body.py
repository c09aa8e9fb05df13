"""The request goes up: its head, and its body from memory, from a file or from an iterable."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from typing import IO, Any

from pyramid_threaded_proxy.exceptions import ExchangeFailed, HookFailed, SendTimedOut, UpstreamGone
from pyramid_threaded_proxy.exchange import Body
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import READ, WRITE
from pyramid_threaded_proxy.loop.syscalls import send
from pyramid_threaded_proxy.loop.waits import Call, Hop, Ready, Yield
from pyramid_threaded_proxy.relay.transfer import Hear, Moved, send_file

_READ_SIZE = 64 * 1024
#: Bytes after which the other exchanges of a mover have their turn.
_A_TURN = 1024 * 1024


def send_now(endpoint: Endpoint, data: bytes) -> bytes | memoryview:
    """Send what can be sent at once; returns the rest. What is wrong with the connection shows with that."""
    try:
        sent = send(endpoint, data)
    except OSError:
        return data
    return b"" if sent == len(data) else memoryview(data)[sent:]


def send_body(
    endpoint: Endpoint, head: bytes | memoryview, body: Body | None, timeout: float, moved: Moved, hear: Hear
) -> Any:
    """Steps: send the head, or what is left of it, and the body; returns whether all of it was taken.

    An upstream may answer before it has the whole request, and then close: that answer counts (RFC 9112 9.5).
    """
    try:
        if body is None:
            return (yield from _send(endpoint, head, timeout, hear))
        if body.data is not None:
            return (yield from _send_data(endpoint, head, body.data, timeout, moved, hear))
        if body.file is not None:
            return (yield from _send_from_file(endpoint, head, body, timeout, moved, hear))
        return (yield from _send_chunks(endpoint, head, body.chunks, timeout, moved, hear))
    except UpstreamGone:
        # It may have answered before it closed; if it has not, reading its head says so.
        return False


def _send(endpoint: Endpoint, data: bytes | memoryview, timeout: float, hear: Hear) -> Any:
    """Steps: send everything, unless the upstream answers first: then False."""
    while data:
        try:
            sent = endpoint.sock.send(data)
            if sent == len(data):
                return True
            data = memoryview(data)[sent:]
        except BlockingIOError:
            _, events = yield Ready(endpoint, READ | WRITE, timeout, SendTimedOut)
            if events & READ and (yield from hear()):
                return False
        except OSError as error:
            raise UpstreamGone(f"the connection broke: {error.strerror}") from None
    return True


def _send_data(
    endpoint: Endpoint, head: bytes | memoryview, data: bytes, timeout: float, moved: Moved, hear: Hear
) -> Any:
    first = b"".join((head, data)) if len(data) <= _READ_SIZE else head
    if not (yield from _send(endpoint, first, timeout, hear)):
        return False
    if len(data) > _READ_SIZE and not (yield from _send(endpoint, data, timeout, hear)):
        return False
    moved(len(data))
    return True


def _send_from_file(
    endpoint: Endpoint, head: bytes | memoryview, body: Body, timeout: float, moved: Moved, hear: Hear
) -> Any:
    file, length = body.file, body.length
    assert file is not None
    assert length is not None
    if body.start is not None:
        yield from _on_file(body, file.seek, body.start)
    if length <= _READ_SIZE:
        data = yield from _on_file(body, _read, file, length)
        return (yield from _send_data(endpoint, head, data, timeout, moved, hear))
    if not (yield from _send(endpoint, head, timeout, hear)):
        return False
    if body.start is not None and hasattr(os, "sendfile") and _is_real_file(file) and endpoint.raw:
        steps = send_file(file, body.start, length, endpoint, timeout, moved, hear)
    else:
        steps = _send_blocks(endpoint, body, length, timeout, moved, hear)
    return (yield from _send_in_mover(endpoint, steps))


def _send_in_mover(endpoint: Endpoint, steps: Any) -> Any:
    """A body of some size keeps a loop busy, be it by encryption alone."""
    yield Hop(False, endpoint)
    try:
        whole = yield from steps
    except UpstreamGone:
        whole = False
    yield Hop(True, endpoint)
    return whole


def _on_file(body: Body, function: Callable[..., Any], *arguments: Any) -> Any:
    """Steps: what a file object of the application's does may take long; memory and real files are read at once."""
    file = body.file
    assert file is not None
    if not body.owned or isinstance(file, BytesIO) or _is_real_file(file):
        return function(*arguments)
    return (yield Call(function, *arguments))


def _send_blocks(endpoint: Endpoint, body: Body, length: int, timeout: float, moved: Moved, hear: Hear) -> Any:
    left, turn = length, 0
    while left:
        data = yield from _on_file(body, _read, body.file, min(left, _READ_SIZE))
        if not (yield from _send(endpoint, data, timeout, hear)):
            return False
        left -= len(data)
        moved(len(data))
        if (turn := turn + len(data)) >= _A_TURN:
            turn = 0
            yield Yield()
    return True


def _read(file: IO[bytes], size: int) -> bytes:
    """Exactly `size` bytes: less would break the framing that the upstream was promised."""
    data = file.read(size)
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            raise EOFError(f"the request body ends {size - len(data)} bytes early")
        data += more
    return data


def _is_real_file(file: IO[bytes]) -> bool:
    try:
        return file.fileno() >= 0
    except (OSError, AttributeError):
        return False


def _send_chunks(
    endpoint: Endpoint, head: bytes | memoryview, chunks: Any, timeout: float, moved: Moved, hear: Hear
) -> Any:
    """Steps: an iterable of the application's, chunked; it runs in a pool thread."""
    if not (yield from _send(endpoint, head, timeout, hear)):
        return False
    while (chunk := (yield Call(_next, chunks))) is not None:
        if (yield from hear()):
            return False  # seen here as well: an upstream that reads on may have refused a body without an end
        if chunk and not (yield from _send(endpoint, b"%x\r\n%b\r\n" % (len(chunk), chunk), timeout, hear)):
            return False
        moved(len(chunk))
    return (yield from _send(endpoint, b"0\r\n\r\n", timeout, hear))


def _next(chunks: Any) -> bytes | None:
    try:
        chunk = next(chunks, None)
    except ExchangeFailed:
        raise
    except Exception as error:
        raise HookFailed(f"the request body raised {type(error).__name__}: {error}") from error
    if chunk is not None and not isinstance(chunk, (bytes, bytearray, memoryview)):
        raise HookFailed(f"the request body gave {type(chunk).__name__}, not bytes")
    return None if chunk is None else bytes(chunk)
