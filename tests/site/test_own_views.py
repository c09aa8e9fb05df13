"""What loading the add-on costs views that have nothing to do with it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from webob import Request as WebObRequest


@pytest.fixture
def collected_by_hand() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("collected_by_hand")
@pytest.mark.parametrize("addon", [False, True])
def test_a_request_dies_with_its_answer(addon: bool) -> None:
    """As without the add-on: nothing that we put on it refers back to it, so that no collector has to find it."""
    seen: list[weakref.ref[Any]] = []

    def view(request: Request) -> Response:
        seen.append(weakref.ref(request))
        return Response("own")

    with Configurator() as config:
        if addon:
            config.include("pyramid_threaded_proxy")
        config.add_route("own", "/own")
        config.add_view(view, route_name="own")
        application = config.make_wsgi_app()
    assert WebObRequest.blank("/own").get_response(application).body == b"own"
    assert [dead() for dead in seen] == [None]


def test_a_request_method_outlives_its_request() -> None:
    """Who keeps the method alone is told that there is nothing to fetch for any more."""
    kept: list[Callable[..., Response]] = []

    def view(request: Request) -> Response:
        kept.append(request.proxy_fetch)
        return Response("own")

    with Configurator() as config:
        config.include("pyramid_threaded_proxy")
        config.add_route("own", "/own")
        config.add_view(view, route_name="own")
        application = config.make_wsgi_app()
    WebObRequest.blank("/own").get_response(application)
    gc.collect()
    with pytest.raises(ReferenceError, match="request of this proxy_fetch"):
        kept[0]("http://127.0.0.1:9/")
