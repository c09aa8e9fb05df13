"""Forwarded fields: what an upstream is told, and what a client can't make it believe."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.http.forwarded import ForwardedMode, forwarded_fields, nodes_of

CAME = {
    "HTTP_X_FORWARDED_FOR": "10.0.0.9", "HTTP_X_FORWARDED_HOST": "came.example", "HTTP_X_FORWARDED_PROTO": "https",
    "HTTP_X_FORWARDED_PREFIX": "/came", "HTTP_X_FORWARDED_PORT": "8443", "HTTP_X_FORWARDED_BY": "front",
    "HTTP_FORWARDED": "for=10.0.0.9", "HTTP_X_REAL_IP": "10.0.0.9",
}  # fmt: skip
PAIR = re.compile(r'([a-z]+)=(?:([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)|"((?:[^"\\]|\\.)*)")(?:;|\Z)')


def fields(
    mode: ForwardedMode,
    peer: str | None = "192.0.2.1",
    host: str = "site.example",
    mount: str | None = "/m",
    trusted: frozenset[str] | None = None,
) -> list[tuple[str, str]]:
    return forwarded_fields(mode, peer=peer, host=host, scheme="http", mount=mount, trusted=trusted, environ=CAME)


def read_element(element: str) -> dict[str, str]:
    """A forwarded-element as RFC 7239 4 has it."""
    pairs = {match[1]: match[2] or re.sub(r"\\(.)", r"\1", match[3] or "") for match in PAIR.finditer(element)}
    assert "".join(match[0] for match in PAIR.finditer(element)) == element
    return pairs


@pytest.mark.parametrize("trusted", [None, frozenset()])
def test_untrusted_peer(trusted: frozenset[str] | None) -> None:
    """Nothing that an untrusted client sent is in the fields."""
    assert fields("x-forwarded", trusted=trusted) == [
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Host", "site.example"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Prefix", "/m"),
    ]
    assert fields("rfc7239", trusted=trusted) == [("Forwarded", "for=192.0.2.1;host=site.example;proto=http")]


def test_modes() -> None:
    """`both` sends the two families, `none` sends neither, whoever is trusted."""
    assert fields("both") == fields("x-forwarded") + fields("rfc7239")
    assert fields("none") == []
    assert fields("none", trusted=frozenset({"x-forwarded-for", "forwarded"})) == []


def test_trusted_peer() -> None:
    """Of a trusted peer the lists grow by one and the rest stays as it came."""
    names = ["for", "host", "proto", "prefix", "port", "by"]
    trusted = frozenset(f"x-forwarded-{name}" for name in names)
    assert fields("x-forwarded", trusted=trusted) == [
        ("X-Forwarded-For", "10.0.0.9, 192.0.2.1"),
        ("X-Forwarded-Host", "came.example"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Prefix", "/came, /m"),
        ("X-Forwarded-Port", "8443"),
        ("X-Forwarded-By", "front"),
    ]
    assert fields("x-forwarded", mount=None, trusted=trusted)[3] == ("X-Forwarded-Prefix", "/came")
    assert fields("rfc7239", trusted=trusted - {"x-forwarded-for"}) == fields("rfc7239")


def test_trust_is_by_field() -> None:
    """Only the named fields of a trusted peer count."""
    assert fields("both", trusted=frozenset({"x-forwarded-proto", "forwarded"})) == [
        ("X-Forwarded-For", "10.0.0.9, 192.0.2.1"),
        ("X-Forwarded-Host", "site.example"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Prefix", "/m"),
        ("Forwarded", "for=10.0.0.9, for=192.0.2.1;host=site.example;proto=http"),
    ]


@pytest.mark.parametrize(
    ("chain", "elements"),
    [
        ("10.0.0.9", "for=10.0.0.9"),
        ("10.0.0.9,2001:db8::1 ,, unknown", 'for=10.0.0.9, for="[2001:db8::1]", for=unknown'),
        ("10.0.0.9:8080, [2001:db8::1]:80, [::1]", 'for=10.0.0.9, for="[2001:db8::1]", for="[::1]"'),
        ('_hidden, x;proto=https, a"b', "for=_hidden, for=unknown, for=unknown"),
        ("::ffff:10.0.0.9", 'for="[::ffff:10.0.0.9]"'),
    ],
)
def test_a_chain_goes_on_in_forwarded(chain: str, elements: str) -> None:
    """Whoever asked before goes on from X-Forwarded-For into Forwarded (RFC 7239 7.4), if the peer is trusted."""
    came = {"HTTP_X_FORWARDED_FOR": chain}
    assert continued("rfc7239", came, "x-forwarded-for") == [
        ("Forwarded", f"{elements}, for=192.0.2.1;host=site.example;proto=http")
    ]
    assert continued("rfc7239", came, "x-forwarded-proto") == fields("rfc7239")


@pytest.mark.parametrize(
    ("forwarded", "chain"),
    [
        ("for=10.0.0.9", "10.0.0.9"),
        ('For="[2001:db8::1]:4711";proto=http , , for="10.0.0.8:80"', "2001:db8::1, 10.0.0.8"),
        ("for=_hidden;by=10.0.0.1, proto=https", "_hidden, unknown"),
        ('for="_a\\b"; host="a,b;for=9.9.9.9", for=unknown', "_ab, unknown"),
        ('for=10.0.0.9, for="10.0.0.8', ""),
        ("for=10.0.0.9, x", ""),
        ("for=10.0.0.9;for=10.0.0.8", ""),
        ("for=somebody", "unknown"),
    ],
)
def test_a_chain_goes_on_in_x_forwarded_for(forwarded: str, chain: str) -> None:
    """And back; a Forwarded field that breaks RFC 7239 4 tells nothing."""
    came = {"HTTP_FORWARDED": forwarded}
    found = dict(continued("x-forwarded", came, "forwarded"))["X-Forwarded-For"]
    assert found == (f"{chain}, 192.0.2.1" if chain else "192.0.2.1")
    assert continued("x-forwarded", came, "x-forwarded-for") == fields("x-forwarded")


def continued(mode: ForwardedMode, came: dict[str, str], trusted: str) -> list[tuple[str, str]]:
    return forwarded_fields(
        mode, peer="192.0.2.1", host="site.example", scheme="http", mount="/m", trusted=frozenset({trusted}),
        environ=came,
    )  # fmt: skip


@given(st.lists(st.ip_addresses(), min_size=1, max_size=5))
def test_chains_round_trip(addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
    """A chain that goes into Forwarded and back is the same."""
    chain = ", ".join(map(str, addresses))
    ((_, forwarded),) = continued("rfc7239", {"HTTP_X_FORWARDED_FOR": chain}, "x-forwarded-for")
    assert ", ".join(nodes_of(forwarded)) == f"{chain}, 192.0.2.1"


@given(st.text(st.sampled_from(list('for=,;"\\[]:.1a_ \t')), max_size=30))
def test_any_forwarded_field_is_read(text: str) -> None:
    """Whatever a front server sends, what is made of it are addresses, hidden names or unknown."""
    for node in nodes_of(text) + nodes_of(f"for={text}") + nodes_of(f'for="{text}"'):
        assert node == "unknown" or re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:.]+|_[\w.-]+", node)


@pytest.mark.parametrize("mount", [None, ""])
def test_no_prefix(mount: str | None) -> None:
    """Without a mount no prefix is sent."""
    assert "X-Forwarded-Prefix" not in dict(fields("x-forwarded", mount=mount))


@pytest.mark.parametrize("peer", [None, "localhost", "", "1.2.3"])
def test_peer_without_an_address(peer: str | None) -> None:
    """A peer on a Unix socket is unknown (RFC 7239 6.2), and nobody in X-Forwarded-For."""
    assert fields("rfc7239", peer=peer, host="h") == [("Forwarded", "for=unknown;host=h;proto=http")]
    assert "X-Forwarded-For" not in dict(fields("x-forwarded", peer=peer))


def test_zone() -> None:
    """The zone of a link-local address stays on this machine (RFC 4007 11.2)."""
    assert dict(fields("x-forwarded", peer="fe80::1%eth0"))["X-Forwarded-For"] == "fe80::1"


@pytest.mark.parametrize(
    ("host", "written"),
    [("h", ";host=h"), ("h:80", ';host="h:80"'), ("[::1]", ';host="[::1]"'), ('a"b\\', ';host="a\\"b\\\\"'), ("", "")],
)
def test_quoting(host: str, written: str) -> None:
    """What is no token is quoted (RFC 7239 4)."""
    assert fields("rfc7239", host=host) == [("Forwarded", f"for=192.0.2.1{written};proto=http")]


@given(st.ip_addresses(), st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_forwarded_round_trip(address: ipaddress.IPv4Address | ipaddress.IPv6Address, host: str) -> None:
    """A reader of RFC 7239 finds the address, IPv6 in brackets, and the host as they were."""
    element = read_element(dict(fields("rfc7239", peer=str(address), host=host))["Forwarded"])
    assert element == {"for": f"[{address}]" if address.version == 6 else str(address), "host": host, "proto": "http"}
    assert dict(fields("x-forwarded", peer=str(address)))["X-Forwarded-For"] == str(address)
