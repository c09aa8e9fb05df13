"""Second targets: where WebDAV's COPY and MOVE write, and what If is about, is judged as the request's own target is.

A client that may use one route could otherwise write below another, through the first one's upstream. What is copied
from is `copy_source`'s. It runs in the thread of the request, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from typing import Any
from urllib.parse import unquote

from pyramid.httpexceptions import HTTPBadGateway, HTTPException, HTTPForbidden
from pyramid.interfaces import IRequestFactory, IRoutesMapper
from pyramid.request import Request

from pyramid_threaded_proxy.app.copy_source import OPAQUE, SOURCES, CopySource, Judge, TargetAt
from pyramid_threaded_proxy.app.environ import ClientRequest
from pyramid_threaded_proxy.app.routes import Route
from pyramid_threaded_proxy.exceptions import FieldRefused, TargetRefused
from pyramid_threaded_proxy.http.dav import SimpleRef, map_tags, split_ref
from pyramid_threaded_proxy.http.names import Fields
from pyramid_threaded_proxy.http.public import is_authority_of
from pyramid_threaded_proxy.http.target import escaped_path, rest_below
from pyramid_threaded_proxy.relay.recheck import QUESTION, PermissionQuestion
from pyramid_threaded_proxy.upstream.balance import Upstream
from pyramid_threaded_proxy.upstream.origin import UNIX

#: The methods that write to their Destination (RFC 4918 9.8, 9.9).
_WRITING = frozenset({"COPY", "MOVE"})
#: Where some servers read the method, if `request.overrides` lets them.
_METHODS = ("HTTP_X_HTTP_METHOD_OVERRIDE", "HTTP_X_HTTP_METHOD", "HTTP_X_METHOD_OVERRIDE")
#: Tags that one If may have: the permission is asked for each.
_MOST_TAGS = 16
#: What says that there is one.
_FIELDS = frozenset({"HTTP_DESTINATION", "HTTP_IF", *SOURCES, *OPAQUE})
_LEFT_BEHIND = ("webob.", "bfg.", "waitress.", "pyramid_threaded_proxy.", "CONTENT_", "HTTP_TRANSFER_", "HTTP_EXPECT")


class _Elsewhere(TargetRefused):
    """The second target is on another upstream than the first."""

    status = 502


class SecondTargets:
    """What Destination, If and `sources` of one request are at an upstream. Made in its thread, then touched by its
    task."""

    def __init__(
        self, client: ClientRequest, judge: Judge, keep_host: bool, sources: Mapping[str, CopySource] | None = None
    ) -> None:
        self._sources = sources or {}
        self._host = client.environ.get("HTTP_HOST") if keep_host else None
        self._known: dict[str, tuple[SimpleRef, TargetAt]] = {}
        self._destination = _destination_of(client.environ)
        self._tags: str | None = client.environ.get("HTTP_IF", "").strip(" \t") or None
        #: All as they were written last, under their lower-case names: what a hook has changed is the hook's.
        self._last = {"destination": self._destination, "if": self._tags}
        self._last |= {name: source.text for name, source in self._sources.items()}
        look_at = partial(self._look_at, judge, client.public_url())
        if self._destination is not None:
            look_at(self._destination)
        if self._tags is not None:
            map_tags(self._tags, look_at)

    def at(self, upstream: Upstream, fields: Fields) -> Fields:
        """The fields with all of them as this upstream knows them. Raises `TargetRefused`, with the status 502 where it
        is another server than the one that the second target is on."""
        last, made = self._last, self._made(upstream)
        self._last = {**last, **made}
        return [
            (name, made[lower]) if (lower := name.lower()) in made and value == last[lower] else (name, value)
            for name, value in fields
        ]

    def _made(self, upstream: Upstream) -> dict[str, str]:
        made = {name: source.written(upstream) for name, source in self._sources.items()}
        if self._destination is not None:
            made["destination"] = self._written(self._destination, upstream)
        if self._tags is not None:
            made["if"] = map_tags(self._tags, lambda text: self._written(text, upstream))
        return made

    def _look_at(self, judge: Judge, public_url: str, text: str) -> str:
        if text not in self._known:
            if len(self._known) > _MOST_TAGS:
                raise FieldRefused(f"If is about more than {_MOST_TAGS} resources")
            reference = split_ref(text)
            if reference.authority is not None and not is_authority_of(reference.authority, public_url):
                raise HTTPBadGateway("The destination is on another server.")
            self._known[text] = (reference, judge(reference))
        return text

    def _written(self, text: str, upstream: Upstream) -> str:
        """A path stays a path; a URL names the server as the request's Host does."""
        reference, target_at = self._known[text]
        target = target_at(upstream)
        if reference.authority is None:
            return target
        origin = upstream.origin
        scheme = "http" if origin.scheme == UNIX else origin.scheme
        return f"{scheme}://{self._host or origin.authority}{target}"


