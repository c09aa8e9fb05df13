"""Settings: what is read, what is refused, and how a mistake is told."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import tempfile
from collections.abc import Callable
from configparser import RawConfigParser
from functools import partial
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pyramid.exceptions import ConfigurationError

from pyramid_threaded_proxy.exceptions import ProxyError
from pyramid_threaded_proxy.settings import table as settings_table
from pyramid_threaded_proxy.settings import urls as settings_urls
from pyramid_threaded_proxy.settings import values as settings_values
from pyramid_threaded_proxy.settings.errors import SettingsError
from pyramid_threaded_proxy.settings.load import (
    ProcessSettings,
    RouteSettings,
    Settings,
    fetch_settings,
    load_settings,
    reference_markdown,
    route_from_keywords,
)
from tests.support.paths import ROOT

HOME = "proxy.routes.reports."
ROUTE = {f"{HOME}prefix": "/reports", f"{HOME}upstream": "http://up:9000/v2"}


def load(ini: dict[str, Any], text: str | None = None) -> Settings:
    """The settings of these ini keys and of a YAML file with this text."""
    if text is None:
        return load_settings(ini, str)
    descriptor, path = tempfile.mkstemp(suffix=".yaml")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogatepass") as stream:
            stream.write(text)
        return load_settings({"proxy.file": path, **ini}, str)
    finally:
        os.unlink(path)


def route(**more: Any) -> RouteSettings:
    """A route with these ini keys, ``__`` for ``.``."""
    ini = {HOME + key.replace("__", "."): value for key, value in more.items()}
    return load({**ROUTE, **ini}).routes[0]


def faults(ini: dict[str, Any], text: str | None = None) -> tuple[str, ...]:
    """What is told about wrong settings."""
    with pytest.raises(SettingsError) as caught:
        load(ini, text)
    return caught.value.faults


def fault(key: str, value: object) -> str:
    """The one fault that this ini key gives a route that is right otherwise."""
    base = {f"{HOME}upstream": ROUTE[f"{HOME}upstream"]} if key == "pattern" else ROUTE
    (found,) = faults({**base, HOME + key: value})
    assert found.startswith(f"{HOME}{key} = ")
    assert "(the ini settings): " in found
    return found


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


def test_route_defaults() -> None:
    """A route with a place alone has the defaults of the design, in seconds and bytes."""
    assert route() == RouteSettings(
        name="reports", prefix="/reports", pattern=None, upstream=("http://up:9000/v2",), permission=None, public=False,
        require_csrf=None, factory=None, methods=None, order=0, before=False, host=None, preflight="ask",
        query_remove=(), query_only=None, query_set=(), request_origin="pass", request_only=None, response_only=None,
        request_set=(), request_add=(), request_remove=(),
        request_cookies=None, request_authorization="drop", request_overrides="drop", slash=None,
        response_set=(), response_add=(), response_default=(),
        response_remove=(), preserve_host=False, forwarded="x-forwarded", rewrite_location=(), rewrite_cookies=(),
        upgrade=(), origins=(), cache="private", recheck=None, total_timeout=None, idle_timeout=3600.0,
        max_exchanges=None, max_exchanges_per_user=None,
        hooks_request=None, hooks_response=None, hooks_headers=None, hooks_complete=None,
        hooks_error=None, connect_timeout=5.0, read_timeout=60.0, send_timeout=60.0, max_body=None, max_head=65536,
        buffer=262144, retries=1, balance="round_robin", health_fails=3, health_pause=10.0, health_path=None,
        health_interval=10.0, keepalive=32, keepalive_time=3600.0,
        tls_verify=True, tls_ca_file=None, tls_cert_file=None, tls_key_file=None,
        tls_server_name=None,
    )  # fmt: skip


def test_every_row_has_its_field_and_the_other_way_round() -> None:
    """The table and the dataclasses name the same settings."""
    route_fields = {field.name for field in dataclasses.fields(RouteSettings)}
    assert {key.attribute for key in settings_table.ROUTE_KEYS} == route_fields - {"name"}
    process_fields = {field.name for field in dataclasses.fields(ProcessSettings)}
    assert {key.attribute for key in settings_table.PROCESS_KEYS} == process_fields - {"own_cookies_given"} | {"file"}


def test_settings_are_frozen() -> None:
    """Settings can't be changed after the start."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        route().prefix = "/other"  # type: ignore[misc]


