"""WebDAV's second targets: the URLs in Destination and in the tags of If (RFC 4918 10.3, 10.4)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from pyramid_threaded_proxy.exceptions import FieldRefused, TargetRefused
from pyramid_threaded_proxy.http.target import split_target

_SIMPLE_REF = re.compile(r"(?:(https?)://([^/?#\\]+))?(?:/.*)?", re.IGNORECASE)
_STATE = r'<[^<>]*>|\[(?:W/)?"[^"]*"\]'
_LIST = rf"\((?:[ \t]|Not\b|{_STATE})*\)"
_IF = re.compile(rf"[ \t]*(?:<[^<>]*>[ \t]*)?{_LIST}(?:[ \t]*(?:<[^<>]*>[ \t]*)?{_LIST})*[ \t]*", re.IGNORECASE)
_TAG = re.compile(rf"{_LIST}|<([^<>]*)>", re.IGNORECASE)


class SimpleRef(NamedTuple):
    """A URL of http or https, or an absolute path (RFC 4918 8.3)."""

    #: None, with `authority`, for a path.
    scheme: str | None
    authority: str | None
    path: str
    query: str | None


def split_ref(text: str) -> SimpleRef:
    """Read a Simple-ref. Raises `TargetRefused` for what is none, and for a path that no request's target may have."""
    match = _SIMPLE_REF.fullmatch(text)
    if match is None or not text:
        raise TargetRefused("neither a URL nor an absolute path (RFC 4918 8.3)")
    path, query = split_target(text)
    return SimpleRef(match[1] and match[1].lower(), match[2], path, query)


def map_tags(value: str, mapped: Callable[[str], str]) -> str:
    """An If field with each resource tag replaced by what `mapped` makes of it; states and ETags keep their bytes.

    Raises `FieldRefused` for what RFC 4918 10.4.2 does not have: readers differ in which resource it is about.
    """
    if "<" not in _TAG.sub("", value) and ">" not in _TAG.sub("", value) and _IF.fullmatch(value):
        return _TAG.sub(lambda match: match[0] if match[1] is None else f"<{mapped(match[1])}>", value)
    raise FieldRefused("If is not a list of conditions (RFC 4918 10.4.2)")
