"""Which of the client's query parameters go upstream, and which are put there.

The bytes of what stays are the client's own. Servers differ in what they take for the same name, so that one to be kept
away is looked for in all of these readings, and one that is let through must be exactly that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote_plus

from pyramid_threaded_proxy.exceptions import ValueRefused
from pyramid_threaded_proxy.http.template import template_parts

_PHP_MAKES_UNDERSCORES = re.compile(r"[ .\[]")


class QueryRules:
    """Parameters that are removed, let through and set. Compiled at start-up. Raises `ValueRefused`."""

    def __init__(
        self, remove: Iterable[str] = (), only: Iterable[str] | None = None, set: Iterable[tuple[str, str]] = ()
    ) -> None:
        self._set = [(quote(name, safe=""), template_parts(text)) for name, text in set]
        self._gone = frozenset(_wide(name) for name in [*remove, *(name for name, _ in set)])
        self._only = None if only is None else frozenset(only)

    def __bool__(self) -> bool:
        """Whether there is anything to change."""
        return bool(self._gone or self._set or self._only is not None)

    def apply(self, query: str | None, values: Mapping[str, str | None]) -> str | None:
        """The query that goes upstream; a parameter whose template uses a value of None is left out.

        Raises `ValueRefused` for a value that UTF-8 can't hold.
        """
        kept = [part for part in (query or "").split("&") if part and self._goes(part)]
        kept += [f"{name}={value}" for name, parts in self._set if (value := _filled(name, parts, values)) is not None]
        return "&".join(kept) if kept else None

    def _goes(self, part: str) -> bool:
        # Some servers end a parameter at ";" as well: each of what they find must be let through.
        names = [unquote_plus(one.partition("=")[0]) for one in part.split(";")]
        if not self._gone.isdisjoint(map(_wide, names)):
            return False
        return self._only is None or self._only.issuperset(names)


def _wide(name: str) -> str:
    """What a server may take a name for: in whatever case, and as PHP does, without what stands behind NUL or "["."""
    name = name.partition("\0")[0].lstrip(" ")
    head, bracket, _ = name.partition("[")
    return _PHP_MAKES_UNDERSCORES.sub("_", head if bracket and "]" in name else name).casefold()


def _filled(name: str, parts: list[str], values: Mapping[str, str | None]) -> str | None:
    filled = parts.copy()
    for index in range(1, len(parts), 2):
        value = values[parts[index]]
        if value is None:
            return None
        filled[index] = value
    try:
        return quote("".join(filled), safe="")
    except UnicodeEncodeError:
        raise ValueRefused(f"the value of the parameter {name} can't be written in UTF-8") from None


def parameter_names(query: str) -> list[str]:
    """The names in a query that the application has written."""
    return [unquote_plus(part.partition("=")[0]) for part in query.split("&") if part]