def test_error_is_both_ours_and_pyramids() -> None:
    """`SettingsError` is caught by Pyramid's name too, prints one line a fault, and survives pickling."""
    error = SettingsError(["one", "two\nlines"])
    assert isinstance(error, ProxyError)
    assert isinstance(error, ConfigurationError)
    assert str(error) == "one\ntwo\\nlines"
    assert pickle.loads(pickle.dumps(error)).faults == error.faults


def test_all_mistakes_at_once() -> None:
    """Mistakes in the process, in two routes and in the YAML file are told together."""
    text = "threads: 0\nroutes:\n  a: {prefix: /a, upstream: 'ftp://x', public: true}"
    found = faults({"proxy.thread": "1", "proxy.routes.b.prefix": "b", "proxy.routes.b.upstream": "http://"}, text)
    assert [re.split("[ =(]", line)[0] for line in found] == [
        "proxy.threads", "proxy.thread", "proxy.routes.a.upstream", "proxy.routes.b.prefix", "proxy.routes.b.upstream",
    ]  # fmt: skip


def test_one_fault_in_full() -> None:
    """A fault names its full key, the value, where it came from, what is wrong and what is allowed."""
    assert fault("read_timeout", "5x") == (
        "proxy.routes.reports.read_timeout = '5x' (the ini settings): is not a duration; "
        "allowed: seconds (`2.5`), or `250ms`, `30s`, `5m`, `1h`"
    )


def test_secrets_are_not_told() -> None:
    """A password in a URL and values of fields that carry secrets do not get into the error, and so into logs."""
    assert "hunter2" not in fault("upstream", "http://me:hunter2@up/")
    assert "hunter2" not in fault("request.set.Authorization", "Basic hunter2 {nobody}")
    assert "plain" in fault("request.set.X-Plain", "plain {nobody}")


# ini


def test_real_ini_file() -> None:
    """What an ini parser returns is read, field names with dots and multi-line lists too."""
    parser = RawConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(
        "[app:main]\nproxy.routes.a.prefix = /a\nproxy.routes.a.upstream = http://h\n"
        "proxy.routes.a.methods = GET\n  PUT\n"
        "proxy.routes.a.response.set.X.Y = a: b\nproxy.routes.a.request.cookies =\n"
    )
    found = load(dict(parser["app:main"])).routes[0]
    assert found.methods == ("GET", "PUT")
    assert found.response_set == (("X.Y", "a: b"),)
    assert found.request_cookies == frozenset()


def test_mappings_and_values_from_python() -> None:
    """Pyramid's settings may also hold nested mappings, numbers, booleans, lists and callables put there in Python."""
    ini: dict[str, Any] = {
        "proxy.routes": {"reports": {"prefix": "/reports", "upstream": "http://up:9000/v2", "hooks": {"error": len}}},
        f"{HOME}methods": ["GET"], f"{HOME}preserve_host": True, f"{HOME}read_timeout": 2, f"{HOME}request": {},
    }  # fmt: skip
    expected = dataclasses.replace(route(), methods=("GET",), preserve_host=True, read_timeout=2.0, hooks_error=len)
    assert load(ini).routes == (expected,)


def test_same_key_twice_in_python() -> None:
    """A nested mapping and a dotted key that give the same setting are a fault."""
    (found,) = faults({**ROUTE, "proxy.routes": {"reports": {"prefix": "/other"}}})
    assert "proxy.routes.reports.prefix = '/other'" in found
    assert "is given twice" in found


def test_same_field_twice() -> None:
    """Names of fields are compared without case, so two spellings of one are a fault."""
    (found,) = faults({**ROUTE, f"{HOME}request.set.X-A": "1", f"{HOME}request.set.x-a": "2"})
    assert "is given twice, also as proxy.routes.reports.request.set.X-A" in found


def test_ini_wins() -> None:
    """Where both give a setting ini wins, a field's name in other case included; the rest comes from YAML."""
    text = "routes: {reports: {prefix: /yaml, upstream: 'http://h', request: {set: {X-A: yaml, X-B: yaml}}}}"
    found = load({f"{HOME}prefix": "/ini", f"{HOME}request.set.x-a": "ini"}, text).routes[0]
    assert (found.prefix, found.upstream) == ("/ini", ("http://h",))
    assert found.request_set == (("x-a", "ini"), ("X-B", "yaml"))


