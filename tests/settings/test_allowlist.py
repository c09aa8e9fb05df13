"""``fetch.allow``: which upstreams a view may name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.settings.allowlist import AllowList, check_entry


@pytest.mark.parametrize(
    ("entry", "scheme", "host", "port", "permitted"),
    [
        ("http://api.example", "http", "api.example", 80, True),
        ("http://api.example", "http", "API.example.", 80, True),
        ("http://api.example", "http", "api.example", 8080, False),
        ("http://api.example", "https", "api.example", 443, False),
        ("http://api.example:8080/", "http", "api.example", 8080, True),
        ("http://api.example:8080", "http", "api.example", 80, False),
        ("https://api.example", "https", "api.example", 443, True),
        ("http://[::1]:8080", "http", "[::1]", 8080, True),
        ("api.example", "http", "api.example", 8080, True),
        ("api.example", "https", "api.example", 443, True),
        ("api.example", "http", "x.api.example", 80, False),
        ("api.example", "http", "notapi.example", 80, False),
        ("API.Example", "http", "api.example", 80, True),
        ("*.internal", "http", "db.internal", 80, True),
        ("*.internal", "http", "a.b.internal", 80, True),
        ("*.internal", "http", "internal", 80, False),
        ("*.internal", "http", ".internal", 80, False),
        ("*.internal", "http", "evilinternal", 80, False),
        ("*.internal", "http", "internal.evil.example", 80, False),
        ("10.0.0.0/8", "http", "10.1.2.3", 80, False),
    ],
)
def test_names(entry: str, scheme: str, host: str, port: int, permitted: bool) -> None:
    """Origins fix scheme, host and port, hosts the host alone; ``*.`` takes what is below and not the name itself."""
    assert AllowList([entry]).permits_name(scheme, host, port) is permitted


@pytest.mark.parametrize(
    ("entry", "address", "permitted"),
    [
        ("10.0.0.0/8", "10.255.0.1", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.0.0.7", "10.0.0.7", True),
        ("10.0.0.7", "10.0.0.8", False),
        ("10.0.0.0/8", "::ffff:10.0.0.1", True),
        ("10.0.0.0/8", "[::ffff:a00:1]", True),
        ("10.0.0.0/8", "::10.0.0.1", False),
        ("::/0", "::ffff:10.0.0.1", False),
        ("0.0.0.0/0", "::1", False),
        ("::/0", "127.0.0.1", False),
        ("fd00::/8", "fd12::1", True),
        ("fe80::/10", "fe80::1%eth0", True),
        ("[::1]", "::1", True),
        ("10.0.0.0/8", "10.0.0.1.example", False),
        ("10.0.0.0/8", "010.0.0.1", False),
    ],
)
def test_addresses(entry: str, address: str, permitted: bool) -> None:
    """A network takes the addresses in it; an IPv4 address in IPv6 clothes is judged as what it is."""
    assert AllowList([entry]).permits_address(address) is permitted


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4))
def test_networks(address: Any, bits: int, other: Any) -> None:
    """Whether an address is let in depends on its first bits alone, however it is clothed."""
    shift = 32 - bits
    base = type(address)(int(address) >> shift << shift)
    allow = AllowList([f"{base}/{bits}"])
    expected = int(other) >> shift == int(address) >> shift
    assert allow.permits_address(str(other)) is expected
    assert allow.permits_address(f"::ffff:{other}") is expected


@pytest.mark.parametrize(
    "entry",
    ["ftp://a", "http://a/path", "http://u@a", "a:80", "10.0.0.1/8", "1.2.3", "2130706433", "*", "*.*.a", "a*", ""],
)
def test_entries_that_are_nothing(entry: str) -> None:
    """What is none of the kinds is an error at start-up that shows the entry."""
    with pytest.raises(ValueError, match="neither an origin, a host, an address nor a network"):
        check_entry(entry)
