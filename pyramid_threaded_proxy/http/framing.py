"""Where an answer's body ends: its framing, whether the connection lasts, and the chunked coding.

Where proxies differ the stricter choice is taken: any doubt about the end of a body is a refusal.
Nothing here knows sockets, clocks or threads; a reader belongs to whoever calls it.
"""

from __future__ import annotations

import re
from enum import Enum

from pyramid_threaded_proxy.exceptions import AnswerRefused
from pyramid_threaded_proxy.http.head import ResponseHead, check_line_ends, parse_field_section, refused
from pyramid_threaded_proxy.http.names import NameTable, connection_options

_CRLF = b"\r\n"
#: Ends a chunked body without trailers (RFC 9112 7.1).
LAST_CHUNK = b"0\r\n\r\n"
_MAX_LINE = 256
_MAX_TRAILERS = 8192
_MAX_TRAILER_FIELDS = 200

# What a refusal may show of a framing field's value.
_HARMLESS = re.compile(r"(?:[0-9, ]|chunked|compress|deflate|gzip|identity)+", re.IGNORECASE)
# 18 digits, and 15 hexadecimal ones, stay below 2**63: no peer's counter can wrap.
_DIGITS = re.compile(r"[0-9]{1,18}")
_SIZE = rb"([0-9A-Fa-f]{1,15})"
_EXTENSIONS = rb"(;[\t\x20-\x7e\x80-\xff]*)?"
_SIZE_LINE = re.compile(_SIZE + _EXTENSIONS + rb"\r\n")
_SIZE_LINE_START = re.compile(_SIZE + _EXTENSIONS + rb"\r?")
_NEXT_SIZE_LINE = re.compile(rb"\r\n" + _SIZE + rb"\r\n")


def chunk(*pieces: bytes | memoryview) -> list[bytes | memoryview]:
    """One chunk of all of them (RFC 9112 7.1); of no data there is none, as that would be the last."""
    size = sum(map(len, pieces))
    return [b"%x\r\n" % size, *pieces, _CRLF] if size else []


class Framing(Enum):
    """How the end of an answer's body is found (RFC 9112 6.3)."""

    NONE = "no body"
    LENGTH = "Content-Length"
    CHUNKED = "chunked"
    CLOSE = "until the connection closes"


# To read a member of an enumeration takes ten times as long as to read a name, and each exchange asks often.
NO_BODY = Framing.NONE
LENGTH = Framing.LENGTH
CHUNKED = Framing.CHUNKED
CLOSE = Framing.CLOSE


def answer_framing(method: str, head: ResponseHead) -> tuple[Framing, int]:
    """Tell how the body behind `head` is framed, and its length in bytes for `Framing.LENGTH` (0 otherwise).

    `method` is the request's. Framing fields that break a rule are refused even where no body follows, but those of a
    204 that announce a body: it has none, whatever they say (RFC 9112 6.3).
    Raises AnswerRefused (RFC 9112 6.1 to 6.3, RFC 9110 8.6).
    """
    lengths, codings = head.lengths, head.codings
    length = _content_length(lengths)
    if codings:
        _check_codings(codings, lengths, head)
    if head.status < 200:
        # RFC 9110 8.6: no Content-Length here. Zero is harmless; behind anything else nobody knows where the next
        # head begins.
        if length:
            raise _field_refused(f"Content-Length on status {head.status} (RFC 9110 8.6)", lengths[0])
        return NO_BODY, 0
    if method == "HEAD" or head.status in (204, 304):
        return NO_BODY, 0
    if codings:
        return CHUNKED, 0
    return (LENGTH, length) if lengths else (CLOSE, 0)


def _content_length(values: list[str]) -> int:
    """RFC 9112 6.3 lets a recipient accept a repeated equal length; we don't."""
    if not values:
        return 0
    if len(values) > 1:
        raise _field_refused("more than one Content-Length (RFC 9112 6.3)", ", ".join(values))
    if not _DIGITS.fullmatch(values[0]):
        raise _field_refused("Content-Length is not 1 to 18 digits (RFC 9110 8.6)", values[0])
    return int(values[0])


