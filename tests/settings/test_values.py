"""Readers of single settings, and of overrides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.settings import values as settings_values
from tests.support.settings import fault, faults, route_settings

# Single values


@pytest.mark.parametrize("char", ["\r", "\n", "\0", "\x7f", "\ud800"])
@pytest.mark.parametrize(
    "key", ["prefix", "pattern", "permission", "factory", "forwarded", "request.set.X", "response.add.X",
            "request.authorization", "cache", "hooks.error"],
)  # fmt: skip
def test_control_characters(key: str, char: str) -> None:
    """CR, LF, NUL and their like are refused in every text, and the fault itself stays on one line."""
    found = fault(key, f"/a{char}b")
    assert "holds the character" in found
    assert found.isprintable()


@pytest.mark.parametrize(
    ("written", "seconds"), [("2.5", 2.5), ("250ms", 0.25), ("30s", 30), ("5m", 300), ("1h", 3600), (7, 7)]
)
def test_durations(written: object, seconds: float) -> None:
    """Durations are seconds, or carry a unit."""
    assert route_settings(read_timeout=written).read_timeout == seconds


@pytest.mark.parametrize(
    "value", ["", "0", "0ms", "-1", "1 s", "1S", "1d", ".5", "1e3", "inf", "nan", "٣", "999999999999", True, None,
              float("nan"), float("inf"), 10**400, -1, 0, [1]],
)  # fmt: skip
def test_bad_durations(value: object) -> None:
    """What is no duration, not above 0, or longer than a poll takes is refused."""
    assert "duration" in fault("send_timeout", value) or "above 0" in fault("send_timeout", value)


@given(st.integers(1, 10**6), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600), ("", 1)]))
def test_durations_round_trip(amount: int, unit: tuple[str, float]) -> None:
    """Every amount in every unit is read as so many seconds, or refused above ten days."""
    if amount * unit[1] > settings_values.MAX_SECONDS:
        with pytest.raises(settings_values.ValueFault):
            settings_values.duration(f"{amount}{unit[0]}")
    else:
        assert settings_values.duration(f"{amount}{unit[0]}") == pytest.approx(amount * unit[1], rel=1e-12)


@given(st.floats(0.001, 86400))
def test_plain_seconds_round_trip(seconds: float) -> None:
    """A number in ini text and the number itself are the same duration."""
    assert settings_values.duration(f"{seconds:.12f}") == float(f"{seconds:.12f}")
    assert settings_values.duration(seconds) == seconds


@given(st.integers(0, 2**20), st.sampled_from([("", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30)]))
def test_sizes_round_trip(amount: int, unit: tuple[str, int]) -> None:
    """Every amount in every unit is read as so many bytes."""
    assert settings_values.size(0)(f"{amount}{unit[0]}") == amount << unit[1]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("64k", "write 64KiB"), ("64K", "write 64KiB"), ("64kB", "write 64KiB"), ("10MB", "write 10MiB"),
        ("1g", "write 1GiB"), ("64kib", "write 64KiB"), ("1TiB", "unknown unit 'TiB'"), ("1.5MiB", "is not a size"),
        ("", "is not a size"), ("-1", "is not a size"), (-1, "must be 0 to"), (True, "is not a size"),
        (1.5, "is not a size"), (2**60, "must be 0 to"), ("9" * 5000, "is not a size"), (10**400, "must be 0 to"),
    ],
)  # fmt: skip
def test_bad_sizes(value: object, problem: str) -> None:
    """Units that may mean 1000 or 1024 are refused with what to write; so is what is no size."""
    assert problem in fault("max_body", value)


def test_smallest_sizes() -> None:
    """A buffer or a head of a few bytes could not hold what they are for."""
    assert "must be 4096 to" in fault("buffer", "4095")
    assert "must be 1024 to" in fault("max_head", "1023")
    assert route_settings(buffer="4KiB", max_head="1KiB").buffer == 4096


@pytest.mark.parametrize("key", ["threads", "max_exchanges"])
@pytest.mark.parametrize("value", ["0", "-1", "", "1.0", "one", "1 0", "٣", True, 1.0, None, 10**10])
def test_bad_whole_numbers(key: str, value: object) -> None:
    """Counts are whole numbers from 1 on."""
    (found,) = faults({f"proxy.{key}": value})
    assert found.startswith(f"proxy.{key} = ")


@pytest.mark.parametrize(
    ("value", "meaning"),
    [("true", True), ("Yes", True), ("on", True), ("1", True), (True, True), ("false", False), ("no", False),
     ("OFF", False), ("0", False), (False, False)],
)  # fmt: skip
def test_booleans(value: object, meaning: bool) -> None:
    """Booleans are the words of Pyramid's asbool."""
    assert route_settings(preserve_host=value).preserve_host is meaning


@pytest.mark.parametrize("value", ["", "maybe", "2", 1, None, [], "tru"])
def test_bad_booleans(value: object) -> None:
    """Unlike with asbool, any other word is a fault and not false."""
    assert "is not a boolean; allowed: true or false" in fault("public", value)


@pytest.mark.parametrize(
    ("value", "problem"),
    [("get", "write GET"), ("GET CONNECT", "CONNECT is never proxied"), ("TRACE", "TRACE is never proxied"),
     ("GET,POST", "'GET,POST' is not a token"), ("", "is empty"), ([], "is empty"), ([1], "must be text, not int")],
)  # fmt: skip
def test_bad_methods(value: object, problem: str) -> None:
    """Methods are tokens in upper case; CONNECT and TRACE are never proxied."""
    assert problem in fault("methods", value)


