"""One mapping of settings: its names, and what is unknown in it."""

from __future__ import annotations

import pytest

from pyramid_threaded_proxy.settings.errors import SettingsError
from pyramid_threaded_proxy.settings.load import (
    route_from_keywords,
)
from tests.support.settings import HOME, ROUTE, fault, faults


def test_same_field_twice() -> None:
    """Names of fields are compared without case, so two spellings of one are a fault."""
    (found,) = faults({**ROUTE, f"{HOME}request.set.X-A": "1", f"{HOME}request.set.x-a": "2"})
    assert "is given twice, also as proxy.routes.reports.request.set.X-A" in found


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
