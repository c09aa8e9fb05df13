"""Message heads: reads the upstream's answer head by strict rules, and writes heads in both directions.

Where proxies differ the stricter choice is taken. The one leniency: ``HTTP/1.1 200`` without the space before
an empty reason phrase is accepted, because servers send it (RFC 9112 4 asks for the space).

Nothing here knows sockets, clocks or threads; a reader belongs to whoever calls it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from pyramid_threaded_proxy.exceptions import AnswerRefused, ValueRefused
from pyramid_threaded_proxy.http.names import NOT_IN_A_VALUE, TOKEN, TOKEN_CHARACTERS, Fields, NameTable

_HEAD_END = b"\r\n\r\n"
_SHOWN = 60
_TOKEN = f"[{TOKEN_CHARACTERS}]+"
_NAME_FAULT = rf"\n[{TOKEN_CHARACTERS}]*[^{TOKEN_CHARACTERS}:\r]"
_TEXT_BYTES = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])

_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([^\r]*))?\r\n")
_STATUS_START = re.compile(rb"HTTP/1\.[01] [1-5][0-9][0-9][ \r]")
_STATUS_SAMPLE = b"HTTP/1.1 200 "
# Nothing behind the colon can fail, so that no value makes the matcher go back over a line it has read.
_FIELD_LINE = re.compile(rf"\n({_TOKEN}):[\t ]*((?:[^\r]*[^\r\t ])?)")
_BROKEN_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")

_SECTION_FAULTS = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (rb"(?<!\r)\n", "a bare LF (RFC 9112 2.2)"),
        (rb"\r(?!\n)", "a bare CR (RFC 9112 2.2)"),
        (rb"[^\t\r\n\x20-\x7e\x80-\xff]", "a control character (RFC 9110 5.5)"),
        (rb"\n[\t ]", "a folded field line (RFC 9112 5.2)"),
        (rb"\n:", "a field without a name (RFC 9110 5.1)"),
        (rb"\n[^:\r]*[\t ]:", "whitespace between a field name and its colon (RFC 9112 5.1)"),
        (rb"\n[^:\r]+\r", "a field line without a colon (RFC 9112 5)"),
        (_NAME_FAULT.encode(), "a field name that is not a token (RFC 9110 5.6.2)"),
    )
)


_IS_TOKEN: NameTable[bool] = NameTable(lambda name: TOKEN.fullmatch(name) is not None)
_FRAMING_NAMES: NameTable[int] = NameTable(
    lambda name: {"content-length": 1, "transfer-encoding": 2, "connection": 3}.get(name.lower(), 0)
)


@dataclass(slots=True, init=False, repr=False)
class ResponseHead:
    """The head of one answer, interim or final.

    `minor` is the x of HTTP/1.x. `fields` keeps the names as they were sent and strips the whitespace around values.
    """

    minor: int
    status: int
    reason: str
    fields: Fields
    #: The values of all Content-Length, Transfer-Encoding and Connection fields.
    lengths: list[str] = field(compare=False)
    codings: list[str] = field(compare=False)
    connection: list[str] = field(compare=False)

    def __init__(self, minor: int, status: int, reason: str, fields: Fields) -> None:
        self.minor, self.status, self.reason, self.fields = minor, status, reason, fields
        found: tuple[list[str], list[str], list[str]] = ([], [], [])
        self.lengths, self.codings, self.connection = found
        for name, value in fields:
            if kind := _FRAMING_NAMES[name]:
                found[kind - 1].append(value)

    def __repr__(self) -> str:
        # Values stay out: a log must not show cookies.
        return f"<ResponseHead HTTP/1.{self.minor} {self.status} {self.reason!r}, {len(self.fields)} fields>"


class HeadReader:
    """Collects the bytes of an answer head until it is whole.

    `max_size` is in bytes and counts the empty line that ends the head. After a head has been returned, `rest` holds
    what came behind it, and the reader is ready for the next one (after a 1xx: ``reader.feed(reader.rest)``).
    `started` is true once any byte was seen.
    """

    __slots__ = ("_held", "_max_fields", "_max_size", "rest", "started")

    def __init__(self, max_size: int, max_fields: int = 200) -> None:
        self._max_size = max_size
        self._max_fields = max_fields
        self._held = bytearray()
        self.rest = b""
        self.started = False

    def feed(self, data: bytes) -> ResponseHead | None:
        """Return the head once it is whole, None while more is needed.

        Raises AnswerRefused, before the head is whole where its beginning shows that it never can be valid.
        """
        if self._held:
            return self._feed_more(data)
        end = data.find(_HEAD_END, 0, self._max_size)
        if end < 0:
            return self._feed_more(data)
        self.started = True
        self.rest = data[end + 4 :]
        return parse_head(data[: end + 2], self._max_fields)

    def _feed_more(self, data: bytes) -> ResponseHead | None:
        held = self._held
        searched = len(held)
        held += data
        self.started = self.started or bool(data)
        end = held.find(_HEAD_END, max(0, searched - 3), self._max_size)
        if end < 0:
            self.rest = b""
            self._check_start(searched)
            return None
        head = bytes(held[: end + 2])
        self.rest = bytes(held[end + 4 :])
        held.clear()
        return parse_head(head, self._max_fields)

    def _check_start(self, searched: int) -> None:
        held = self._held
        if len(held) >= self._max_size:
            raise refused(f"the head is longer than {self._max_size} bytes")
        if searched < len(_STATUS_SAMPLE):
            # What has not come yet is borrowed from a good status line.
            start = bytes(held[: len(_STATUS_SAMPLE)])
            if not _STATUS_START.match(start + _STATUS_SAMPLE[len(start) :]):
                raise _status_line_refused(bytes(held))
        check_line_ends(held, searched)


def _status_of(line: str) -> tuple[int, int, str] | None:
    """Minor version, status and reason of a status line with its CRLF (RFC 9112 4); None if it is none."""
    found = _STATUS_LINE.fullmatch(line)
    return None if found is None else (int(found[1]), int(found[2]), found[3] or "")


_STATUS_LINES = NameTable(_status_of)


def parse_head(head: bytes, max_fields: int) -> ResponseHead:
    """Parse a whole answer head, up to and with the CRLF of its last line (RFC 9112 2.1, 4, 5).

    Raises AnswerRefused.
    """
    text = head.decode("latin-1")
    status_line = _STATUS_LINES[text[: text.find("\r\n") + 2]]
    if status_line is None:
        raise _status_line_refused(head)
    return ResponseHead(*status_line, _parse_lines(head, text, max_fields))


def parse_field_section(section: bytes, max_fields: int) -> Fields:
    """Parse field lines alone, such as trailers: each line, the last one too, ends in CRLF (RFC 9112 5).

    Raises AnswerRefused.
    """
    section = b"\r\n" + section
    return _parse_lines(section, section.decode("latin-1"), max_fields)


def _parse_lines(section: bytes, text: str, max_fields: int) -> Fields:
    """Parse the lines behind the first one, whose own syntax is the caller's."""
    lines = section.count(b"\r\n")
    # Besides text there are just as many bytes as whole CRLFs have: no control, bare CR or bare LF anywhere.
    if section.translate(None, _TEXT_BYTES) != b"\r\n" * lines:
        raise _section_refused(section)
    if lines - 1 > max_fields:
        raise refused(f"more than {max_fields} field lines")
    fields: Fields = _FIELD_LINE.findall(text)
    # Matches begin at line ends only, so as many matches as lines means that every line is a field.
    if len(fields) != lines - 1:
        raise _section_refused(section)
    return fields


