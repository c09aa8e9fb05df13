"""An answer's body on its way from the upstream to the client, by its framing (RFC 9112 6).

Each framing has a reader that says what of the received bytes may go on, and when the body is whole. Big bodies of
known length go through the kernel; everything else through a buffer that all tasks of a thread share.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from pyramid_threaded_proxy.exceptions import ReadTimedOut, UpstreamGone
from pyramid_threaded_proxy.http.framing import CHUNKED, CLOSE, LAST_CHUNK, ChunkedReader, Framing, chunk
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

#: Bytes after which the other exchanges of a mover have their turn.
A_TURN = 1024 * 1024
#: Bytes: more than this at a time saves nothing.
_MOST_AT_ONCE = 256 * 1024
#: How many exchanges of a thread may hold more than a small read for a slow client: the others take small reads.
_MOST_HOLDING = 8


class BodyReader(Protocol):
    """Says what of the received bytes may go on."""

    @property
    def done(self) -> bool:
        """Whether the body is whole."""

    @property
    def stray(self) -> bool:
        """Whether bytes came behind the body; they went nowhere."""

    @property
    def payload(self) -> int:
        """How many bytes of the body it has let go on, without any framing."""

    def most(self) -> int:
        """How many bytes may be asked for."""

    def feed(self, data: Piece) -> list[Piece]:
        """What may go on to the client; memoryviews are slices of `data`."""

    def at_end(self) -> list[Piece]:
        """The upstream closed: what still goes on, or `UpstreamGone`."""


class LengthReader:
    """A body of `left` bytes, framed by Content-Length."""

    def __init__(self, left: int) -> None:
        self._length = left
        self.left = left
        self.done = not left
        self.stray = False

    @property
    def payload(self) -> int:
        return self._length - self.left

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

    @property
    def payload(self) -> int:
        return self._reader.payload

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
        self.payload = 0
        self.done = self.stray = False

    def most(self) -> int:
        return _MOST_AT_ONCE

    def feed(self, data: Piece) -> list[Piece]:
        if not data:
            return []
        self.payload += len(data)
        return chunk(data) if self._chunked else [data]

    def at_end(self) -> list[Piece]:
        self.done = True
        return [LAST_CHUNK] if self._chunked else []


class ReaderAround:
    """A body's reader around `inner`: what that passes on goes through `passing`."""

    def __init__(self, inner: BodyReader) -> None:
        self._inner = inner

    @property
    def done(self) -> bool:
        return self._inner.done

    @property
    def stray(self) -> bool:
        return self._inner.stray

    @property
    def payload(self) -> int:
        return self._inner.payload

    def most(self) -> int:
        return self._inner.most()

    def feed(self, data: Piece) -> list[Piece]:
        return self.passing(self._inner.feed(data))

    def at_end(self) -> list[Piece]:
        return self.passing(self._inner.at_end())

    def passing(self, pieces: list[Piece]) -> list[Piece]:
        """The pieces that go on in the place of these."""
        return pieces


class Rechunked(ReaderAround):
    """A body that `inner` reads without its framing; `chunked` makes chunks of it anew."""

    def __init__(self, inner: BodyReader, chunked: bool) -> None:
        super().__init__(inner)
        self._chunked = chunked

    def passing(self, pieces: list[Piece]) -> list[Piece]:
        """Pieces of the body as they go on; the last chunk too, where none follow."""
        if not self._chunked:
            return pieces
        framed = [part for piece in pieces for part in chunk(piece)]
        return [*framed, LAST_CHUNK] if self._inner.done else framed


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


class Incoming:
    """What comes from an upstream, and what its end means while a request's body still goes up beside it."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.endpoint = endpoint
        #: `read_timeout`, in seconds.
        self.timeout = timeout
        self._upload: Upload | None = None
        self._refused = False

    def stand_beside(self, upload: Upload, refused: bool) -> None:
        """A request's body goes up meanwhile; `refused` says that the answer's status is an error's."""
        self._upload, self._refused = upload, refused

    @property
    def beside(self) -> bool:
        """Whether there is something to go up still."""
        return self._upload is not None and not self._upload.whole

    def receive(self, most: int) -> bytes | None:
        """Some bytes, b"" at the end; None where there are none yet."""
        try:
            return self.endpoint.sock.recv(most)
        except BlockingIOError:
            return None
        except OSError as error:
            self._judge(error)
            return b""

    def receive_into(self, view: memoryview) -> int | None:
        """How many bytes were received, 0 at the end; None where there are none yet."""
        try:
            return self.endpoint.sock.recv_into(view)
        except BlockingIOError:
            return None
        except OSError as error:
            self._judge(error)
            return 0

    def _judge(self, error: OSError) -> None:
        """Raises, but where an upstream closed on what it has not read: that says nothing of its answer."""
        if not (self.beside and self._refused):
            raise upstream_gone(error) from None

    def at_end(self, reader: BodyReader) -> list[Piece]:
        """The upstream closed; what the upload has heard of a reset this side isn't told any more."""
        if self._upload is not None and self.beside and self._upload.reset and not self._refused:
            raise UpstreamGone("reset before the end of its answer was known")
        return reader.at_end()


class BodyMover:
    """Moves one answer's body. Lives in the task that made it."""

    def __init__(
        self, incoming: Incoming, client: Client, pipes: Pipes, buffer: int, timeouts: Timeouts, moved: Moved
    ) -> None:
        self._incoming = incoming
        self._source = incoming.endpoint
        self._client = client
        self._pipes = pipes
        self._buffer = min(buffer, _MOST_AT_ONCE)
        self._timeouts = timeouts
        self._moved = moved
        self._in_mover = False

    def move(self, reader: BodyReader) -> Steps:
        """Steps: the whole body, or what is left of it; ends in the first loop again.

        By copying for as long as the request is not whole: a splice that waits for many bytes at once would keep an
        upstream waiting for us.
        """
        if self._incoming.beside:
            yield from self._copy(reader, beside=True)
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

    def _copy(self, reader: BodyReader, beside: bool = False) -> Steps:
        size, burst, turn = self._buffer, 0, 0
        while not reader.done and (not beside or self._incoming.beside):
            view = _scratch.view
            most = size if _scratch.holding < _MOST_HOLDING else min(size, SMALL_READ)
            received = self._incoming.receive_into(view[: min(most, reader.most())])
            if received is None:
                burst = 0
                yield Ready(self._source, READ, self._timeouts.read, ReadTimedOut)
                continue
            before = reader.payload
            pieces = reader.feed(view[:received]) if received else self._incoming.at_end(reader)
            slow = yield from self._pass_on(pieces, reader.payload - before)
            # A slow client must not make us hold a big buffer for it.
            size = SMALL_READ if slow else self._buffer
            burst += received
            turn += received
            if turn >= A_TURN:
                turn = 0
                yield Yield()
            if burst >= WORTH_MOVING and not beside:
                yield from self._hop()

    def _pass_on(self, pieces: list[Piece], payload: int) -> Any:
        """Steps: write the pieces, `payload` bytes of which are the body's; whether the client was too slow to take
        them at once."""
        if not pieces:
            return False
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        rest = self._client.send_now(data)
        if not rest:
            self._moved(payload)
            return False
        moved = max(0, payload - len(rest))  # the framing in what is left counts when it is out
        self._moved(moved)
        # The bytes outlive this turn, and the buffer that they lie in doesn't.
        rest, big = bytes(rest), len(rest) > SMALL_READ
        del data, pieces
        _scratch.holding += big
        try:
            yield from self._client.send(rest)
        finally:
            _scratch.holding -= big
        self._moved(payload - moved)
        return True
