"""Which requests may be for a route whose bodies stream, told from their heads alone: before Pyramid was asked.

What is said here opens nothing: Pyramid's router and the permission decide as for any request. Who is taken for one of
these is called before the body is there, which then is received when somebody reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote

from pyramid.predicates import RequestMethodPredicate

from pyramid_threaded_proxy.app.declared import Declared, Mark
from pyramid_threaded_proxy.app.host import is_for
from pyramid_threaded_proxy.app.mounts import Mounts
from pyramid_threaded_proxy.exceptions import DescriptorsExhausted, ThreadsExhausted
from pyramid_threaded_proxy.loop.loop import Loop


class _Route(NamedTuple):
    """One of the application's routes, in the order in which Pyramid tries them."""

    match: Callable[[str], Any]
    #: Of a proxied route: whether its bodies stream, and its host.
    streams: bool
    host: str | None
    #: Of any other: the methods that it takes, None for all; and whether there is more that only a request can tell.
    methods: frozenset[str] | None
    doubtful: bool


class StreamedRoutes:
    """The routes of an application, as far as they stand before or among those that stream (`detach.Application`)."""

    def __init__(
        self, routes: Iterable[Any], every: Iterable[Declared], mounts: Mounts, start: Callable[[], Loop]
    ) -> None:
        known = {declared.mark: declared for declared in every}
        self._routes = tuple(_known_route(route, known) for route in routes)
        streamed = [one for one in known.values() if not one.settings.request_buffering]
        # No other path can be below one of them.
        self._streamed: tuple[str, ...] = tuple({unquote(one.mount) for one in streamed})
        self._mounts = mounts
        self._start: Callable[[], Loop] | None = start

    def close(self) -> None:
        """The application ends: nothing is taken for one of these any more, and no thread is started. Any thread."""
        self._streamed, self._start = (), None

    def asks_first(self, method: str, path_info: str, host: str | None) -> bool:
        """Whether a request may be for a route that streams. Waitress's main thread, so nothing of the application's
        runs here."""
        return any(
            rest.startswith(self._streamed) and self._is_for_streamed(method, rest or "/", host)
            for rest in self._mounts.rests(path_info)
        )

    def _is_for_streamed(self, method: str, path: str, host: str | None) -> bool:
        for route in self._routes:
            if route.methods is not None and method not in route.methods:
                continue
            if route.host is not None and host is not None and not is_for(route.host, host):
                continue
            if route.match(path) is None:
                continue
            if route.streams:
                return True
            if not route.doubtful and (route.host is None or host is not None):
                return False
        return False

    def loop_for_refused(self) -> Loop | None:
        """The loop in which connections linger (`detach.Application`). Any thread."""
        start = self._start
        try:
            return start() if start is not None else None
        except (DescriptorsExhausted, ThreadsExhausted):
            return None


def _known_route(route: Any, known: dict[Mark, Declared]) -> _Route:
    declared = known.get(route.pregenerator)
    if declared is not None:
        settings = declared.settings
        return _Route(route.match, not settings.request_buffering, settings.host, None, doubtful=False)
    methods = [frozenset(one.val) for one in route.predicates if isinstance(one, RequestMethodPredicate)]
    doubtful = len(methods) < len(route.predicates)
    return _Route(route.match, False, None, frozenset.intersection(*methods) if methods else None, doubtful)
