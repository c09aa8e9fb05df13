"""Cookies: no own cookie goes up, none is set or hidden by an upstream, in any spelling that WebOb reads."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from webob.cookies import RequestCookies, parse_cookie

from pyramid_threaded_proxy.http.cookies import CookieFilter, OwnCookies, SetCookieFilter
from pyramid_threaded_proxy.http.public import Public

OWN = frozenset({"session", "auth_tkt"})
PIECES = st.sampled_from([
    "session", "Session", "auth_tkt", "my_session", "a", "b", "=", "=", "=", ";", "; ", ", ", ",", " ", "\t", '"',
    '\\"', "\\", "\\073", "GMT", "=Mon, 01-Jan-2020 00:00:00 GMT", "\xe9", "[", "{", ":", "'", "\x0b", "$", "?",
])  # fmt: skip
TEXT = st.lists(PIECES, max_size=14).map("".join)


def names_read(text: str) -> set[str]:
    return {name.decode("latin-1") for name, _ in parse_cookie(text)}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a=1; b=2", "a=1; b=2"),
        ("a=1;b=2 ;  c", "a=1;b=2 ;  c"),
        ("session=S; a=1", "a=1"),
        ("a=1; session=S", "a=1"),
        ("session=S", ""),
        ("SESSION=S; a=1", "SESSION=S; a=1"),
        ("SESSION=S; session=T; Auth_Tkt=1", "SESSION=S; Auth_Tkt=1"),
        ("my_session=1; sessions=2; session.x=3", "my_session=1; sessions=2; session.x=3"),
        ("a=1, session=S", "a=1"),
        ("session=S, a=1", "a=1"),
        ("a=1, b=2, auth_tkt=S; c=3", "a=1; b=2; c=3"),
        ("a=1,session=S; b=2", "b=2"),
        ("a=1 session=S; b=2", "b=2"),
        ("\xe9session=S; b=2", "b=2"),
        ("[session=S; b=2", "b=2"),
        ("session \t= S; b=2", "b=2"),
        ('a="x"session=S; b=2', "b=2"),
        ("a=Mon, 01-Jan-2020 00:00:00 GMTsession=S; b=2", "a=Mon; b=2"),
        ('a="; b="y session=S"; c=3', 'a="; c=3'),
        ('session="S; T"; b=2', ""),
        ("session=S\\;T; b=2", ""),
        ('session="S"; b=2', "b=2"),
        ("session=S, T", ""),
        ('a="1"; auth_tkt="x=="; b="2="', 'a="1"; b="2="'),
        ('a={"session":"x"}; b=2', 'a={"session":"x"}; b=2'),
        ("", ""),
    ],
)
def test_own_cookies_stay_home(text: str, kept: str) -> None:
    """Own cookies go, whether joined by ";" or as waitress joins repeated fields; the others keep their bytes."""
    assert CookieFilter(OWN, None).select(text) == kept


def test_a_quote_over_several_cookies() -> None:
    """An own cookie in a pair that leaves a quote open takes the whole field with it."""
    text = 'x="; session=S; y=", session=T'
    assert "session" in names_read(text)
    assert CookieFilter(OWN, None).select(text) == ""


@given(TEXT)
@example('x="; session="; y="; a="b, session=S"')
@example('b="y=Mon, 01-Jan-2020 00:00:00 GMTsession=a"; session=1; a="')
def test_webob_finds_no_own_cookie(text: str) -> None:
    """Whatever the client sends, WebOb's reader finds no own cookie in what goes up."""
    for allowed in (None, frozenset({"a", "my_session", "session"})):
        kept = CookieFilter(OWN, allowed).select(text)
        names = names_read(kept)
        assert not names & OWN
        assert allowed is None or names <= allowed


@given(TEXT, st.lists(PIECES, max_size=5).map("".join), TEXT)
@settings(max_examples=400)
@example("", 'session="; ', '"')
@example("", "session=\\;", "")
@example('x="; session="; y="; a="b, ', "session=", '"')
@example("", 'session="\\"; ', '"')
def test_no_own_value_goes_up(before: str, name: str, behind: str) -> None:
    """Not only the name of an own cookie stays home: what WebOb reads as its value is nowhere in what goes up."""
    text = f"{before}{name}S3CRET{behind}"
    if any(b"S3CRET" in value and name.decode() in OWN for name, value in parse_cookie(text)):
        assert "S3CRET" not in CookieFilter(OWN, None).select(text)


