"""The fields that tell an upstream who asked, for which host, and below which path (X-Forwarded-*, RFC 7239)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from pyramid_threaded_proxy.http.names import TOKEN, TOKEN_CHARACTERS

ForwardedMode = Literal["x-forwarded", "rfc7239", "both", "none"]

_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_WHOLE = re.compile(rf'(?:[^"]|{_QUOTED})*')
_MEMBER = re.compile(rf'(?:[^,"]|{_QUOTED})+')
_PARAMETER = re.compile(rf'(?:[^;"]|{_QUOTED})+')
_PAIR = re.compile(rf"[ \t]*([{TOKEN_CHARACTERS}]+)=([{TOKEN_CHARACTERS}:\[\]]+|{_QUOTED})[ \t]*")
#: An IPv6 address, in brackets where a port may follow, an IPv4 address, a hidden name, or one that nobody knows.
_NODE = re.compile(
    r"\[?([0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*)(?:\](?::\w+)?)?"
    r"|([0-9]{1,3}(?:\.[0-9]{1,3}){3}|unknown|_[A-Za-z0-9._-]+)(?::\w+)?",
    re.ASCII,
)


def forwarded_fields(
    mode: ForwardedMode,
    *,
    peer: str | None,
    host: str,
    scheme: str,
    mount: str | None,
    trusted: frozenset[str] | None,
    environ: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """The forwarded fields to send upstream; what the client sent under these names is replaced by them.

    `peer` is the address of the client's own connection (None or no address: a Unix socket), `host` and `scheme` are
    what the application understands the request to be for. `mount` of None or "" sends no prefix. `trusted` names, in
    lower case, the fields that this peer is trusted to have set: the list of X-Forwarded-For, X-Forwarded-Prefix and
    Forwarded then grows by one, the others stay as they came. Whoever asked before goes on into the format that is
    sent, whichever it came in (RFC 7239 7.4). Mode ``none`` sends nothing, trusted or not.
    """
    if not trusted:
        return list(_of_nobody(mode, peer, host, scheme, mount))
    return _forwarded(mode, _came_from_peer(environ, trusted), peer, host, scheme, mount)


def _forwarded(
    mode: ForwardedMode, came: Mapping[str, str], peer: str | None, host: str, scheme: str, mount: str | None
) -> list[tuple[str, str]]:
    if mode == "none":
        return []
    address = _address(peer)
    fields: list[tuple[str, str]] = []
    if mode != "rfc7239":
        fields += _x_forwarded(came, address, host, scheme, mount)
    if mode != "x-forwarded":
        chain = came.get("forwarded") or _as_elements(came.get("x-forwarded-for", ""))
        fields.append(("Forwarded", _appended(chain, _element(address, host, scheme))))
    return fields


@lru_cache(maxsize=1024)
def _of_nobody(
    mode: ForwardedMode, peer: str | None, host: str, scheme: str, mount: str | None
) -> tuple[tuple[str, str], ...]:
    """Of a peer that is not trusted: the same for all requests of a client."""
    return tuple(_forwarded(mode, {}, peer, host, scheme, mount))


def _came_from_peer(environ: Mapping[str, Any], trusted: frozenset[str]) -> dict[str, str]:
    came = {name: environ.get("HTTP_" + name.upper().replace("-", "_")) for name in trusted}
    return {name: value for name, value in came.items() if value}


def _address(peer: str | None) -> str | None:
    """The peer's address without a zone, which means something on this machine only (RFC 4007 11.2)."""
    if peer is None:
        return None
    address = peer.partition("%")[0]
    return address if ":" in address or _IPV4.fullmatch(address) else None


def _x_forwarded(
    came: Mapping[str, str], address: str | None, host: str, scheme: str, mount: str | None
) -> list[tuple[str, str]]:
    chain = came.get("x-forwarded-for") or ", ".join(nodes_of(came.get("forwarded", "")))
    fields = [
        ("X-Forwarded-For", _appended(chain, address)),
        ("X-Forwarded-Host", came.get("x-forwarded-host", host)),
        ("X-Forwarded-Proto", came.get("x-forwarded-proto", scheme)),
        ("X-Forwarded-Prefix", _appended(came.get("x-forwarded-prefix"), mount)),
        ("X-Forwarded-Port", came.get("x-forwarded-port", "")),
        ("X-Forwarded-By", came.get("x-forwarded-by", "")),
    ]
    return [field for field in fields if field[1]]


def _appended(came: str | None, ours: str | None) -> str:
    return f"{came}, {ours}" if came and ours else came or ours or ""


def nodes_of(forwarded: str) -> list[str]:
    """The addresses in the ``for`` parameters of a Forwarded field, as X-Forwarded-For has them: no port, no brackets.

    Hidden names (RFC 7239 6.3) stay as they are; an element that names nobody, or no address, is ``unknown``. A field
    that breaks RFC 7239 4 has none: who stands behind a fault could be anybody.
    """
    if _WHOLE.fullmatch(forwarded) is None:
        return []
    nodes: list[str] = []
    for element in _MEMBER.findall(forwarded):
        pairs = [_PAIR.fullmatch(pair) for pair in _PARAMETER.findall(element) if pair.strip(" \t")]
        named = {pair[1].lower(): pair[2] for pair in pairs if pair is not None}
        if len(named) < len(pairs):
            return []
        if pairs:
            nodes.append(_nodename(named.get("for", "unknown")))
    return nodes


def _nodename(node: str) -> str:
    """A node of Forwarded (RFC 7239 6) without its port and its quotes."""
    match = _NODE.fullmatch(re.sub(r"\\(.)", r"\1", node[1:-1]) if node.startswith('"') else node)
    return (match[1] or match[2]) if match is not None else "unknown"


def _as_elements(chain: str) -> str:
    """The addresses of X-Forwarded-For as elements of Forwarded (RFC 7239 7.4); ports are left out in both formats."""
    return ", ".join([f"for={_node(_nodename(text))}" for part in chain.split(",") if (text := part.strip(" \t"))])


def _node(address: str) -> str:
    """An address, or a hidden name, as Forwarded has it: IPv6 stands in brackets and quotes (RFC 7239 6)."""
    return f'"[{address}]"' if ":" in address else address


def _element(address: str | None, host: str, scheme: str) -> str:
    """One forwarded-element (RFC 7239 4)."""
    pairs = [f"for={_node(address or 'unknown')}", f"host={_quoted(host)}" if host else "", f"proto={_quoted(scheme)}"]
    return ";".join([pair for pair in pairs if pair])


def _quoted(value: str) -> str:
    if TOKEN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
