"""Cookies at the border: the application's own ones never go upstream, and no upstream sets or hides them.

WebOb's reader is the judge, because it is what the application reads its cookies with. It finds a cookie behind every
character that can't stand in a name, and what it finds depends on quotes in other cookies. So a name of ours that is
followed by "=" counts wherever WebOb could begin to read a name. Cases are told apart, as RFC 6265, WebOb and browsers
do: SESSION is another cookie than session.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from webob.cookies import parse_cookie

from pyramid_threaded_proxy.http.public import Public, Rules, by_rule, public_path

# What WebOb lets stand in a name (webob.cookies); a name begins behind anything else, or behind a date.
_NAME_CHARACTERS = r"\w~!@#$%^&*()+\-`.?|:/{}<>'"
_LONG_WORD = re.compile(rf"([{_NAME_CHARACTERS}]{{33,}})(\s*=)?", re.ASCII)


class OwnCookies:
    """The names of the application's own cookies, and where a text could hold one."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(sorted(set(names)))
        alternatives = "|".join(re.escape(name) for name in self._names)
        pattern = rf"(?:(?<![{_NAME_CHARACTERS}=])|GMT)({alternatives})\s*="
        self._assigned = re.compile(pattern, re.ASCII)

    def mentioned_in(self, text: str) -> bool:
        """Whether a name of ours occurs at all; if not, no reader finds one."""
        for name in self._names:  # noqa: SIM110 - a call less for each cookie than with any()
            if name in text:
                return True
        return False

    def assigned_in(self, text: str) -> bool:
        """Whether WebOb could read a cookie of ours out of `text`, whatever stands before and behind it."""
        return self.found_in(text) is not None

    def found_in(self, text: str) -> str | None:
        """The name of the first of ours that could be read."""
        match = self._assigned.search(text) if self.mentioned_in(text) else None
        return None if match is None else match[1]

    def read_in(self, text: str) -> bool:
        """Whether WebOb reads a cookie of ours out of `text` as it stands."""
        return self.mentioned_in(text) and any(name in self._names for name in _names_read(text))


def _names_read(text: str) -> list[str]:
    # WebOb takes quadratic time over words that no "=" follows (2 s for 16 KiB); no name is in them.
    text = _LONG_WORD.sub(lambda word: word[0] if word[2] else word[0][:1], text)
    return [name.decode("latin-1") for name, _ in parse_cookie(text)]


def _runs_on(pair: str) -> bool:
    """Whether WebOb would read on behind the ";", by a quote left open or a backslash before it."""
    return pair.endswith("\\") or ('"' in pair and "behind" not in _names_read(f'{pair}; behind=1; quote="'))


class CookieFilter:
    """Which of the client's cookies go upstream: `allowed` by name (None: any), never our own."""

    def __init__(self, own: Iterable[str], allowed: frozenset[str] | None) -> None:
        self._own = OwnCookies(own)
        self._allowed = allowed

    def select(self, text: str) -> str:
        """What may go up of a Cookie field (RFC 6265 4.2); "" if nothing. Cookies that pass keep their bytes."""
        if self._allowed is None and not self._own.mentioned_in(text):
            return text
        kept: list[str] = []
        for pair in text.split(";"):
            pair = pair.strip(" \t")
            if self._passes(pair):
                kept.append(pair)
            elif self._own.assigned_in(pair) and _runs_on(pair):
                return ""
            elif '"' not in pair and ", " in pair:
                kept += self._parts_that_pass(pair)
        remaining = "; ".join(kept)
        return remaining if self._is_clean(remaining) else ""

    def _passes(self, pair: str) -> bool:
        if not pair or self._own.assigned_in(pair):
            return False
        if self._allowed is None:
            return True
        name, mark, _ = pair.partition("=")
        return bool(mark) and name.strip(" \t") in self._allowed and self._allowed.issuperset(_names_read(pair))

    def _parts_that_pass(self, pair: str) -> list[str]:
        # Servers join repeated Cookie fields with ", " (waitress does).
        return [part for part in pair.split(", ") if "=" in part and self._passes(part)]

    def _is_clean(self, remaining: str) -> bool:
        """WebOb's last word: the quotes of different cookies meet only in what remains."""
        allowed = self._allowed is None or self._allowed.issuperset(_names_read(remaining))
        return allowed and not self._own.read_in(remaining)


#: Browsers ignore longer attributes, and would take the directory of the request (RFC 6265bis 5.6).
_LONGEST_ATTRIBUTE = 1024


class SetCookieFilter:
    """Which Set-Cookie fields of an upstream reach the client, and how they are confined to the mount.

    `rewrite` are rules for paths that go first; None confines nothing. `told` says that the upstream knows the mount.

    `dropped` is told the name of each own cookie that an upstream would have set, in whatever thread `public` runs.
    """

    def __init__(
        self,
        own: Iterable[str],
        *,
        rewrite: Rules | None,
        base_paths: tuple[str, ...],
        told: bool,
        dropped: Callable[[str], None],
    ) -> None:
        self._own = OwnCookies(own)
        self._dropped = dropped
        self._rewrite = rewrite
        self._base_paths = base_paths
        self._told = told

    def public(self, value: str, public: Public) -> str | None:
        """The field value for the client, or None if it must not be set. Without a mount nothing is confined.

        Dropped are our own cookies in whatever spelling the client would send them back, cookies without a name
        (RFC 6265bis 5.7), and those that would hide the ones behind them from WebOb.
        """
        pair, _, attributes = value.partition(";")
        name = pair.partition("=")[0].strip(" \t")
        if (own := self._own.found_in(pair)) is not None:
            self._dropped(own)
            return None
        if "=" not in pair or not name or _runs_on(pair):
            return None
        if self._rewrite is None or public.mount is None:
            return value
        # A __Host- cookie is valid for the path "/" alone (RFC 6265bis 4.1.3.2).
        return None if name.lower().startswith("__host-") else self._confined(pair, attributes, public)

    def _confined(self, pair: str, attributes: str, public: Public) -> str:
        path = ""
        kept = [pair]
        for attribute in attributes.split(";"):
            name, _, text = attribute.partition("=")
            name = name.strip(" \t").lower()
            if name == "path":
                path = text.strip(" \t")
            elif name and name != "domain":
                kept.append(attribute)
        # Without a Path the client would take the directory of the request, which is above the mount for the mount.
        mount = (public.mount or "").rstrip("/") or "/"
        confined = by_rule(path, self._rewrite or ())
        if confined is None and path.startswith("/") and path != "/":
            confined = public_path(path, self._base_paths, public, self._told)
        if confined is None or len(confined) > _LONGEST_ATTRIBUTE:
            confined = mount
        return f"{';'.join(kept)}; Path={confined or '/'}"
