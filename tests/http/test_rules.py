"""Overrides: compiled at start-up, applied in the order remove, set, add, default."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.exceptions import ValueRefused
from pyramid_threaded_proxy.http.rules import RequestRules, ResponseRules

Pairs = list[tuple[str, str]]


def request_rules(set: Pairs | None = None, add: Pairs | None = None, remove: list[str] | None = None) -> RequestRules:
    return RequestRules.compile(set or [], add or [], remove or [])


def response_rules(
    set: Pairs | None = None, add: Pairs | None = None, default: Pairs | None = None, remove: list[str] | None = None
) -> ResponseRules:
    return ResponseRules.compile(set or [], add or [], default or [], remove or [])


def test_request_operations() -> None:
    """Removed fields go, set ones replace every one of their name, added ones come on top."""
    rules = request_rules(set=[("X-User", "u")], add=[("A", "2"), ("A", "3")], remove=["x-gone"])
    fields = [("x-user", "admin"), ("A", "1"), ("X-Gone", "x"), ("X-USER", "root"), ("B", "1")]
    assert rules.apply(fields, {}) == [("A", "1"), ("B", "1"), ("X-User", "u"), ("A", "2"), ("A", "3")]
    assert rules.names == {"x-user", "a"}


def test_nothing_to_do() -> None:
    """Without overrides the fields stay as they are."""
    fields = [("A", "1")]
    assert request_rules().apply(fields, {}) == fields
    assert response_rules().apply(fields) == fields


def test_templates() -> None:
    """Placeholders are filled, doubled braces are braces, and the names that are needed are known."""
    rules = request_rules(set=[("X-A", "{{{userid}}} at {host}}}")], add=[("X-B", "{userid}{userid}")])
    assert rules.placeholders == {"userid", "host"}
    assert rules.apply([], {"userid": "ann", "host": "h"}) == [("X-A", "{ann} at h}"), ("X-B", "annann")]


def test_white_space_around_literals() -> None:
    """White space at the ends of a setting is no part of the value (RFC 9110 5.5)."""
    assert request_rules(set=[("X", " a {userid}\t")]).apply([], {"userid": "u"}) == [("X", "a u")]
    assert response_rules(set=[("X", " a\t")]).apply([]) == [("X", "a")]


def test_anonymous() -> None:
    """A placeholder without a value leaves its field out, and the client's own does not come back."""
    rules = request_rules(set=[("X-User", "{userid}"), ("X-Other", "1")], add=[("X-Also", "a {userid}")])
    assert rules.apply([("X-User", "admin")], {"userid": None}) == [("X-Other", "1")]


def test_values_are_utf8() -> None:
    """Values are written in UTF-8, templates and literal text alike, and held as latin-1 text."""
    sent = request_rules(set=[("X", "\u20ac{userid}")]).apply([], {"userid": "\xe9"})
    assert sent[0][1].encode("latin-1") == "\u20ac\xe9".encode()
    assert response_rules(set=[("X", "\xe9")]).apply([])[0][1].encode("latin-1") == "\xe9".encode()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_value_is_written_or_refused(value: str) -> None:
    """A value arrives as its own UTF-8, or is refused; no CR, LF or NUL ever passes."""
    try:
        sent = request_rules(set=[("X", "<{userid}>")]).apply([], {"userid": value})
    except ValueRefused:
        return
    assert sent == [("X", f"<{value}>".encode().decode("latin-1"))]
    assert not {"\r", "\n", "\0"} & set(sent[0][1])


@pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\0b", "a\x7f", "\ud800", " admin", "admin\t"])
def test_refused_values(value: str) -> None:
    """A value that can't be written, or that a recipient would strip to another one, names its field (RFC 9110 5.5)."""
    with pytest.raises(ValueRefused, match="X-User"):
        request_rules(set=[("X-User", "{userid}")]).apply([], {"userid": value})


@pytest.mark.parametrize("text", ["a\rb", "a\nb", "a\0", "\ud800"])
def test_refused_literals(text: str) -> None:
    """Literal text that can't be written is refused when compiling, for requests and responses."""
    with pytest.raises(ValueRefused, match="X-A"):
        request_rules(add=[("X-A", text + "{userid}")])
    with pytest.raises(ValueRefused, match="X-A"):
        response_rules(default=[("X-A", text)])


@pytest.mark.parametrize("text", ["{", "}", "a{b", "{{a}"])
def test_refused_braces(text: str) -> None:
    """A brace that is neither doubled nor part of a placeholder is refused, and the remedy is named."""
    with pytest.raises(ValueRefused, match=r"single [{}]: write (\{\{|\}\}) for"):
        request_rules(set=[("X-A", text)])


def test_response_operations() -> None:
    """Remove, set, add, default, in this order; values are literal text."""
    rules = response_rules(
        set=[("CSP", "{sandbox}")],
        add=[("Vary", "B")],
        default=[("Server", "x"), ("X-D", "d")],
        remove=["x-powered-by"],
    )
    fields = [("X-Powered-By", "y"), ("csp", "old"), ("Vary", "A"), ("server", "theirs")]
    assert rules.apply(fields) == [
        ("Vary", "A"), ("server", "theirs"), ("CSP", "{sandbox}"), ("Vary", "B"), ("X-D", "d"),
    ]  # fmt: skip


def test_fields_are_not_changed_in_place() -> None:
    """The caller's list is never changed."""
    fields = [("A", "1")]
    request_rules(add=[("B", "2")]).apply(fields, {})
    response_rules(add=[("B", "2")], default=[("C", "3")]).apply(fields)
    assert fields == [("A", "1")]
