"""Heads as bytes: what is read, what is refused and by which rule, what is written."""

from __future__ import annotations

import string
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.exceptions import AnswerRefused, ValueRefused
from pyramid_threaded_proxy.http.head import HeadReader, ResponseHead, check_field, parse_field_section, render_head
from pyramid_threaded_proxy.http.names import Fields
from tests.support.bodies import bytewise, cut

MAX_SIZE = 65536
TOKEN = set((string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode())
TEXT = {0x09, *range(0x20, 0x7F), *range(0x80, 0x100)}
NASTY = [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b"\t", b" ", b":", b"\x0b", b"\x7f", b"\x85", b"\xa0", b"A", b"("]


def read(pieces: list[bytes], max_size: int = MAX_SIZE) -> tuple[ResponseHead, bytes] | None:
    """Feed the pieces to one reader: the head and all bytes behind it, or None if it never was whole."""
    reader = HeadReader(max_size)
    for number, piece in enumerate(pieces, 1):
        head = reader.feed(piece)
        if head is not None:
            return head, reader.rest + b"".join(pieces[number:])
    return None


ACCEPTED = [
    pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", (1, 200, "OK", []), id="no fields, RFC 9112 2.1"),
    pytest.param(b"HTTP/1.0 404 Not Found\r\n\r\n", (0, 404, "Not Found", []), id="HTTP/1.0, RFC 9112 2.3"),
    pytest.param(b"HTTP/1.1 200 \r\n\r\n", (1, 200, "", []), id="empty reason, RFC 9112 4"),
    pytest.param(b"HTTP/1.1 200\r\n\r\n", (1, 200, "", []), id="no space before an empty reason, declared leniency"),
    pytest.param(b"HTTP/1.1 299 \xe9t\xe9\t!\r\n\r\n", (1, 299, "\xe9t\xe9\t!", []), id="obs-text reason, RFC 9112 4"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", (1, 100, "Continue", []), id="lowest status, RFC 9110 15"),
    pytest.param(b"HTTP/1.1 599 X\r\n\r\n", (1, 599, "X", []), id="highest status, RFC 9110 15"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA:b\r\n\r\n", (1, 200, "OK", [("A", "b")]), id="no OWS, RFC 9112 5"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: \t b c\t \r\n\r\n", (1, 200, "OK", [("A", "b c")]), id="OWS, RFC 9112 5.1"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nA:\r\nB: \t \r\nC: x\r\n\r\n",
        (1, 200, "OK", [("A", ""), ("B", ""), ("C", "x")]),
        id="empty values, RFC 9110 5.5",
    ),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n",
        (1, 200, "OK", [("set-cookie", "a=1"), ("Set-Cookie", "b=2")]),
        id="repeated fields keep case and order, RFC 9110 5.3",
    ),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nA: b: c:\r\n\r\n", (1, 200, "OK", [("A", "b: c:")]), id="colons in a value, RFC 9110 5.5"
    ),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nA: \xa0\x85\xff\r\n\r\n",
        (1, 200, "OK", [("A", "\xa0\x85\xff")]),
        id="obs-text is not whitespace, RFC 9110 5.5",
    ),
    pytest.param(
        b"HTTP/1.1 200 OK\r\n!#$%&'*+-.^_`|~9z: x\r\n\r\n",
        (1, 200, "OK", [("!#$%&'*+-.^_`|~9z", "x")]),
        id="every token character, RFC 9110 5.6.2",
    ),
]