def check_line_ends(held: bytes | bytearray, searched: int) -> None:
    """Refuse a bare LF or bare CR in what was held behind `searched`; a CR at the very end may still get its LF.

    An answer that ends its lines so would otherwise be waited for in vain. Raises AnswerRefused (RFC 9112 2.2).
    """
    if _BROKEN_LINE_END.search(held, max(0, searched - 1)):
        raise _section_refused(bytes(held).removesuffix(b"\r"))


def refused(rule: str, fault: bytes = b"") -> AnswerRefused:
    """The refusal of an answer: the rule that it breaks, and the bytes at fault where they can't be a secret."""
    return AnswerRefused(f"{rule}: {fault[:_SHOWN]!r}" if fault else rule)


def _status_line_refused(head: bytes) -> AnswerRefused:
    rule = "no status line of HTTP/1.0 or HTTP/1.1 with a status from 100 to 599 (RFC 9112 4, RFC 9110 15)"
    # No further than the status: where no status line is, anything may be, such as the rest of a body.
    return refused(rule, head.partition(b"\r\n")[0][: 12 if head.startswith(b"HTTP/") else 8])


def _section_refused(section: bytes) -> AnswerRefused:
    found, rule = next((found, rule) for pattern, rule in _SECTION_FAULTS if (found := pattern.search(section)))
    line = section[section.rfind(b"\n", 0, found.end() - 1) + 1 :]
    # A name is shown, but neither a value nor a line without a name: they may be secrets.
    name = re.match(rb"([^:\s][^:\r\n]*):", line)
    byte = f" {found[0]!r}" if len(found[0]) == 1 else ""
    return refused(f"{rule}{byte}, in the line", name[1]) if name else refused(f"{rule}{byte}")


def render_head(start_line: str, fields: Fields) -> bytes:
    """Write a request's or an answer's head, with the empty line that ends it.

    Raises ValueRefused for CR, LF, NUL, other controls but HTAB, text that is not latin-1, and names that are no token.
    """
    lines = [start_line]
    try:
        for field in fields:
            name, _ = field
            if not _IS_TOKEN[name]:
                raise ValueError(name)
            lines.append(": ".join(field))
        lines.append("\r\n")
        head = "\r\n".join(lines).encode("latin-1")
    except (TypeError, ValueError):  # no token, no pair, no text, or more than latin-1
        head = b""
    if not start_line or head.translate(None, _TEXT_BYTES) != b"\r\n" * len(lines):
        _refuse_written(start_line, fields)
    return head


def _refuse_written(start_line: str, fields: Fields) -> NoReturn:
    check_field("start-line", start_line)
    for name, value in fields:
        check_field(name, value)
    raise ValueRefused("the start line of a message is empty (RFC 9112 2.1)")


def check_field(name: str, value: str) -> None:
    """Raise ValueRefused if the field can't be written into a head (RFC 9110 5.1, 5.5)."""
    if not isinstance(name, str) or not TOKEN.fullmatch(name):
        raise ValueRefused(f"the field name {_shown(name)} is not a token (RFC 9110 5.6.2)")
    if not isinstance(value, str):
        raise ValueRefused(f"the value of {_shown(name)} is {type(value).__name__}, not text")
    found = NOT_IN_A_VALUE.search(value)
    if found:
        # The value itself stays out of the message: it may be a secret.
        raise ValueRefused(f"the value of {_shown(name)} has the character {found[0]!r} (RFC 9110 5.5)")


def _shown(name: object) -> str:
    return repr(name)[:_SHOWN]