def _check_codings(codings: list[str], lengths: list[str], head: ResponseHead) -> None:
    if len(codings) > 1 or codings[0].lower() != "chunked":
        raise _field_refused("Transfer-Encoding is not one chunked (RFC 9112 6.1, 7)", ", ".join(codings))
    if lengths:
        raise _field_refused("Content-Length beside Transfer-Encoding (RFC 9112 6.3)", lengths[0])
    if head.minor == 0:
        raise _field_refused("Transfer-Encoding in HTTP/1.0 (RFC 9112 6.1)", codings[0])
    if head.status < 200:
        raise _field_refused(f"Transfer-Encoding on status {head.status} (RFC 9112 6.1)", codings[0])


def _field_refused(rule: str, value: str) -> AnswerRefused:
    # Lengths and the usual codings are no secrets; whatever else is there may be.
    return refused(rule, value.encode("latin-1") if _HARMLESS.fullmatch(value) else b"")


_OPTIONS = NameTable(lambda text: connection_options([text]))


def keeps_alive(head: ResponseHead) -> bool:
    """Tell whether the upstream keeps the connection after this answer, as far as its head says (RFC 9112 9.3)."""
    options = _OPTIONS[",".join(head.connection)]
    return "close" not in options and (head.minor > 0 or "keep-alive" in options)


