"""What an upstream says of its own place, as the client is to see it: redirects, and the paths of cookies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.http.public import LocationMap, Public, Told, is_authority_of, public_path
from pyramid_threaded_proxy.http.target import rest_below

EVERYTHING = Told(prefix=True, host=True, scheme=True)


@pytest.mark.parametrize(
    ("reference", "public"),
    [
        ("http://up.example:9000/v2/x?q#f", "https://site.example/m/x?q#f"),
        ("HTTP://UP.example:9000/v2", "https://site.example/m"),
        ("//up.example:9000/v2/x", "https://site.example/m/x"),
        ("/v2/x?http://a/v2", "/m/x?http://a/v2"),
        ("/v2", "/m"),
        ("/v2/", "/m/"),
        ("/v2/special/x", "/m/x"),
        ("http://second.example/special/y", "http://second.example/special/y"),
        ("http://second.example:80/v2/special/y", "https://site.example/m/y"),
        ("http://up.example/v2/x", "http://up.example/v2/x"),
        ("https://up.example:9000/v2/x", "https://up.example:9000/v2/x"),
        ("http://a@up.example:9000/v2/x", "http://a@up.example:9000/v2/x"),
        ("/v2x", "/v2x"),
        ("/login", "/login"),
        ("x/y", "x/y"),
        ("?q", "?q"),
        ("", ""),
        ("mailto:a@b", "mailto:a@b"),
    ],
)
def test_location(reference: str, public: str) -> None:
    """URLs and absolute paths below a base become public ones; all else stays as it came (RFC 9110 10.2.2)."""
    bases = LocationMap(["http://up.example:9000/v2", "http://second.example/v2/special/"])
    assert bases.public(reference, Public("https://site.example", "/m")) == public


@pytest.mark.parametrize("path", ["//other.example/", "/\\other.example/"])
def test_location_of_another_host(path: str) -> None:
    """A path that a browser would take for another host after mapping is written as a URL of ours."""
    assert LocationMap(["http://h/v2"]).public("/v2" + path, Public("http://site", "")) == "http://site" + path


def test_location_of_the_root() -> None:
    """Below the root everything is mapped, and a root mount leaves at least a slash."""
    assert LocationMap(["http://h"]).public("/a", Public("http://site", "/m")) == "/m/a"
    assert LocationMap(["http://h/v2"]).public("/v2?q", Public("http://site", "/")) == "/?q"


@pytest.mark.parametrize(
    ("reference", "public"),
    [
        ("/tool/login", "/tool/login"),
        ("/tool", "/tool"),
        ("/tool/v1/x", "/tool/v1/x"),
        ("/%74ool/login?n=/v1", "/%74ool/login?n=/v1"),
        ("/v1/login", "/tool/login"),
        ("/toolbox", "/toolbox"),
        ("https://www.example/tool/login", "https://www.example/tool/login"),
        ("https://127.0.0.1:9000/tool/login", "https://www.example/tool/login"),
        ("http://www.example/tool/login", "https://www.example/tool/login"),
    ],
)
def test_a_prefix_that_is_believed(reference: str, public: str) -> None:
    """What is at or below the mount is public already where the upstream was told the mount."""
    there = LocationMap(["http://127.0.0.1:9000/v1"], EVERYTHING)
    assert there.public(reference, Public("https://www.example", "/tool", "/tool")) == public


def test_a_prefix_that_was_not_told() -> None:
    """Where none was sent, by the route or for this request, the upstream's paths are its own."""
    for told, prefix in ((EVERYTHING, None), (Told(False, True, True), "/tool"), (EVERYTHING, "/")):
        public = Public("https://www.example", "/tool", prefix)
        assert LocationMap(["http://h"], told).public("/tool/login", public) == "/tool/tool/login"


def test_a_base_inside_the_mount() -> None:
    """Where the upstream's base is the more specific one, it decides."""
    there = LocationMap(["http://h/api/v1"], EVERYTHING)
    public = Public("http://site", "/api", "/api")
    assert [there.public(path, public) for path in ("/api/v1/x", "/api/x")] == ["/api/x", "/api/x"]


@pytest.mark.parametrize(
    ("reference", "public"),
    [
        ("https://127.0.0.1:9000/v1/items/", "https://www.example/api/items/"),
        ("http://127.0.0.1:9000/v1/items/", "https://www.example/api/items/"),
        ("http://WWW.example/v1/dir/", "https://www.example/api/dir/"),
        ("https://www.example:443/v1", "https://www.example/api"),
        ("//www.example/v1/x", "https://www.example/api/x"),
        ("https://www.example/other", "https://www.example/other"),
        ("https://www.example:444/v1/x", "https://www.example:444/v1/x"),
        ("https://x@www.example/v1/x", "https://x@www.example/v1/x"),
        ("https://www.example.evil/v1/x", "https://www.example.evil/v1/x"),
        ("https://127.0.0.1:9001/v1/x", "https://127.0.0.1:9001/v1/x"),
        ("ftp://www.example/v1/x", "ftp://www.example/v1/x"),
    ],
)
def test_the_public_origin_that_was_told(reference: str, public: str) -> None:
    """What an upstream makes of the host and the scheme that it was told is its own, under either scheme."""
    there = LocationMap(["http://127.0.0.1:9000/v1"], Told(False, True, True))
    assert there.public(reference, Public("https://www.example", "/api")) == public


