"""Texts in bodies: however a body is cut, what comes out is what `bytes.replace` makes of the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.http.replacing import Replacer, Replacing, replacing_in
from tests.support.bodies import bytewise, cut

#: Few letters, so that beginnings of a text are found everywhere.
TEXTS = st.binary(max_size=60).map(lambda data: bytes(b"ab"[byte & 1] for byte in data))
OLD = TEXTS.filter(bool).map(lambda data: data[:6])


def made(replacing: Replacing, pieces: list[bytes]) -> bytes:
    return b"".join([*map(replacing.feed, pieces), replacing.end()])


@given(TEXTS, OLD, TEXTS, st.lists(st.integers(0, 60)))
def test_any_cut_gives_what_replace_gives(body: bytes, old: bytes, new: bytes, positions: list[int]) -> None:
    """One text, any body, any pieces."""
    pieces = cut(body, sorted(position for position in positions if position <= len(body)))
    assert made(Replacing([Replacer(old, new)]), pieces) == body.replace(old, new)
    assert made(Replacing([Replacer(old, new)]), bytewise(body)) == body.replace(old, new)


@given(TEXTS, st.lists(st.tuples(OLD, TEXTS.map(lambda data: data[:6])), max_size=3), st.lists(st.integers(0, 60)))
def test_several_texts_go_one_after_the_other(
    body: bytes, texts: list[tuple[bytes, bytes]], positions: list[int]
) -> None:
    """Each is looked for in what the ones before it have made."""
    pieces = cut(body, sorted(position for position in positions if position <= len(body)))
    wanted = body
    for old, new in texts:
        wanted = wanted.replace(old, new)
    assert made(Replacing([Replacer(old, new) for old, new in texts]), pieces) == wanted


def test_no_more_is_held_back_than_may_begin_a_text() -> None:
    """What can't be the beginning of a text goes on at once, so that an event does not wait for the next one."""
    replacer = Replacer(b"hello", b"world")
    assert replacer.feed(b"data: he\n\n") == b"data: he\n\n"
    assert (replacer.feed(b"data: he"), replacer.feed(b"llo"), replacer.end()) == (b"data: ", b"world", b"")


TYPES = [
    "text/html", "TEXT/HTML; charset=UTF-8", "application/json", "application/xml", "application/vnd.ogc.wms_xml+xml",
    "application/geo+json", "application/javascript", "image/svg+xml", " text/css ; charset='utf-8'",
]  # fmt: skip
OTHERS = [
    "",
    "image/png",
    "application/octet-stream",
    "application/pdf",
    "text/html; charset=utf-16",
    "text/x; charset=no",
    "text/x; charset=hex",  # Python knows codecs that are no charsets
    "text/x; charset=rot13",
]


@pytest.mark.parametrize("content_type", TYPES)
def test_texts(content_type: str) -> None:
    """HTML, JSON, XML, scripts and all of `text/` are texts."""
    found = replacing_in(content_type, [("old", "new")])
    assert found is not None
    assert made(found, [b"an old one"]) == b"an new one"


@pytest.mark.parametrize("content_type", OTHERS)
def test_no_texts(content_type: str) -> None:
    """What is none, or has a charset that is not known or of several bytes a character, is left alone."""
    assert replacing_in(content_type, [("old", "new")]) is None


def test_the_charset_that_is_named_counts() -> None:
    """Both texts are written in it, in UTF-8 where none is named; what can't be written in it is not replaced."""
    texts = [("Käse", "Öl"), ("☃", "snow")]
    latin = replacing_in("text/plain; charset=iso-8859-1", texts)
    assert latin is not None
    assert made(latin, ["Käse".encode("latin-1")]) == "Öl".encode("latin-1")
    unicode = replacing_in("text/plain", texts)
    assert unicode is not None
    assert made(unicode, ["Käse ☃".encode()]) == "Öl snow".encode()
    assert replacing_in("text/plain; charset=us-ascii", texts) is None
