"""Settings as a whole: from ini, YAML and keywords to frozen values, and every mistake at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from pyramid_threaded_proxy.settings import table as settings_table
from pyramid_threaded_proxy.settings.errors import SettingsError
from pyramid_threaded_proxy.settings.load import (
    ProcessSettings,
    Settings,
    fetch_settings,
    route_from_keywords,
)
from tests.support.settings import HOME, faults, load, route_settings

# The whole


def test_nothing_given_is_all_defaults() -> None:
    """Without settings there are the dataclass's own defaults, which equal the table's, and no routes."""
    assert load({"pyramid.includes": "x", "proxyful": "y"}) == Settings(ProcessSettings(), ())


def test_process_settings() -> None:
    """Process-wide keys are read from ini, and that `own_cookies` was given is known."""
    process = load(
        {"proxy.threads": "3", "proxy.max_exchanges": 7, "proxy.via": "", "proxy.own_cookies": "a  b"}
    ).process
    assert process == ProcessSettings(3, 7, "", frozenset({"a", "b"}), True)


# Keywords


def test_keywords_equal_ini() -> None:
    """The imperative form reads the same keys to the same values."""
    keywords = {
        "prefix": "/reports", "upstream": "http://up:9000/v2", "public": True, "methods": ("GET",), "max_body": "1KiB",
        "request_set": {"X-A": "{userid}"}, "response_remove": ["Server"], "request_cookies": {"b", "a"},
        "hooks_request": len,
    }  # fmt: skip
    ini = {"public": "true", "methods": "GET", "max_body": "1024", "request__set": {"X-A": "{userid}"}}
    expected = route_settings(**ini, response__remove="Server", request__cookies="a b", hooks__request=len)
    assert route_from_keywords("reports", keywords) == expected


def test_faults_of_keywords() -> None:
    """Faults of keywords name their origin, and a misspelt keyword gets the nearest keyword."""
    with pytest.raises(SettingsError) as caught:
        route_from_keywords(
            "r", {"prefix": "/r", "upstream": "http://h", "requst_set": {"A": "b"}, "hooks": {}, "order": None}
        )
    assert caught.value.faults == (
        "proxy.routes.r.requst_set = {'A': 'b'} (add_proxy_route()): is unknown; did you mean request_set?",
        "proxy.routes.r.order = None (add_proxy_route()): is not a whole number; "
        "allowed: a whole number, -1000000 to 1000000",
    )


def test_fetch_settings() -> None:
    """A fetch has a route's other settings, an empty upstream, and no place."""
    found = fetch_settings("f", {"read_timeout": "3s", "request_set": {"X": "{userid}"}}, "proxy_fetch()")
    assert (found.name, found.upstream, found.prefix, found.read_timeout) == ("f", (), None, 3.0)
    assert found.request_set == (("X", "{userid}"),)


def test_fetch_settings_without_keywords_are_shared() -> None:
    """Without keywords nothing is read again: calls get one and the same object, equal to what reading gives."""
    assert fetch_settings("f", {}, "proxy_fetch()") is fetch_settings("f", {}, "proxy_fetch()")
    assert fetch_settings("f", {}, "x") == fetch_settings("f", {"cache": "private"}, "x")


LOCAL = ["prefix", "pattern", "upstream", "permission", "public", "require_csrf", "factory", "methods", "order"]


@pytest.mark.parametrize("key", LOCAL)
def test_fetch_knows_no_keys_of_a_declared_route(key: str) -> None:
    """What declares a route is refused by a fetch, by name."""
    with pytest.raises(SettingsError) as caught:
        fetch_settings("f", {key: "x"}, "proxy_fetch()")
    (found,) = caught.value.faults
    assert found.startswith(f"{key} = 'x' (proxy_fetch()): belongs to a declared route and is unknown here")


def test_fetch_templates_have_no_placeholders_of_a_pattern() -> None:
    """A fetch has no pattern, so only the fixed placeholders are known."""
    with pytest.raises(SettingsError, match=r"unknown placeholder \{id\}"):
        fetch_settings("f", {"request_set": {"X": "{id}"}}, "proxy_fetch()")


# Properties


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(object()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.frozensets(st.text()),
    max_leaves=5,
)
TEXT_PARTS = [
    "/",
    ".",
    "%2e",
    "{",
    "}",
    "*",
    ":",
    "http://",
    "h",
    "[",
    "]",
    "a",
    "1",
    "k",
    "ms",
    "\n",
    "ä",
    "\ud800",
    "@",
    "?",
    "(",
]
TEXTS = st.text() | st.lists(st.sampled_from(TEXT_PARTS)).map("".join)
ROUTE_PATHS = [key.path + (".X" if key.names else "") for key in settings_table.ROUTE_KEYS]
PATHS = st.sampled_from(ROUTE_PATHS) | TEXTS


