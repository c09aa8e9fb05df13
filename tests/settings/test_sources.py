"""Where settings come from: what Pyramid's ini gives, and a YAML file."""

from __future__ import annotations

import dataclasses
import re
from configparser import RawConfigParser
from typing import Any

import pytest
import yaml

from pyramid_threaded_proxy.settings.errors import SettingsError
from pyramid_threaded_proxy.settings.load import (
    ProcessSettings,
    Settings,
    load_settings,
)
from tests.support.settings import HOME, ROUTE, faults, load, route_settings

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
    expected = dataclasses.replace(
        route_settings(), methods=("GET",), preserve_host=True, read_timeout=2.0, hooks_error=len
    )
    assert load(ini).routes == (expected,)


def test_same_key_twice_in_python() -> None:
    """A nested mapping and a dotted key that give the same setting are a fault."""
    (found,) = faults({**ROUTE, "proxy.routes": {"reports": {"prefix": "/other"}}})
    assert "proxy.routes.reports.prefix = '/other'" in found
    assert "is given twice" in found


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
