"""Targets: what is refused, what is below a mount, and that a client's bytes go up as they came."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyramid_threaded_proxy.exceptions import TargetRefused, ValueRefused
from pyramid_threaded_proxy.http.target import (
    UpstreamPattern,
    check_upstream_target,
    join,
    public_path_matches,
    rest_below,
    split_target,
)

TRICKY = st.lists(
    st.sampled_from([
        "/", "//", ".", "..", "%2e", "%2E", "%2F", "%2f", "%5c", "\\", ";", "%3b", "%3B", "%", "%252e", "%00", "%C3%A9",
        "%c3", "a", "b.c", "~", "?", "#", "http://h", "*", "\t", " ", "\x7f", "\xe9", "%C2%85", "&=", "+", ":", "|",
    ])
).map("".join)  # fmt: skip
SEGMENT = st.text(st.sampled_from("ab~!$&'()*+,:;=@-_|^"), max_size=4) | st.sampled_from(["%20", "%252e", "%C3%A9"])
REST = st.lists(SEGMENT, max_size=4).map(lambda segments: "".join("/" + segment for segment in segments))


@pytest.mark.parametrize(
    ("raw", "path", "query"),
    [
        ("/", "/", None),
        ("/reports/a.pdf", "/reports/a.pdf", None),
        ("/a?", "/a", ""),
        ("/a?b=c?d", "/a", "b=c?d"),
        ("/a//b/", "/a//b/", None),
        ("//p/x", "//p/x", None),
        ("/a%2Fb%20c+d", "/a%2Fb%20c+d", None),
        ("/%252e%252e/x", "/%252e%252e/x", None),
        ("/...", "/...", None),
        ("/a../..b", "/a../..b", None),
        ("/.well-known/x", "/.well-known/x", None),
        ("/a;..", "/a;..", None),
        ("/{a}|b^", "/{a}|b^", None),
        ("/caf%C3%A9", "/caf%C3%A9", None),
        ("/a?../%2e%2e/%00\\%zz", "/a", "../%2e%2e/%00\\%zz"),
        ("http://other.example:8080/a/b?c", "/a/b", "c"),
        ("HTTPS://h/a", "/a", None),
        ("http://h", "/", None),
        ("http://h?q", "/", "q"),
        ("http://user@h//a", "//a", None),
    ],
)
def test_accepted(raw: str, path: str, query: str | None) -> None:
    """Accepted targets are split at the first "?" and nothing else is touched (RFC 9112 3.2)."""
    assert split_target(raw) == (path, query)


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        ("", "begin"),
        ("*", "begin"),
        ("example.com:443", "begin"),
        ("reports", "begin"),
        ("?a", "begin"),
        ("ftp://h/a", "begin"),
        ("http:/a", "begin"),
        ("http:///a", "begin"),
        ("http://h\\@other/a", "begin"),
        ("/..", "dot segment"),
        ("/.", "dot segment"),
        ("/a/../b", "dot segment"),
        ("/a/./b", "dot segment"),
        ("/a/..?q", "dot segment"),
        ("/%2e%2e/b", "dot segment"),
        ("/.%2E", "dot segment"),
        ("/a%2F..%2fb", "dot segment"),
        ("/a%2f%2e%2e", "dot segment"),
        ("/..;/manager", "dot segment"),
        ("/..;a=b/manager", "dot segment"),
        ("/..%3Bx/manager", "dot segment"),
        ("/;/../x", "dot segment"),
        ("http://h/../x", "dot segment"),
        ("/a\\b", "backslash"),
        ("/a%5Cb", "backslash"),
        ("/..%5c..%5c", "backslash"),
        ("/a%00", "control"),
        ("/a%0d%0aX:%20y", "control"),
        ("/a%7F", "control"),
        ("/a%C2%85b", "control"),
        ("/a\x00b", "control"),
        ("/a\tb", "control"),
        ("/a b", "space"),
        ("/a?b c", "space"),
        ("/a?\x01", "control"),
        ("/a?\xe9", "ASCII"),
        ("/caf\xc3\xa9", "ASCII"),
        ("/a#b", "fragment"),
        ("/a?b#c", "fragment"),
        ("/a%", "hexadecimal"),
        ("/a%4", "hexadecimal"),
        ("/a%zz", "hexadecimal"),
        ("/a%u0041", "hexadecimal"),
        ("/%E9", "UTF-8"),
        ("/%c0%ae%c0%ae/", "UTF-8"),
        ("/%ED%A0%80", "UTF-8"),
    ],
)
def test_refused(raw: str, rule: str) -> None:
    """Whatever an upstream could read as another path is refused, and the rule is named (RFC 3986, RFC 9112 3.2)."""
    with pytest.raises(TargetRefused, match=rule):
        split_target(raw)


@given(TRICKY | st.text() | TRICKY.map(lambda text: "/" + text))
@example("/a/%2e%2e%3b/b")
def test_no_dot_segment_is_accepted(raw: str) -> None:
    """A refusal is always `TargetRefused`; an accepted path has no dot segment once unescaped, and keeps its bytes."""
    try:
        path, query = split_target(raw)
    except TargetRefused:
        return
    assert raw.endswith(path if query is None else f"{path}?{query}") or path == "/"
    for segment in re.split("/", unquote(path, errors="strict")):
        assert segment.partition(";")[0] not in (".", "..")
    assert not re.search(r"[\x00-\x1f\x7f\\]", unquote(path, "latin-1"))


@pytest.mark.parametrize("target", ["a", "", "http://h/a", "*", "/a/..", "/a?\n", "/%2e", "/a b"])
def test_upstream_target_refused(target: str) -> None:
    """A finished upstream target passes the same check, and is in origin-form."""
    with pytest.raises(TargetRefused):
        check_upstream_target(target)


def test_upstream_target_accepted() -> None:
    """A harmless upstream target raises nothing."""
    check_upstream_target("/v2/a%2Fb//c?x=%zz")


@pytest.mark.parametrize(
    ("path", "mount", "rest"),
    [
        ("/reports", "/reports", ""),
        ("/reports/", "/reports", "/"),
        ("/reports//a%2Fb", "/reports", "//a%2Fb"),
        ("/reports/a", "/reports/", "/a"),
        ("/%72eports/%72", "/reports", "/%72"),
        ("/r%65ports", "/reports", ""),
        ("/~u/a", "/%7Eu", "/a"),
        ("/b%c3%bcro/x", "/b%C3%BCro", "/x"),
        ("/a/%62/c/d", "/a/b", "/c/d"),
        ("/a", "", "/a"),
        ("/a", "/", "/a"),
        ("/", "", "/"),
        ("/%61", "", "/%61"),
        ("/reportsx", "/reports", None),
        ("/reports%2Fx", "/reports", None),
        ("/reports%2fx", "/reports", None),
        ("//reports", "/reports", None),
        ("//%72eports", "/reports", None),
        ("/Reports", "/reports", None),
        ("/a%21", "/a!", None),
        ("/%61", "/a/b", None),
        ("/", "/reports", None),
    ],
)
def test_rest_below(path: str, mount: str, rest: str | None) -> None:
    """A mount ends at a segment's end; only unreserved characters may be escaped differently (RFC 3986 6.2.2)."""
    assert rest_below(path, mount) == rest