class _Output:
    """What one feed lets pass: spans of its input, neighbours joined, and bytes written anew."""

    __slots__ = ("_pieces", "_start", "_stop", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self._pieces: list[bytes | memoryview] = []
        self._start = self._stop = 0

    def pass_on(self, start: int, stop: int) -> None:
        if start != self._stop:
            self._flush()
            self._start = start
        self._stop = stop

    def write(self, data: bytes) -> None:
        self._flush()
        self._pieces.append(data)

    def pieces(self) -> list[bytes | memoryview]:
        self._flush()
        return self._pieces

    def _flush(self) -> None:
        if self._start < self._stop:
            self._pieces.append(self.view[self._start : self._stop])
        self._start = self._stop


class ChunkedReader:
    """Reads a chunked body piece by piece (RFC 9112 7.1); trailers and chunk extensions are checked and dropped.

    `chunk_left` is how many bytes of data the current chunk still has: they may be moved past the reader, who is then
    told by `skipped`. `payload` counts the bytes of data so far. Once `done`, `rest` holds what came behind the body; a
    connection with such bytes is not reused.
    After a refusal the reader is of no use any more.
    """

    __slots__ = ("_crlf_owed", "_decode", "_held", "_trailers", "chunk_left", "done", "payload", "rest")

    def __init__(self, decode: bool) -> None:
        self._decode = decode
        self._held = b""
        self._crlf_owed = False
        self._trailers: bytearray | None = None
        self.chunk_left = 0
        self.payload = 0
        self.done = False
        self.rest = b""

    def feed(self, data: bytes | memoryview) -> list[bytes | memoryview]:
        """Return what may go on to the client; memoryviews are slices of `data`.

        With `decode` that is the chunks' data alone. Without, it is chunked coding in which every size line was seen
        whole, and the last chunk only once the trailers ended. Raises AnswerRefused.
        """
        view = memoryview(data)
        output = _Output(view)
        position, end = 0, len(view)
        while position < end and not self.done:
            if self.chunk_left:
                position = self._take_data(output, position)
            elif self._crlf_owed:
                position = self._take_crlf(output, position)
            elif self._trailers is None:
                position = self._take_size_line(output, position)
            else:
                position = self._take_trailers(self._trailers, output, position)
        self.rest += view[position:]
        return output.pieces()

    def skipped(self, count: int) -> None:
        """`count` bytes of the current chunk's data were moved past the reader."""
        if not 0 <= count <= self.chunk_left:
            raise ValueError(f"skipped {count} of {self.chunk_left} bytes")
        self.chunk_left -= count
        self.payload += count
        self._crlf_owed = self._crlf_owed or (count > 0 and not self.chunk_left)

    def _take_data(self, output: _Output, position: int) -> int:
        stop = min(position + self.chunk_left, len(output.view))
        output.pass_on(position, stop)
        self.skipped(stop - position)
        return stop if self.chunk_left else self._take_plain_chunks(output, stop)

    def _take_plain_chunks(self, output: _Output, start: int) -> int:
        """Take the chunks that follow one another without extensions: the fast way, one match for each."""
        view, decode, next_size_line = output.view, self._decode, _NEXT_SIZE_LINE.match
        position, end, payload = start, len(view), 0
        while found := next_size_line(view, position):
            size = int(found[1], 16)
            if not size:
                break
            data_start = found.end()
            position = data_start + size
            payload += size
            if decode:
                output.pass_on(data_start, min(position, end))
        self.chunk_left = left = max(0, position - end)
        self.payload += payload - left
        self._crlf_owed = not left
        stop = min(position, end)
        if not decode:
            output.pass_on(start, stop)
        return stop

    def _take_crlf(self, output: _Output, position: int) -> int:
        """Take the line end behind a chunk's data; it goes on at once, as some clients wait for it."""
        held = len(self._held)
        seen = self._held + output.view[position : position + 2 - held]
        if not _CRLF.startswith(seen):
            raise refused("no CRLF behind a chunk's data (RFC 9112 7.1)", seen)
        stop = position + len(seen) - held
        if len(seen) < 2:
            self._held = seen
            return stop
        self._held, self._crlf_owed = b"", False
        self._put_line(output, position, stop, _CRLF if held else None)
        return stop

    def _take_size_line(self, output: _Output, position: int) -> int:
        held = len(self._held)
        seen = self._held + output.view[position : position + _MAX_LINE]
        if not held and seen.startswith(LAST_CHUNK):
            self.done = True
            self._put_line(output, position, position + len(LAST_CHUNK), None)
            return position + len(LAST_CHUNK)
        line = seen[: seen.find(b"\n", 0, _MAX_LINE) + 1]
        if not line:
            return self._hold_line(seen, len(output.view))
        size, extensions = _parse_size_line(line)
        self._held = b""
        stop = position + len(line) - held
        self.chunk_left = int(size, 16)
        if not self.chunk_left:
            self._trailers = bytearray(_CRLF)
        else:
            self._put_line(output, position, stop, size + _CRLF if held or extensions else None)
        return stop

    def _hold_line(self, seen: bytes, stop: int) -> int:
        if len(seen) >= _MAX_LINE:
            raise refused(f"a chunk's size line is longer than {_MAX_LINE} bytes")
        if not _SIZE_LINE_START.fullmatch(seen):
            raise _size_line_refused(seen)
        self._held = seen
        return stop

    def _take_trailers(self, trailers: bytearray, output: _Output, position: int) -> int:
        """Drop the trailers. They are held behind the last size line's CRLF, so that empty ones end like others."""
        searched = len(trailers)
        trailers += output.view[position : position + _MAX_TRAILERS]
        end = trailers.find(b"\r\n\r\n", max(0, searched - 3), _MAX_TRAILERS)
        if end < 0:
            if len(trailers) >= _MAX_TRAILERS:
                raise refused(f"the trailers are longer than {_MAX_TRAILERS} bytes")
            check_line_ends(trailers, searched)
            return position + len(trailers) - searched
        parse_field_section(bytes(trailers[2 : end + 2]), _MAX_TRAILER_FIELDS)
        self.done = True
        self._put_line(output, 0, 0, LAST_CHUNK)
        return position + end + 4 - searched

    def _put_line(self, output: _Output, start: int, stop: int, anew: bytes | None) -> None:
        """Pass a line of the coding on, from the input or written anew; who decodes gets none."""
        if self._decode:
            return
        if anew is None:
            output.pass_on(start, stop)
        else:
            output.write(anew)


def _parse_size_line(line: bytes) -> tuple[bytes, bytes | None]:
    found = _SIZE_LINE.fullmatch(line)
    if found is None:
        raise _size_line_refused(line)
    return found[1], found[2]


def _size_line_refused(line: bytes) -> AnswerRefused:
    # Four bytes tell what went wrong, and are no part of a body worth reading.
    return refused("a chunk's size line is not 1 to 15 hexadecimal digits and extensions (RFC 9112 7.1)", line[:4])
