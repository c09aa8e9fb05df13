"""An answer's body on its way from the upstream to the client, by its framing (RFC 9112 6).

Each framing has a reader that says what of the received bytes may go on, and when the body is whole. Big bodies of
known length go through the kernel; everything else through a buffer that all tasks of a thread share.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from pyramid_threaded_proxy.exceptions import ReadTimedOut, UpstreamGone
from pyramid_threaded_proxy.http.framing import CHUNKED, CLOSE, ChunkedReader, Framing
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import READ
from pyramid_threaded_proxy.loop.waits import Hop, Ready, Steps, Yield
from pyramid_threaded_proxy.relay.client import Client
from pyramid_threaded_proxy.relay.prepared import Timeouts
from pyramid_threaded_proxy.relay.transfer import (
    SMALL_READ,
    WORTH_A_HOP,
    WORTH_MOVING,
    Moved,
    Pipes,
    splice_body,
    upstream_gone,
)
from pyramid_threaded_proxy.relay.upload import Upload

Piece = bytes | memoryview

_LAST_CHUNK = b"0\r\n\r\n"
#: Bytes after which the other exchanges of a mover have their turn.
A_TURN = 1024 * 1024
#: Bytes: more than this at a time saves nothing.
_MOST_AT_ONCE = 256 * 1024
#: How many exchanges of a thread may hold more than a small read for a slow client: the others take small reads.
_MOST_HOLDING = 8


class BodyReader(Protocol):
    """Says what of the received bytes may go on."""

    done: bool
    #: Whether bytes came behind the body; they went nowhere.
    stray: bool

    def most(self) -> int:
        """How many bytes may be asked for."""

    def feed(self, data: Piece) -> list[Piece]:
        """What may go on to the client; memoryviews are slices of `data`."""

    def at_end(self) -> list[Piece]:
        """The upstream closed: what still goes on, or `UpstreamGone`."""


class LengthReader:
    """A body of `left` bytes, framed by Content-Length."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.done = not left
        self.stray = False

    def most(self) -> int:
        return self.left

    def feed(self, data: Piece) -> list[Piece]:
        if len(data) > self.left:
            self.stray = True
            data = data[: self.left]
        self.left -= len(data)
        self.done = not self.left
        return [data] if data else []

    def at_end(self) -> list[Piece]:
        raise UpstreamGone(f"closed with {self.left} bytes of its answer missing")


class ChunkedBody:
    """A chunked body; `decode` gives the data alone."""

    def __init__(self, decode: bool) -> None:
        self._reader = ChunkedReader(decode)
        self.done = self.stray = False

    def most(self) -> int:
        return _MOST_AT_ONCE

    def feed(self, data: Piece) -> list[Piece]:
        pieces = self._reader.feed(data)
        self.done = self._reader.done
        self.stray = bool(self._reader.rest)
        return pieces

    def at_end(self) -> list[Piece]:
        raise UpstreamGone("closed before the last chunk of its answer")


class CloseReader:
    """A body that ends with the connection; `chunked` makes chunks of it, so that the client can tell its end."""

    def __init__(self, chunked: bool) -> None:
        self._chunked = chunked
        self.done = self.stray = False

    def most(self) -> int:
        return _MOST_AT_ONCE

    def feed(self, data: Piece) -> list[Piece]:
        if not data:
            return []
        return [b"%x\r\n" % len(data), data, b"\r\n"] if self._chunked else [data]

    def at_end(self) -> list[Piece]:
        self.done = True
        return [_LAST_CHUNK] if self._chunked else []


def body_reader(framing: Framing, length: int, client: Client) -> BodyReader:
    """The reader for an upstream's framing towards this client."""
    if framing is CHUNKED:
        return ChunkedBody(decode=not (client.passes_framing and client.minor))
    if framing is CLOSE:
        return CloseReader(chunked=client.passes_framing and client.minor > 0)
    return LengthReader(length)


