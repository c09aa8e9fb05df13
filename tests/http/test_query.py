"""Query parameters that are removed, let through and set."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.exceptions import ValueRefused
from pyramid_threaded_proxy.http.query import QueryRules, parameter_names

KEY_FORMS = [
    "key=1", "KEY=1", "%6bey=1", "key", "key[]=1", "key[a]=1", "+key=1", "%20key=1", "a=1;key=2", "key%00x=1",
]  # fmt: skip


@pytest.mark.parametrize("form", KEY_FORMS)
@pytest.mark.parametrize("rules", [QueryRules(remove=["key"]), QueryRules(set=[("key", "ours")])])
def test_one_to_be_kept_away(form: str, rules: QueryRules) -> None:
    """A name is recognised in every form that some server reads as it; what stands beside it stays as it is."""
    for query in (form, f"a=%41+&{form}&&b"):
        found = rules.apply(query, {}) or ""
        ours = ["key=ours"] if rules.apply(None, {}) else []
        assert found.split("&") == [*(["a=%41+", "b"] if "&" in query else []), *ours] or found == ""


@pytest.mark.parametrize("name", ["k_y", "k.y", "k y"])
def test_php_makes_underscores(name: str) -> None:
    """PHP reads dots, blanks and an open bracket as underscores: they are the same name here."""
    assert QueryRules(remove=["k_y"]).apply(f"{quote_plus(name)}=1&k[y=2", {}) is None


def test_those_let_through() -> None:
    """They must be exactly those that are named, each of what a semicolon may divide too; bytes stay."""
    rules = QueryRules(only=["q", "page"])
    assert rules.apply("q=a%20b+c&Q=1&page&x=1&q=1;x=2&q=1;page=2", {}) == "q=a%20b+c&page&q=1;page=2"
    assert QueryRules(only=[]).apply("a=1", {}) is None


def test_those_that_are_set() -> None:
    """A template's value is escaped; one without a value leaves its parameter out, the client's all the same."""
    rules = QueryRules(set=[("user", "{userid}"), ("k", "a{{b}}&c")])
    assert rules.apply("user=eve&x=1", {"userid": "bob & é"}) == "x=1&user=bob%20%26%20%C3%A9&k=a%7Bb%7D%26c"
    assert rules.apply("user=eve", {"userid": None}) == "k=a%7Bb%7D%26c"
    with pytest.raises(ValueRefused, match="can't be written in UTF-8"):
        rules.apply(None, {"userid": "\ud800"})


def test_nothing_to_change() -> None:
    """Without rules nobody needs to ask."""
    assert not QueryRules()
    assert QueryRules(only=[])


NAMES = st.text(min_size=1, max_size=5)


@given(st.lists(st.tuples(NAMES, st.text(max_size=5)), max_size=6), NAMES)
def test_what_is_removed_is_gone_and_the_rest_is_whole(pairs: list[tuple[str, str]], name: str) -> None:
    """Whatever a client sends, a server that reads queries as Python does finds none of that name."""
    query = "&".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in pairs)
    left = parse_qsl(QueryRules(remove=[name]).apply(query, {}) or "", keep_blank_values=True)
    assert all(key != name for key, _ in left)
    assert [pair for pair in pairs if pair in left] == left


def test_the_names_in_an_own_query() -> None:
    """As they are read, unescaped."""
    assert parameter_names("a=1&b%20c&&d={x}") == ["a", "b c", "d"]
