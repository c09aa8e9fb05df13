"""A request that gets no exchange: what is counted of it, and how its page is told from others."""

from __future__ import annotations

from functools import partial
from typing import Any

from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy.app.declared import ENGINE
from pyramid_threaded_proxy.app.environ import ClientRequest
from pyramid_threaded_proxy.exceptions import (
    BodyTooLarge,
    DescriptorsExhausted,
    RequestRefused,
    TooManyExchanges,
    UpstreamsResting,
)
from pyramid_threaded_proxy.exchange import new_request_id

Refused = RequestRefused | TooManyExchanges | UpstreamsResting


def reason_of(error: Refused) -> str:
    """The word for it: one of a closed set."""
    if isinstance(error, UpstreamsResting):
        return "resting"
    if isinstance(error, TooManyExchanges):
        if isinstance(error.__cause__, DescriptorsExhausted):
            return "descriptors"
        return "user_limit" if error.status == 429 else "limit"
    return "body" if isinstance(error, BodyTooLarge) else "target"


def note_refusal(request: Request, route: str, reason: str) -> None:
    """Count it, and have the page that the application makes of it bear its id. In the thread of the request."""
    engine = request.registry[ENGINE]
    if engine.status is not None:
        engine.status.refused(route, reason)
    header = engine.settings.request_id_header
    if header:
        given = ClientRequest(request).given_id(header)
        request.add_response_callback(partial(_name, header, given or new_request_id()))


def _name(header: str, request_id: str, request: Any, response: Response) -> None:
    response.headers.setdefault(header, request_id)
