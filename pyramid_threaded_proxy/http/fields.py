"""Which fields pass the proxy, and how: the client's towards the upstream, the upstream's towards the client.

Both sets of rules are compiled once per route and run in one pass per message. Hop-by-hop fields and whatever
Connection names are gone before an override or a hook sees the list, so that nobody can take a field of ours away by
naming it there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import Any, NamedTuple

from pyramid_threaded_proxy.exceptions import FieldRefused
from pyramid_threaded_proxy.http.cookies import CookieFilter, SetCookieFilter
from pyramid_threaded_proxy.http.names import (
    CONNECTION_FIELDS,
    IDENTITY,
    NOT_IN_A_VALUE,
    TOKEN,
    Fields,
    NameTable,
    connection_options,
)
from pyramid_threaded_proxy.http.public import LocationMap, Public, Rules, Told

_NEVER_UP = CONNECTION_FIELDS | {
    "host", "forwarded", "x-real-ip", "proxy", "cookie", "content-type",
}  # fmt: skip
_NEVER_DOWN = CONNECTION_FIELDS | {"clear-site-data", "service-worker-allowed"}
_COMMANDS_TO_A_FRONT_SERVER = ("x-accel-", "x-sendfile", "x-lighttpd-send-")
_SHARED_CACHE_FIELDS = ("cdn-cache-control", "surrogate-control")
_ADDED_BY_THE_APPLICATION = frozenset({"set-cookie", "vary", "link"})
_USUAL_OPTIONS = frozenset({"close", "keep-alive", "upgrade"})

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})+)(?::([0-9]{0,5}))?")
_LONGEST_HOST = 262  # 255 of a name (RFC 1035 2.3.4) and a port
_DIRECTIVE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_DIRECTIVES = re.compile(r'(?:[^"]|"(?:[^"\\]|\\.)*")*')
_FOR_SHARED_CACHES = frozenset({"public", "private", "s-maxage"})


#: Sets of keys whose fields are known at once, and the characters that the keys of one may have.
_KNOWN_SETS, _LONGEST_SET = 64, 2048


class _Selections(dict[tuple[str, ...], tuple[tuple[str, str], ...]]):
    """By all keys of an environ those whose fields go up, with the fields' names. Most clients send the same fields
    each time; bounded, because peers invent them. Any thread."""

    def __init__(self, name_of: Callable[[str], str]) -> None:
        super().__init__()
        self._names = NameTable(name_of)

    def __missing__(self, keys: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        found = tuple((key, name) for key in keys if (name := self._names[key]))
        if len(self) < _KNOWN_SETS and sum(map(len, keys)) <= _LONGEST_SET:
            self[keys] = found
        return found


class RequestFields:
    """The client's fields that go upstream; built once per route.

    `own_cookies` never go up, of the others those in `cookies` (None: any). `authorization` lets that field pass.
    `drop` are the lower-case names of others that stay home: those that the application sets itself among them. Of the
    rest those in `only` (None: any) go up, and what a switched connection needs.
    """

    def __init__(
        self,
        *,
        own_cookies: frozenset[str],
        cookies: frozenset[str] | None,
        authorization: bool,
        drop: frozenset[str],
        only: frozenset[str] | None = None,
    ) -> None:
        self._dropped = _NEVER_UP | drop | (frozenset() if authorization else {"authorization"})
        self._only = only
        self._cookies = CookieFilter(own_cookies, cookies) if self._wants("cookie", drop) else None
        self._content_type = self._wants("content-type", drop)
        self._of_the_trusted = _Selections(self._name_of)
        self._of_strangers = _Selections(self._name_of_a_stranger)

    def select(self, environ: Mapping[str, Any], trusted: bool = False) -> Fields:
        """The fields to send, from a WSGI environ. Framing, Host, Via and the forwarded fields are the caller's.

        A `trusted` peer may say who asks (`IDENTITY`). Raises `FieldRefused` for a value with a control character.
        """
        selected = (self._of_the_trusted if trusted else self._of_strangers)[tuple(environ)]
        # Servers join repeated fields: where the last one is empty, white space is left at the end (RFC 9110 5.5).
        fields = [(name, environ[key].strip(" \t")) for key, name in selected]
        if self._content_type and (content_type := environ.get("CONTENT_TYPE")):
            fields.append(("Content-Type", content_type))
        if self._cookies is not None and (cookie := environ.get("HTTP_COOKIE")):
            _check_values([("Cookie", cookie)])  # WebOb reads latin-1 only
            if cookie := self._cookies.select(cookie):
                fields.append(("Cookie", cookie))
        connection = environ.get("HTTP_CONNECTION")
        if connection and connection.lower() not in _USUAL_OPTIONS:
            options = connection_options([connection])
            fields = [field for field in fields if field[0].lower() not in options]
        _check_values(fields)
        return fields

    @property
    def never(self) -> frozenset[str]:
        """The lower-case names of fields that never go up as the client sent them: made anew, filtered, or dropped."""
        return self._dropped

    def _wants(self, name: str, dropped: frozenset[str]) -> bool:
        return name not in dropped and _is_let_through(name, self._only)

    def _name_of(self, key: str) -> str:
        """The field name behind a key of the environ; "" if it is none, or does not go up."""
        if not key.startswith("HTTP_"):
            return ""
        name = "-".join([word.capitalize() for word in key[5:].split("_")])
        lower = name.lower()
        if not self._wants(lower, self._dropped) or lower.startswith("x-forwarded") or not TOKEN.fullmatch(name):
            return ""
        return name

    def _name_of_a_stranger(self, key: str) -> str:
        name = self._name_of(key)
        return "" if name.lower() in IDENTITY else name


def _is_let_through(name: str, only: frozenset[str] | None) -> bool:
    """Whether a list of names lets one through; without a handshake's fields no connection is switched."""
    return only is None or name in only or name.startswith("sec-websocket-")


