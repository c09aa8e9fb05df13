"""The request goes up: its head, and its body from memory, from a file or from an iterable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import IO, Any

from pyramid_threaded_proxy.exceptions import ExchangeFailed, HookFailed, SendTimedOut
from pyramid_threaded_proxy.exchange import Body
from pyramid_threaded_proxy.http.framing import LAST_CHUNK, chunk
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import WRITE
from pyramid_threaded_proxy.loop.syscalls import send
from pyramid_threaded_proxy.loop.waits import Call, Hop, Ready, Steps, Yield
from pyramid_threaded_proxy.relay.transfer import Moved, send_file, upstream_gone

#: Bytes of a file that are read at once.
BLOCK = 64 * 1024
#: Bytes after which the other exchanges of a mover have their turn.
_A_TURN = 1024 * 1024


def send_now(endpoint: Endpoint, data: bytes) -> bytes | memoryview:
    """Send what can be sent at once; returns the rest. What is wrong with the connection shows with that."""
    try:
        sent = send(endpoint, data)
    except OSError:
        return data
    return b"" if sent == len(data) else memoryview(data)[sent:]


def send_body(endpoint: Endpoint, head: bytes | memoryview, body: Body | None, timeout: float, moved: Moved) -> Steps:
    """Steps: send the head, or what is left of it, and the body. Raises `UpstreamGone` where that takes no more.

    Whoever runs them hears the upstream meanwhile (see `upload`): these wait for it to take bytes, and no more.
    """
    if body is None:
        return send_all(endpoint, head, timeout)
    if body.data is not None:
        return _send_data(endpoint, head, body.data, timeout, moved)
    if body.file is not None:
        return _send_from_file(endpoint, head, body, timeout, moved)
    return _send_chunks(endpoint, head, body, timeout, moved)


def send_all(endpoint: Endpoint, data: bytes | memoryview, timeout: float) -> Steps:
    """Steps: send everything."""
    while data:
        try:
            sent = endpoint.sock.send(data)
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        except BlockingIOError:
            yield Ready(endpoint, WRITE, timeout, SendTimedOut)
        except OSError as error:
            raise upstream_gone(error) from None


def _send_data(endpoint: Endpoint, head: bytes | memoryview, data: bytes, timeout: float, moved: Moved) -> Steps:
    if len(data) <= BLOCK:
        yield from send_all(endpoint, b"".join((head, data)), timeout)
    else:
        yield from send_all(endpoint, head, timeout)
        yield from send_all(endpoint, data, timeout)
    moved(len(data))


def _send_from_file(endpoint: Endpoint, head: bytes | memoryview, body: Body, timeout: float, moved: Moved) -> Steps:
    file, length = body.file, body.length
    assert file is not None
    assert length is not None
    if body.start is not None:
        yield from _on_file(body, file.seek, body.start)
    if length <= BLOCK:
        data = yield from _on_file(body, _read, file, length)
        return (yield from _send_data(endpoint, head, data, timeout, moved))
    yield from send_all(endpoint, head, timeout)
    yield Hop(False, endpoint)  # a body of some size keeps a loop busy, be it by encryption alone
    if body.start is not None and hasattr(os, "sendfile") and _is_real_file(file) and endpoint.raw:
        yield from send_file(file, body.start, length, endpoint, timeout, moved)
    else:
        yield from _send_blocks(endpoint, body, timeout, moved)


def _on_file(body: Body, function: Callable[..., Any], *arguments: Any) -> Any:
    """Steps: what a file object of the application's does may take long; memory and real files are read at once."""
    file = body.file
    assert file is not None
    if not body.owned or isinstance(file, BytesIO) or _is_real_file(file):
        return function(*arguments)
    return (yield Call(function, *arguments))


def _send_blocks(endpoint: Endpoint, body: Body, timeout: float, moved: Moved) -> Steps:
    assert body.length is not None
    body.unread, turn = body.length, 0
    while body.unread:
        data = yield from _on_file(body, _read, body.file, min(body.unread, BLOCK))
        body.unread -= len(data)
        yield from send_all(endpoint, data, timeout)
        moved(len(data))
        if (turn := turn + len(data)) >= _A_TURN:
            turn = 0
            yield Yield()


def blocks(body: Body) -> Iterator[bytes]:
    """What `_send_blocks` has not read yet of a file. May block."""
    assert body.file is not None
    while body.unread:
        data = _read(body.file, min(body.unread, BLOCK))
        body.unread -= len(data)
        yield data


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


def _send_chunks(endpoint: Endpoint, head: bytes | memoryview, body: Body, timeout: float, moved: Moved) -> Steps:
    """Steps: an iterable of the application's, chunked; it runs in a pool thread."""
    yield from send_all(endpoint, head, timeout)
    while (data := (yield Call(_next, body.chunks))) is not None:
        yield from send_all(endpoint, b"".join(chunk(data)), timeout)
        moved(len(data))
    yield from send_all(endpoint, LAST_CHUNK, timeout)


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