@pytest.mark.parametrize(("data", "expected"), ACCEPTED)
@pytest.mark.parametrize("trailing", [b"", b"body", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\n\0\r"])
def test_accepts(data: bytes, expected: tuple[int, int, str, Fields], trailing: bytes) -> None:
    """A valid head reads the same whole, byte by byte, and with bytes behind it, which are left alone."""
    for pieces in ([data + trailing], bytewise(data + trailing)):
        result = read(pieces)
        assert result is not None
        head, rest = result
        assert (head.minor, head.status, head.reason, head.fields) == expected
        assert rest == trailing


STATUS_LINE = "no status line"
REFUSED = [
    pytest.param(b"HTTP/2.0 200 OK\r\n\r\n", STATUS_LINE, id="major version, RFC 9112 2.3"),
    pytest.param(b"HTTP/1.2 200 OK\r\n\r\n", STATUS_LINE, id="unknown minor version, stricter than RFC 9112 2.3"),
    pytest.param(b"HTTP/1.10 200 OK\r\n\r\n", STATUS_LINE, id="two-digit minor, RFC 9112 2.3"),
    pytest.param(b"http/1.1 200 OK\r\n\r\n", STATUS_LINE, id="lower-case name, RFC 9112 2.3"),
    pytest.param(b"ICY 200 OK\r\n\r\n", STATUS_LINE, id="other protocol, RFC 9112 4"),
    pytest.param(b"<html>hello</html>\r\n\r\n", STATUS_LINE, id="HTTP/0.9 body, RFC 9112 4"),
    pytest.param(b"\x15\x03\x01\x00\x02\x02\x46", STATUS_LINE, id="TLS alert, RFC 9112 4"),
    pytest.param(b"\r\nHTTP/1.1 200 OK\r\n\r\n", STATUS_LINE, id="empty line in front, RFC 9112 2.2"),
    pytest.param(b" HTTP/1.1 200 OK\r\n\r\n", STATUS_LINE, id="space in front, RFC 9112 4"),
    pytest.param(b"HTTP/1.1  200 OK\r\n\r\n", STATUS_LINE, id="two spaces, RFC 9112 4"),
    pytest.param(b"HTTP/1.1\t200 OK\r\n\r\n", STATUS_LINE, id="tab for a space, RFC 9112 4"),
    pytest.param(b"HTTP/1.1 20 OK\r\n\r\n", STATUS_LINE, id="two digits, RFC 9112 4"),
    pytest.param(b"HTTP/1.1 2000 OK\r\n\r\n", STATUS_LINE, id="four digits, RFC 9112 4"),
    pytest.param(b"HTTP/1.1 +20 OK\r\n\r\n", STATUS_LINE, id="sign in the status, RFC 9112 4"),
    pytest.param(b"HTTP/1.1 2\xb20 OK\r\n\r\n", STATUS_LINE, id="superscript digit, RFC 9112 4"),
    pytest.param(b"HTTP/1.1 099 Low\r\n\r\n", STATUS_LINE, id="status below 100, RFC 9110 15"),
    pytest.param(b"HTTP/1.1 600 High\r\n\r\n", STATUS_LINE, id="status above 599, RFC 9110 15"),
    pytest.param(b"HTTP/1.1 200OK\r\n\r\n", STATUS_LINE, id="no space before the reason, RFC 9112 4"),
    pytest.param(b"HTTP/1.1 200 O\0K\r\n\r\n", "control character", id="NUL in the reason, RFC 9112 4"),
    pytest.param(b"HTTP/1.1 200 O\rK\r\n\r\n", STATUS_LINE, id="bare CR in the reason, RFC 9112 2.2"),
    pytest.param(b"HTTP/1.1 200 OK\nA: b\n\n", "bare LF", id="bare LF line ends, RFC 9112 2.2"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\n\r\n\r\n", "bare LF", id="one bare LF, RFC 9112 2.2"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n", "bare LF", id="field hidden behind LF, RFC 9112 2.2"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n", "bare CR", id="field hidden behind CR, RFC 9112 2.2"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\rx\nC: d\r\n\r\n", "bare LF", id="CR and LF apart, RFC 9112 2.2"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\n\rC: d\r\n\r\n", "bare LF", id="LF CR, RFC 9112 2.2"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\r\r\n\r\n", "bare CR", id="CR CR LF, RFC 9112 2.2"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n", r"'\\x00'", id="NUL in a value, RFC 9110 5.5"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\x0bc\r\n\r\n", r"'\\x0b'", id="VT in a value, RFC 9110 5.5"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\x7fc\r\n\r\n", r"'\\x7f'", id="DEL in a value, RFC 9110 5.5"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", "control", id="VT before chunked, RFC 9110 5.5"
    ),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "folded", id="obs-fold, RFC 9112 5.2"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\tchunked\r\n\r\n", "folded", id="folded coding, RFC 9112 5.2"
    ),
    pytest.param(b"HTTP/1.1 200 OK\r\n A: b\r\n\r\n", "folded", id="fold behind the status line, RFC 9112 2.2"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "whitespace between", id="space before colon, RFC 9112 5.1"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n", "whitespace", id="space, coding, RFC 9112 5.1"
    ),
    pytest.param(b"HTTP/1.1 200 OK\r\nA\t: b\r\n\r\n", "whitespace between", id="tab before colon, RFC 9112 5.1"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA B: c\r\n\r\n", "not a token", id="space in a name, RFC 9110 5.6.2"),
    pytest.param(b"HTTP/1.1 200 OK\r\n\xe9: b\r\n\r\n", "not a token", id="obs-text in a name, RFC 9110 5.6.2"),
    pytest.param(b"HTTP/1.1 200 OK\r\n\xa0A: b\r\n\r\n", "not a token", id="NBSP before a name, RFC 9110 5.6.2"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA(b): c\r\n\r\n", "not a token", id="delimiter in a name, RFC 9110 5.6.2"),
    pytest.param(b"HTTP/1.1 200 OK\r\n: b\r\n\r\n", "without a name", id="empty name, RFC 9110 5.1"),
    pytest.param(b"HTTP/1.1 200 OK\r\nnothing\r\n\r\n", "without a colon", id="no colon, RFC 9112 5"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\r\nnothing\r\nC: d\r\n\r\n", "without a colon", id="no colon amid, 9112 5"),
]


@pytest.mark.parametrize(("data", "rule"), REFUSED)
def test_refuses(data: bytes, rule: str) -> None:
    """A faulty head is refused whole, with bytes behind it, and byte by byte."""
    for pieces in ([data], [data + b"\r\n\r\nmore"]):
        with pytest.raises(AnswerRefused, match=rule):
            read(pieces)
    with pytest.raises(AnswerRefused):
        read(bytewise(data))


@pytest.mark.parametrize("start", [b"\0", b"\n", b"\x15\x03", b"HTTP/1.2", b"HTTP/1.1 6", b"HTTQ", b"HTTP/1.1 2x"])
def test_refuses_early(start: bytes) -> None:
    """A beginning that can never become a status line is refused before anything else arrives."""
    with pytest.raises(AnswerRefused, match=STATUS_LINE):
        HeadReader(MAX_SIZE).feed(start)


@pytest.mark.parametrize("fault", [b"A: b\n", b"A: b\rC", b"\n"])
def test_refuses_bare_line_ends_early(fault: bytes) -> None:
    """A head with bare line ends, which would never come to its end, is not waited for."""
    reader = HeadReader(MAX_SIZE)
    assert reader.feed(b"HTTP/1.1 200 OK\r\n") is None
    with pytest.raises(AnswerRefused, match="bare"):
        reader.feed(fault)


def test_every_beginning_of_a_good_head_waits() -> None:
    """No beginning of a valid head is refused too early."""
    data = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"
    assert all(HeadReader(MAX_SIZE).feed(data[:size]) is None for size in range(len(data)))


@pytest.mark.parametrize("size", [40, 100])
def test_size_bound(size: int) -> None:
    """A head of just the allowed size is read, one byte more is refused, also before it is whole."""
    frame = b"HTTP/1.1 200 OK\r\nA: \r\n\r\n"
    fits = frame[:-4] + b"x" * (size - len(frame)) + b"\r\n\r\n"
    for pieces in ([fits + b"body" * 99], bytewise(fits)):
        assert read(pieces, size) is not None
    longer = fits[:-4] + b"x\r\n\r\n"
    for pieces in ([longer], bytewise(longer), [longer[:size]], [longer[:5], longer[5:]]):
        with pytest.raises(AnswerRefused, match=f"longer than {size} bytes"):
            read(pieces, size)


def test_field_bound() -> None:
    """As many fields as allowed are read, one more is refused."""
    reader = HeadReader(MAX_SIZE, max_fields=3)
    head = reader.feed(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 3 + b"\r\n")
    assert head is not None
    assert len(head.fields) == 3
    with pytest.raises(AnswerRefused, match="more than 3 field lines"):
        reader.feed(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 4 + b"\r\n")


def test_interim_heads_follow_one_another() -> None:
    """After an interim answer the same reader reads the next head from what was left."""
    reader = HeadReader(MAX_SIZE)
    first = reader.feed(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 20")
    assert first is not None
    assert first.status == 103
    assert reader.rest == b"HTTP/1.1 20"
    assert reader.feed(reader.rest) is None
    assert reader.rest == b""
    second = reader.feed(b"0 OK\r\n\r\nbody")
    assert second is not None
    assert (second.status, reader.rest) == (200, b"body")


def test_started() -> None:
    """`started` tells whether any byte of an answer came: afterwards nothing may be tried again."""
    reader = HeadReader(MAX_SIZE)
    assert reader.feed(b"") is None
    assert not reader.started
    assert reader.feed(b"H") is None
    assert reader.started
    whole = HeadReader(MAX_SIZE)
    whole.feed(b"HTTP/1.1 200 OK\r\n\r\n")
    assert whole.started


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nA:" + b" " * 30000 + b"x" * 30000 + b"\0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: x" + b" \t" * 30000 + b"y\r\nbad\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a" * 60000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a " * 30000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 60000 + b"\x7f\r\n\r\n",
    ],
    ids=["blanks then text", "trailing blanks", "no colon", "blanks in the name", "control at the end"],
)
def test_no_head_is_slow_to_refuse(data: bytes) -> None:
    """Heads made to let a matcher go back and forth take time in proportion to their size, byte by byte too."""
    before = time.process_time()
    for pieces in ([data], bytewise(data)):
        with pytest.raises(AnswerRefused):
            read(pieces)
    assert time.process_time() - before < 2


def test_refusal_keeps_secrets_and_stays_short() -> None:
    """The text of a refusal names the field, shows no value, and is bounded."""
    with pytest.raises(AnswerRefused) as raised:
        read([b"HTTP/1.1 200 OK\r\nSet-Cookie: sid=secret\0\r\n\r\n"])
    assert "'Set-Cookie'" in str(raised.value)
    assert "secret" not in str(raised.value)
    with pytest.raises(AnswerRefused) as raised:
        read([b"z" * 5000])
    assert len(str(raised.value)) < 200


def test_head_repr_shows_no_values() -> None:
    """A head in a log line shows no cookie."""
    head = ResponseHead(1, 200, "OK", [("Set-Cookie", "sid=secret")])
    assert repr(head) == "<ResponseHead HTTP/1.1 200 'OK', 1 fields>"


def test_field_section() -> None:
    """Field lines are parsed alone, as trailers are, by the same rules."""
    assert parse_field_section(b"", 5) == []
    assert parse_field_section(b"A: b\r\nC:\r\n", 5) == [("A", "b"), ("C", "")]
    with pytest.raises(AnswerRefused, match="whitespace between"):
        parse_field_section(b"A : b\r\n", 5)


def reference(data: bytes) -> tuple[int, int, str, Fields] | None:
    """A second reader, line by line and without patterns: the parsed head, or None for a refusal."""
    lines = data.partition(b"\r\n\r\n")[0].split(b"\r\n")
    if any(byte not in TEXT for line in lines for byte in line):
        return None
    version, status, gap, reason = lines[0][:8], lines[0][9:12], lines[0][12:13], lines[0][13:]
    if version not in (b"HTTP/1.0", b"HTTP/1.1") or lines[0][8:9] != b" " or gap not in (b"", b" "):
        return None
    if len(status) != 3 or any(byte not in b"0123456789" for byte in status) or not 100 <= int(status) <= 599:
        return None
    fields = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not name or not colon or any(byte not in TOKEN for byte in name):
            return None
        fields.append((name.decode(), value.strip(b" \t").decode("latin-1")))
    return version[7] - 48, int(status), reason.decode("latin-1"), fields


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads, most of them valid but for up to three edits with bytes that matter."""
    names = st.sampled_from([b"A", b"Content-Length", b"transfer-encoding", b"X_y"])
    values = st.sampled_from([b"", b" 5", b"\tchunked ", b" a b\xa0", b": x"])
    lines = draw(st.lists(st.tuples(names, values), max_size=4))
    start = draw(st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.0 404", b"HTTP/1.1 100 "]))
    data = start + b"".join(b"\r\n%s:%s" % line for line in lines) + b"\r\n\r\n"
    for _ in range(draw(st.integers(0, 3))):
        at, removed = draw(st.integers(0, len(data))), draw(st.integers(0, 2))
        data = data[:at] + draw(st.sampled_from(NASTY)) + data[at + removed :]
    return data + b"\r\n\r\n"


def outcome(pieces: list[bytes]) -> tuple[int, int, str, Fields] | None:
    try:
        result = read(pieces)
    except AnswerRefused:
        return None
    assert result is not None
    return result[0].minor, result[0].status, result[0].reason, result[0].fields


@given(heads(), st.lists(st.integers(0, 200), max_size=5))
def test_agrees_with_a_second_reader_under_any_split(data: bytes, positions: list[int]) -> None:
    """Valid and mutated heads give what a plain line-by-line reader gives, however the input is split."""
    expected = reference(data)
    assert outcome([data]) == expected
    assert outcome(cut(data, positions)) == expected
    assert outcome(bytewise(data)) == expected


@given(st.lists(st.binary(max_size=30) | st.sampled_from(NASTY), max_size=8))
def test_random_bytes_raise_nothing_else(pieces: list[bytes]) -> None:
    """Whatever an upstream sends, the reader raises AnswerRefused or nothing."""
    for begun in ([], [b"HTTP/1.1 200 OK\r\n"]):
        try:
            read([*begun, *pieces])
        except AnswerRefused:
            pass


NAMES = st.text("".join(map(chr, TOKEN)), min_size=1, max_size=20)
VALUES = st.text("".join(map(chr, TEXT)), max_size=20)


@given(VALUES, st.lists(st.tuples(NAMES, VALUES), max_size=6))
def test_round_trip(reason: str, fields: Fields) -> None:
    """What is written is read back the same, but for whitespace around values."""
    result = read([render_head(f"HTTP/1.1 200 {reason}", fields)])
    assert result is not None
    assert result[0].reason == reason
    assert result[0].fields == [(name, value.strip(" \t")) for name, value in fields]


ANY_TEXT = st.text(st.sampled_from("\r\n\0\t\x1f\x7f\x85\xa0\xff:Ab 1(\u0100\u212a\U0001f600"), max_size=5)


@given(st.lists(st.tuples(NAMES | ANY_TEXT, VALUES | ANY_TEXT), max_size=4))
def test_writing_is_strict_and_agrees_with_check_field(fields: Fields) -> None:
    """Either every field passes `check_field` and the head has just these lines, or it is refused."""
    try:
        for name, value in fields:
            check_field(name, value)
    except ValueRefused:
        with pytest.raises(ValueRefused):
            render_head("GET / HTTP/1.1", fields)
    else:
        head = render_head("GET / HTTP/1.1", fields)
        assert head.decode("latin-1").split("\r\n") == [
            "GET / HTTP/1.1",
            *(f"{name}: {value}" for name, value in fields),
            "",
            "",
        ]
        assert head.count(b"\r") == head.count(b"\n") == len(fields) + 2


def test_render() -> None:
    """A head is written with one line for each field, repeated ones too, and an empty line."""
    fields = (field for field in [("Host", "a"), ("X", ""), ("X", "\xe9")])
    assert render_head("GET / HTTP/1.1", fields) == b"GET / HTTP/1.1\r\nHost: a\r\nX: \r\nX: \xe9\r\n\r\n"
    assert render_head("HTTP/1.1 200 OK", []) == b"HTTP/1.1 200 OK\r\n\r\n"


WRITTEN_FAULTS = [
    ("X", "a\rb", r"value of 'X' has the character '\\r'"),
    ("X", "a\nSet-Cookie: b", r"value of 'X' has the character '\\n'"),
    ("X", "a\r\nSet-Cookie: b", "value of 'X'"),
    ("X", "\0", r"value of 'X' has the character '\\x00'"),
    ("X", "\x7f", "value of 'X'"),
    ("X", "\u0100", "value of 'X' has the character '\u0100'"),
    ("", "a", "field name '' is not a token"),
    ("A:", "b", "field name 'A:' is not a token"),
    ("A: b\r\nC", "d", "is not a token"),
    ("A ", "b", "is not a token"),
    ("\xe9", "b", "is not a token"),
    ("\u212a", "b", "is not a token"),
    (None, "b", "field name None is not a token"),
    ("X", 5, "value of 'X' is int, not text"),
    ("X", b"b", "value of 'X' is bytes, not text"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRITTEN_FAULTS)
def test_writing_refuses(name: str, value: str, message: str) -> None:
    """What can't be in a field (RFC 9110 5.1, 5.5) is refused by name, alone and among good fields."""
    with pytest.raises(ValueRefused, match=message):
        check_field(name, value)
    with pytest.raises(ValueRefused, match=message):
        render_head("GET / HTTP/1.1", [("Host", "a"), (name, value), ("A", "b")])


@pytest.mark.parametrize("field", [(), ("X",), ("X", "a", "b")])
def test_writing_refuses_what_is_no_field(field: Any) -> None:
    """A list that a hook has changed may hold anything: a line without a colon would be another one's beginning."""
    with pytest.raises(ValueError, match="unpack"):
        render_head("GET / HTTP/1.1", [("Host", "a"), field])


@pytest.mark.parametrize("start_line", ["", "GET /\r\nA: b HTTP/1.1", "GET /\n", "GET /\0", "GET /\u0100"])
def test_writing_refuses_a_start_line(start_line: str) -> None:
    """A start line that is empty, or more than one line, is refused (RFC 9112 2.1)."""
    with pytest.raises(ValueRefused, match=r"start.line"):
        render_head(start_line, [("A", "b")])


def test_written_faults_keep_secrets() -> None:
    """The refusal of a value does not show the value."""
    with pytest.raises(ValueRefused) as raised:
        check_field("Authorization", "secret\n")
    assert "secret" not in str(raised.value)
