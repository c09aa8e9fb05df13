"""`request.origin = upstream`: backends that compare Origin and Referer with their own Host are told that it is theirs.

Only what is ours, or was let in by `origins`, is rewritten: a foreign page's Origin goes up as it is, so that the
backend's own defence against it stands.
"""

from __future__ import annotations

from pyramid_threaded_proxy.app.upgrade import comparable
from pyramid_threaded_proxy.http.names import Fields
from pyramid_threaded_proxy.http.public import Public
from pyramid_threaded_proxy.http.target import join, rest_below
from pyramid_threaded_proxy.relay.destination import Destination


def backends_own_origin(fields: Fields, public: Public, destination: Destination, let_in: frozenset[str]) -> Fields:
    """The fields with Origin and Referer as the upstream's own pages would send them."""
    theirs = destination.origin.as_pages_have_it
    ours = {comparable(public.url), *map(comparable, let_in - {"*"})}
    choice = destination.choice
    base = "" if choice is None else choice.upstream.base

    def rewritten(name: str, value: str) -> str:
        if name.lower() == "origin" and comparable(value) in ours:
            return theirs
        if name.lower() == "referer":
            scheme, _, rest = value.partition("://")
            authority, slash, path = rest.partition("/")
            if comparable(f"{scheme}://{authority}") in ours:
                return theirs + _their_path(slash + path, public.mount, base)
        return value

    return [(name, rewritten(name, value)) for name, value in fields]


def _their_path(path: str, mount: str | None, base: str) -> str:
    """The path of a page of ours as the upstream knows it; another one's is none of its business."""
    path, mark, query = path.partition("?")
    rest = None if mount is None else rest_below(path or "/", mount)
    return "/" if rest is None else join(base, rest, query if mark else None)