@given(TEXT, TEXT, TEXT)
def test_the_guard_finds_what_webob_finds_anywhere(before: str, text: str, behind: str) -> None:
    """If the guard finds no own cookie in a text, WebOb finds none that begins there, whatever surrounds it."""
    own = OwnCookies(OWN)
    if any(own.assigned_in(part) for part in (before, text, behind)):
        return
    assert not names_read(f"{before}; {text}; {behind}") & OWN


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a=1; b=2; c=3", "a=1; c=3"),
        ("A=1; b=2", ""),
        ("a=1, c=2", "a=1, c=2"),
        ("a=1, b=2", "a=1"),
        ("a=1 b=2; c=3", "c=3"),
        ("session=S; a=1", "a=1"),
        ("a; c=3", "c=3"),
        ('b="; a=1', "a=1"),
    ],
)
def test_named_cookies_only(text: str, kept: str) -> None:
    """With `request.cookies` only the named ones go up, and names tell cases apart (RFC 6265 5.3)."""
    assert CookieFilter(OWN, frozenset({"a", "c", "session"})).select(text) == kept


def test_long_names() -> None:
    """A long name is read whole."""
    name = "a" * 40
    assert CookieFilter(OWN, frozenset({name})).select(f"{name}=1; {name}a=2") == f"{name}=1"


def test_no_cookies_allowed() -> None:
    """An empty list of names lets nothing pass."""
    assert CookieFilter(OWN, frozenset()).select("a=1; b=2") == ""


@pytest.mark.parametrize(
    "text",
    [
        "a" * 250_000 + " xsession=1",
        ("a" * 33 + ";") * 7_000 + " xsession=1",
        'a="' + '\\"' * 100_000 + "xsession=1",
        "session " * 30_000,
        "xsession =," * 20_000,
    ],
)
def test_hostile_text_is_read_in_linear_time(text: str) -> None:
    """WebOb's reader is quadratic over long words (minutes for 250 KB); the filter is not."""
    began = time.process_time()
    CookieFilter(OWN, None).select(text)
    assert time.process_time() - began < 5


def set_cookie(value: str, mount: str | None = "/m", rewrite: bool = True, prefix: str | None = None) -> str | None:
    dropped: list[str] = []
    rules = SetCookieFilter(
        OWN, rewrite=() if rewrite else None, base_paths=("/v2",), told=prefix is not None, dropped=dropped.append
    )
    public = rules.public(value, Public("http://site", mount, prefix))
    assert public is None or not dropped
    return public


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("a=1", "a=1; Path=/m"),
        ("a=1; Path=/", "a=1; Path=/m"),
        ("a=1; path=/v2", "a=1; Path=/m"),
        ("a=1; Path=/v2/", "a=1; Path=/m/"),
        ("a=1; Path=/v2/x; Secure", "a=1; Secure; Path=/m/x"),
        ("a=1; Path=/v2x", "a=1; Path=/m"),
        ("a=1; Path=/admin", "a=1; Path=/m"),
        ("a=1; Path=relative", "a=1; Path=/m"),
        ('a=1; Path="/v2/x"', "a=1; Path=/m"),
        ("a=1; Path=/v2/x; PATH = /v2/y ", "a=1; Path=/m/y"),
        ("a=1; Domain=.example.com; HttpOnly", "a=1; HttpOnly; Path=/m"),
        ("a=1;domain = x;;SameSite=Lax; Expires=Mon, 01-Jan-2030 00:00:00 GMT",
         "a=1;SameSite=Lax; Expires=Mon, 01-Jan-2030 00:00:00 GMT; Path=/m"),
        ("__Secure-a=1; Secure; Path=/", "__Secure-a=1; Secure; Path=/m"),
        ('a="x=="', 'a="x=="; Path=/m'),
        ('a={"k":"v, w"}', 'a={"k":"v, w"}; Path=/m'),
        ("a=", "a=; Path=/m"),
    ],
)  # fmt: skip
def test_set_cookie_is_confined(value: str, public: str) -> None:
    """Domain goes, Path is confined to the mount and written last, where it wins (RFC 6265 5.3)."""
    assert set_cookie(value) == public