@pytest.mark.parametrize(
    ("base", "rest", "query", "target"),
    [
        ("/v2", "/x", None, "/v2/x"),
        ("/v2/", "/x", None, "/v2/x"),
        ("/v2", "x", None, "/v2/x"),
        ("/v2", "", None, "/v2"),
        ("/v2/", "", "", "/v2/?"),
        ("/v2/", "/", "a", "/v2/?a"),
        ("/v2", "//a", None, "/v2//a"),
        ("", "", None, "/"),
        ("", "", "a", "/?a"),
        ("/", "/a/", None, "/a/"),
        ("", "/a%2F%2fb+c", "d+e%2", "/a%2F%2fb+c?d+e%2"),
    ],
)
def test_join(base: str, rest: str, query: str | None, target: str) -> None:
    """One slash stands between base and rest, and an empty query keeps its "?"."""
    assert join(base, rest, query) == target


@given(REST, REST, st.none() | st.text(st.sampled_from("a=&%2F/?+")))
def test_join_keeps_the_rest(base: str, rest: str, query: str | None) -> None:
    """What was joined to a base is what is found below it again, byte by byte."""
    base = base.rstrip("/")
    path, mark, found = join(base, rest, query).partition("?")
    assert rest_below(path, base) == (rest if base or rest else "/")
    assert (found if mark else None) == query


