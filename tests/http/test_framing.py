"""Where a body ends: framing of answers, lasting connections, and the chunked coding."""

from __future__ import annotations

import contextlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.exceptions import AnswerRefused
from pyramid_threaded_proxy.http.framing import ChunkedReader, Framing, answer_framing, keeps_alive
from pyramid_threaded_proxy.http.head import ResponseHead
from pyramid_threaded_proxy.http.names import Fields
from tests.support.bodies import bytewise, cut

CL = "Content-Length"
TE = "Transfer-Encoding"
CHUNKED = (TE, "chunked")


def head(*fields: tuple[str, str], status: int = 200, minor: int = 1) -> ResponseHead:
    return ResponseHead(minor, status, "", [("Server", "x"), *fields, ("X-Length", "7")])


FRAMED = [
    pytest.param("GET", head((CL, "5")), (Framing.LENGTH, 5), id="length, RFC 9112 6.3 rule 6"),
    pytest.param("GET", head(("content-LENGTH", "0")), (Framing.LENGTH, 0), id="zero is a length, RFC 9112 6.3"),
    pytest.param("GET", head((CL, "007")), (Framing.LENGTH, 7), id="leading zeros are digits, RFC 9110 8.6"),
    pytest.param("GET", head((CL, "9" * 18)), (Framing.LENGTH, 10**18 - 1), id="18 digits, bound of ours"),
    pytest.param("GET", head((CL, "5"), minor=0), (Framing.LENGTH, 5), id="length in HTTP/1.0, RFC 9112 6.3"),
    pytest.param("GET", head(CHUNKED), (Framing.CHUNKED, 0), id="chunked, RFC 9112 6.3 rule 4"),
    pytest.param("GET", head((TE.lower(), "CHUNKed")), (Framing.CHUNKED, 0), id="case ignored, RFC 9112 7"),
    pytest.param("GET", head(), (Framing.CLOSE, 0), id="close, RFC 9112 6.3 rule 8"),
    pytest.param("GET", head(minor=0), (Framing.CLOSE, 0), id="close in HTTP/1.0, RFC 9112 6.3 rule 8"),
    pytest.param("GET", head(status=205), (Framing.CLOSE, 0), id="205 is framed as others, RFC 9112 6.3"),
    pytest.param("HEAD", head((CL, "5")), (Framing.NONE, 0), id="HEAD with length, RFC 9112 6.3 rule 1"),
    pytest.param("HEAD", head(CHUNKED), (Framing.NONE, 0), id="HEAD with coding, RFC 9112 6.1"),
    pytest.param("HEAD", head(), (Framing.NONE, 0), id="HEAD, RFC 9112 6.3 rule 1"),
    pytest.param("GET", head((CL, "5"), status=304), (Framing.NONE, 0), id="304 with length, RFC 9112 6.3 rule 1"),
    pytest.param("GET", head(CHUNKED, status=304), (Framing.NONE, 0), id="304 with coding, RFC 9112 6.1"),
    pytest.param("GET", head(status=204), (Framing.NONE, 0), id="204, RFC 9112 6.3 rule 1"),
    pytest.param("GET", head((CL, "0"), status=204), (Framing.NONE, 0), id="204 with zero, leniency"),
    pytest.param("GET", head((CL, "5"), status=204), (Framing.NONE, 0), id="204 with length, RFC 9112 6.3 rule 1"),
    pytest.param("GET", head(CHUNKED, status=204), (Framing.NONE, 0), id="204 with coding, RFC 9112 6.3 rule 1"),
    pytest.param("GET", head(status=100), (Framing.NONE, 0), id="100, RFC 9112 6.3 rule 1"),
    pytest.param("GET", head(status=103), (Framing.NONE, 0), id="103, RFC 9112 6.3 rule 1"),
]


@pytest.mark.parametrize(("method", "answer", "expected"), FRAMED)
def test_framing(method: str, answer: ResponseHead, expected: tuple[Framing, int]) -> None:
    """Each row of RFC 9112 6.3 frames the body as it says."""
    assert answer_framing(method, answer) == expected