def test_declaration_order() -> None:
    """Routes are in the order of the YAML file, then of ini."""
    place = {"prefix": "/x", "upstream": "http://h"}
    text = yaml.safe_dump({"routes": {"z": place, "b": place}}, sort_keys=False)
    found = load({"proxy.routes.y": place, "proxy.routes.b.order": "3", "proxy.routes.a": place}, text)
    assert [route.name for route in found.routes] == ["z", "b", "y", "a"]


@pytest.mark.parametrize("name", ["a b", "é", "", "a/b", "a\n"])
def test_bad_route_names(name: str) -> None:
    """NAME is letters, digits, underscore and hyphen."""
    (found,) = faults({f"proxy.routes.{name}.prefix": "/x", f"proxy.routes.{name}.upstream": "http://h"})
    assert "the name of a route is letters, digits, _ and -" in found
    with pytest.raises(SettingsError, match="name of a route"):
        route_from_keywords(name, {})


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("proxy.thraeds", "did you mean proxy.threads?"),
        ("proxy.route.x.prefix", "did you mean proxy.routes.x.prefix?"),
        (f"{HOME}prefxi", "did you mean proxy.routes.reports.prefix?"),
        (f"{HOME}request_cookies", "did you mean proxy.routes.reports.request.cookies?"),
        (f"{HOME}respnse.set.X-A.B", "did you mean proxy.routes.reports.response.set.X-A.B?"),
        (f"{HOME}qqqqqqqqqq", "is unknown"),
        (f"{HOME}hooks", "is a group of settings, such as proxy.routes.reports.hooks.request"),
        (f"{HOME}request.set", "must be a mapping from names of fields to values"),
        (f"{HOME}request.set.", "'' is not a token"),
        (f"{HOME}prefix.more", "takes one value, not a mapping"),
        ("proxy.", "is unknown"),
        ("proxy.routes", "write proxy.routes.NAME.KEY"),
        ("proxy.routes.reports", "write proxy.routes.NAME.KEY"),
    ],
)
def test_unknown_keys(key: str, hint: str) -> None:
    """An unknown key is told with the nearest known name, a group with what is in it."""
    (found,) = faults({**ROUTE, key: "x"})
    assert found.startswith(f"{key} = 'x' (the ini settings): ")
    assert found.endswith(hint) or hint in found


@pytest.mark.parametrize("key", ["engine", "verify.prefix", "status.prefix"])
def test_keys_of_later_features_are_unknown(key: str) -> None:
    """A key whose feature is not there is unknown, so nobody relies on it."""
    assert "is unknown" in fault(key, "1")


# YAML


def test_yaml_in_full() -> None:
    """Lists, booleans, numbers, anchors and merge keys are read as YAML means them."""
    text = """
        max_exchanges: 5
        own_cookies: []
        routes:
          a: &a
            prefix: /a
            upstream: http://h
            public: yes
            methods: [GET, POST]
            read_timeout: 2.5
            max_body: 0
            request: {remove: [X-A, X-B], cookies: "*"}
          b: {<<: *a, prefix: /b}
    """
    found = load({}, text)
    assert found.process == ProcessSettings(max_exchanges=5, own_cookies=frozenset(), own_cookies_given=True)
    first, second = found.routes
    assert (first.public, first.methods, first.read_timeout, first.max_body) == (True, ("GET", "POST"), 2.5, 0)
    assert first.request_remove == ("X-A", "X-B")
    assert second == dataclasses.replace(first, name="b", prefix="/b")


def test_empty_yaml_file() -> None:
    """A file without settings is no mistake."""
    assert load({}, "# nothing yet\n") == Settings(ProcessSettings(), ())


@pytest.mark.parametrize(
    ("written", "kind"),
    [("on", "true"), ("010", "another number"), ("2024-01-01", "a date"), ("12", "a number"), ("", "nothing"),
     ("1.5", "a number"), ("!!binary aGk=", "binary")],
)  # fmt: skip
def test_text_that_yaml_read_otherwise(written: str, kind: str) -> None:
    """Text that YAML reads as something else is refused with the remedy, the file and its line."""
    text = f"routes:\n  a:\n    prefix: /a\n    upstream: http://h\n    permission: {written}"
    (found,) = faults({}, text)
    assert re.match(r"proxy\.routes\.a\.permission = '.*' \(/.*\.yaml, line 5\): YAML read ", found)
    assert f"as {kind}: quote it" in found
    if written and not written.startswith("!"):
        assert (
            load({}, text.replace(f"permission: {written}", f"permission: '{written}'")).routes[0].permission == written
        )


