"""The view behind each declared route: called when Pyramid has matched it and asked for the permission."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyramid.httpexceptions import HTTPNoContent
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.environ import ClientRequest
from pyramid_threaded_proxy.app.prepare import balancing_user, http_error, prepare
from pyramid_threaded_proxy.app.refusals import note_refusal, reason_of
from pyramid_threaded_proxy.app.response import ProxyResponse
from pyramid_threaded_proxy.app.routes import Route
from pyramid_threaded_proxy.exceptions import RequestRefused
from pyramid_threaded_proxy.http.target import escaped_path
from pyramid_threaded_proxy.relay.destination import Destination, UpstreamChoice
from pyramid_threaded_proxy.relay.prepared import Public, Recheck
from pyramid_threaded_proxy.relay.recheck import EXPLAINED, QUESTION, PermissionQuestion, question_for, route_check


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
        try:
            answer = self._answer(self._engine.routes[self._name], ClientRequest(request))
        except RequestRefused as error:
            note_refusal(request, self._name, reason_of(error))
            raise http_error(error) from None
        if EXPLAINED in request.environ and isinstance(answer, ProxyResponse):
            request.environ[EXPLAINED](answer)
            return HTTPNoContent()
        return answer

    def _answer(self, route: Route, client: ClientRequest) -> Response:
        script_name, matched = client.environ.get("SCRIPT_NAME", ""), client.request.matchdict
        mount = escaped_path(script_name) + route.mount if script_name else route.mount
        path, query = client.raw_target()
        choice = UpstreamChoice(
            route.balancer,
            balancing_user(route.balancer, client),
            lambda upstream: route.target(upstream, path, query, mount, matched),
            route.settings.preserve_host,
        )
        destination = Destination(choice.upstream.origin, choice.target, choice)
        public = Public(client.public_url(), mount, mount if route.is_prefix else None)
        return prepare(client, route.rules, destination, public, self._recheck(route, client.environ))

    def _recheck(self, route: Route, environ: Mapping[str, Any]) -> Recheck | None:
        interval, router = route.settings.recheck, self._engine.router
        if interval is None or router is None:
            return None
        return Recheck(interval, route_check(router, question_for(environ)))