@pytest.mark.parametrize(
    "value",
    [
        "session=evil", "session =evil; Path=/", " session=evil", "a=1,session=evil",
        "a=1 session=evil",
        "x session=evil", "\xe9session=evil", "=session=evil", "=x", "session", "nameless", "", "; Path=/",
        "__Host-a=1; Secure; Path=/", "__host-a=1", 'a="', 'a=x,b="y', 'a="\\"', 'b="y session=evil"',
        "a=\\", "a=\\,session=evil",
    ],
)  # fmt: skip
def test_set_cookie_is_dropped(value: str) -> None:
    """Own, nameless and __Host- cookies are dropped, and those that would swallow others when read."""
    assert set_cookie(value) is None


@pytest.mark.parametrize(("mount", "rewrite"), [("/m", False), (None, True)])
def test_set_cookie_without_rewriting(mount: str | None, rewrite: bool) -> None:
    """Without rewriting Domain and Path go through, and own cookies stay guarded."""
    assert set_cookie("a=1; Domain=x; Path=/", mount, rewrite) == "a=1; Domain=x; Path=/"
    assert set_cookie("__Host-a=1; Secure; Path=/", mount, rewrite) == "__Host-a=1; Secure; Path=/"
    assert set_cookie("session=evil; Path=/", mount, rewrite) is None


def test_set_cookie_on_a_root_mount() -> None:
    """A mount at the root leaves the path as the upstream's base maps it."""
    assert set_cookie("a=1", "/") == "a=1; Path=/"
    assert set_cookie("a=1; Path=/v2", "") == "a=1; Path=/"
    assert set_cookie("a=1; Path=/v2/x", "") == "a=1; Path=/x"


@given(st.lists(TEXT, max_size=4), st.integers(0, 4))
@settings(max_examples=300)
@example(['a="', 'b="y session=evil"'], 0)
@example(['a="', 'b="'], 1)
def test_upstream_cookies_never_touch_ours(values: list[str], place: int) -> None:
    """A client that keeps what an upstream set still sends a field out of which WebOb reads our cookie, unchanged."""
    kept = [public for value in values if (public := set_cookie(value)) is not None]
    jar = [cookie.partition(";")[0].strip(" \t") for cookie in kept]
    jar.insert(place, "session=REAL")
    cookies = dict(parse_cookie("; ".join(jar)))
    assert cookies[b"session"] == b"REAL"
    assert b"auth_tkt" not in cookies


def test_webob_is_the_reader_of_the_application() -> None:
    """The judge is what an application's `request.cookies` reads with."""
    assert RequestCookies({"HTTP_COOKIE": "x=1, session=S"})["session"] == "S"


def test_dropped_cookies_are_told() -> None:
    """Each own cookie that an upstream sets is told by the name that WebOb would find; others are dropped silently."""
    told: list[str] = []
    rules = SetCookieFilter(OWN, rewrite=(), base_paths=(), told=False, dropped=told.append)
    values = ["session=1", "a=1, auth_tkt=2", "Session=1", "__Host-a=1", "nameless", 'a="']
    assert [rules.public(value, Public("http://site", "/m")) for value in values] == [
        None,
        None,
        "Session=1; Path=/m",
        None,
        None,
        None,
    ]
    assert told == ["session", "auth_tkt"]


@pytest.mark.parametrize(
    ("path", "public"),
    [("/m", "/m"), ("/m/admin", "/m/admin"), ("/mx", "/m"), ("/v2/x", "/m/x"), ("/", "/m"), ("/admin", "/m")],
)
def test_paths_of_an_upstream_that_knows_the_mount(path: str, public: str) -> None:
    """A path at or below the mount is left where a prefix was sent; all else is confined as ever."""
    assert set_cookie(f"a=1; Path={path}", prefix="/m") == f"a=1; Path={public}"


def test_rules_for_paths() -> None:
    """Rules go first, and may lead out of the mount; own cookies stay guarded, Domain goes."""
    rules = SetCookieFilter(OWN, rewrite=(("/app", "/"), ("/x/", "/y/")), base_paths=("",), told=True, dropped=print)
    public = Public("http://site", "/m", "/m")
    values = ["a=1; Path=/app", "a=1; Domain=d; Path=/x/z", "a=1; Path=/z", "a=1", "session=1; Path=/app"]
    assert [rules.public(value, public) for value in values] == [
        "a=1; Path=/", "a=1; Path=/y/z", "a=1; Path=/m/z", "a=1; Path=/m", None
    ]  # fmt: skip