@pytest.mark.parametrize(
    ("key", "written"), [("threads", "010"), ("threads", "0x10"), ("threads", "1_0"), ("threads", "1:30")]
)
def test_numbers_that_yaml_reads_otherwise(key: str, written: str) -> None:
    """Numbers that do not mean what they look like (octal, sexagesimal) are refused."""
    (found,) = faults({}, f"{key}: {written}")
    assert f"YAML read '{written}' as another number: quote it" in found


def test_yaml_list_item_read_otherwise() -> None:
    """An item of a list is judged as a value is."""
    (found,) = faults({}, "own_cookies: [a, on]")
    assert "YAML read 'on' as true: quote it" in found


def test_yaml_keys_read_otherwise() -> None:
    """A key that YAML did not read as text is a fault too."""
    (found,) = faults({}, "routes:\n  404: {prefix: /a}")
    assert found.startswith("proxy.routes (")
    assert "line 2): a key in it: YAML read '404' as a number: quote it" in found


def test_repeated_yaml_keys() -> None:
    """A repeated key is told with its full name and line, also in a mapping that is aliased."""
    found = faults(
        {}, "threads: 1\nroutes:\n  a: &a\n    prefix: /a\n    prefix: /b\n    upstream: http://h\n  b: *a\nthreads: 2"
    )
    assert len(found) == 2
    assert re.match(r"proxy\.threads \(.*, line 8\): is a repeated key", found[0])
    assert re.match(r"proxy\.routes\.a\.prefix \(.*, line 5\): is a repeated key", found[1])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "is not YAML"),
        ("a: 1\n---\nb: 2", "is not YAML"),
        ("- a", "must be a mapping"),
        ("just text", "must be a mapping"),
        ("a: &a {b: *a}", "is unknown"),
        ("a: &a {<<: *a}", "is unknown"),
        ("threads: 1\n? [a]\n: b", "a key in it: must be text"),
        ("a: \0", "is not YAML"),
        ("[" * 5000, "nests too deep"),
        ("file: other.yaml", "one file can't name another"),
        ("threads: [1]", "is not a whole number"),
        ("threads: {a: 1}", "takes one value, not a mapping"),
        ("own_cookies: [[a]]", "must be text, not dict"),
        ("threads: !!int junk", "YAML read 'junk' as another number"),
        ("threads: !!python/object:os.system x", "YAML read 'x' as"),
        ('via: "a\\nb"', "holds the character LF"),
    ],
)
def test_bad_yaml(text: str, problem: str) -> None:
    """A file that is no YAML, or not of our form, is one fault that names the file."""
    (found,) = faults({}, text)
    assert problem in found
    assert ".yaml" in found


def test_yaml_file_that_is_missing() -> None:
    """A file that can't be read is named."""
    (found,) = faults({"proxy.file": "/nowhere/proxy.yaml"})
    assert found.startswith("proxy.file = '/nowhere/proxy.yaml' (the ini settings): can't be read: ")


def test_asset_spec_that_does_not_resolve() -> None:
    """What the resolver raises becomes a fault of ``proxy.file``, beside the other faults."""

    def resolve(name: str) -> str:
        raise ImportError(f"no package for {name}")

    with pytest.raises(SettingsError) as caught:
        load_settings({"proxy.file": "no_such:p.yaml", "proxy.threads": "0"}, resolve)
    assert len(caught.value.faults) == 2
    assert "can't be resolved: no package for no_such:p.yaml" in caught.value.faults[0]


@pytest.mark.parametrize("value", ["", 5, "a\nb", ["a"]])
def test_bad_file_names(value: object) -> None:
    """A name that is no text of one line never reaches the resolver."""
    (found,) = faults({"proxy.file": value})
    assert found.startswith("proxy.file = ")


# Keywords


def test_keywords_equal_ini() -> None:
    """The imperative form reads the same keys to the same values."""
    keywords = {
        "prefix": "/reports", "upstream": "http://up:9000/v2", "public": True, "methods": ("GET",), "max_body": "1KiB",
        "request_set": {"X-A": "{userid}"}, "response_remove": ["Server"], "request_cookies": {"b", "a"},
        "hooks_request": len,
    }  # fmt: skip
    ini = {"public": "true", "methods": "GET", "max_body": "1024", "request__set": {"X-A": "{userid}"}}
    expected = route(**ini, response__remove="Server", request__cookies="a b", hooks__request=len)
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
    assert route(read_timeout=written).read_timeout == seconds


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
    assert route(buffer="4KiB", max_head="1KiB").buffer == 4096


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
    assert route(preserve_host=value).preserve_host is meaning


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


