"""Readers of paths, patterns and URLs."""

from __future__ import annotations

import pytest

from pyramid_threaded_proxy.settings import urls as settings_urls
from tests.support.settings import fault, route_settings


@pytest.mark.parametrize(
    ("written", "mount"),
    [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/%72eports", "/reports"),
        ("/b%c3%bc", "/b%C3%BC"),
        ("/a%20b", "/a%20b"),
        ("/a;v=1", "/a;v=1"),
    ],
)
def test_prefixes(written: str, mount: str) -> None:
    """A prefix is kept in one spelling, so that equal mounts are equal text."""
    assert route_settings(prefix=written).prefix == mount


@pytest.mark.parametrize(
    "value",
    ["", "reports", "http://h/", "/a?b", "/a#b", "/{a}", "/a/../b", "/.", "/a/%2e%2E", "/a%2f..", "/..;x/b",
     "/a%2Fb", "/a%3Fb",
     "/a%00", "/a%5cb", "/a\\b", "/a%zz", "/a%", "/a%ff", "/ä", "/a b", "/a/", "//a", "/a//b", "/a:b", "/a*b", 5, None],
)  # fmt: skip
def test_bad_prefixes(value: object) -> None:
    """A prefix means one path and nothing else: no dot segments, no query, no escapes of what is reserved."""
    assert "allowed: a path from `/` on" in fault("prefix", value)


@pytest.mark.parametrize("value", ["", "/{a", "/{a}/{a}", "/{a:[}", "/{a b}", "/{userid}", "/{host:.*}", 5])
def test_bad_patterns(value: object) -> None:
    """A pattern is one that Pyramid takes, and shadows none of the templates' names."""
    if value == "/{a":
        # Pyramid takes a lone brace for itself.
        assert settings_urls.pattern("/{a") == "/{a"
    else:
        assert "allowed: a Pyramid route pattern" in fault("pattern", value)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("/a", set()), (r"/{a}/{b:\d{2}}", {"a", "b"}), ("/a/*rest", {"rest"}), ("/:old/x", {"old"}), ("a%b/{c}", {"c"})],
)
def test_pattern_names(pattern: str, names: set[str]) -> None:
    """The names of placeholders are those that Pyramid finds, in each of its spellings."""
    assert settings_urls.pattern_names(pattern) == names


@pytest.mark.parametrize(
    "value",
    [
        "http://h",
        "http://h/",
        "HTTP://h:80/a/b",
        "http://[::1]:8080/x",
        "http://10.0.0.1:65535",
        "http://a_b.c./%7Ex",
        "https://h:8443/a",
        "http+unix://%2Frun%2Fapp.sock",
        "http+unix://%2frun%2fapp.sock/base",
    ],
)
def test_upstreams(value: str) -> None:
    """An upstream is kept as written."""
    assert route_settings(upstream=value).upstream == (value,)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("h:80", "does not begin"), ("ftp://h", "does not begin"),
        ("http:/h", "does not begin"), ("//h", "does not begin"), ("http+unix://s", "no socket"), ("", "is empty"),
        ("https://", "no host"),
        ("http://", "no host"), ("http://:80", "no host"), ("http://u@h", "credentials"),
        ("http://u:p@h", "credentials"),
        ("http://h#f", "fragment"), ("http://h/#", "fragment"), ("http://h?", "has a query"),
        ("http://h/?a=b", "has a query"),
        ("http://h:0", "bad port"), ("http://h:65536", "bad port"), ("http://h:", "bad port"),
        ("http://h:x", "bad host"),
        ("http://h:" + "9" * 5000, "bad port"), ("http://[::1", "bad host"), ("http://[x]", "bad host"),
        ("http://[fe80::1%25e]", "bad host"), ("http://1.2.3", "bad host"), ("http://a..b", "bad host"),
        ("http://ä", "bad host"), ("http://a b", "does not begin"), ("http://a%41", "bad host"),
        ("http://" + "a" * 64, "bad host"),
        ("http://h/..", "dot segment"), ("http://h/%2e%2e/", "dot segment"),
        ("http://h\\@x", "credentials"), ("http://h/\\", "must not hold"), ("http://h/%0a", "a control or a backslash"),
        ("http://h/{a}", "placeholder"), ("http://{a}", "placeholder in its host"), ("http://h/ü", "must not hold"),
        ("http://h/v2%C2%80", "could never be asked for: the path holds a control"),
        ("http://h/%E9", "could never be asked for: the path's escapes are not UTF-8"),
        ("http://h/..;x", "dot segment"), ("http://h/a%5Cb", "a control or a backslash"),
        (["http://a", ["http://b"]], "must be text, not list"), (["http://h/a b"], "must not hold ' '"),
    ],
)  # fmt: skip
def test_bad_upstreams(value: object, problem: str) -> None:
    """A prefix route's upstream is one http URL: host, perhaps port and base, and nothing else."""
    assert problem in fault("upstream", value)