@pytest.mark.parametrize("value", ["", " ", "__no_permission_required__", None, 0, ["view"]])
def test_bad_permissions(value: object) -> None:
    """No permission lets everybody in by being empty, no text, or Pyramid's own word for none."""
    assert "allowed: a permission's name" in fault("permission", value)


@pytest.mark.parametrize("value", ["*", "a b", "", ["a"]])
def test_request_cookies(value: object) -> None:
    """`*` lets every cookie up, a list those in it, an empty one none."""
    expected = None if value == "*" else frozenset("".join(value).replace(" ", ""))  # type: ignore[arg-type]
    assert route_settings(request__cookies=value).request_cookies == expected


@pytest.mark.parametrize(("value", "problem"), [("a *", "beside *"), ("a;b", "not a token"), ("a=b", "not a token")])
def test_bad_cookie_names(value: str, problem: str) -> None:
    """Names of cookies are tokens, and `*` stands alone."""
    assert problem in fault("request.cookies", value)


@pytest.mark.parametrize("value", ["a.b:c", "a.b", ".hooks.f", "a.b:C.d", len])
def test_hooks(value: object) -> None:
    """Hooks and factories are callables or dotted names, not resolved yet."""
    found = route_settings(hooks__headers=value, factory=value)
    assert found.hooks_headers == found.factory == value


@pytest.mark.parametrize("value", ["", "a b", "a..b", "a:", "1a", ":a", 5, None])
def test_bad_hooks(value: object) -> None:
    """What is neither is refused."""
    assert "allowed: a dotted name" in fault("hooks.request", value)


@pytest.mark.parametrize("value", ["a/b", "a b", "h:port", "h:"])
def test_bad_via(value: str) -> None:
    """`via` is a pseudonym or host:port (RFC 9110 7.6.3)."""
    (found,) = faults({"proxy.via": value})
    assert "is neither a token nor host:port" in found


# Overrides


@pytest.mark.parametrize("name", sorted(settings_values.CONNECTION_FIELDS))
@pytest.mark.parametrize("side", ["request", "response"])
def test_framing_and_connection_fields(side: str, name: str) -> None:
    """No override touches what frames a message or belongs to one connection (RFC 9110 7.6.1), in any case."""
    for operation in ("set", "add") if side == "request" else ("set", "add", "default"):
        assert "can't be overridden" in fault(f"{side}.{operation}.{name.title()}", "x")
    assert "can't be overridden" in fault(f"{side}.remove", f"X-A {name.upper()}")


@pytest.mark.parametrize(
    ("name", "problem"), [("Host", "preserve_host"), ("X_User", "write X-User"), ("a b", "not a token")]
)
def test_bad_request_fields(name: str, problem: str) -> None:
    """A request's fields are tokens without underscores, which upstreams conflate with hyphens; not Host."""
    assert problem in fault(f"request.set.{name}", "x")
    assert problem in fault("request.remove", [name])


def test_response_fields_may_have_underscores() -> None:
    """The underscore is no danger in answers."""
    assert route_settings(response__set={"X_A": "b"}).response_set == (("X_A", "b"),)


def test_fields_that_only_set_may_put() -> None:
    """`Clear-Site-Data` reaches the client through `response.set` alone (DESIGN, section 8)."""
    assert "only be put by `response.set`" in fault("response.default.clear-site-data", "x")
    assert route_settings(response__set={"Clear-Site-Data": '"cache"'}).response_set


@pytest.mark.parametrize(
    ("value", "problem"),
    [("{", "single {"), ("a}b", "single }"), ("{usrid}", "did you mean userid?"), ("{}", "unknown placeholder {}"),
     ("{userid!r}", "unknown placeholder"), ("{id}", "unknown placeholder {id}"), (" a", "white space"),
     ("a\t", "white space"), (5, "must be text, not int")],
)  # fmt: skip
def test_bad_templates(value: object, problem: str) -> None:
    """Braces are placeholders that are known, or doubled; values have no white space around them (RFC 9110 5.5)."""
    assert problem in fault("request.add.X-A", value)


def test_response_values_are_literal() -> None:
    """Braces mean nothing in an answer's values, and an empty value is a value."""
    assert route_settings(response__set={"X": "{userid", "Y": ""}).response_set == (("X", "{userid"), ("Y", ""))


@pytest.mark.parametrize("key", ["rewrite_location", "rewrite_cookies"])
def test_rewriting(key: str) -> None:
    """True, false, or rules in order; in YAML a list, too."""
    for value, expected in (
        ("yes", ()), (False, None), ("off", None), ("/a -> /b", (("/a", "/b"),)),
        (["/a/ -> /b/", "/c -> /"], (("/a/", "/b/"), ("/c", "/"))),
        ("/a -> /b\n/c -> /d", (("/a", "/b"), ("/c", "/d"))),
    ):  # fmt: skip
        assert getattr(route_settings(**{key: value}), key) == expected
    urls = (("http://h:8/a/", "https://site/b"),)
    if key == "rewrite_location":
        assert route_settings(rewrite_location="http://h:8/a/ -> https://site/b").rewrite_location == urls
    else:
        assert "no absolute path" in fault(key, "http://h:8/a/ -> /b")


@pytest.mark.parametrize(
    "value",
    [
        "maybe", "/a ->", "-> /b", "/a -> /b /c", "/a /b", "a -> /b", "//h -> /b", "/a -> //h", "/a -> /b;c",
        "/a -> /\xe9", 5,
    ],
)  # fmt: skip
def test_bad_rules(value: object) -> None:
    """Rules are pairs of absolute paths, or URLs, as they stand on the wire."""
    for key in ("rewrite_location", "rewrite_cookies"):
        assert fault(key, value)
