"""Readers of the settings that hold a path, a route pattern or a URL; they work as those in `settings_values` do."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote

from pyramid.urldispatch import Route

from pyramid_threaded_proxy.exceptions import TargetRefused, ValueRefused
from pyramid_threaded_proxy.http.target import check_upstream_target
from pyramid_threaded_proxy.http.template import template_parts
from pyramid_threaded_proxy.settings.values import TEMPLATE_NAMES, ValueFault, check_placeholders, list_of, text

_PATH_CHARACTER = r"[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2}"
_RESERVED = frozenset(b":/?#[]@!$&'()*+,;=")
_UNRESERVED = re.compile(rb"[A-Za-z0-9\-._~]")


def check_path(path: str) -> None:
    """A path as it stands on the wire: every byte allowed by RFC 3986 3.3, and the rules of each request's target."""
    _check_characters(path, _PATH_CHARACTER)
    try:
        check_upstream_target(path or "/")
    except TargetRefused as error:
        raise ValueFault(f"could never be asked for: {error.rule}") from None


def _check_characters(part: str, allowed: str) -> None:
    matched = re.match(f"(?:{allowed})*", part)
    end = matched.end() if matched else 0
    if end < len(part):
        what = "holds a bad escape at" if part[end] == "%" else "must not hold"
        raise ValueFault(f"{what} {part[end : end + 3] if part[end] == '%' else part[end]!r}")


def prefix(value: object) -> str:
    """A mount point, in one spelling: unreserved characters unescaped, hex digits in upper case (RFC 3986 6.2.2)."""
    mount = text(value)
    if not mount.startswith("/"):
        raise ValueFault("does not begin with /")
    if "{" in mount or "}" in mount:
        raise ValueFault("has a placeholder: these belong in `pattern`")
    # Pyramid reads `:name` and `*name` in a route's pattern as placeholders.
    _check_characters(mount, _PATH_CHARACTER.replace("*", "").replace(":", ""))
    check_path(mount)
    if mount != "/" and ("//" in mount or mount.endswith("/")):
        raise ValueFault("has an empty segment: write it without the doubled or last slash")
    return re.sub("%([0-9A-Fa-f]{2})", _normal_escape, mount)


def _normal_escape(match: re.Match[str]) -> str:
    byte = bytes.fromhex(match[1])
    if byte in b"{}":
        raise ValueFault(f"escapes {byte.decode()!r}, which Pyramid's patterns can't hold: use `pattern`")
    if byte[0] in _RESERVED:
        raise ValueFault(f"escapes the reserved character {byte.decode()!r}")
    return byte.decode() if _UNRESERVED.fullmatch(byte) else match[0].upper()


def pattern(value: object) -> str:
    """A Pyramid route pattern whose placeholders do not bear the names that templates use."""
    found = text(value)
    if not found:
        raise ValueFault("is empty")
    taken = pattern_names(found) & TEMPLATE_NAMES
    if taken:
        raise ValueFault(f"has the placeholder {{{min(taken)}}}, a name that templates use: call it otherwise")
    return found


def pattern_names(pattern: str) -> frozenset[str]:
    """The names of a route pattern's placeholders, as Pyramid itself finds them."""
    values: dict[str, str] = {}
    try:
        generate = Route("", pattern).generate
        while True:
            try:
                generate(values)
                return frozenset(values)
            except KeyError as missing:
                values[missing.args[0]] = ""
    # The pattern holds regular expressions: whatever is wrong with them is the pattern's fault.
    except Exception as error:
        raise ValueFault(f"is not a pattern that Pyramid takes: {error}") from None


_UPSTREAM = re.compile(r"(?i:(https?|http\+unix))://([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?")


def upstreams(value: object) -> tuple[str, ...]:
    """At least one URL, as written: scheme and authority are judged here, the rest by `check_upstream`."""
    urls: tuple[str, ...] = list_of(_upstream)(value)
    if not urls:
        raise ValueFault("is empty")
    return urls


def _upstream(url: str) -> str:
    match = _UPSTREAM.fullmatch(url)
    if match is None:
        raise ValueFault("does not begin with http://, https:// or http+unix://")
    if match[1].lower() == "http+unix":
        _check_socket(match[2])
    else:
        _check_authority(match[2])
    if match[5] is not None:
        raise ValueFault("has a fragment")
    return url