def test_permission_and_public() -> None:
    """A route can't be both, but `public: false` beside a permission says nothing new."""
    (found,) = faults({**ROUTE, f"{HOME}permission": "view", f"{HOME}public": "true"})
    assert found.startswith(f"{HOME}public = 'true'")
    assert f"stands beside {HOME}permission" in found
    assert route(permission="view", public="false").permission == "view"


@pytest.mark.parametrize("value", ["*", "a b", "", ["a"]])
def test_request_cookies(value: object) -> None:
    """`*` lets every cookie up, a list those in it, an empty one none."""
    expected = None if value == "*" else frozenset("".join(value).replace(" ", ""))  # type: ignore[arg-type]
    assert route(request__cookies=value).request_cookies == expected


@pytest.mark.parametrize(("value", "problem"), [("a *", "beside *"), ("a;b", "not a token"), ("a=b", "not a token")])
def test_bad_cookie_names(value: str, problem: str) -> None:
    """Names of cookies are tokens, and `*` stands alone."""
    assert problem in fault("request.cookies", value)


@pytest.mark.parametrize("value", ["a.b:c", "a.b", ".hooks.f", "a.b:C.d", len])
def test_hooks(value: object) -> None:
    """Hooks and factories are callables or dotted names, not resolved yet."""
    found = route(hooks__headers=value, factory=value)
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
    assert route(response__set={"X_A": "b"}).response_set == (("X_A", "b"),)


def test_fields_that_only_set_may_put() -> None:
    """`Clear-Site-Data` reaches the client through `response.set` alone (DESIGN, section 8)."""
    assert "only be put by `response.set`" in fault("response.default.clear-site-data", "x")
    assert route(response__set={"Clear-Site-Data": '"cache"'}).response_set


@pytest.mark.parametrize(
    ("value", "problem"),
    [("{", "single {"), ("a}b", "single }"), ("{usrid}", "did you mean userid?"), ("{}", "unknown placeholder {}"),
     ("{userid!r}", "unknown placeholder"), ("{id}", "unknown placeholder {id}"), (" a", "white space"),
     ("a\t", "white space"), (5, "must be text, not int")],
)  # fmt: skip
def test_bad_templates(value: object, problem: str) -> None:
    """Braces are placeholders that are known, or doubled; values have no white space around them (RFC 9110 5.5)."""
    assert problem in fault("request.add.X-A", value)


def test_templates() -> None:
    """Every fixed placeholder, the pattern's, and doubled braces are taken and kept as written."""
    value = "{userid}{client_addr}{host}{scheme}{route}{request_id}{id}{rest} {{x}}\t{{{id}}}"
    ini = {f"{HOME}pattern": r"/{id:\d+}/*rest", f"{HOME}upstream": "http://h/{id}", f"{HOME}request.set.X": value}
    assert load(ini).routes[0].request_set == (("X", value),)


def test_response_values_are_literal() -> None:
    """Braces mean nothing in an answer's values, and an empty value is a value."""
    assert route(response__set={"X": "{userid", "Y": ""}).response_set == (("X", "{userid"), ("Y", ""))


@pytest.mark.parametrize(
    ("more", "at"),
    [
        ({"request.set.X": "1", "request.remove": "x"}, "request.remove"),
        ({"response.set.X": "1", "response.remove": "x"}, "response.remove"),
        ({"response.default.X": "1", "response.remove": "x"}, "response.remove"),
        ({"response.set.X": "1", "response.default.x": "2"}, "response.default.x"),
        ({"response.add.X": "1", "response.default.x": "2"}, "response.default.x"),
    ],
)
def test_contradictions(more: dict[str, str], at: str) -> None:
    """Overrides of one field that can't both count are refused; `add` beside `set` or `remove` does count."""
    (found,) = faults({**ROUTE, **{HOME + key: value for key, value in more.items()}})
    assert found.startswith(f"{HOME}{at} = ")
    assert "give one of them" in found
    assert route(request__set={"X": "1"}, request__add={"X": "2"}, response__remove="X", response__add={"X": "3"})


