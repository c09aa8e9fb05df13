"""Admission: the last word before an exchange exists. Right under Pyramid's exception views, which render a refusal."""

from __future__ import annotations

from collections.abc import Callable

from pyramid.registry import Registry
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy.exceptions import TooManyExchanges
from pyramid_threaded_proxy.response import ProxyResponse, unavailable

Handler = Callable[[Request], Response]


def proxy_tween_factory(handler: Handler, registry: Registry) -> Handler:
    """The tween: gives each `ProxyResponse` that passes its place, or raises 503."""

    def proxy_tween(request: Request) -> Response:
        response = handler(request)
        if isinstance(response, ProxyResponse):
            try:
                response.admit(request.environ)
            except TooManyExchanges as error:
                raise unavailable(error) from None
        return response

    return proxy_tween
