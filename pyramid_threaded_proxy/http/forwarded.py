"""The fields that tell an upstream who asked, for which host, and below which path (X-Forwarded-*, RFC 7239)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from pyramid_threaded_proxy.http.names import TOKEN

ForwardedMode = Literal["x-forwarded", "rfc7239", "both", "none"]

_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")


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
    Forwarded then grows by one, the others stay as they came. Mode ``none`` sends nothing, trusted or not.
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
        fields.append(("Forwarded", _appended(came.get("forwarded"), _element(address, host, scheme))))
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
    fields = [
        ("X-Forwarded-For", _appended(came.get("x-forwarded-for"), address)),
        ("X-Forwarded-Host", came.get("x-forwarded-host", host)),
        ("X-Forwarded-Proto", came.get("x-forwarded-proto", scheme)),
        ("X-Forwarded-Prefix", _appended(came.get("x-forwarded-prefix"), mount)),
        ("X-Forwarded-Port", came.get("x-forwarded-port", "")),
        ("X-Forwarded-By", came.get("x-forwarded-by", "")),
    ]
    return [field for field in fields if field[1]]


def _appended(came: str | None, ours: str | None) -> str:
    return f"{came}, {ours}" if came and ours else came or ours or ""


def _element(address: str | None, host: str, scheme: str) -> str:
    """One forwarded-element (RFC 7239 4); an IPv6 address stands in brackets and quotes (section 6)."""
    node = address or "unknown"
    if ":" in node:
        node = f'"[{node}]"'
    pairs = [f"for={node}", f"host={_quoted(host)}" if host else "", f"proto={_quoted(scheme)}"]
    return ";".join([pair for pair in pairs if pair])


def _quoted(value: str) -> str:
    if TOKEN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