def _check_values(fields: Fields) -> None:
    text = "".join([value for _, value in fields])
    if text.isascii() and text.isprintable():
        return
    for name, value in fields:
        if NOT_IN_A_VALUE.search(value):
            raise FieldRefused(f"the value of {name} holds a control character (RFC 9110 5.5)")


def check_host(value: str | None, version: str) -> None:
    """Refuse a Host field that is not exactly ``uri-host [":" port]`` (RFC 9110 7.2, RFC 3986 3.2.2).

    A comma means that the field came twice (servers join such fields). It may be missing in HTTP/1.0 only; `version`
    is ``1.1`` or ``HTTP/1.1``. Stricter than the RFC: no empty host, no IPvFuture. Raises `FieldRefused`.
    """
    if value is None:
        if version.removeprefix("HTTP/") != "1.0":
            raise FieldRefused("Host is missing (RFC 9112 3.2)")
    elif "," in value:
        raise FieldRefused("Host came more than once (RFC 9112 3.2)")
    elif len(value) > _LONGEST_HOST or not _is_host(value):
        raise FieldRefused("Host is not a host name or address with an optional port (RFC 9110 7.2)")


@lru_cache(maxsize=1024)
def _is_host(value: str) -> bool:
    match = _HOST.fullmatch(value)
    if match is None or int(match[2] or 0) > 65535:
        return False
    return match[1] is None or _is_ipv6(match[1])


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True


# What is done with a field of an answer. Plain numbers: each is looked at for each field.
_KEEP, _DROP, _CONNECTION, _SET_COOKIE, _LOCATION, _REFRESH, _CACHE_CONTROL = range(7)


class AnswerRules(NamedTuple):
    """What holds for the fields of a route's answers."""

    own_cookies: frozenset[str]
    #: Rules for paths; None: cookies go through, but for our own.
    rewrite_cookies: Rules | None
    #: Rules for URLs; None: they are left alone.
    rewrite_location: Rules | None
    #: The URLs of the route's upstreams.
    bases: tuple[str, ...]
    #: What these know of the public place.
    told: Told
    #: Whether the answer is kept out of shared caches.
    private: bool
    #: Told the name of each own cookie that an upstream would have set.
    dropped_cookie: Callable[[str], None]
    #: The lower-case names that may pass (None: any), besides what a switched connection needs.
    only: frozenset[str] | None = None
    #: The lower-case names of fields that are made anew.
    drop: frozenset[str] = frozenset()


