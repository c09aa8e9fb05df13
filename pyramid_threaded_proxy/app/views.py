"""The view behind each declared route: called when Pyramid has matched it and asked for the permission."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pyramid.httpexceptions import HTTPMovedPermanently, HTTPNoContent
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy.app.accel import came_by_nginx, handed_over
from pyramid_threaded_proxy.app.copy_source import Place, copy_sources
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.environ import ClientRequest
from pyramid_threaded_proxy.app.prepare import balancing_user, http_error, prepare, upstream_query
from pyramid_threaded_proxy.app.refusals import note_refusal, reason_of
from pyramid_threaded_proxy.app.response import ProxyResponse
from pyramid_threaded_proxy.app.routes import Route, Rules
from pyramid_threaded_proxy.app.second_target import RouteJudge, SecondTargets, has_second_target
from pyramid_threaded_proxy.exceptions import RequestRefused
from pyramid_threaded_proxy.http.names import Fields
from pyramid_threaded_proxy.http.public import Public
from pyramid_threaded_proxy.http.target import escaped_path, rest_below
from pyramid_threaded_proxy.relay.destination import Destination, UpstreamChoice
from pyramid_threaded_proxy.relay.prepared import Recheck
from pyramid_threaded_proxy.relay.recheck import EXPLAINED, QUESTION, PermissionQuestion, question_for, route_check
from pyramid_threaded_proxy.upstream.balance import Upstream


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
        return self._answered(request)

    def preflight(self, context: Any, request: Request) -> Response:
        """A CORS preflight of a route that lets these pass: nobody was asked, and nobody asks."""
        return self._answered(request, preflight=True)

    def _answered(self, request: Request, *, preflight: bool = False) -> Response:
        route = self._engine.routes[self._name]
        by_nginx = came_by_nginx(self._engine, request.environ)
        client = ClientRequest(request)
        try:
            if preflight and route.preflight is not None:
                answer = self._answer(route, route.preflight, client)
            else:
                answer = self._answer(route, route.rules, client, self._recheck(route, client.environ))
        except RequestRefused as error:
            note_refusal(request, self._name, reason_of(error))
            raise http_error(error) from None
        if EXPLAINED in request.environ and isinstance(answer, ProxyResponse):
            request.environ[EXPLAINED](answer)
            return HTTPNoContent()
        return handed_over(self._engine, answer, request) if by_nginx and isinstance(answer, ProxyResponse) else answer

    def _answer(self, route: Route, rules: Rules, client: ClientRequest, recheck: Recheck | None = None) -> Response:
        script_name, matched = client.environ.get("SCRIPT_NAME", ""), client.request.matchdict
        mount = escaped_path(script_name) + route.mount if script_name else route.mount
        path, sent_query = client.raw_target()
        public = Public(client.public_url(), mount, mount if route.is_prefix else None)
        if route.wants_slash and mount and client.asks_for_a_page() and rest_below(path, mount) == "":
            return HTTPMovedPermanently(f"{public.url}{mount}/" + ("" if sent_query is None else f"?{sent_query}"))
        host = client.environ.get("HTTP_HOST", "")
        query = upstream_query(client, rules, mount, sent_query)
        choice = UpstreamChoice(
            route.balancer,
            balancing_user(route.balancer, client, rules),
            partial(route.target, path, query, mount, matched, host),
            route.settings.preserve_host,
            self._second(route, client, mount),
        )
        destination = Destination(choice.upstream.origin, choice.target, choice)
        return prepare(client, rules, destination, public, recheck)

    def _second(self, route: Route, client: ClientRequest, mount: str) -> Callable[[Upstream, Fields], Fields] | None:
        if not has_second_target(client.environ):
            return None
        routes, settings = self._engine.routes, route.settings
        place = Place(mount, route.balancer.upstreams, route.inner)
        reading = RouteJudge(routes, client, "GET")
        sources = copy_sources(client.environ, reading, place, settings.request_overrides == "pass")
        return SecondTargets(client, RouteJudge(routes, client), settings.preserve_host, sources).at

    def _recheck(self, route: Route, environ: Mapping[str, Any]) -> Recheck | None:
        interval, router = route.settings.recheck, self._engine.router
        if interval is None or router is None:
            return None
        return Recheck(interval, route_check(router, question_for(environ)))
