"""Where an upstream's own URLs and paths are seen by the client: redirects and cookies' paths, mapped and confined."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from pyramid_threaded_proxy.http.names import without_default_port
from pyramid_threaded_proxy.http.target import rest_below

#: What begins with the first is written with the second in its place; tried in order.
Rules = tuple[tuple[str, str], ...]

_REFERENCE = re.compile(r"(?:(?:([A-Za-z][A-Za-z0-9+.-]*):)?//([^/?#\\]*))?([^?#]*)(.*)", re.DOTALL)
_REFRESH = re.compile(r"""(\s*[0-9.]+\s*[;,]\s*(?:url\s*=\s*)?(["']?))([^"']*?)(\2\s*)""", re.IGNORECASE)


class Public(NamedTuple):
    """What the client sees of an upstream."""

    #: Scheme and authority.
    url: str
    #: The path that the upstream's own URLs are mapped to; None: nothing is rewritten.
    mount: str | None
    #: The path that the upstream is told (X-Forwarded-Prefix); None: it is told none.
    prefix: str | None = None


class Told(NamedTuple):
    """What of the public place a route tells its upstream, which may make its own URLs of it."""

    prefix: bool = False
    host: bool = False
    scheme: bool = False


NOTHING_TOLD = Told()


def public_path(path: str, bases: Iterable[str], public: Public, told: bool) -> str | None:
    """The public form of an upstream's path; None if it is below none of the `bases`, the longest of which come first.

    Where the upstream was `told` a prefix, a path below that is public already. A base inside the prefix is the more
    specific one, and decides.
    """
    mount, prefix = (public.mount or "").rstrip("/"), (public.prefix or "").rstrip("/") if told else ""
    believed = bool(prefix) and rest_below(path, prefix) is not None
    for base in bases:
        if believed and len(base) <= len(prefix):
            return path
        rest = rest_below(path, base)
        if rest is not None:
            return mount + rest
    return path if believed else None


def by_rule(text: str, rules: Rules) -> str | None:
    """What the first rule that knows its beginning makes of it."""
    for start, replacement in rules:
        if text.startswith(start):
            return replacement + text[len(start) :]
    return None


class LocationMap:
    """Maps an upstream's URLs and absolute paths to the public ones; built once per route.

    `rules` go first. The upstream's own are those below the base of any of `bases`; where it was `told` the public
    host or scheme, also those that it makes of them.
    """

    def __init__(self, bases: Iterable[str], told: Told = NOTHING_TOLD, rules: Rules = ()) -> None:
        parts = [urlsplit(base) for base in bases]
        origins = [(base.scheme, base.netloc.lower(), base.path.rstrip("/")) for base in parts]
        # The most specific base decides where an absolute path is below several.
        self._bases = sorted(origins, key=lambda item: -len(item[2]))
        self._told = told
        self._rules = rules
        self.paths = tuple(path for _, _, path in self._bases)

    def public(self, reference: str, public: Public) -> str:
        """The public form of a Location or Content-Location; unchanged if it is relative or below no base.

        An absolute path stays one.
        """
        ruled = by_rule(reference, self._rules)
        if ruled is not None:
            return _from_anywhere(ruled, public.url) if ruled.startswith("/") else ruled
        match = _REFERENCE.match(reference)
        if match is None or (match[2] is None and not match[3].startswith("/")):
            return reference
        scheme, authority, path, tail = match.groups()
        bases: Sequence[str] = self.paths
        if authority is not None:
            origins = self._bases
            bases = [base for own, known, base in origins if self._is_own(scheme, authority, own, known, public.url)]
        mapped = public_path(path, bases, public, self._told.prefix) if bases else None
        if mapped is None:
            return reference
        return (_from_anywhere(mapped, public.url) if authority is None else public.url + mapped) + tail

    def refreshed(self, value: str, public: Public) -> str:
        """The same for the URL in a Refresh field (HTML, "shared declarative refresh steps")."""
        match = _REFRESH.fullmatch(value)
        return value if match is None else f"{match[1]}{self.public(match[3], public)}{match[4]}"

    def _is_own(self, scheme: str | None, authority: str, own: str, known: str, public_url: str) -> bool:
        """Whether a URL's scheme and authority are an upstream's (`own`, `known`), or what we told it that they are."""
        public_scheme, _, public_authority = public_url.lower().partition("://")
        said = own if scheme is None else scheme.lower()
        authorities = {_comparable(authority, one) for one in (said, own)}
        if said in (own, public_scheme if self._told.scheme else own) and _comparable(known, own) in authorities:
            return True
        return (
            self._told.host
            and said in (own, public_scheme)
            and not authorities.isdisjoint({_comparable(public_authority, one) for one in (said, public_scheme)})
        )


def is_authority_of(authority: str, public_url: str) -> bool:
    """Whether a URL of http or https with this authority is on the public server, under whichever of the two."""
    return _bare(authority) == _bare(public_url.partition("://")[2])


def _bare(authority: str) -> str:
    return re.sub(r":(80|443)?$", "", authority.lower())


def _from_anywhere(path: str, public_url: str) -> str:
    # A browser takes "//x" and "/\x" for another host: such a path needs its own origin in front.
    return public_url + path if path[1:2] in ("/", "\\") else path or "/"


def _comparable(authority: str, scheme: str) -> str:
    return without_default_port(authority.lower(), scheme)