@pytest.mark.parametrize("key", ["rewrite_location", "rewrite_cookies"])
def test_rewriting(key: str) -> None:
    """True, false, or rules in order; in YAML a list, too."""
    for value, expected in (
        ("yes", ()), (False, None), ("off", None), ("/a -> /b", (("/a", "/b"),)),
        (["/a/ -> /b/", "/c -> /"], (("/a/", "/b/"), ("/c", "/"))),
        ("/a -> /b\n/c -> /d", (("/a", "/b"), ("/c", "/d"))),
    ):  # fmt: skip
        assert getattr(route(**{key: value}), key) == expected
    urls = (("http://h:8/a/", "https://site/b"),)
    if key == "rewrite_location":
        assert route(rewrite_location="http://h:8/a/ -> https://site/b").rewrite_location == urls
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


# Places and upstreams


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
    assert route(prefix=written).prefix == mount


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
    assert route(upstream=value).upstream == (value,)


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


@pytest.mark.parametrize("upstream", ["http://h/{id}", "http://h/a/{rest}?x={id}&y=/?", "http://h?", "http://h/x.{id}"])
def test_pattern_upstreams(upstream: str) -> None:
    """With a pattern the upstream may use its placeholders, in path and query."""
    assert load({f"{HOME}pattern": "/{id}/*rest", f"{HOME}upstream": upstream}).routes[0].upstream == (upstream,)


@pytest.mark.parametrize(
    ("upstream", "problem"),
    [("http://h/{idd}", "did you mean id?"), ("http://h/{userid}", "unknown placeholder"),
     ("http://{id}/", "in its host"),
     ("http://h:{id}/", "in its host"), ("{id}://h/", "does not begin"), ("http://h/{", "single {"),
     ("http://h/}", "single }"), ("http://h/{{id}}", "single {"),
     ("http://h/{id:.*}", "unknown placeholder {id:.*}"), ("http://h/?a={}", "unknown placeholder {}"),
     ("http://h/v2%C2%80/{id}", "could never be asked for"), ("http://h/a%{id}", "bad escape"),
     ("http://h/{id}/..", "dot segment"), ("http://h/?a=ü", "must not hold"),
     ("http://h/?%zz", "bad escape")],
)  # fmt: skip
def test_bad_pattern_upstreams(upstream: str, problem: str) -> None:
    """Placeholders exist in the pattern and stand behind the host."""
    (found,) = faults({f"{HOME}pattern": "/{id}", f"{HOME}upstream": upstream})
    assert problem in found


def test_places() -> None:
    """A route has an upstream, and exactly one of prefix and pattern; an empty one lacks both."""
    found = faults({"proxy.routes.a": {}, **ROUTE, f"{HOME}pattern": "/x"})
    assert len(found) == 3
    assert found[0].startswith("proxy.routes.a.upstream (the ini settings): is missing; allowed: ")
    assert found[1] == "proxy.routes.a.prefix (the ini settings): is missing: give prefix or pattern"
    assert found[2].startswith(f"{HOME}prefix = '/reports' (the ini settings): stands beside {HOME}pattern")


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


# The reference


def test_reference_page_is_up_to_date() -> None:
    """docs/settings.md is what the table says: run ``python -m pyramid_threaded_proxy.settings > docs/settings.md``."""
    page = ROOT / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == reference_markdown()


def test_reference_names_every_key() -> None:
    """Each key has one row, and the cells of every row are four."""
    rows = [re.split(r"(?<!\\)\|", line) for line in reference_markdown().splitlines() if line.startswith("| `")]
    keys = (*settings_table.PROCESS_KEYS, *settings_table.ROUTE_KEYS)
    assert [row[1].strip(" `").removesuffix(".FIELD") for row in rows] == [key.path for key in keys]
    assert {len(row) for row in rows} == {6}


def test_examples_of_the_reference_say_the_same() -> None:
    """The page's ini example and its YAML example load, to equal settings."""
    ini, text = re.findall(r"```(?:ini|yaml)\n(.*?)```", reference_markdown(), re.DOTALL)
    pairs = dict(line.split(" = ", 1) for line in ini.splitlines())
    assert load(pairs) == load({}, text)
    assert load(pairs).routes[0].methods == ("GET", "POST")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("request.cookes", "request.cookies"),
        ("request.authorisation", "request.authorization"),
        ("timeout", "read_timeout"),
    ],
)
def test_the_nearest_name_is_of_the_same_section(key: str, meant: str) -> None:
    """A misspelt key is told the nearest one of its own group, and what other programs call `timeout`."""
    assert f"did you mean {HOME}{meant}?" in fault(key, "x")


def test_a_name_that_is_nothing_like_its_section() -> None:
    """No name of another group is proposed, however like it is."""
    assert "did you mean" not in fault("tls.zzzzzzzz", "x")
