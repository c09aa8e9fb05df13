"""The view behind each declared route: called when Pyramid has matched it and asked for the permission."""

from __future__ import annotations

from typing import Any

from pyramid.httpexceptions import HTTPNoContent
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.environ import raw_target
from pyramid_threaded_proxy.app.prepare import choose, forward, http_error
from pyramid_threaded_proxy.app.routes import Route
from pyramid_threaded_proxy.exceptions import RequestRefused
from pyramid_threaded_proxy.http.target import escaped_path
from pyramid_threaded_proxy.relay.recheck import QUESTION, Check, PermissionQuestion, question_for, route_check


class ProxyView:
    """Makes a `ProxyResponse` of a request that was let in. Called in the thread of the request."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self.__name__ = f"proxy_view_of_{name}"

    def __call__(self, context: Any, request: Request) -> Response:
        question = request.environ.get(QUESTION)
        if isinstance(question, PermissionQuestion):
            question.answer(request.authenticated_userid)
            return HTTPNoContent()
        route = self._engine.routes[self._name]
        try:
            script_name = request.environ.get("SCRIPT_NAME", "")
            public = escaped_path(script_name) + route.mount if script_name else route.mount
            path, query = raw_target(request.environ)
            matched = request.matchdict
            choice = choose(route, request)
            target = route.target(choice.upstream, path, query, public, matched)
            if len(route.balancer.upstreams) > 1:
                choice.target_of = lambda upstream: route.target(upstream, path, query, public, matched)
            prefix = public if route.is_prefix else None
            return forward(
                request,
                self._engine,
                route.name,
                choice.upstream.origin,
                target,
                route.request,
                route.answer,
                public,
                prefix,
                recheck=self._recheck(route, request),
                choice=choice,
                methods=route.methods,
            )
        except RequestRefused as error:
            raise http_error(error) from None

    def _recheck(self, route: Route, request: Request) -> tuple[float, Check] | None:
        interval, router = route.settings.recheck, self._engine.router
        if interval is None or router is None:
            return None
        return interval, route_check(router, question_for(request.environ))