LENGTHS = ["+5", "-5", "5, 5", "5,5", "0x5", "5_0", "5 5", "5.0", "1e3", "", "five", "\xb2", "5;", "9" * 19, "\xa05"]
CODINGS = [
    "gzip, chunked", "chunked, gzip", "chunked, chunked", "chunked,", ",chunked", "identity", "gzip", "xchunked",
    "chunked;q=1", '"chunked"', "\x0bchunked", "chunked\xa0", "chunked\x00", "cow, chunked", "",
]  # fmt: skip
FAULTY: list[tuple[Fields, str]] = [
    *(([(CL, value)], "not 1 to 18 digits") for value in LENGTHS),
    ([(CL, "5"), (CL, "5")], "more than one Content-Length"),
    ([(CL, "5"), ("content-length", "6")], "more than one Content-Length"),
    ([(CL, ""), (CL, "5")], "more than one Content-Length"),
    *(([(TE, value)], "not one chunked") for value in CODINGS),
    ([CHUNKED, CHUNKED], "not one chunked"),
    ([CHUNKED, (TE, "identity")], "not one chunked"),
    ([(TE, ""), CHUNKED], "not one chunked"),
    ([(CL, "5"), CHUNKED], "Content-Length beside"),
    ([CHUNKED, (CL, "0")], "Content-Length beside"),
    ([(CL, "5"), (TE, "identity")], "not one chunked"),
]


@pytest.mark.parametrize(("fields", "rule"), FAULTY)
@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("GET", 304), ("GET", 204), ("GET", 103)])
def test_faulty_framing_is_refused_everywhere(fields: Fields, rule: str, method: str, status: int) -> None:
    """Framing that peers read differently (RFC 9112 6.1, 6.3; RFC 9110 8.6) is refused, with or without a body."""
    with pytest.raises(AnswerRefused, match=rule):
        answer_framing(method, head(*fields, status=status))


@pytest.mark.parametrize("status", [100, 101, 103])
def test_statuses_that_never_have_a_body(status: int) -> None:
    """1xx with a coding (RFC 9112 6.1) or a length that announces bytes (RFC 9110 8.6) are refused."""
    with pytest.raises(AnswerRefused, match=f"Transfer-Encoding on status {status}"):
        answer_framing("GET", head(CHUNKED, status=status))
    with pytest.raises(AnswerRefused, match=f"Content-Length on status {status}"):
        answer_framing("HEAD", head((CL, "5"), status=status))


def test_coding_in_http_1_0() -> None:
    """A transfer coding in HTTP/1.0 is a faulty message (RFC 9112 6.1)."""
    with pytest.raises(AnswerRefused, match=r"HTTP/1\.0"):
        answer_framing("GET", head(CHUNKED, minor=0))


@pytest.mark.parametrize(
    ("values", "minor", "expected"),
    [
        ([], 1, True),
        ([], 0, False),
        (["close"], 1, False),
        (["keep-alive"], 1, True),
        (["keep-alive"], 0, True),
        (["Keep-Alive"], 0, True),
        (["upgrade,\tCLOSE , x"], 1, False),
        (["", "close"], 1, False),
        (["keep-alive", "close"], 0, False),
        (["close, keep-alive"], 1, False),
        (["closed"], 1, True),
        (["x, keep-alive"], 0, True),
    ],
)
def test_keeps_alive(values: list[str], minor: int, expected: bool) -> None:
    """RFC 9112 9.3 over the options of all Connection fields: close wins, and HTTP/1.0 must ask for more."""
    assert keeps_alive(head(*(("connection", value) for value in values), minor=minor)) is expected


def feed_all(reader: ChunkedReader, pieces: list[bytes]) -> bytes:
    return b"".join(bytes(out) for piece in pieces for out in reader.feed(piece))


def ways(data: bytes) -> list[list[bytes]]:
    """Every case runs whole, byte by byte, and in two halves at each place."""
    return [[data], bytewise(data), *([data[:at], data[at:]] for at in range(1, len(data)))]


