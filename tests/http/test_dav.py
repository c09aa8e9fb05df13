"""WebDAV's second targets, read from Destination and If (RFC 4918)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.exceptions import FieldRefused, RequestRefused, TargetRefused
from pyramid_threaded_proxy.http.dav import map_tags, split_ref


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("http://h:80/a%20b?q", ("http", "h:80", "/a%20b", "q")),
        ("HTTPS://H", ("https", "H", "/", None)),
        ("/a/b", (None, None, "/a/b", None)),
        ("//h/a", (None, None, "//h/a", None)),
        ("http://h/a,http://h/b", ("http", "h", "/a,http://h/b", None)),
    ],
)
def test_references(text: str, parts: tuple[str | None, ...]) -> None:
    """A URL or an absolute path; two slashes begin a path, as they do in a target."""
    assert split_ref(text) == parts


@pytest.mark.parametrize(
    "text",
    ["", "a", "ftp://h/a", "http:/a", "http:///a", "?q", "/a/../b", "/a/%2e%2e/b", "http://h/a%2F..%2fb", "/a#f",
     "http://h/a, http://h/b", "/a%00", "http://h\\x/a", "/%E9", "http://h?q/../a\n"],
)  # fmt: skip
def test_refused_references(text: str) -> None:
    """What is neither, and what no request's target may hold (RFC 4918 8.3; RFC 3986 5.2.4)."""
    with pytest.raises(TargetRefused):
        split_ref(text)


@pytest.mark.parametrize(
    ("value", "mapped"),
    [
        ("(<urn:x>)", "(<urn:x>)"),
        ('(Not <urn:x> ["a(b)>"]) ([W/"<c>"])', '(Not <urn:x> ["a(b)>"]) ([W/"<c>"])'),
        ("<http://h/a> (<urn:x>)", "<!http://h/a> (<urn:x>)"),
        ('</a>(<urn:x>)(Not ["b"])\t</c> (["d"])', '<!/a>(<urn:x>)(Not ["b"])\t<!/c> (["d"])'),
        ("<http://h/a> ()", "<!http://h/a> ()"),
    ],
)
def test_tags(value: str, mapped: str) -> None:
    """Resource tags are mapped; state tokens and ETags, which stand in parentheses, keep their bytes."""
    assert map_tags(value, lambda text: "!" + text) == mapped


@pytest.mark.parametrize(
    "value", ["", "<", "</a>", "</a> x", "(<a)", "</a> (<b>", ") </a> (", "x (<b>)", '(["a) </b> ("])<']
)
def test_refused_conditions(value: str) -> None:
    """What RFC 4918 10.4.2 does not have is refused: a tag could hide in it."""
    with pytest.raises(FieldRefused):
        map_tags(value, str)


@given(st.text(st.sampled_from(list('()<>[]"/a Not\t')), max_size=30))
def test_no_tag_goes_unseen(value: str) -> None:
    """Outside of parentheses nothing in angle brackets is left that was not mapped, or the field is refused."""
    seen: list[str] = []
    try:
        mapped = map_tags(value, lambda text: seen.append(text) or "")  # type: ignore[func-returns-value]
    except RequestRefused:
        return
    depth, quoted = 0, False
    for place, character in enumerate(mapped):
        quoted ^= character == '"'
        depth += 0 if quoted else (character == "(") - (character == ")")
        assert character != "<" or depth or quoted or mapped[place : place + 2] == "<>"
