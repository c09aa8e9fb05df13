"""Content codings: undone whatever pieces they come in, bounded whatever they stand for."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
import urllib3.response

from pyramid_threaded_proxy.exceptions import AnswerRefused
from pyramid_threaded_proxy.upstream import decoding
from pyramid_threaded_proxy.upstream.decoding import KNOWN, Decoder, new_decoder
from tests.support.bodies import bytewise, content
from tests.support.programs import leave_out

MOST = 1000


def raw_deflate(data: bytes) -> bytes:
    """Without the wrapper of RFC 1950."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def br(data: bytes) -> bytes:
    packed: bytes = urllib3.response.brotli.compress(data)
    return packed


def zstd(data: bytes) -> bytes:
    packed: bytes = urllib3.response.zstd.compress(data)
    return packed


CASES = [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate), ("br", br), ("zstd", zstd)]


def need(coding: str) -> None:
    if coding not in KNOWN:
        leave_out(f"urllib3 has no {coding} here")


def decoded(decoder: Decoder, pieces: list[bytes]) -> bytes:
    """All that comes out, and never more at a time than was asked for."""
    found = []
    for piece in pieces:
        found.append(decoder.decode(piece, MOST))
        while decoder.pending:
            found.append(decoder.decode(b"", MOST))
    assert max(map(len, found)) <= MOST
    decoder.check_end()
    return b"".join(found)


@pytest.mark.parametrize(("coding", "pack"), CASES)
@pytest.mark.parametrize("data", [b"", b"x", content(20_000), bytes(1_000_000)], ids=["empty", "one", "some", "zeros"])
@pytest.mark.parametrize("pieces", [bytewise, lambda packed: [packed]], ids=["bytewise", "whole"])
def test_codings_are_undone(
    pieces: Callable[[bytes], list[bytes]], data: bytes, coding: str, pack: Callable[[bytes], bytes]
) -> None:
    """In any pieces, and of a body that stands for a long one no more at a time than is asked for."""
    need(coding)
    assert decoded(new_decoder(coding), pieces(pack(data))) == data


@pytest.mark.parametrize("pieces", [bytewise, lambda packed: [packed]], ids=["bytewise", "whole"])
def test_gzip_of_several_members(pieces: Callable[[bytes], list[bytes]]) -> None:
    """Members follow one another (RFC 1952 2.2); what is none behind them is nobody's."""
    packed = gzip.compress(b"one ") + gzip.compress(content(5000)) + b"\0\0\0"
    assert decoded(new_decoder("gzip"), pieces(packed)) == b"one " + content(5000)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_gzip_with_empty_members(at: int) -> None:
    """Nothing comes out of an empty member, such as one that ends a file of bgzip's: what follows it does."""
    members = [gzip.compress(b"one "), gzip.compress(b"two")]
    members[at:at] = [gzip.compress(b"")] * 2
    decoder = new_decoder("gzip")
    found = decoder.decode(b"".join(members), MOST)
    while decoder.pending:
        data = decoder.decode(b"", MOST)
        assert data or not decoder.pending
        found += data
    decoder.check_end()
    assert found == b"one two"


def test_nothing_follows_what_is_no_member() -> None:
    """However it is cut: what stands behind bytes that are nobody's is not looked at any more."""
    decoder = new_decoder("gzip")
    found = [decoder.decode(piece, MOST) for piece in (gzip.compress(b"one"), b"\0\0\0", gzip.compress(b"two"))]
    decoder.check_end()
    assert found == [b"one", b"", b""]
    assert not decoder.pending


@pytest.mark.parametrize(("coding", "pack"), CASES)
@pytest.mark.parametrize("left", [0, 1, 5, -1])
def test_an_early_end_is_noticed(left: int, coding: str, pack: Callable[[bytes], bytes]) -> None:
    """A body that ends before its coding does is refused."""
    need(coding)
    with pytest.raises(AnswerRefused):
        decoded(new_decoder(coding), [pack(content(5000))[:left]])


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_nonsense_is_refused(coding: str) -> None:
    """What is not of the coding breaks it."""
    need(coding)
    with pytest.raises(AnswerRefused):
        decoded(new_decoder(coding), [b"\x1f\x8b\xffnonsense" * 100])


def test_a_brotli_that_knows_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Brotli 1.2 all comes out at once, however much that is: such a one is not used."""

    class Unbounded:
        def __init__(self) -> None:
            self._obj = object()

    monkeypatch.setattr(urllib3.response, "BrotliDecoder", Unbounded, raising=False)
    assert "br" not in decoding._makers()
