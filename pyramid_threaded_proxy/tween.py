"""Admission: the last word before an exchange exists. Right under Pyramid's exception views, which render a refusal."""

from __future__ import annotations

from collections.abc import Callable

from pyramid.exceptions import URLDecodeError
from pyramid.httpexceptions import HTTPBadRequest, HTTPNoContent
from pyramid.registry import Registry
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy.app.admit import unavailable
from pyramid_threaded_proxy.app.declared import ENGINE
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.front import FRONT, leads_elsewhere
from pyramid_threaded_proxy.app.host import is_for
from pyramid_threaded_proxy.app.refusals import note_refusal, reason_of
from pyramid_threaded_proxy.app.response import ProxyResponse
from pyramid_threaded_proxy.app.verify import Question
from pyramid_threaded_proxy.exceptions import TooManyExchanges, UpstreamsResting
from pyramid_threaded_proxy.http.target import escaped_path, rest_below

Handler = Callable[[Request], Response]


def proxy_tween_factory(handler: Handler, registry: Registry) -> Handler:
    """The tween: gives each `ProxyResponse` that passes its place, or raises 503.

    Escapes that are not UTF-8, which Pyramid can't match with any route, are 400 below a mount.
    """

    engine: Engine = registry[ENGINE]

    def proxy_tween(request: Request) -> Response:
        if engine.mounts is not None and (script_name := request.environ.get("SCRIPT_NAME")):
            engine.mounts.learn(script_name)
        question = request.environ.get(FRONT)
        if isinstance(question, Question) and leads_elsewhere(request, question.route):
            return HTTPNoContent()  # and so no view has said yes
        try:
            response = handler(request)
        except URLDecodeError as error:
            route = _route_below(request, engine)
            if route is None:
                raise
            note_refusal(request, route, "target")
            raise HTTPBadRequest("the path's escapes are not UTF-8 (RFC 3987 3.2)") from error
        if isinstance(response, ProxyResponse):
            try:
                response.admit(request.environ)
            except (TooManyExchanges, UpstreamsResting) as error:
                note_refusal(request, response.proxy_exchange.route, reason_of(error))
                raise unavailable(error) from None
        return response

    return proxy_tween


def _route_below(request: Request, engine: Engine) -> str | None:
    """The name of a route that the path is below the mount of, for the Host that was asked."""
    path, host = escaped_path(request.environ.get("PATH_INFO", "")), request.environ.get("HTTP_HOST", "")
    for name, route in engine.routes.items():
        if route.is_prefix and is_for(route.settings.host, host) and rest_below(path, route.mount) is not None:
            return name
    return None