def told(read: Callable[[], object]) -> tuple[str, ...]:
    """The faults that this ends with, none if it ends well; any other exception is let through."""
    try:
        read()
    except SettingsError as error:
        return error.faults or ("an error without a fault",)
    return ()


@given(st.dictionaries(PATHS.map(lambda path: HOME + path) | TEXTS.map("proxy.".__add__), JUNK | TEXTS))
@example({f"{HOME}prefix": 10**5000})
@example({"proxy.routes": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": 1}}}}}}}}}})
def test_junk_in_ini_raises_settings_error_alone(ini: dict[str, Any]) -> None:
    """Whatever is written, either it is right or it is a `SettingsError` with printable lines."""
    ini.pop("proxy.file", None)
    assert all(line.isprintable() for line in told(lambda: load(ini)))


KEYWORDS = st.sampled_from([key.attribute for key in settings_table.ROUTE_KEYS])


@given(st.dictionaries(KEYWORDS | st.text(), JUNK))
def test_junk_keywords_raise_settings_error_alone(keywords: dict[str, Any]) -> None:
    """The same for keyword arguments, of a route and of a fetch."""
    for read in (route_from_keywords, fetch_settings):
        assert all("(here): " in line for line in told(partial(read, "r", keywords, "here")))


YAML_PARTS = [*"{}[]\"'|#,1\n ", "routes:", "  ", "a:", "prefix:", "- ", "&a", "*a", "<<:", "? ", "!!int", "on"]


@given(st.lists(st.sampled_from(YAML_PARTS)).map("".join) | st.text())
def test_junk_in_yaml_raises_settings_error_alone(text: str) -> None:
    """The same for the YAML file."""
    assert all(".yaml" in line for line in told(lambda: load({}, text)))


def test_mapping_that_holds_itself() -> None:
    """Even a mapping without end is told and not followed."""
    endless: dict[str, Any] = {}
    endless["a"] = endless
    (found,) = faults({"proxy.x": endless})
    assert "is unknown" in found


TOKENS = st.text("abcXYZ019-.!", min_size=1, max_size=8)
NAMES = st.text("abcXYZ019_-", min_size=1, max_size=8)
VALUES = st.text("abc ;=\"'#:é%,[]&*!|>-?@`", max_size=20).map(str.strip)
# Two names that differ in case alone would be a fault.
OVERRIDES = st.dictionaries(TOKENS.map(str.lower), VALUES, max_size=3)
SECONDS = st.integers(1, 1000) | st.integers(1, 1000).map("{}ms".format) | st.floats(0.5, 90).map(lambda n: round(n, 3))
ROUTES = st.fixed_dictionaries(
    {"prefix": st.text("ab-", min_size=1).map("/".__add__), "upstream": st.just("http://h:1/b")},
    optional={
        "permission": st.text("abc on1", min_size=1).map(str.strip).filter(bool),
        "require_csrf": st.booleans(),
        "methods": st.lists(st.sampled_from(["GET", "POST", "PURGE"]), min_size=1),
        "order": st.integers(-9, 9),
        "request": st.fixed_dictionaries({}, optional={"set": OVERRIDES, "cookies": st.lists(TOKENS)}),
        "response": st.fixed_dictionaries({}, optional={"add": OVERRIDES}),
        "forwarded": st.sampled_from(["x-forwarded", "rfc7239", "both", "none"]),
        "hooks": st.fixed_dictionaries({}, optional={"error": st.just("a.b:c")}),
        "read_timeout": SECONDS,
        "max_body": st.integers(0, 10**9) | st.integers(0, 99).map("{}MiB".format),
    },
)
TREES = st.fixed_dictionaries(
    {},
    optional={
        "threads": st.integers(1, 99),
        "via": TOKENS,
        "own_cookies": st.lists(TOKENS),
        "routes": st.dictionaries(NAMES, ROUTES, max_size=3),
    },
)


def flat(tree: dict[str, Any], home: str = "proxy") -> dict[str, str]:
    """The same settings as an ini file would give them: dotted keys and text."""
    found: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{home}.{name}"))
        elif isinstance(value, list):
            found[f"{home}.{name}"] = " ".join(value)
        else:
            found[f"{home}.{name}"] = str(value)
    return found


@given(TREES)
def test_ini_and_yaml_say_the_same(tree: dict[str, Any]) -> None:
    """Random settings give equal results as dotted ini text and as YAML."""
    from_yaml = load({}, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    assert from_yaml == load(flat(tree))
    assert len(from_yaml.routes) == len(tree.get("routes", {}))
