"""Names of fields and what may stand in them: the words that all other rules are made of.

A field is a pair of texts that hold wire bytes (latin-1). Names are compared in lower case (RFC 9110 5.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

Fields = list[tuple[str, str]]

TOKEN_CHARACTERS = r"!#$%&'*+\-.^_`|~0-9A-Za-z"
#: RFC 9110 5.6.2.
TOKEN = re.compile(f"[{TOKEN_CHARACTERS}]+")
#: Controls but HTAB, and what latin-1 can't hold (RFC 9110 5.5).
NOT_IN_A_VALUE = re.compile(r"[^\t\x20-\x7e\x80-\xff]")

# RFC 9110 7.6.1, and those that speak to one neighbour only: RFC 9110 10.1.1, 11.7; RFC 7540 3.2.1.
HOP_BY_HOP: frozenset[str] = frozenset({
    "connection", "expect", "http2-settings", "keep-alive", "proxy-authenticate", "proxy-authentication-info",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
FRAMING: frozenset[str] = frozenset({"content-length", "transfer-encoding"})
#: Made anew for each connection: nobody's to pass on, to set or to override.
CONNECTION_FIELDS: frozenset[str] = HOP_BY_HOP | FRAMING

#: Some backends read another target, or another method, in these than the request has that was permitted.
OVERRIDES: frozenset[str] = frozenset({
    "x-original-url", "x-rewrite-url", "x-http-method-override", "x-http-method", "x-method-override",
})  # fmt: skip
#: Who asks, as servers in front tell it; a client could be anybody in them.
IDENTITY: frozenset[str] = frozenset({
    "true-client-ip", "x-client-ip", "x-cluster-client-ip", "cf-connecting-ip", "remote-user", "x-remote-user",
})  # fmt: skip

#: Who asked whom for what, as servers in front and tools behind them tell it; any other ``x-forwarded-…`` is as these.
FORWARDED: frozenset[str] = frozenset({
    "forwarded", "x-real-ip", "proxy", *(f"x-forwarded-{what}" for what in (
        "access-token", "by", "client-cert", "email", "for", "groups", "host", "method", "path", "port", "prefix",
        "preferred-username", "proto", "protocol", "scheme", "server", "ssl", "uri", "url", "user",
    )),
})  # fmt: skip
#: Between a front server that moves the bytes and us: what it asks, and what it is told.
OF_A_FRONT: frozenset[str] = frozenset({
    *(f"x-original-{what}" for what in ("connection", "method", "upgrade", "uri")),
    *(f"x-proxy-{what}" for what in (
        "key", "digest", "route", "target", "host", "upgrade", "fields", "status", "location",
    )),
})  # fmt: skip

#: The schemes that are spoken, with their own ports (RFC 9110 4.2).
PORTS = {"http": 80, "https": 443}

Decision = TypeVar("Decision")

_CACHED_NAMES, _CACHED_NAME_LENGTH = 1024, 64


class NameTable(dict[str, Decision]):
    """What was decided for a field's name, or for another short text, decided once; bounded: peers invent them."""

    def __init__(self, decide: Callable[[str], Decision]) -> None:
        super().__init__()
        self._decide = decide

    def __missing__(self, name: str) -> Decision:
        decision = self._decide(name)
        if len(self) < _CACHED_NAMES and len(name) <= _CACHED_NAME_LENGTH:
            self[name] = decision
        return decision


def connection_options(values: Iterable[str]) -> frozenset[str]:
    """The options of all Connection fields in lower case (RFC 9110 7.6.1); empty list members count as nothing."""
    return frozenset(text for value in values for option in value.split(",") if (text := option.strip(" \t").lower()))


def without_default_port(authority: str, scheme: str) -> str:
    """An authority without the port that its scheme has anyway."""
    return authority.removesuffix(f":{PORTS[scheme]}" if scheme in PORTS else ":")
