"""What several keys of one route must agree on."""

from __future__ import annotations

import pytest

from tests.support.settings import HOME, ROUTE, faults, load, route_settings


def test_permission_and_public() -> None:
    """A route can't be both, but `public: false` beside a permission says nothing new."""
    (found,) = faults({**ROUTE, f"{HOME}permission": "view", f"{HOME}public": "true"})
    assert found.startswith(f"{HOME}public = 'true'")
    assert f"stands beside {HOME}permission" in found
    assert route_settings(permission="view", public="false").permission == "view"


def test_templates() -> None:
    """Every fixed placeholder, the pattern's, and doubled braces are taken and kept as written."""
    value = "{userid}{client_addr}{host}{scheme}{route}{request_id}{id}{rest} {{x}}\t{{{id}}}"
    ini = {f"{HOME}pattern": r"/{id:\d+}/*rest", f"{HOME}upstream": "http://h/{id}", f"{HOME}request.set.X": value}
    assert load(ini).routes[0].request_set == (("X", value),)


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
    assert route_settings(
        request__set={"X": "1"}, request__add={"X": "2"}, response__remove="X", response__add={"X": "3"}
    )


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


def test_a_replaced_url_that_lost_its_colon() -> None:
    """An ini file ends a key at its first colon: what is left of a URL there is no text to be replaced."""
    (found,) = faults({**ROUTE, f"{HOME}response.replace.http": "//inside/ = https://outside/"})
    assert "write this one in YAML" in found
    assert load({**ROUTE, f"{HOME}response.replace.//in.side/": "//out/"}).routes[0].response_replace == (
        ("//in.side/", "//out/"),
    )