def has_second_target(environ: Mapping[str, Any]) -> bool:
    """Whether the request is about more than its own target."""
    return not environ.keys().isdisjoint(_FIELDS)


def _destination_of(environ: Mapping[str, Any]) -> str | None:
    """Of other methods Destination is an ordinary field: RFC 4918 gives it a meaning with these two."""
    destination: str | None = environ.get("HTTP_DESTINATION")
    if destination is None:
        return None
    methods = {environ["REQUEST_METHOD"].upper(), *(environ.get(name, "").strip().upper() for name in _METHODS)}
    return destination.strip(" \t") if methods & _WRITING else None


class BelowMount:
    """Judges by the place alone, where a view has settled who may: below the public path that it gave, or nowhere."""

    def __init__(self, mount: str | None, target_of: Callable[[Upstream, str, str | None], str]) -> None:
        self._mount = mount
        self._target_of = target_of

    def __call__(self, reference: SimpleRef) -> TargetAt:
        rest = None if self._mount is None else rest_below(reference.path, self._mount)
        if rest is None:
            return refused_anywhere(reference)
        return lambda upstream: self._target_of(upstream, rest, reference.query)


def refused_anywhere(reference: SimpleRef) -> TargetAt:
    """Judges where nothing says what is public of an upstream."""
    raise HTTPForbidden("The destination is not below the place that this request is for.")


class RouteJudge:
    """Judges a reference as a request for it would be: by the route that it matches, and that one's permission.

    The request has the client's own method, or `method`.
    """

    def __init__(self, routes: Mapping[str, Route], client: ClientRequest, method: str | None = None) -> None:
        self._routes = routes
        self._client = client
        self._method: str = method or client.environ["REQUEST_METHOD"]
        self._what = "source" if method else "destination"
        self._script_name: str = client.environ.get("SCRIPT_NAME", "")

    def __call__(self, reference: SimpleRef) -> TargetAt:
        request = self._request_for(reference)
        info = request.registry.getUtility(IRoutesMapper)(request)
        route = None if info["route"] is None else self._routes.get(info["route"].name)
        if route is None:
            raise HTTPBadGateway(f"The {self._what} is not on this server.")
        self._check_method(route)
        self._check_permission(request)
        mount = escaped_path(self._script_name) + route.mount
        host = self._client.environ.get("HTTP_HOST", "")

        def target_at(upstream: Upstream) -> str:
            own = next((one for one in route.balancer.upstreams if one.origin == upstream.origin), None)
            if own is None:
                raise _Elsewhere(f"the {self._what} is on another server than the request (RFC 4918 9.8.5)")
            return route.target(reference.path, reference.query, mount, info["match"], host, own)

        return target_at

    def _request_for(self, reference: SimpleRef) -> Request:
        """A request for what is referred to, by the same client; without its body."""
        path = unquote(reference.path, "latin-1")
        if rest_below(reference.path, escaped_path(self._script_name)) is None:
            raise HTTPBadGateway(f"The {self._what} is not on this server.")
        environ = self._client.environ
        kept = {key: value for key, value in environ.items() if not key.startswith(_LEFT_BEHIND)}
        for name in ("REQUEST_URI", "RAW_URI"):
            kept.pop(name, None)
        kept["REQUEST_METHOD"] = self._method
        kept["PATH_INFO"] = path[len(self._script_name) :]
        kept["QUERY_STRING"] = reference.query or ""
        kept["wsgi.input"] = BytesIO()
        registry = self._client.request.registry
        request = registry.queryUtility(IRequestFactory, default=Request)(kept)
        request.registry = registry
        return request

    def _check_method(self, route: Route) -> None:
        allowed = route.rules.methods
        if allowed is not None and self._method not in allowed:
            raise HTTPForbidden(f"The {self._what} does not take this method.")

    def _check_permission(self, request: Request) -> None:
        """Without tweens: the transaction that is under way is this request's own."""
        userid = self._client.request.authenticated_userid
        question = PermissionQuestion(None if userid is None else str(userid))
        request.environ[QUESTION] = question
        try:
            self._client.request.invoke_subrequest(request, use_tweens=False)
        except HTTPException as refused:
            raise HTTPForbidden(f"You may not use the {self._what}.") from refused
        if not question.allowed:
            raise HTTPForbidden(f"You may not use the {self._what}.")