class AnswerFields:
    """The upstream's fields that go to the client; built once per route."""

    def __init__(self, rules: AnswerRules) -> None:
        self._only = rules.only
        self._locations = LocationMap(rules.bases, rules.told, rules.rewrite_location or ())
        self._cookies = SetCookieFilter(
            rules.own_cookies,
            rewrite=rules.rewrite_cookies,
            base_paths=self._locations.paths,
            told=rules.told.prefix,
            dropped=rules.dropped_cookie,
        )
        self._rewrite_location = rules.rewrite_location is not None
        self._private = rules.private
        self._drop = _NEVER_DOWN | rules.drop
        self._actions = NameTable(self._action_for)

    def select(self, fields: Fields, public: Public) -> Fields:
        """The fields to answer with. Framing is the caller's, and is made anew."""
        actions, has_connection = self._actions, False
        kept: Fields = []
        said: list[str] = []
        for field in fields:
            action = actions[field[0]]
            if action == _KEEP:
                kept.append(field)
            elif action == _CONNECTION:
                if has_connection or field[1].lower() not in _USUAL_OPTIONS:
                    return self.select(_without_named(fields), public)
                has_connection = True
            elif action == _CACHE_CONTROL:
                said.append(field[1])
            elif action != _DROP:
                kept += self._rewritten(field, action, public)
        if self._private:
            kept.append(("Cache-Control", _private_caching(", ".join(said))))
        return kept

    def _rewritten(self, field: tuple[str, str], action: int, public: Public) -> Fields:
        name, value = field
        if action == _SET_COOKIE:
            cookie = self._cookies.public(value, public)
            return [] if cookie is None else [(name, cookie)]
        if public.mount is None:
            return [field]
        mapped = self._locations.refreshed if action == _REFRESH else self._locations.public
        return [(name, mapped(value, public))]

    def _action_for(self, name: str) -> int:
        lower = name.lower()
        if lower == "connection":
            return _CONNECTION
        if lower in self._drop or lower.startswith(_COMMANDS_TO_A_FRONT_SERVER):
            return _DROP
        if not _is_let_through(lower, self._only):
            return _DROP
        if lower == "set-cookie":
            return _SET_COOKIE
        if self._rewrite_location and lower in ("location", "content-location"):
            return _LOCATION
        if self._rewrite_location and lower == "refresh":
            return _REFRESH
        if self._private and lower.endswith(_SHARED_CACHE_FIELDS):
            return _DROP
        return _CACHE_CONTROL if self._private and lower == "cache-control" else _KEEP


def _without_named(fields: Fields) -> Fields:
    """The fields without Connection and whatever any Connection field names."""
    gone = connection_options(value for name, value in fields if name.lower() == "connection") | {"connection"}
    return [field for field in fields if field[0].lower() not in gone]


@lru_cache(maxsize=128)
def _private_caching(value: str) -> str:
    """Cache-Control that no shared cache may keep the answer under (RFC 9111 3, 5.2.2).

    It stays as it is if it says so already: by an unqualified ``private``, or by ``no-store`` that no
    ``must-understand`` takes back. What only a shared cache reads goes.
    """
    if not _DIRECTIVES.fullmatch(value):  # a quote left open: readers differ in what it holds
        return "private"
    directives = [text for item in _DIRECTIVE.findall(value) if (text := item.strip(" \t"))]
    names = {directive.lower() for directive in directives}
    if "private" in names or ("no-store" in names and "must-understand" not in names):
        return value
    others = [text for text in directives if text.partition("=")[0].strip(" \t").lower() not in _FOR_SHARED_CACHES]
    return ", ".join(["private", *others])


def merge_application_fields(answer: Fields, application: Fields) -> Fields:
    """The answer's fields with those that the application set on its response.

    The application's replace the ones of the same name, but Set-Cookie, Vary and Link, which are added. Framing and
    hop-by-hop fields of the application are ignored (PEP 3333 forbids them).
    """
    added = [field for field in application if field[0].lower() not in CONNECTION_FIELDS]
    if not added:
        return answer
    replaced = {name.lower() for name, _ in added} - _ADDED_BY_THE_APPLICATION
    return [field for field in answer if field[0].lower() not in replaced] + added