def _check_socket(escaped: str) -> None:
    if not escaped.upper().startswith("%2F"):
        raise ValueFault("has no socket: write its absolute path with %2F for each slash, as in http+unix://%2Frun%2Fx")
    _check_characters(escaped, _PATH_CHARACTER)
    if "\0" in unquote(escaped):
        raise ValueFault("has a NUL in the path of its socket")


_SHARED = re.compile(r"(rediss?)://(?:[^/?#@]*@)?([^/?#@]*)(?:/([0-9]{0,9}))?(?:\?([^#]*))?")
#: What the client for Redis may be told of TLS, in the query.
_SHARED_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}


def shared(value: object) -> str:
    """The URL of a Redis, as written. No fault repeats a part of it: it may hold a password."""
    url = text(value)
    match = _SHARED.fullmatch(url)
    if match is None:
        raise ValueFault("is not such a URL; in a password @, / and ? are escaped: %40, %2F and %3F")
    try:
        _check_authority(match[2])
    except ValueFault:
        raise ValueFault("has no good host and port") from None
    names = {part.partition("=")[0] for part in match[4].split("&")} if match[4] else set()
    if names - _SHARED_OPTIONS:
        raise ValueFault(
            f"has an unknown option behind the question mark: {', '.join(sorted(_SHARED_OPTIONS))} are known"
        )
    if names and match[1] == "redis":
        raise ValueFault("has options for TLS: write rediss://")
    return url


def health_path(value: object) -> str:
    """A path on the upstream, perhaps with a query."""
    target = text(value)
    if not target.startswith("/"):
        raise ValueFault("does not begin with /")
    path, _, query = target.partition("?")
    check_path(path)
    _check_characters(query, rf"{_PATH_CHARACTER}|\?")
    return target


def _check_authority(authority: str) -> None:
    if "@" in authority:
        raise ValueFault("holds credentials: send them with `request.set.Authorization`")
    if "{" in authority or "}" in authority:
        raise ValueFault("has a placeholder in its host")
    match = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]*))?", authority)
    if match is None:
        raise ValueFault(f"has the bad host {authority!r}")
    host, port = match.groups()
    _check_host(host)
    if port is not None and not (len(port) <= 5 and 1 <= int(port or 0) <= 65535):
        raise ValueFault(f"has the bad port {port!r}: 1 to 65535")


def _check_host(host: str) -> None:
    """An IPv6 address in brackets, an IPv4 address, or a name with labels that DNS can hold (RFC 1035 2.3.4)."""
    if not host:
        raise ValueFault("has no host")
    try:
        if host.startswith("["):
            good = bool(ipaddress.IPv6Address(host[1:-1])) and "%" not in host
        elif re.fullmatch(r"[0-9.]+", host):
            good = bool(ipaddress.IPv4Address(host))
        else:
            good = len(host) <= 253 and bool(re.fullmatch(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?", host, re.ASCII))
    except ValueError:
        good = False
    if not good:
        raise ValueFault(f"has the bad host {host!r}")


def check_upstream(url: str, names: frozenset[str] | None) -> None:
    """Path and query of a URL that `upstream` let through; `names` are the pattern's, None on a prefix route."""
    match = _UPSTREAM.fullmatch(url)
    assert match is not None
    path, query = match[3], match[4]
    if names is None:
        if query is not None:
            raise ValueFault("has a query, which only a route with `pattern` may have")
        if "{" in url:
            raise ValueFault("has a placeholder, which only a route with `pattern` may have")
    check_path(_filled(path, names))
    _check_characters(_filled(query or "", names), rf"{_PATH_CHARACTER}|\?")


def _filled(part: str, names: frozenset[str] | None) -> str:
    """The same with something in place of each placeholder."""
    try:
        parts = template_parts(part, doubled=False)
    except ValueRefused as error:
        raise ValueFault(str(error)) from None
    check_placeholders(parts[1::2], names or frozenset())
    parts[1::2] = ["x"] * (len(parts) // 2)
    return "".join(parts)
