"""An answer's body as whoever looks into it gets it: piece by piece, without its framing, and decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyramid_threaded_proxy.exceptions import AnswerRefused, ReadTimedOut
from pyramid_threaded_proxy.http.framing import CHUNKED, CLOSE, LENGTH, Framing
from pyramid_threaded_proxy.http.names import Fields
from pyramid_threaded_proxy.loop.poller import READ
from pyramid_threaded_proxy.loop.waits import Ready, Returning
from pyramid_threaded_proxy.relay.answer_body import (
    BodyReader,
    ChunkedBody,
    CloseReader,
    Incoming,
    LengthReader,
    Piece,
    ReaderAround,
    Rechunked,
)
from pyramid_threaded_proxy.upstream.decoding import KNOWN, Decoder, new_decoder


def payload_reader(framing: Framing, length: int) -> BodyReader:
    """The reader that leaves nothing of a framing in what it passes on."""
    if framing is CHUNKED:
        return ChunkedBody(decode=True)
    return CloseReader(chunked=False) if framing is CLOSE else LengthReader(length)


class Source(Protocol):
    """What a body comes from."""

    def take(self) -> bytes | None:
        """Some bytes; b"" at the end, None where nothing is there yet."""

    def wait(self) -> Ready:
        """Until there may be something."""


def next_of(source: Source) -> Returning[bytes]:
    """Steps: some bytes; b"" at the end. Raises `ReadTimedOut` besides what `take` raises."""
    while (data := source.take()) is None:
        yield source.wait()
    return data


class Noting(ReaderAround):
    """A body's reader that keeps the first `most` bytes of what passes."""

    def __init__(self, inner: BodyReader, most: int) -> None:
        super().__init__(inner)
        self._most = most
        self.noted = b""

    def passing(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            self.noted += piece[: self._most - len(self.noted)]
        return pieces


class AnswerSource:
    """One answer's body. Belongs to the exchange's task; `most` bytes at a time are the most that it hands out.

    `reader` leaves nothing of the framing in what it passes on (`payload_reader`); `rest` came behind the head.
    """

    def __init__(self, incoming: Incoming, framing: Framing, reader: BodyReader, rest: bytes, most: int) -> None:
        self._incoming = incoming
        self._most = most
        self._decoder: Decoder | None = None
        self._needs_framing = framing is not LENGTH
        self.reader = reader
        self._waiting = _joined(self.reader.feed(rest)) if rest else b""

    @property
    def ended(self) -> bool:
        """Whether all of it was received."""
        return self.reader.done

    def decode(self, coding: str) -> None:
        """From now on, undo this coding, where it is one."""
        if coding:
            self._decoder = new_decoder(coding)

    def put_back(self, data: bytes) -> None:
        """What was taken comes once more."""
        self._waiting = data + self._waiting

    def wait(self) -> Ready:
        """Until there may be something."""
        return Ready(self._incoming.endpoint, READ, self._incoming.timeout, ReadTimedOut)

    def take(self) -> bytes | None:
        """Some bytes; b"" at the end, None where nothing is there yet. Raises `UpstreamGone` and `AnswerRefused`."""
        decoder = self._decoder
        if decoder is None:
            return self._take_raw()
        if decoder.pending and (data := decoder.decode(b"", self._most)):
            return data
        while raw := self._take_raw():
            if data := decoder.decode(raw, self._most):
                return data
        if raw is not None and self.reader.payload:  # some name the coding of a body that is empty
            decoder.check_end()
        return raw

    def _take_raw(self) -> bytes | None:
        while not self._waiting:
            if self.ended:
                return b""
            data = self._incoming.receive(min(self._most, self.reader.most()))
            if data is None:
                return None
            self._waiting = _joined(self.reader.feed(data) if data else self._incoming.at_end(self.reader))
        data, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        return data

    def take_received(self) -> bytes:
        """All that was received and not taken yet, as it came."""
        data, self._waiting = self._waiting, b""
        return data

    def remaining(self, chunked: bool) -> BodyReader:
        """What reads the rest, behind what was received: `chunked` frames a body whose length is not known."""
        if isinstance(self.reader, LengthReader):
            return self.reader
        return Rechunked(self.reader, chunked and self._needs_framing)


def _joined(pieces: list[Piece]) -> bytes:
    if len(pieces) == 1 and isinstance(pieces[0], bytes):
        return pieces[0]
    return b"".join(pieces)


def coding_of(fields: Fields) -> str:
    """The one content coding of an answer, in lower case; empty where it has none. Raises `AnswerRefused`."""
    said = [value for name, value in fields if name.lower() == "content-encoding"]
    codings = [word for value in said for item in value.split(",") if (word := item.strip(" \t").lower())]
    codings = [coding for coding in codings if coding != "identity"]
    if not codings:
        return ""
    if len(codings) > 1 or codings[0] not in KNOWN:
        raise AnswerRefused("it has a content coding that can't be undone here, and that was not asked for")
    return codings[0]


class BodyInHand:
    """What a `response` hook has read of the body: it may be answered instead, and goes on to the client if not.

    `read` runs in the hook's thread, in turns with the task (`loop.dialogue`).
    """

    def __init__(self, ask: Callable[[], bytes], fields: Fields) -> None:
        self._ask = ask  # brings the body's next bytes as they came, b"" at the end
        self._fields = fields
        self.taken = bytearray()
        self.whole = False

    def read(self, limit: int) -> bytes | None:
        """`UpstreamAnswer.read`."""
        coding = coding_of(self._fields)
        while not self.whole and len(self.taken) <= limit:
            data = self._ask()
            self.taken += data
            self.whole = not data
        if not self.whole or len(self.taken) > limit:
            return None
        return _decoded(bytes(self.taken), coding, limit) if coding and self.taken else bytes(self.taken)


def decoded_beginning(data: bytes, fields: Fields, most: int) -> bytes:
    """The beginning of a body with its coding undone, as far as that can be: for the log."""
    try:
        coding = coding_of(fields)
        return new_decoder(coding).decode(data, most) if coding else data
    except AnswerRefused:
        return data


def _decoded(data: bytes, coding: str, limit: int) -> bytes | None:
    decoder = new_decoder(coding)
    found = decoder.decode(data, limit + 1)
    while decoder.pending and len(found) <= limit:
        found += decoder.decode(b"", limit + 1 - len(found))
    if len(found) > limit:
        return None
    decoder.check_end()
    return found