WHOLE = [
    pytest.param(b"0\r\n\r\n", b"", b"0\r\n\r\n", id="empty, RFC 9112 7.1"),
    pytest.param(b"000\r\n\r\n", b"", b"0\r\n\r\n", id="last-chunk is 1*0, RFC 9112 7.1"),
    pytest.param(b"5\r\nhello\r\n0\r\n\r\n", b"hello", b"5\r\nhello\r\n0\r\n\r\n", id="one chunk, RFC 9112 7.1"),
    pytest.param(
        b"5\r\nhello\r\n00A\r\n0123456789\r\n1\r\n\n\r\n0\r\n\r\n",
        b"hello0123456789\n",
        b"5\r\nhello\r\n00A\r\n0123456789\r\n1\r\n\n\r\n0\r\n\r\n",
        id="several chunks, leading zeros, RFC 9112 7.1",
    ),
    pytest.param(
        b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
        b"\r\n0\r\n\r\n",
        b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
        id="data that looks like the end, RFC 9112 7.1",
    ),
    pytest.param(
        b'5;a;b=c;d="e;f"\r\nhello\r\n1;\r\n!\r\n0;x\r\n\r\n',
        b"hello!",
        b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
        id="extensions are dropped, RFC 9112 7.1.1",
    ),
    pytest.param(b"1;\t\xe9\r\n!\r\n0\r\n\r\n", b"!", b"1\r\n!\r\n0\r\n\r\n", id="tab, obs-text, RFC 9112 7.1.1"),
    pytest.param(
        b"1\r\n!\r\n0\r\nX-Sum: 1\r\nSet-Cookie: a\r\n\r\n",
        b"!",
        b"1\r\n!\r\n0\r\n\r\n",
        id="trailers are dropped, RFC 9110 6.5.1",
    ),
]


