"""The table of what engines hold, and what an export makes of it."""

from __future__ import annotations

import re
import shlex
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyramid.urldispatch import _compile_route

from pyramid_threaded_proxy.engines.export import export
from pyramid_threaded_proxy.engines.haproxy import word
from pyramid_threaded_proxy.engines.lua import text
from pyramid_threaded_proxy.engines.nginx import literal, quoted
from pyramid_threaded_proxy.engines.site import escaped, pattern_expression
from pyramid_threaded_proxy.engines.support import ENGINES, KNOWN, ROWS, table_markdown
from pyramid_threaded_proxy.settings.table import ROUTE_KEYS
from tests.support.fronts import fronted, verifying, with_root
from tests.support.paths import ROOT
from tests.support.site import NOWHERE, MakeSite, Site, route


def made(site: MakeSite, **keys: str) -> Site:
    return site({**route("r", NOWHERE, permission="view", **keys), **verifying()}, configure=with_root)


def test_every_key_of_a_route_has_one_row() -> None:
    """So that a new one can't be forgotten; of the process's keys those are there that an engine may not hold."""
    named = [key for row in ROWS for key in row.keys.split()]
    assert len(named) == len(set(named))
    assert set(named) - {"own_cookies"} == {key.path for key in ROUTE_KEYS}
    assert set(named) == KNOWN


def test_every_cell_says_why() -> None:
    """Exact says nothing; what is not gives its reason."""
    for row in ROWS:
        for engine in ENGINES:
            assert re.fullmatch(r"|[~x] \S.*", row.cell(engine)), row


def test_the_page_shows_the_table() -> None:
    """docs/engine-table.md is what the code exports by: run ``make docs``."""
    assert (ROOT / "docs" / "engine-table.md").read_text(encoding="utf-8") == table_markdown()


def test_what_an_engine_cannot_hold_is_refused(site: MakeSite) -> None:
    """By name, and there are no files, unless it was accepted: then a comment stands in its place."""
    there = made(site, recheck="5s", total_timeout="5s", buffer="8192")
    refused = export("nginx", fronted(there, 1), ())
    assert [one.key for one in refused.refused] == ["recheck", "total_timeout"]
    assert refused.files == {}
    assert "buffer" in [one.key for one in refused.warnings]
    accepted = export("nginx", fronted(there, 1), ("recheck", "total_timeout"))
    assert accepted.refused == []
    assert accepted.files["nginx.conf"].startswith("# left out, and accepted: recheck (r): nobody asks again")


def test_upstreams_that_are_not_alike_are_refused(site: MakeSite) -> None:
    """The target that is told would be wrong for some of them."""
    settings = {**route("r", f"{NOWHERE}/a {NOWHERE}/b", permission="view"), **verifying()}
    there = site(settings, configure=with_root)
    assert [one.key for one in export("nginx", fronted(there, 1), ()).refused] == ["upstream"]


def test_what_is_at_its_default_is_not_spoken_of(site: MakeSite) -> None:
    """But what an engine keeps otherwise by default is."""
    there = made(site, cache="keep", rewrite_location="false", rewrite_cookies="false")
    assert [one.key for one in export("nginx", fronted(there, 1), ()).warnings] == ["own_cookies"]


@given(st.text(st.characters(min_codepoint=32, exclude_characters="\x7f")))
def test_any_text_can_be_quoted(value: str) -> None:
    """Read as nginx reads it, a parameter is the text again, and no variable but the dollar is in it."""
    for made_text in (literal(value), quoted(value)):
        assert made_text[0] == made_text[-1] == '"'
        inner = made_text[1:-1]
        assert re.fullmatch(r'(?:[^"\\]|\\["\\])*', inner)
        read = re.sub(r"\\(.)", r"\1", inner)
        assert (read if made_text == literal(value) else read.replace("${dollar}", "$")) == value
    assert "$" not in quoted(value).replace("${dollar}", "")


@given(st.text(st.characters(exclude_characters="\r\n\x00")))
def test_any_text_is_one_word_of_haproxys(value: str) -> None:
    """Whose quotes are a shell's."""
    assert shlex.split(word(value)) == [value]


@given(st.text())
def test_any_text_is_a_string_of_luas(value: str) -> None:
    """Of printable ASCII on one line, which Lua reads as the same bytes: three digits are a byte."""
    made_text = text(value)
    assert re.fullmatch(r'"(?:[ !#-\[\]-~]|\\[0-9]{3})*"', made_text)
    read = re.sub(rb"\\([0-9]{3})", lambda match: bytes([int(match[1])]), made_text[1:-1].encode())
    assert read == value.encode("utf-8", "surrogatepass")


@given(st.text(), st.text())
def test_escaped_text_matches_itself_alone(value: str, other: str) -> None:
    """In an expression of Python's, and in PCRE's for the bytes of what is ASCII."""
    assert re.fullmatch(escaped(value), value)
    assert bool(re.fullmatch(escaped(value), other)) is (value == other)


@pytest.mark.parametrize(
    "pattern", ["/a/{b}/c", "a/{b:\\d{2}}", "/a/*rest", "/a/:b/c", "/{a}.{b}", "/a%20b/{c}", "/é/{x}", "/a{b:(?:/.*)?}"]
)
@given(st.text(st.sampled_from("/ab.c é1x"), max_size=8))
def test_a_patterns_expression_takes_at_least_what_pyramid_does(pattern: str, path: str) -> None:
    """Whatever Pyramid would match comes to the question."""
    matches: Any = _compile_route(pattern)[0]
    for candidate in ("/" + path, "/a/" + path, "/a/b/c", "/a/12", "/a b/c", "/é/x"):
        if matches(candidate) is not None:
            assert re.match(pattern_expression(pattern), unquote(candidate))