class _Scratch(threading.local):
    """One receive buffer a thread: it is empty again before any other task runs there."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_MOST_AT_ONCE))
        self.holding = 0  # tasks of this thread that hold more than a small read


_scratch = _Scratch()


class BodyMover:
    """Moves one answer's body. Lives in the task that made it."""

    def __init__(
        self, source: Endpoint, client: Client, pipes: Pipes, buffer: int, timeouts: Timeouts, moved: Moved
    ) -> None:
        self._source = source
        self._client = client
        self._pipes = pipes
        self._buffer = min(buffer, _MOST_AT_ONCE)
        self._timeouts = timeouts
        self._moved = moved
        self._in_mover = False
        self._upload: Upload | None = None
        self._refused = False

    def move_beside(self, reader: BodyReader, upload: Upload, refused: bool) -> Steps:
        """Steps: the body, for as long as the request is not whole; `refused` says that its status is an error's.

        By copying: a splice that waits for many bytes at once would keep an upstream waiting for us.
        """
        self._upload, self._refused = upload, refused
        yield from self._copy(reader)

    def move(self, reader: BodyReader) -> Steps:
        """Steps: the whole body, or what is left of it; ends in the first loop again."""
        self._upload = None
        if isinstance(reader, LengthReader) and reader.left >= WORTH_MOVING:
            if reader.left >= WORTH_A_HOP or not self._source.raw:
                yield from self._hop()
            yield from self._splice(reader)
        yield from self._copy(reader)
        if self._in_mover:
            assert self._client.endpoint is not None
            yield Hop(True, self._source, self._client.endpoint)

    def _hop(self) -> Steps:
        if self._client.endpoint is not None and not self._in_mover:
            self._in_mover = True
            yield Hop(False, self._source, self._client.endpoint)

    def _splice(self, reader: LengthReader) -> Steps:
        if self._client.endpoint is None or not self._source.raw:
            return
        pipe = self._pipes.take(wide=reader.left >= WORTH_A_HOP)
        if pipe is None:
            return
        try:
            yield from splice_body(
                self._source,
                self._client.endpoint,
                reader.left,
                pipe,
                self._timeouts.read,
                self._timeouts.send,
                self._moved,
            )
            reader.left, reader.done = 0, True
        except BaseException:
            pipe.close()
            raise
        self._pipes.give_back(pipe)

    def _copy(self, reader: BodyReader) -> Steps:
        size, burst, turn = self._buffer, 0, 0
        while not reader.done and (self._upload is None or not self._upload.whole):
            view = _scratch.view
            most = size if _scratch.holding < _MOST_HOLDING else min(size, SMALL_READ)
            received = self._receive(view[: min(most, reader.most())])
            if received is None:
                burst = 0
                yield Ready(self._source, READ, self._timeouts.read, ReadTimedOut)
                continue
            pieces = reader.feed(view[:received]) if received else self._at_end(reader)
            slow = yield from self._pass_on(pieces)
            # A slow client must not make us hold a big buffer for it.
            size = SMALL_READ if slow else self._buffer
            burst += received
            turn += received
            if turn >= A_TURN:
                turn = 0
                yield Yield()
            if burst >= WORTH_MOVING and self._upload is None:
                yield from self._hop()

    def _receive(self, view: memoryview) -> int | None:
        try:
            return self._source.sock.recv_into(view)
        except BlockingIOError:
            return None
        except OSError as error:
            if self._upload is not None and self._refused:
                return 0  # it closed on what it has not read of the request: that says nothing of its answer
            raise upstream_gone(error) from None

    def _at_end(self, reader: BodyReader) -> list[Piece]:
        """The upstream closed; what the upload has heard of a reset this side isn't told any more."""
        if self._upload is not None and self._upload.reset and not self._refused:
            raise UpstreamGone("reset before the end of its answer was known")
        return reader.at_end()

    def _pass_on(self, pieces: list[Piece]) -> Any:
        """Steps: write the pieces; returns whether the client was too slow to take them at once."""
        if not pieces:
            return False
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        total = len(data)
        rest = self._client.send_now(data)
        self._moved(total - len(rest))
        if not rest:
            return False
        # The bytes outlive this turn, and the buffer that they lie in doesn't.
        rest, big = bytes(rest), len(rest) > SMALL_READ
        del data, pieces
        _scratch.holding += big
        try:
            yield from self._client.send(rest)
        finally:
            _scratch.holding -= big
        self._moved(len(rest))
        return True