@pytest.mark.parametrize(("data", "decoded", "passed"), WHOLE)
@pytest.mark.parametrize("trailing", [b"", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\n\0"])
def test_chunked(data: bytes, decoded: bytes, passed: bytes, trailing: bytes) -> None:
    """A whole body gives its data, or plain chunks alone, however it is split; what follows is `rest`, never output."""
    for decode, expected in ((True, decoded), (False, passed)):
        for pieces in ways(data + trailing):
            reader = ChunkedReader(decode)
            assert feed_all(reader, pieces) == expected
            assert reader.payload == len(decoded)
            assert reader.done
            assert reader.rest == trailing
            assert reader.chunk_left == 0


SIZE = "size line is not"
TAIL = b"\r\nhello\r\n0\r\n\r\n"
BROKEN = [
    *(
        pytest.param(size + TAIL, SIZE, id=f"{size!r}, RFC 9112 7.1")
        for size in (
            b"0x5", b"0X5", b"0_5", b"5_0", b"+5", b"-1", b"-5", b" 5", b"\t5", b"5 ", b"5\t", b"5 ;x", b"5.", b"5,5",
            b"\xb5", b"G", b"", b"5\0", b"\0005", b"5\x0b", b"5=x", b"\r5", b"5\r", b'"5"', b"5h",
        )
    ),
    *(
        pytest.param(size + TAIL, SIZE, id=f"{size!r}, overlong")
        for size in (b"0" * 15 + b"5", b"10000000000000005", b"F" * 16, b"1" + b"0" * 15 + b"5")
    ),
    pytest.param(b"5\nhello\r\n0\r\n\r\n", SIZE, id="bare LF behind a size, RFC 9112 2.2"),
    pytest.param(b"5\rhello\r\n0\r\n\r\n", SIZE, id="bare CR behind a size, RFC 9112 2.2"),
    pytest.param(b"5;\nhello\r\n0\r\n\r\n", SIZE, id="bare LF ends an extension (TERM.EXT), RFC 9112 7.1.1"),
    pytest.param(b"5;x\rhello\r\n0\r\n\r\n", SIZE, id="bare CR in an extension, RFC 9112 7.1.1"),
    pytest.param(b"5;a\0\r\nhello\r\n0\r\n\r\n", SIZE, id="NUL in an extension, RFC 9112 7.1.1"),
    pytest.param(b"5;a\x7f\r\nhello\r\n0\r\n\r\n", SIZE, id="DEL in an extension, RFC 9112 7.1.1"),
    pytest.param(b";a\r\nhello\r\n0\r\n\r\n", SIZE, id="extension without a size, RFC 9112 7.1"),
    pytest.param(b"5;" + b"x" * 300 + TAIL, "longer than 256", id="long extension, bound of ours, RFC 9112 7.1.1"),
    pytest.param(b"5;" + b"x" * 253 + TAIL, "longer than 256", id="line one byte too long, bound of ours"),
    pytest.param(b"5\r\nhello0\r\n\r\n", "no CRLF", id="no CRLF behind data, RFC 9112 7.1"),
    pytest.param(b"5\r\nhello\n0\r\n\r\n", "no CRLF", id="bare LF behind data (EXT.TERM), RFC 9112 7.1"),
    pytest.param(b"5\r\nhello\r0\r\n\r\n", "no CRLF", id="bare CR behind data, RFC 9112 7.1"),
    pytest.param(b"5\r\nhelloXX0\r\n\r\n", "no CRLF", id="two other bytes behind data (SPILL.TERM), RFC 9112 7.1"),
    pytest.param(b"4\r\nhello\r\n0\r\n\r\n", "no CRLF", id="chunk longer than its size, RFC 9112 7.1"),
    pytest.param(b"6\r\nhello\r\n0\r\n\r\n", "no CRLF", id="chunk shorter than its size, RFC 9112 7.1"),
    pytest.param(b"5\r\nhello\r\n\r\n0\r\n\r\n", SIZE, id="empty line between chunks, RFC 9112 7.1"),
    pytest.param(b"\r\n0\r\n\r\n", SIZE, id="empty line first, RFC 9112 7.1"),
    pytest.param(b"0\r\n\n", "bare LF", id="bare LF ends the trailers, RFC 9112 2.2"),
    pytest.param(b"0\n\n", SIZE, id="bare LFs end the body, RFC 9112 2.2"),
    pytest.param(b"0\r\n\rX", "bare CR", id="bare CR ends the trailers, RFC 9112 2.2"),
    pytest.param(b"0\r\nA: b\n\r\n\r\n", "bare LF", id="bare LF in a trailer, RFC 9112 2.2"),
    pytest.param(b"0\r\nA : b\r\n\r\n", "whitespace", id="space in a trailer's name, RFC 9112 5.1"),
    pytest.param(b"0\r\nA: b\r\n c\r\n\r\n", "folded", id="folded trailer, RFC 9112 5.2"),
    pytest.param(b"0\r\nA: \0\r\n\r\n", "control", id="NUL in a trailer, RFC 9110 5.5"),
    pytest.param(b"0\r\nGET /admin HTTP/1.1\r\n\r\n", "without a colon", id="request as trailer, RFC 9112 5"),
    pytest.param(b"0\r\nGET http://x/ HTTP/1.1\r\n\r\n", "not a token", id="request with a colon, RFC 9112 5"),
    pytest.param(b"0\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\n", "without a colon", id="next answer as trailer, RFC 9112 5"),
    pytest.param(b"0\r\nA: " + b"x" * 8200 + b"\r\n\r\n", "longer than 8192", id="long trailers, bound of ours"),
    pytest.param(b"0\r\nA: " + b"x" * 8200, "longer than 8192", id="endless trailers, bound of ours"),
    pytest.param(b"0\r\n" + b"A: b\r\n" * 201 + b"\r\n", "more than 200", id="many trailers, bound of ours"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "rule"), BROKEN)
@pytest.mark.parametrize("decode", [True, False])
def test_broken_chunks(data: bytes, rule: str, decode: bool) -> None:
    """A faulty chunked body is refused as the first and as a later chunk, whole, byte by byte, with bytes behind it."""
    for before in (b"", b"3\r\nabc\r\n", b"3;x\r\nabc\r\n"):
        broken = before + data
        for pieces in ([broken], [broken + b"0\r\n\r\n"], bytewise(broken), cut(broken, [1, 3, 7, len(before)])):
            reader = ChunkedReader(decode)
            with pytest.raises(AnswerRefused, match=rule):
                feed_all(reader, pieces)
            assert not reader.done


@pytest.mark.parametrize("start", [b"x", b" ", b"\n", b"5\n", b"5_", b"0x", b"5\0", b"5;\0", b"1" * 16, b"\r\n"])
def test_bad_size_lines_are_refused_early(start: bytes) -> None:
    """A size line that can't become valid is not waited for."""
    with pytest.raises(AnswerRefused):
        ChunkedReader(False).feed(start)


def test_longest_size_line_and_size() -> None:
    """A line of 256 bytes and a size of 15 digits are the most that is taken."""
    reader = ChunkedReader(False)
    line = b"F" * 15 + b";" + b"x" * 238 + b"\r\n"
    assert len(line) == 256
    assert feed_all(reader, [line]) == b"F" * 15 + b"\r\n"
    assert reader.chunk_left == 16**15 - 1 < 2**63


def test_longest_trailers() -> None:
    """Trailers up to the bound end the body, one byte more is refused, however they come."""
    data = b"0\r\nA: " + b"x" * (8192 - 9) + b"\r\n\r\n"
    for pieces in ([data], bytewise(data)):
        reader = ChunkedReader(False)
        assert feed_all(reader, pieces) == b"0\r\n\r\n"
        assert reader.done
    longer = data.replace(b"A", b"AA")
    for pieces in ([longer], bytewise(longer)):
        with pytest.raises(AnswerRefused, match="longer than 8192"):
            feed_all(ChunkedReader(False), pieces)


STEPS = [
    (b"4", b""),
    (b"\r", b""),
    (b"\n", b"4\r\n"),
    (b"da", b"da"),
    (b"ta", b"ta"),
    (b"\r", b""),
    (b"\n", b"\r\n"),
    (b"2;e", b""),
    (b"xt\r\nxy\r\n3", b"2\r\nxy\r\n"),
    (b"\r\n", b"3\r\n"),
    (b"abc\r\n", b"abc\r\n"),
    (b"0\r", b""),
    (b"\n", b""),
    (b"X: y\r\n", b""),
    (b"\r", b""),
    (b"\n", b"0\r\n\r\n"),
]


def test_only_validated_coding_goes_out() -> None:
    """A size line goes out once it is whole, data and its line end at once, the last chunk when the trailers ended."""
    reader = ChunkedReader(False)
    assert [feed_all(reader, [step]) for step, _ in STEPS] == [out for _, out in STEPS]
    assert reader.done


def test_decoding_gives_data_alone() -> None:
    """With `decode` nothing of the coding goes out."""
    reader = ChunkedReader(True)
    data = b"".join(step for step, _ in STEPS)
    assert b"".join(bytes(out) for out in reader.feed(data)) == b"dataxyabc"
    assert reader.done


def test_plain_chunks_are_one_slice_of_the_input() -> None:
    """Chunks without extensions or trailers pass as one view of the very buffer, the last chunk too."""
    data = b"5\r\nhello\r\n" * 50 + b"0\r\n\r\n"
    (piece,) = ChunkedReader(False).feed(data + b"rest")
    assert isinstance(piece, memoryview)
    assert piece.nbytes == len(data)
    assert piece == data
    reader = ChunkedReader(False)
    (first,) = reader.feed(data[:22])
    assert first == data[:20]
    line, rest = reader.feed(data[22:])
    assert line == b"5\r\n"
    assert isinstance(rest, memoryview)
    assert rest == data[23:]


def test_buffers_that_are_reused() -> None:
    """The reader keeps no view of a buffer that was fed: it may be filled anew once the output was sent."""
    buffer = bytearray(b"5\r\nhello\r\n5")
    reader = ChunkedReader(False)
    assert b"".join(reader.feed(memoryview(buffer))) == b"5\r\nhello\r\n"
    buffer += b"may still be resized"
    assert feed_all(reader, [b"\r\nworld\r\n0\r\n\r\n"]) == b"5\r\nworld\r\n0\r\n\r\n"


@pytest.mark.parametrize("decode", [True, False])
def test_skipped(decode: bool) -> None:
    """Data that was moved past the reader counts as read, and its line end is still asked for."""
    reader = ChunkedReader(decode)
    feed_all(reader, [b"A\r\n01"])
    assert reader.chunk_left == 8
    reader.skipped(3)
    assert reader.chunk_left == 5
    assert feed_all(reader, [b"5"]) == b"5"
    reader.skipped(4)
    assert reader.chunk_left == 0
    assert feed_all(reader, [b"\r\n0\r\n\r\n"]) == (b"" if decode else b"\r\n0\r\n\r\n")
    assert reader.done


def test_skipped_to_the_end_needs_a_line_end() -> None:
    """A chunk whose last bytes were moved past the reader must still end in CRLF (RFC 9112 7.1)."""
    reader = ChunkedReader(False)
    feed_all(reader, [b"5\r\n"])
    reader.skipped(5)
    with pytest.raises(AnswerRefused, match="no CRLF"):
        reader.feed(b"0\r\n\r\n")


@pytest.mark.parametrize("count", [-1, 6])
def test_skipped_too_much(count: int) -> None:
    """Our own miscount of moved bytes is an error, not a shift of the message's end."""
    reader = ChunkedReader(False)
    feed_all(reader, [b"5\r\n"])
    with pytest.raises(ValueError, match=f"skipped {count} of 5 bytes"):
        reader.skipped(count)


def test_skipping_nothing_changes_nothing() -> None:
    """A mover that moved nothing leaves the reader where it was, also between chunks."""
    reader = ChunkedReader(False)
    reader.skipped(0)
    assert feed_all(reader, [b"1\r\n!\r\n"]) == b"1\r\n!\r\n"
    reader.skipped(0)
    assert feed_all(reader, [b"0\r\n\r\n"]) == b"0\r\n\r\n"


def test_everything_behind_the_end_is_rest() -> None:
    """Bytes behind the end are collected, over several feeds, and never go out."""
    reader = ChunkedReader(False)
    assert feed_all(reader, [b"0\r\n\r\nHTT", b"", b"P/1.1"]) == b"0\r\n\r\n"
    assert reader.rest == b"HTTP/1.1"


def seconds_to_judge(data: bytes) -> float:
    """The least processor time of three tries, whole and byte by byte."""

    def judge() -> float:
        before = time.process_time()
        for pieces in ([data], bytewise(data)):
            with contextlib.suppress(AnswerRefused):
                feed_all(ChunkedReader(False), pieces)
        return time.process_time() - before

    return min(judge() for _ in range(3))


@pytest.mark.parametrize(
    ("begin", "filler", "count"),
    [(b"5;", b"\t", 15000), (b"0\r\nA:", b" ", 15000), (b"", b"1;a\r\nx\r\n", 2250), (b"0\r\n", b" \r", 1000)],
)
def test_no_chunks_are_slow_to_judge(begin: bytes, filler: bytes, count: int) -> None:
    """Input made to cost much is judged in time in proportion to its size: fourfold input takes no 16-fold time."""
    assert seconds_to_judge(begin + filler * count * 4) < 10 * seconds_to_judge(begin + filler * count) + 0.01


def reference(data: bytes) -> tuple[bytes, bytes] | None:
    """A second decoder, recursive and for whole bodies: data and rest, or None if it is not whole and valid."""
    line = re.match(rb"([0-9a-fA-F]{1,15})(?:;[\t -~\x80-\xff]*)?\r\n", data)
    if not line:
        return None
    size, behind = int(line[1], 16), data[line.end() :]
    if not size:
        trailers = re.match(rb"(?:[!#$%&'*+\-.^_`|~\w]+:[\t -~\x80-\xff]*\r\n)*\r\n", behind, re.ASCII)
        return (b"", behind[trailers.end() :]) if trailers else None
    if len(behind) < size + 2 or behind[size : size + 2] != b"\r\n":
        return None
    tail = reference(behind[size + 2 :])
    return tail and (behind[:size] + tail[0], tail[1])


NASTY = [b"\r", b"\n", b"\r\n", b"\0", b" ", b";", b"0", b"5", b"x", b"_", b"+", b":", b"0\r\n\r\n", b"\xff"]


def coded(body: list[bytes], extension: bytes, zeros: int, trailers: bytes) -> bytes:
    chunks = b"".join(b"0" * zeros + b"%X%s\r\n%s\r\n" % (len(data), extension, data) for data in body if data)
    return chunks + b"0" * zeros + b"0%s\r\n%s\r\n" % (extension, trailers)


BODIES = st.lists(st.binary(max_size=20) | st.sampled_from([b"0\r\n\r\n", b"\r\n", b"5;x\r\n", b"z" * 300]), max_size=6)
CODED = st.builds(
    coded,
    BODIES,
    st.sampled_from([b"", b"", b";a", b";a=b"]),
    st.integers(0, 3),
    st.sampled_from([b"", b"", b"A: b\r\n", b"A: b\r\nC:\r\n"]),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Chunked bodies, with up to three edits by bytes that matter, or cut short."""
    data = draw(CODED)
    for _ in range(draw(st.integers(0, 3))):
        at, removed = draw(st.integers(0, len(data))), draw(st.integers(0, 2))
        data = data[:at] + draw(st.sampled_from(NASTY)) + data[at + removed :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


def outcome(pieces: list[bytes], decode: bool) -> tuple[bytes, bytes] | None:
    """Output and rest of a whole body; None if it was refused or is not whole."""
    reader = ChunkedReader(decode)
    try:
        output = feed_all(reader, pieces)
    except AnswerRefused:
        return None
    return (output, reader.rest) if reader.done else None


@given(mutated(), st.lists(st.integers(0, 400), max_size=6))
def test_agrees_with_a_second_decoder_under_any_split(data: bytes, positions: list[int]) -> None:
    """Valid, mutated and cut bodies give what a plain decoder gives, however the input is split."""
    expected = reference(data)
    for pieces in ([data], bytewise(data), cut(data, positions)):
        assert outcome(pieces, decode=True) == expected
        passed = outcome(pieces, decode=False)
        assert (passed is None) == (expected is None)
        if passed and expected:
            assert passed[1] == expected[1]
            assert reference(passed[0]) == (expected[0], b"")


@given(BODIES, st.sampled_from([b"", b";a=b"]), st.sampled_from([b"", b"A: b\r\n"]), st.lists(st.integers(0, 400)))
def test_round_trip(body: list[bytes], extension: bytes, trailers: bytes, positions: list[int]) -> None:
    """What was coded is decoded again, and passes without extensions and trailers."""
    pieces = cut(coded(body, extension, 0, trailers), positions)
    assert outcome(pieces, decode=True) == (b"".join(body), b"")
    assert outcome(pieces, decode=False) == (coded(body, b"", 0, b""), b"")


@given(mutated(), st.lists(st.integers(0, 400), max_size=6))
def test_what_went_out_is_always_a_beginning_of_sound_coding(data: bytes, positions: list[int]) -> None:
    """At any moment, of broken input too, the output is plain coding without a held, dropped or stray byte."""
    reader, output = ChunkedReader(False), b""
    try:
        for piece in cut(data, positions):
            output += b"".join(reader.feed(piece))
    except AnswerRefused:
        pass
    again = ChunkedReader(False)
    assert feed_all(again, [output]) == output
    assert again.rest == b""


@given(st.lists(st.binary(max_size=30) | st.sampled_from(NASTY), max_size=10), st.booleans())
def test_random_bytes_raise_nothing_else(pieces: list[bytes], decode: bool) -> None:
    """Whatever an upstream sends, the reader raises AnswerRefused or nothing."""
    outcome(pieces, decode)
    outcome([b"5\r\nhello\r\n0\r\n", *pieces], decode)
