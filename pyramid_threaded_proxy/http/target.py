"""Request targets: what may come in, what is below a mount, and what goes upstream.

Targets are text that holds wire bytes (latin-1). Nothing here is normalised: a target goes up with the client's own
bytes, or it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote, unquote, unquote_to_bytes

from pyramid_threaded_proxy.exceptions import TargetRefused, ValueRefused
from pyramid_threaded_proxy.http.query import QueryRules, parameter_names
from pyramid_threaded_proxy.http.template import template_parts

# No escape, and no segment that begins with a dot: such a path can't hold anything that the slow checks look for.
_HARMLESS = re.compile(r"((?:/(?:[A-Za-z0-9_~!$&'()*+,:;=@-][A-Za-z0-9_~!$&'()*+,:;=@.-]*)?)+)(?:\?([!\"$-~]*))?")
_ABSOLUTE_FORM = re.compile(r"https?://[^/?\\]+", re.IGNORECASE)
_NOT_VISIBLE_ASCII = re.compile(r"[^!-~]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL_OR_BACKSLASH = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_DOT_SEGMENT = re.compile(r"(?:\A|/)\.\.?(?:[/;]|\Z)")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def split_target(raw: str) -> tuple[str, str | None]:
    """Split a request target in origin-form or absolute-form (RFC 9112 3.2) into path and query.

    The query is None where there is no "?". Of an absolute-form only path and query count. Raises `TargetRefused`.
    """
    if (match := _HARMLESS.fullmatch(raw)) is not None:
        return match[1], match[2]
    if _NOT_VISIBLE_ASCII.search(raw):
        raise TargetRefused("the target holds a space, a control or a byte outside ASCII (RFC 3986 2)")
    if "#" in raw:
        raise TargetRefused("the target holds a fragment (RFC 9112 3.2)")
    path, mark, query = _without_authority(raw).partition("?")
    path = path or "/"
    _check_path(path)
    return path, query if mark else None


def check_upstream_target(target: str) -> None:
    """Hold a finished upstream target (path and query) to the rules of `split_target`. Raises `TargetRefused`."""
    if not target.startswith("/"):
        raise TargetRefused('the upstream target does not begin with "/" (RFC 9112 3.2.1)')
    split_target(target)


def _without_authority(raw: str) -> str:
    if raw.startswith("/"):
        return raw
    match = _ABSOLUTE_FORM.match(raw)
    if match is None or raw[match.end() : match.end() + 1] not in ("", "/", "?"):
        raise TargetRefused('the target does not begin with "/" (RFC 9112 3.2)')
    return raw[match.end() :]


def _check_path(path: str) -> None:
    text = _unescaped(path) if "%" in path else path
    if _CONTROL_OR_BACKSLASH.search(text):
        raise TargetRefused("the path holds a control or a backslash, raw or escaped (RFC 3986 3.3)")
    if _DOT_SEGMENT.search(text):
        raise TargetRefused("the path holds a dot segment, raw or escaped (RFC 3986 5.2.4)")


def _unescaped(path: str) -> str:
    if _BAD_ESCAPE.search(path):
        raise TargetRefused('the path holds a "%" without two hexadecimal digits (RFC 3986 2.1)')
    try:
        return unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise TargetRefused("the path's escapes are not UTF-8 (RFC 3987 3.2)") from None


def public_path_matches(raw_path: str, path_info: str, script_name: str) -> bool:
    """Whether the raw path, unescaped, is what the application was given as SCRIPT_NAME + PATH_INFO (PEP 3333)."""
    given = script_name + path_info or "/"
    return raw_path == given if "%" not in raw_path else unquote(raw_path, "latin-1") == given


def rest_below(path: str, mount: str) -> str | None:
    """What stands behind `mount` in a raw path: "" or the client's own bytes from a slash on; None if not below it.

    Both are compared with unreserved characters unescaped (RFC 3986 6.2.2). The mounts "" and "/" hold everything.
    """
    mount = mount.rstrip("/")
    if path.startswith(mount):
        rest = path[len(mount) :]
        if not rest or rest.startswith("/"):
            return rest
    if "%" not in path and "%" not in mount:
        return None
    end = _end_of_segments(path, mount.count("/"))
    return path[end:] if _comparable(path[:end]) == _comparable_mount(mount) else None


def _end_of_segments(path: str, count: int) -> int:
    end = 0
    for _ in range(count):
        end = path.find("/", end + 1)
        if end < 0:
            return len(path)
    return end


def _comparable(path: str) -> str:
    return _ESCAPE.sub(_unescape_unreserved, path)


_comparable_mount = lru_cache(maxsize=256)(_comparable)


def _unescape_unreserved(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else match[0].upper()


def join(base: str, rest: str, query: str | None) -> str:
    """The upstream target: one slash between the upstream's base path and the rest, then the query as it came.

    An empty `rest` is the base itself; slashes inside the rest are the client's own and stay. A `query` of None adds
    no "?", an empty one does.
    """
    if rest:
        base = base.rstrip("/")
        if not rest.startswith("/"):
            base += "/"
    path = base + rest or "/"
    return path if query is None else f"{path}?{query}"


class UpstreamPattern:
    """The path and query of a pattern route's upstream, such as ``/a/{id}?x={y}``, compiled at start-up.

    `several` names the placeholders whose pattern matches several segments: their slashes stay. The values of the
    other ones are escaped as one path segment. Raises `ValueRefused` for a brace that belongs to no placeholder.
    """

    def __init__(self, target: str, several: frozenset[str] = frozenset()) -> None:
        path, mark, query = target.partition("?")
        self._path = template_parts(path or "/", doubled=False)
        self._own = QueryRules(remove=[name for name in parameter_names(query) if "{" not in name])
        self._query = template_parts(query, doubled=False) if mark else None
        self._several = several
        self.names = frozenset(self._path[1::2]) | frozenset((self._query or ())[1::2])

    def expand(self, values: Mapping[str, str | tuple[str, ...]], query: str | None) -> str:
        """The target for these values; the client's query comes behind the upstream's own.

        Pass it to `check_upstream_target`: a value may be ``..``. Raises `ValueRefused` for a placeholder without
        a value, and for a value that UTF-8 can't hold.
        """
        path = self._filled(self._path, values, in_query=False)
        if self._query is None:
            return join("", path, query)
        query = self._own.apply(query, {}) if query and self._own else query  # the client can't double what is ours
        own = self._filled(self._query, values, in_query=True)
        return f"{path}?{own}&{query}" if own and query else f"{path}?{own or query or ''}"

    def _filled(self, parts: list[str], values: Mapping[str, str | tuple[str, ...]], *, in_query: bool) -> str:
        filled = parts.copy()
        for index in range(1, len(parts), 2):
            name = parts[index]
            if name not in values:
                raise ValueRefused(f"the upstream's {{{name}}} has no value")
            filled[index] = _escaped(name, values[name], "/" if in_query or name in self._several else "")
        return "".join(filled)


def _escaped(name: str, value: str | tuple[str, ...], safe: str) -> str:
    try:
        if isinstance(value, tuple):
            return "/".join([quote(segment, safe="") for segment in value])
        return quote(value, safe=safe)
    except UnicodeEncodeError:
        raise ValueRefused(f"the value of {{{name}}} can't be written in UTF-8: {value!r}") from None


#: What may stand unescaped in a path (RFC 3986 3.3): a made path differs from a sent one as little as it can.
_PATH_SAFE = "/~!$&'()*+,;=:@"


def escaped_path(path: str) -> str:
    """A path as PEP 3333 holds it (bytes in text), escaped as it stands in a target."""
    return quote(path.encode("latin-1"), safe=_PATH_SAFE)