def test_what_was_not_told_is_not_the_upstreams() -> None:
    """Without forwarded fields and `preserve_host` the public origin is somebody else's, and so is the other scheme."""
    there = LocationMap(["http://h/v1"])
    public = Public("https://www.example", "/api")
    for reference in ("https://www.example/v1/x", "https://h/v1/x"):
        assert there.public(reference, public) == reference
    only_host = LocationMap(["http://h/v1"], Told(False, True, False))
    assert only_host.public("http://www.example/v1/x", public) == "https://www.example/api/x"
    assert only_host.public("https://h/v1/x", public) == "https://h/v1/x"


def test_a_switch_to_another_scheme_is_meant() -> None:
    """A site that is told http and redirects to https means it: mapped back to http it would go round for ever."""
    there = LocationMap(["http://h"], EVERYTHING)
    assert there.public("https://site/x", Public("http://site", "/m", "/m")) == "https://site/x"


def test_rules_go_first() -> None:
    """Rules are tried in order, then the usual mapping; a result that a browser takes for a host gets its origin."""
    rules = (("/old/", "/new/"), ("http://other/", "/o/"), ("https://sso/", "https://sso/"), ("/r", "/"))
    there = LocationMap(["http://h"], EVERYTHING, rules)
    public = Public("https://site", "/m", "/m")
    expected = {
        "/old/x": "/new/x", "http://other/a?b": "/o/a?b", "https://sso/x": "https://sso/x", "/x": "/m/x",
        "/r/evil.example/": "https://site//evil.example/",
    }  # fmt: skip
    assert {reference: there.public(reference, public) for reference in expected} == expected


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("0;url=/login", "0;url=/m/login"),
        ("5; URL='http://h/x'", "5; URL='https://site/m/x'"),
        ('0.5, url = "/x"', '0.5, url = "/m/x"'),
        ("3;/x", "3;/m/x"),
        ("5", "5"),
        ("5; url=x/y", "5; url=x/y"),
        ("0; url=https://other/", "0; url=https://other/"),
        ("soon; url=/x", "soon; url=/x"),
    ],
)
def test_refresh(value: str, public: str) -> None:
    """The URL in Refresh is mapped as that of Location is, in the spellings that browsers read."""
    assert LocationMap(["http://h"], EVERYTHING).refreshed(value, Public("https://site", "/m", "/m")) == public


SEGMENT = st.sampled_from(["tool", "v1", "x", "toolbox", "%74ool", "..", "", "a;b"])
PATHS = st.lists(SEGMENT, max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(PATHS, st.sampled_from(["", "/v1", "/tool/v1", "/x/y"]), st.sampled_from(["", "/tool", "/tool/x"]))
def test_any_path_is_left_or_mapped_below_the_mount(path: str, base: str, mount: str) -> None:
    """With a prefix told, what comes out is below the mount: what came in, or what was below the base."""
    found = public_path(path, [base], Public("http://site", mount, mount), told=True)
    rest = rest_below(path, base)
    below = rest_below(path, mount) is not None if mount else False
    if found is None:
        assert rest is None
        assert not below
    else:
        assert rest_below(found or "/", mount) is not None
        assert found in (path, None if rest is None else mount + rest)
        assert not below or found == path or len(base) > len(mount)


@given(st.text(st.sampled_from(list("htp:/?#@\\.ax%2F;='\" ,05url")), max_size=25))
def test_any_reference_has_a_public_form(text: str) -> None:
    """Whatever an upstream says, reading it raises nothing, and a path never becomes another host."""
    there, public = LocationMap(["http://h/", "http://x:50/a"], EVERYTHING), Public("https://site", "/", "/")
    for found in (there.public(text, public), there.refreshed(text, public)):
        assert found is not None
    if text.startswith("/") and not text.startswith(("//", "/\\")):
        assert not there.public(text, public).startswith(("//", "/\\"))


def test_whose_authority() -> None:
    """An authority is the public one under http and https alike, with their ports or without."""
    for authority in ("site", "SITE:443", "site:80", "site:"):
        assert is_authority_of(authority, "https://site")
    for authority in ("site:8080", "a@site", "site.evil", "evil.site", ""):
        assert not is_authority_of(authority, "https://site")
    assert is_authority_of("[::1]:8080", "http://[::1]:8080")