@given(REST, st.randoms(use_true_random=False))
def test_rest_below_an_escaped_mount(rest: str, random) -> None:  # type: ignore[no-untyped-def]
    """However the client escapes the mount's letters, the rest is its own bytes."""
    spelt = "".join(random.choice([char, f"%{ord(char):02x}", f"%{ord(char):02X}"]) for char in "reports")
    assert rest_below(f"/{spelt}{rest}", "/reports") == rest


@pytest.mark.parametrize(
    ("target", "values", "query", "expected"),
    [
        ("/a/{id}", {"id": "x/y z"}, None, "/a/x%2Fy%20z"),
        ("/a/{id}", {"id": "é?#%"}, "q", "/a/%C3%A9%3F%23%25?q"),
        ("/a/{rest}", {"rest": ("b", "c/d")}, None, "/a/b/c%2Fd"),
        ("/a/{many}", {"many": "b/c d"}, None, "/a/b/c%20d"),
        ("/a?x={id}", {"id": "1&y=/2+"}, None, "/a?x=1%26y%3D/2%2B"),
        ("/a?x={id}", {"id": "1"}, "z=%2F", "/a?x=1&z=%2F"),
        ("/a?x=1", {}, "", "/a?x=1"),
        ("/a?", {}, "q", "/a?q"),
        ("/a", {}, "", "/a?"),
        ("", {}, None, "/"),
        ("/{id}/{id}.{many}", {"id": "a-._~", "many": ""}, None, "/a-._~/a-._~."),
    ],
)
def test_pattern(target: str, values: dict[str, str | tuple[str, ...]], query: str | None, expected: str) -> None:
    """A placeholder is one path segment or a query value; only those of several segments keep slashes."""
    assert UpstreamPattern(target, several=frozenset({"many"})).expand(values, query) == expected


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_pattern_round_trip(segment: str, value: str) -> None:
    """Whatever a placeholder holds comes back by unescaping, and changes nothing beside it."""
    target = UpstreamPattern("/a/{s}/b?x={v}&y").expand({"s": segment, "v": value}, "z")
    path, _, query = target.partition("?")
    assert [unquote(part) for part in path.split("/")] == ["", "a", segment, "b"]
    assert [unquote(part) for part in query.split("&")] == [f"x={value}", "y", "z"]


def test_pattern_names() -> None:
    """A pattern tells which placeholders it uses."""
    assert UpstreamPattern("/{a}?b={b}").names == {"a", "b"}


@pytest.mark.parametrize("target", ["/{", "/}", "/a?}", "/{{a}}"])
def test_pattern_brace(target: str) -> None:
    """A brace that belongs to no placeholder is refused when compiling."""
    with pytest.raises(ValueRefused, match=r"single [{}], which is not part of a \{name\}"):
        UpstreamPattern(target)


def test_pattern_values() -> None:
    """A placeholder without a value, or with one that UTF-8 can't hold, is named."""
    pattern = UpstreamPattern("/{id}")
    with pytest.raises(ValueRefused, match=r"\{id\} has no value"):
        pattern.expand({}, None)
    with pytest.raises(ValueRefused, match=r"\{id\}.*UTF-8"):
        pattern.expand({"id": "\ud800"}, None)


@pytest.mark.parametrize(
    ("raw", "path_info", "script_name", "matches"),
    [
        ("/a/b", "/a/b", "", True),
        ("/a/b", "/b", "/a", True),
        ("/a", "", "/a", True),
        ("/", "", "", True),
        ("/%61%2Fb", "/a/b", "", True),
        ("/caf%C3%A9", "/caf\xc3\xa9", "", True),
        ("//a", "/a", "", False),
        ("/a%2561", "/aa", "", False),
        ("/a", "/b", "", False),
    ],
)
def test_public_path_matches(raw: str, path_info: str, script_name: str, matches: bool) -> None:
    """What Pyramid was given is the raw path unescaped once (PEP 3333), without any slash collapsed."""
    assert public_path_matches(raw, path_info, script_name) is matches
