"""Content codings (RFC 9110 8.4.1) undone: gzip and deflate, and br and zstd where urllib3 has them.

What comes out at a time is bounded, whatever goes in: a small body may stand for an endless one. A body that ends
before its coding does is a refusal, and so is one that breaks it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Protocol

import urllib3.response

from pyramid_threaded_proxy.exceptions import AnswerRefused

_GZIP_MAGIC = b"\x1f\x8b"


class Decoder(Protocol):
    """One body's coding."""

    #: Whether more comes out without more going in.
    pending: bool

    def decode(self, data: bytes, most: int) -> bytes:
        """What `data` adds, `most` bytes of it at most; the rest with the next call. Raises `AnswerRefused`."""

    def check_end(self) -> None:
        """The body has ended. Raises `AnswerRefused` where its coding has not."""


class _Inflating:
    """gzip (RFC 1952), of one member or several, or deflate: RFC 1950, or as some send it without its wrapper."""

    def __init__(self, gzip: bool) -> None:
        self._gzip = gzip
        self._inflater: Any = None
        self._left = b""
        self._over = False
        self.pending = False

    def decode(self, data: bytes, most: int) -> bytes:
        data, self._left = self._left + data, b""
        while self._goes_on(data):
            try:
                found: bytes = self._inflater.decompress(data, most)
            except zlib.error as error:
                raise AnswerRefused(f"its content coding is broken: {error}") from None
            data = self._inflater.unconsumed_tail or self._inflater.unused_data
            if found or not data:  # else a member was empty, and the next one is in hand
                self._left = data
                self.pending = bool(data) or len(found) == most
                return found
        self.pending = False
        return b""

    def _goes_on(self, data: bytes) -> bool:
        """Whether a stream is under way, or begins here; bytes behind the last one are nobody's."""
        if self._inflater is not None and not self._inflater.eof:
            return True
        if len(data) < 2:
            self._left = data  # too little to tell what begins here
            return False
        self._over = self._over or (self._inflater is not None and not (self._gzip and data.startswith(_GZIP_MAGIC)))
        if self._over:
            return False
        wrapped = data[0] & 15 == 8 and not int.from_bytes(data[:2], "big") % 31
        bits = 16 + zlib.MAX_WBITS if self._gzip else zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS
        self._inflater = zlib.decompressobj(bits)
        return True

    def check_end(self) -> None:
        if self._inflater is None or not self._inflater.eof:
            raise _ended_early()


class _OfUrllib3:
    """A decoder of urllib3's; `whole` tells of it whether its stream has ended."""

    def __init__(self, decoder: Any, whole: Callable[[Any], bool]) -> None:
        self._decoder = decoder
        self._whole = whole
        self._over = b""  # what came out above what was asked for: brotli counts in blocks of its own
        self.pending = False

    def decode(self, data: bytes, most: int) -> bytes:
        found = self._over
        if data or len(found) < most:
            try:
                found += self._decoder.decompress(data, max_length=most)
            except Exception as error:  # each of the libraries behind it has exceptions of its own
                raise AnswerRefused(f"its content coding is broken: {error}") from None
        # A full measure says that there may be more: brotli has output left when it has no input any more.
        self.pending = len(found) >= most or bool(self._decoder.has_unconsumed_tail)
        found, self._over = found[:most], found[most:]
        return found

    def check_end(self) -> None:
        if not self._whole(self._decoder._obj):
            raise _ended_early()


def _ended_early() -> AnswerRefused:
    return AnswerRefused("it ended before its content coding did")


def _makers() -> dict[str, Callable[[], Decoder]]:
    """Who decodes what. Decoders that don't bound what comes out are not used: urllib3's own before 2.6, Brotli's
    before 1.2."""
    makers: dict[str, Callable[[], Decoder]] = {"gzip": lambda: _Inflating(True), "deflate": lambda: _Inflating(False)}
    makers["x-gzip"] = makers["gzip"]  # RFC 9110 8.4.1.3
    if hasattr(urllib3.response.ContentDecoder, "has_unconsumed_tail"):
        brotli = getattr(urllib3.response, "BrotliDecoder", None)
        zstd = getattr(urllib3.response, "ZstdDecoder", None)
        if brotli is not None and hasattr(brotli()._obj, "can_accept_more_data"):
            makers["br"] = lambda: _OfUrllib3(brotli(), lambda stream: bool(stream.is_finished()))
        if zstd is not None:
            makers["zstd"] = lambda: _OfUrllib3(zstd(), lambda stream: bool(stream.eof))
    return makers


_MAKERS = _makers()

#: The codings that can be undone here.
KNOWN = frozenset(_MAKERS)


def new_decoder(coding: str) -> Decoder:
    """What undoes `coding`, in lower case and one of `KNOWN`, for one body."""
    return _MAKERS[coding]()
