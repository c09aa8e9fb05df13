"""The status page, its JSON, the metrics, and the actions. Called in the thread of the request.

Pyramid has asked for the permission by then. An action is believed only with the page's own token and from the page's
own origin: a cookie of ours that other sites can't read (double submit), whatever CSRF options the application has.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable
from math import inf
from typing import Any

from pyramid.csrf import CookieCSRFStoragePolicy
from pyramid.httpexceptions import HTTPBadRequest, HTTPForbidden, HTTPNotFound, HTTPSeeOther
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy.status.document import document
from pyramid_threaded_proxy.status.report import Asked, report
from pyramid_threaded_proxy.status.status import Status

log = logging.getLogger("pyramid_threaded_proxy.status")

ROUTE = "pyramid_threaded_proxy.status"
#: Routes by their last word, and what stands behind the prefix.
PATHS = {"": "", "json": "/status.json", "metrics": "/metrics", "act": "/do/{action}"}
COOKIE = "proxy_status_csrf"

_FIELDS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with that a browser says `Origin: null` of the page's own forms.
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
_POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def answer(body: bytes, content_type: str, policy: str = "default-src 'none'; frame-ancestors 'none'") -> Response:
    """A response that nobody keeps, frames or takes for something else."""
    made = Response(body, content_type=content_type, charset="UTF-8", headerlist=None)
    made.headers.update(_FIELDS | {"Content-Security-Policy": policy})
    return made


class StatusViews:
    """The views of one application's status."""

    def __init__(self, status: Status, control_permission: str | None) -> None:
        self._status = status
        self._control_permission = control_permission

    def page(self, context: Any, request: Request) -> Response:
        """The whole page: readable as it is, and moved by its script."""
        nonce = secrets.token_urlsafe(16)
        may_control = self._control_permission is not None and request.has_permission(self._control_permission, context)
        token = _tokens(request).get_csrf_token(request) if may_control else ""
        asked = Asked(user=request.GET.get("user", ""), route=request.GET.get("route", ""))
        text = document(report(self._status, asked), asked, request.route_path(ROUTE), token, nonce)
        made = answer(text.encode(), "text/html", _POLICY.format(nonce))
        return made

    def data(self, request: Request) -> Response:
        """The same as JSON; ``?since=N&minute=N`` leaves out what is known of the history."""
        try:
            since, minute = (int(request.GET.get(name, "-1")) for name in ("since", "minute"))
        except ValueError:
            raise HTTPBadRequest("since and minute are numbers") from None
        found = report(self._status, Asked(since, minute, request.GET.get("user", ""), request.GET.get("route", "")))
        return answer(json.dumps(found).encode(), "application/json")

    def metrics(self, request: Request) -> Response:
        """The metrics, in the format that is asked for; 404 without `prometheus_client`."""
        try:
            from pyramid_threaded_proxy.status.metrics import exposition
        except ImportError:
            raise HTTPNotFound("prometheus_client is not installed (extra `metrics`)") from None
        body, content_type = exposition(self._status, request.headers.get("Accept", ""))
        made = Response(body)
        made.headers.update(_FIELDS)
        made.headers["Content-Type"] = content_type
        return made

    def act(self, request: Request) -> Response:
        """Do what a form says, once it is sure that the form is ours; 303 back to the page."""
        _check_own_form(request)
        action = request.matchdict["action"]
        done = self._end(request) if action == "close" else self._change(request, action)
        log.warning("%r did on the status page: %s", request.authenticated_userid, done)
        return HTTPSeeOther(request.route_path(ROUTE), headers=_FIELDS)

    def _end(self, request: Request) -> str:
        request_id = request.POST.get("id", "")
        told = self._status.observed.close(request_id) if request_id else 0
        return f"close {request_id!r}: {told} told to end"

    def _change(self, request: Request, action: str) -> str:
        change = _CHANGES.get(action)
        asked = request.POST.get("route", ""), request.POST.get("upstream", "")
        for route, upstream, _ in self._status.observed.upstreams():
            if change is not None and (route, upstream.url) == asked:
                change(upstream.health)
                self._status.reasons[asked] = f"by {request.authenticated_userid or 'somebody'} on the status page"
                return f"{action} {upstream.url} of {route}"
        raise HTTPNotFound("There is no such action or upstream.")


#: Seconds that an upstream rests when an operator says so.
REST = 60.0
_CHANGES: dict[str, Callable[[Any], None]] = {
    "rest": lambda health: health.hold(REST),
    "drain": lambda health: health.hold(inf),
    "wake": lambda health: health.wake(),
}


def _tokens(request: Request) -> CookieCSRFStoragePolicy:
    path = request.route_path(ROUTE)
    return CookieCSRFStoragePolicy(
        cookie_name=COOKIE, secure=request.scheme == "https", httponly=True, path=path, samesite="Strict"
    )


def _check_own_form(request: Request) -> None:
    """Raise 403 for a form of another origin, or without the token that the page's cookie has."""
    origin = request.headers.get("Origin")
    if origin is None or origin.lower() != request.host_url.lower():
        raise HTTPForbidden("This form is not from the status page.")
    if not request.cookies.get(COOKIE) or not _tokens(request).check_csrf_token(request, request.POST.get("csrf", "")):
        raise HTTPForbidden("This form's token is not the page's.")
